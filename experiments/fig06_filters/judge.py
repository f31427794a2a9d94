"""What the stored cells of Fig. 6 say: how much smaller and faster at what loss of accuracy, method beside method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict
from experiments.common.plots import figure, legend
from experiments.common.statistics import by, mean_and_error, shown, table
from experiments.fig06_filters.measure import BASELINES, Configuration

LOSSES = (0.01, 0.05)  # of accuracy, absolute, below the dense network
GAINS = ("flops", "parameters", "speedup")
WORDS = {"flops": "FLOPs, fewer", "parameters": "parameters, fewer", "speedup": "faster"}
STYLE = {"filters": "-", "coupled": "--", "norms": ":", "anchored": "-."}
DEPTH_COLOUR = {"2": "#1f77b4", "3": "#d62728", "4": "#2ca02c"}
BASELINE_COLOUR = {"magnitude": "#7f7f7f", "direct": "#8c564b", "slimming": "#9467bd"}


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every task: the dense accuracy, and every method's points, those of its own zeros apart."""
    out: Summary = {}
    for task, cells in by(records, lambda cell: cell["task"]).items():
        dense = {r.cell["seed"]: r.found["accuracy"] for r in cells if r.cell["method"] == "magnitude"}
        methods = {
            method: [_run(r) for r in runs if "points" in r.found]
            for method, runs in by(cells, lambda cell: cell["method"]).items()
        }
        out[task] = {
            "dense": dense, "methods": {m: runs for m, runs in methods.items() if runs},
            "diverged": sum("diverged" in r.found for r in cells),
        }  # fmt: skip
    return out


def _run(r: Record) -> dict[str, Any]:
    points = [
        {
            **p,
            "flops": p["flops"][0] / p["flops"][1],
            "parameters": p["parameters"][0] / p["parameters"][1],
            "share": p["left"] / r.found["filters"],
        }
        for p in r.found["points"]
    ]
    return {"lam": r.cell["lam"], "seed": r.cell["seed"], "accuracy": r.found["accuracy"], "points": points}


def reached(task: dict[str, Any], method: str, gain: str, loss: float, accuracy: str = "accuracy") -> list[float]:
    """By seed, the largest gain of a point that loses at most so much; one (the dense network) where there is none."""
    out = []
    for seed, dense in task["dense"].items():
        runs = [r for r in task["methods"].get(method, []) if r["seed"] == seed]
        good = [p[gain] for r in runs for p in r["points"] if p[accuracy] >= dense - loss]
        if runs:
            out.append(max([1.0, *good]))
    return out


def _best(task: dict[str, Any], gated: bool, gain: str, loss: float) -> tuple[str, float]:
    """The method with the largest mean gain among the gated ones, or among the baselines."""
    means = {m: float(np.mean(reached(task, m, gain, loss))) for m in task["methods"] if (m in BASELINES) != gated}
    name = max(means, key=lambda m: means[m])
    return name, means[name]


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Smaller and faster than the baselines at equal loss; sparser for larger D; is a FLOP saved time saved?"""
    usable = {
        name: task for name, task in summary.items()
        if task["dense"] and any(m in BASELINES for m in task["methods"]) and set(task["methods"]) - {*BASELINES}
    }  # fmt: skip
    if not usable:
        return []
    return [_ahead(usable), *_sparser(usable), _time(usable)]


def _ahead(usable: dict[str, dict[str, Any]]) -> Verdict:
    words, good = [], []
    for name, task in usable.items():
        for loss in LOSSES:
            for gain in ("flops", "speedup"):
                (ours, a), (theirs, b) = (_best(task, gated, gain, loss) for gated in (True, False))
                good.append(a > b)
                words.append(f"{name}, −{100 * loss:g} %: {a:.1f}× {WORDS[gain]} ({ours}), {b:.1f}× ({theirs})")
    return Verdict(
        "gated networks are smaller and faster than every baseline's at equal loss of accuracy", "Table 1",
        "; ".join(words), "reproduced" if all(good) else "partly" if any(good) else "not reproduced",
    )  # fmt: skip


def _sparser(usable: dict[str, dict[str, Any]]) -> list[Verdict]:
    """Plain filters, own zeros at equal λ."""
    words, good = [], []
    for name, task in usable.items():
        left = {d: _own_shares(task, f"filters, D = {d}") for d in (2, 3, 4)}
        lams = [lam for lam in left[2] if lam in left[3] and lam in left[4]]
        if lams:
            means = {d: float(np.mean([left[d][lam] for lam in lams])) for d in left}
            good.append(means[2] > means[3] and means[2] > means[4])
            words.append(f"{name}: " + ", ".join(f"{100 * v:.0f} % (D = {d})" for d, v in means.items()))
    if not words:
        return []
    return [Verdict(
        "D = 3 and 4 are sparser than D = 2 at equal λ", "sparser",
        f"filters left, mean over λ: {'; '.join(words)}",
        "reproduced" if all(good) else "partly" if any(good) else "not reproduced",
    )]  # fmt: skip


def _own_shares(task: dict[str, Any], method: str) -> dict[float, float]:
    found: dict[float, list[float]] = {}
    for run in task["methods"].get(method, []):
        found.setdefault(run["lam"], []).extend(p["share"] for p in run["points"] if p.get("own"))
    return {lam: float(np.mean(shares)) for lam, shares in found.items() if shares}


def _time(usable: dict[str, dict[str, Any]]) -> Verdict:
    ratios = [
        p["speedup"] / p["flops"]
        for task in usable.values() for runs in task["methods"].values() for r in runs for p in r["points"]
        if p["flops"] > 1.5
    ]  # fmt: skip
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9]) if ratios else [math.nan] * 3
    return Verdict(
        "a FLOP less is time less: measured speed-up at least 0.6 of that in FLOPs", "theoretical FLOPs only",
        f"median {middle:.2f} ({low:.2f} to {high:.2f} from the tenth to the ninetieth percentile) over {len(ratios)} "
        "compact networks with at most two thirds of the FLOPs",
        "reproduced" if middle >= 0.6 else "not reproduced",
    )  # fmt: skip


def tables(c: Configuration, summary: Summary) -> str:
    """Gains at equal loss, by task; with and without recalibrated batch norms."""
    parts = []
    for name, task in summary.items():
        if not task["dense"]:
            continue
        rows = []
        for method in task["methods"]:
            cells = [
                shown(reached(task, method, gain, loss), 1) for loss in LOSSES for gain in GAINS
            ] + [shown(reached(task, method, "flops", loss, "recalibrated"), 1) for loss in LOSSES]  # fmt: skip
            rows.append((method, *cells))
        head = [f"{WORDS[g]}, −{100 * loss:g} %" for loss in LOSSES for g in GAINS]
        head += [f"FLOPs, fewer, −{100 * loss:g} %, recalibrated" for loss in LOSSES]
        mean, error = mean_and_error(task["dense"].values())
        spread = "" if math.isnan(error) else f" ± {100 * error:.1f}"
        parts.append(
            f"**{name}** (dense: {100 * mean:.1f}{spread} %): ratios dense over compact of the smallest network within "
            "one and within five percent points of the dense accuracy, mean ± standard error over seeds. "
            "Recalibrated: the statistics of batch norm are taken anew from training pictures before the test:\n\n"
            + table(["method", *head], rows)
        )
    return "\n\n".join(parts)


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Accuracy against FLOPs and against time: for every method the best of all its points."""
    tasks = {name: task for name, task in summary.items() if task["dense"]}
    if not tasks:
        return {}
    made, panels = figure(columns=3, rows=len(tasks))
    for row, (name, task) in zip(panels, tasks.items(), strict=True):
        for panel, key, label in zip(row, ("share", "flops", "speedup"),
                                     ("share of filters left", "FLOPs, dense over compact", "time, dense over compact"),
                                     strict=True):  # fmt: skip
            for method, runs in task["methods"].items():
                points = [(p[key], p["accuracy"]) for r in runs for p in r["points"]]
                _frontier(panel, method, points, falling=key != "share")
            panel.axhline(np.mean([*task["dense"].values()]), color="k", lw=0.7, ls=":")
            panel.set(xscale="log", xlabel=label, title=name)
        row[0].set_ylabel("test accuracy")
    legend(made, panels)
    return {"accuracy": made}


def _frontier(panel: Any, method: str, points: list[tuple[float, float]], falling: bool) -> None:
    """The points that no other point of the method beats on both sides."""
    best, kept = -1.0, []
    for x, y in sorted(points, reverse=falling):
        if y > best:
            kept.append((x, y))
            best = y
    kind, _, depth = method.partition(", D = ")
    colour = DEPTH_COLOUR[depth] if depth else BASELINE_COLOUR[kind]
    panel.plot(*zip(*kept, strict=True), label=method, color=colour, ls=STYLE.get(kind, "-"), marker=".", lw=1.1, ms=4)
