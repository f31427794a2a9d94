"""What the stored cells of the encoder say: how alike it stays, how small and fast it gets, method beside method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import COLOURS, figure, legend
from experiments.common.statistics import by, table
from experiments.minilm_encoder.measure import Configuration

LEVELS = (0.98, 0.95, 0.9, 0.8)  # of the correlation of similarities
CLEAR = 0.01  # a difference in size or time below one per cent is none
Point = dict[str, Any]
MEASURES = {
    "smaller": ("parameters of the layers", lambda p: p["layers"][1] / p["layers"][0]),
    "fewer FLOPs": ("FLOPs", lambda p: p["flops"][1] / p["flops"][0]),
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


def at_level(points: Sequence[Point], level: float, cost: Any) -> float | None:
    """The smallest cost among encoders whose correlation, on the sentences to choose by, is at least ``level``.

    Mean over seeds; ``None`` where a seed has no such encoder.
    """
    found = []
    for seed in {p["seed"] for p in points}:
        good = [cost(p) for p in points if p["seed"] == seed and p["validation"]["spearman"] >= level]
        if not good:
            return None
        found.append(min(good))
    return float(np.mean(found)) if found else None


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Smaller, cheaper, faster than the best of the others at the same likeness?"""
    gated = [m for m in summary if m.startswith("D = ")]
    others = [m for m in summary if m not in gated]
    if not gated or not others:
        return []
    out = []
    for word, (name, cost) in MEASURES.items():
        words, ahead, behind = [], 0, 0
        for level in LEVELS:
            ours, theirs = (
                min((v for m in methods if (v := at_level(summary[m], level, cost)) is not None), default=None)
                for methods in (gated, others)
            )
            if ours is None and theirs is None:
                continue
            ahead += theirs is None or (ours is not None and ours < (1 - CLEAR) * theirs)
            behind += ours is None or (theirs is not None and theirs < (1 - CLEAR) * ours)
            words.append(f"{level:g}: {_percent(ours)} and {_percent(theirs)}")
        if words:
            out.append(Verdict(
                f"at an equal correlation of similarities the gated encoder is {word} than those pruned by magnitude",
                "–", f"{name} left, gated and the best other, at a correlation of at least {'; '.join(words)}",
                status(ahead == len(words), ahead > 0), f"behind at {behind} of {len(words)} levels" if behind else "",
            ))  # fmt: skip
    return out


def _percent(share: float | None) -> str:
    return "not reached" if share is None else f"{100 * share:.0f} %"


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
