"""Pictures in one style: no display, one colour a method, bands of standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student_t

COLOURS = {
    "D = 2": "#1f77b4", "D = 3": "#d62728", "D = 4": "#2ca02c", "dgating.path": "#e377c2",
    "D = 5": "#8c564b", "D = 6": "#17becf", "D = 8": "#393b79", "D = 12": "#637939", "D = 20": "#843c39",
    "LassoNet": "#ff7f0e", "HSIC-Lasso": "#9467bd", "direct": "#7f7f7f", "FISTA": "#111111", "oracle": "#bcbd22",
}  # fmt: skip


def figure(columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of panels, without pyplot: nothing global, nothing to close."""
    with mpl.rc_context({"font.size": 9}):
        made = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
        panels = made.subplots(rows, columns, squeeze=False, **options)
    for panel in panels.flat:
        panel.grid(alpha=0.25, linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    return made, panels


def band(panel: Any, x: Sequence[float], runs: Sequence[Sequence[float]], label: str, **options: Any) -> None:
    """The mean over runs (rows) with a band of 95 % (standard errors times the quantile of Student's t).

    Runs that diverged (nan) do not count; where they are half of all or more there is a hole.
    """
    array = np.ma.masked_invalid(np.array(runs, dtype=float))
    mean = np.ma.masked_where(2 * array.count(0) <= len(array), array.mean(0))
    colour = options.pop("color", COLOURS.get(label))
    (line,) = panel.plot(x, mean, label=label, color=colour, **options)
    if len(array) > 1:
        counts = np.maximum(array.count(0), 2)
        error = student_t.ppf(0.975, counts - 1) * array.std(0, ddof=1) / np.sqrt(counts)
        panel.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.15, linewidth=0)


def legend(made: Figure, panels: Any, columns: int = 8) -> None:
    """One legend below all panels, every label once; none where nothing was drawn."""
    handles: dict[str, Any] = {}
    for panel in panels.flat:
        handles |= {label: line for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    if handles:
        made.legend(handles.values(), handles.keys(), fontsize=7, loc="outside lower center", ncols=columns)
