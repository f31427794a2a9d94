"""What the stored cells of the encoder say: how alike it stays, how small and fast it gets, method beside method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import COLOURS, figure, legend
from experiments.common.statistics import by, cost_at, table
from experiments.minilm_encoder.measure import Configuration

LEVELS = (0.98, 0.95, 0.9, 0.8)  # of the correlation of similarities
CLEAR = 0.01  # a difference in size or time below one per cent is none
SAME = 0.001  # nor one in correlation up to this
Point = dict[str, Any]
MEASURES = {
    "smaller": ("parameters of the layers", lambda p: p["layers"][1] / p["layers"][0]),
    "faster": ("time", lambda p: 1 / p["speedup"]),
}


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every method and ratio the step size that is best on the sentences to choose by; for each seed."""
    best: dict[str, list[Point]] = {}
    trials = by(records, lambda cell: (cell["method"], cell["ratio"], cell["seed"]))
    for (method, _, _), runs in trials.items():
        chosen = max(runs, key=lambda r: r.found["validation"]["spearman"])
        best.setdefault(method, []).append({**chosen.cell, **chosen.found, "trials": len(runs)})
    return {method: sorted(points, key=lambda p: -p["layers"][1]) for method, points in best.items()}


def at_level(points: Sequence[Point], level: float, cost: Callable[[Point], float]) -> float:
    """The cost at which the correlation, on the sentences to choose by, is ``level``; mean over seeds.

    Linear between the measured encoders; the original costs one and has correlation one.
    """
    measured = {p["seed"]: [(1.0, 1.0)] for p in points}
    for p in points:
        measured[p["seed"]].append((cost(p), p["validation"]["spearman"]))
    return float(np.mean([cost_at(level, of) for of in measured.values()]))


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """More alike at the same share? Smaller and faster, where equally alike, than the best of the others?"""
    gated = [m for m in summary if m.startswith("D = ")]
    others = [m for m in summary if m not in gated]
    if not gated or not others:
        return []
    return [_at_shares(summary, gated, others), *(_at_levels(summary, gated, others, word) for word in MEASURES)]


def _at_shares(summary: Summary, gated: Sequence[str], others: Sequence[str]) -> Verdict:
    """At the shares that both have been measured at: the best mean over seeds."""

    def best(methods: Sequence[str]) -> dict[float, float]:
        found: dict[float, float] = {}
        for m in methods:
            for ratio in {p["ratio"] for p in summary[m]}:
                mean = float(np.mean([p["test"]["spearman"] for p in summary[m] if p["ratio"] == ratio]))
                found[ratio] = max(mean, found.get(ratio, mean))
        return found

    ours, theirs = best(gated), best(others)
    both = sorted(ours.keys() & theirs.keys())
    ahead = [ours[ratio] > theirs[ratio] + SAME for ratio in both]
    words = [f"{100 * ratio:.0f} %: {ours[ratio]:.3f} and {theirs[ratio]:.3f}" for ratio in both]
    return Verdict(
        "with an equal share of heads and neurons gone the gated encoder is more like the original", "–",
        f"correlation of similarities, gated and the best other, without {'; '.join(words)}",
        status(bool(ahead) and all(ahead), any(ahead)),
    )  # fmt: skip


def _at_levels(summary: Summary, gated: Sequence[str], others: Sequence[str], word: str) -> Verdict:
    name, cost = MEASURES[word]
    words, ahead = [], []
    for level in LEVELS:
        ours, theirs = (min(at_level(summary[m], level, cost) for m in methods) for methods in (gated, others))
        ahead.append(ours < (1 - CLEAR) * theirs)
        words.append(f"{level:g}: {100 * ours:.0f} % and {100 * theirs:.0f} %")
    return Verdict(
        f"at an equal correlation of similarities the gated encoder is {word} than those pruned by magnitude", "–",
        f"{name} left, gated and the best other, linear between shares, at a correlation of {'; '.join(words)}",
        status(all(ahead), any(ahead)),
    )  # fmt: skip


def tables(c: Configuration, summary: Summary) -> str:
    """Every chosen encoder: likeness when cut and at the end, what is left, size, speed."""
    rows = [
        (
            method, f"{p['ratio']:g}", f"{p['lr']:g}", _kept(p["left"]["heads"]), _kept(p["left"]["neurons"]),
            f"{100 * p['layers'][1] / p['layers'][0]:.0f} %", f"{p['parameters'][0]:,} → {p['parameters'][1]:,}",
            f"{p['flops'][0] / p['flops'][1]:.2f}×", f"{p['speedup']:.2f}×", f"{p['before']:.3f}",
            f"{p['test']['spearman']:.3f}", f"{p['test']['cosine']:.3f}",
        )
        for method, points in summary.items() for p in points
    ]  # fmt: skip
    head = ["method", "share to go", "step size", "heads left", "neurons left", "parameters left in the layers",
            "all parameters", "FLOPs, fewer", "faster", "correlation when cut", "correlation", "cosine"]  # fmt: skip
    return (
        "Test sentences: rank correlation of the similarities of all pairs with those of the original, and mean "
        "cosine. Of several step sizes the one that is best on other sentences. Size and speed are those of the "
        "compact encoder; its outputs are those of the one with zeros"
        + (f" up to {max(p['difference'] for v in summary.values() for p in v):.0e}" if summary else "")
        + f":\n\n{table(head, rows)}"
    )


def _kept(layers: Sequence[int]) -> str:
    return f"{sum(layers)} ({'/'.join(map(str, layers))})"


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Correlation against size and against time."""
    if not summary:
        return {}
    made, panels = figure(columns=2, sharey=True)
    for i, (method, points) in enumerate(summary.items()):
        colour = COLOURS.get(method, f"C{i + 4}")
        for panel, (_, cost) in zip(panels[0], (MEASURES["smaller"], MEASURES["faster"]), strict=True):
            style = "none" if len({p["seed"] for p in points}) > 1 else "-"
            panel.plot([100 * cost(p) for p in points], [p["test"]["spearman"] for p in points], color=colour,
                       marker=".", ls=style, label=method)  # fmt: skip
    panels[0, 0].set(xlabel="parameters left in the layers, %", ylabel="correlation of similarities")
    panels[0, 1].set(xlabel="time of a batch, % of the original's")
    legend(made, panels)
    return {"likeness": made}
