"""What the stored cells of the encoder say: how alike it stays, how small it gets, beside magnitude pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict
from experiments.common.plots import COLOURS, figure, legend
from experiments.common.statistics import by, table
from experiments.minilm_encoder.measure import Configuration

LEVELS = (0.98, 0.95, 0.9)  # of the correlation of similarities


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every method its points, from large to small."""
    return {
        method: sorted(
            ({"at": r.cell["at"], "seed": r.cell["seed"], **r.found} for r in runs), key=lambda p: -p["layers"][1]
        )
        for method, runs in by(records, lambda cell: cell["method"]).items()
    }


def smallest(points: list[dict[str, Any]], level: float) -> float:
    """Share of the layers' parameters that is left, at a correlation; along a line between neighbouring points."""
    at = sorted((p["spearman"], p["layers"][1] / p["layers"][0]) for p in points)
    at.append((1.0, 1.0))  # the original
    if level < at[0][0]:
        return at[0][1]
    return float(np.interp(level, [a for a, _ in at], [b for _, b in at]))


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Smaller than magnitude pruning at the same likeness?"""
    gated = {m: points for m, points in summary.items() if m != "magnitude"}
    if not gated or "magnitude" not in summary:
        return []
    words, good = [], []
    for level in LEVELS:
        ours = {m: smallest(points, level) for m, points in gated.items()}
        best, other = min(ours, key=lambda m: ours[m]), smallest(summary["magnitude"], level)
        good.append(ours[best] < other)
        words.append(f"{level:g}: {100 * ours[best]:.0f} % ({best}), {100 * other:.0f} % (magnitude)")
    return [Verdict(
        "at an equal correlation of similarities the gated encoder is smaller than the one pruned by magnitude", "–",
        f"parameters left in the layers at a correlation of {'; '.join(words)}",
        "reproduced" if all(good) else "partly" if any(good) else "not reproduced",
    )]  # fmt: skip


def tables(c: Configuration, summary: Summary) -> str:
    """Every point: likeness before and after training on, size, speed."""
    rows = [
        (
            method, f"{p['at']:g}", f"{100 * p['layers'][1] / p['layers'][0]:.0f} %",
            f"{p['parameters'][0]:,} → {p['parameters'][1]:,}", f"{p['flops'][0] / p['flops'][1]:.2f}×",
            f"{p['speedup']:.2f}×", f"{p['before']['spearman']:.3f}", f"{p['spearman']:.3f}", f"{p['cosine']:.3f}",
        )
        for method, points in summary.items() for p in points
    ]  # fmt: skip
    head = ["method", "λ or ratio", "parameters left in the layers", "all parameters", "FLOPs, fewer", "faster",
            "correlation when taken out", "correlation in the end", "cosine with the original"]  # fmt: skip
    return (
        "Held-out sentences: rank correlation of the similarities of all pairs with those of the original. Size and "
        f"speed are those of the compact encoder, its outputs are those of the one with zeros:\n\n{table(head, rows)}"
    )


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Correlation against size and against speed."""
    if not summary:
        return {}
    made, panels = figure(columns=2, sharey=True)
    for method, points in summary.items():
        colour = COLOURS.get(method, COLOURS["direct"])
        for panel, x in zip(panels[0], ([100 * p["layers"][1] / p["layers"][0] for p in points],
                                        [p["speedup"] for p in points]), strict=True):  # fmt: skip
            panel.plot(x, [p["spearman"] for p in points], color=colour, marker=".", label=method)
    panels[0, 0].set(xlabel="parameters left in the layers, %", ylabel="correlation of similarities")
    panels[0, 1].set(xlabel="time, original over compact")
    legend(made, panels)
    return {"likeness": made}
