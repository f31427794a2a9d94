"""What the stored cells of Fig. 6 say: how much smaller and faster at what loss of accuracy, method beside method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import dgating as dg
from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import COLOURS, figure, legend
from experiments.common.statistics import at_quality, by, mean_and_error, shown, table
from experiments.fig06_filters.measure import PRUNED, THRESHOLD, Configuration, depth_of, parsed
from experiments.fig06_filters.units import KINDS

LOSSES = (0.01, 0.05, 0.10)  # of accuracy, absolute, below the dense network
GAINS = {"flops": "FLOPs, fewer", "parameters": "parameters, fewer", "speedup": "faster"}
AHEAD = {"flops": "has fewer FLOPs", "parameters": "has fewer parameters", "speedup": "is faster"}
TREATMENTS = ("closed", "recalibrated")  # of batch norms, those whose network can be cut
OURS = ("coupled, D = 3", "coupled, D = 4", "coupled, priced D = 3", "coupled, quick D = 3")  # the documented units
DIRECT = ("coupled, direct", "coupled, priced direct")
TABLE_1 = "5 / 10 %, VGG-16 on CIFAR-10: D = 3 11.2 / 25.5, D = 4 18.9 / 49.0, direct 7.0 / 7.0, slimming 2.5 / 4.9"
STYLE = {"filters": "-", "coupled": "--", "norms": ":", "scales": "-.", "": "-"}
WAYS = {
    "direct": "#7f7f7f",
    "priced direct": "#bcbd22",
    "priced D = 3": "#8c564b",
    "torch-pruning": "#ff7f0e",
    "anchored D = 3": "#9467bd",
    "quick D = 3": "#e377c2",
    "dense": "k",
    **COLOURS,
}
Task = dict[str, Any]
Point = dict[str, Any]


def gated(method: str) -> bool:
    """Ours or a baseline."""
    return "D = " in method


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every task the dense accuracy by seed, and of every method its points by seed with their gains."""
    out: Summary = {}
    for name, cells in by(records, lambda cell: cell["task"]).items():
        good = [r for r in cells if "points" in r.found]
        points: dict[str, dict[int, list[Point]]] = {}
        for r in good:
            for p in r.found["points"]:
                method = f"dense by {p['by']}" if r.cell["method"] == "dense" else r.cell["method"]
                points.setdefault(method, {}).setdefault(r.cell["seed"], []).append(_gains(r, p))
        dense = {r.cell["seed"]: {"machine": r.machine, **{k: r.found[k] for k in ("validation", "test")}} for r in good
                 if r.cell["method"] == "dense"}  # fmt: skip
        diverged = sum("diverged" in r.found for r in cells)
        watched = by([r for r in good if r.found.get("certified") is not None], lambda cell: cell["method"])
        out[name] = {
            "dense": dense, "points": points, "own": _own(good), "diverged": diverged,
            "watched": {m: [r.found for r in records] for m, records in watched.items()},
        }  # fmt: skip
    return out


def _gains(r: Record, p: Point) -> Point:
    ratios = {gain: p[gain][0] / p[gain][1] for gain in ("flops", "parameters")}
    share = p["left"] / r.found["filters"] if "left" in p else None
    return {**p, **ratios, "share": share, "lam": r.cell["lam"], "machine": r.machine}


def _own(records: Sequence[Record]) -> dict[str, dict[float, list[float]]]:
    """Share of filters that are left by threshold, by method and λ."""
    out: dict[str, dict[float, list[float]]] = {}
    for r in records:
        if gated(r.cell["method"]):
            share = r.found["points"][0]["left"] / r.found["filters"]
            out.setdefault(r.cell["method"], {}).setdefault(r.cell["lam"], []).append(share)
    return out


def chosen(task: Task, method: str, seed: int, loss: float) -> Point | None:
    """The network with the fewest FLOPs whose accuracy on the pictures to choose by loses at most so much."""
    least = task["dense"][seed]["validation"] - loss
    good = [
        p for p in task["points"].get(method, {}).get(seed, [])
        if max(p["accuracy"][t]["validation"] for t in TREATMENTS if t in p["accuracy"]) >= least
    ]  # fmt: skip
    return max(good, key=lambda p: p["flops"], default=None)


def comparable(task: Task, method: str, gain: str) -> dict[int, list[Point]]:
    """By seed, the points of a method that can stand beside the dense network's; times only if of the same machine."""
    return {
        seed: [p for p in points if gain != "speedup" or p["machine"] == task["dense"][seed]["machine"]]
        for seed, points in task["points"].get(method, {}).items() if seed in task["dense"]
    }  # fmt: skip


def at_loss(
    task: Task, method: str, loss: float, gain: str = "flops", treatments: Sequence[str] = TREATMENTS
) -> list[tuple[float, float]]:
    """By seed, at this loss on the pictures to choose by: gain and accuracy on the test pictures.

    λ, share and treatment are free; the cost (one over the gain) and the accuracies are linear between the networks of
    the method's frontier, to which the dense one belongs.
    """
    found = []
    for seed, points in comparable(task, method, gain).items():
        dense = task["dense"][seed]
        networks = [
            (1 / p[gain], *(p["accuracy"][t][part] for part in ("validation", "test")))
            for p in points for t in treatments if t in p["accuracy"]
        ]  # fmt: skip
        if networks:
            whole = (1.0, dense["validation"], dense["test"])
            cost, _, test = at_quality(dense["validation"] - loss, [whole, *networks])
            found.append((1 / cost, test))
    return found


def gains(task: Task, method: str, gain: str, loss: float, treatments: Sequence[str] = TREATMENTS) -> list[float]:
    """By seed (:func:`at_loss`)."""
    return [more for more, _ in at_loss(task, method, loss, gain, treatments)]


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """The paper's claims, then ours."""
    usable = {n: t for n, t in summary.items() if t["dense"] and {gated(m) for m in t["points"]} == {True, False}}
    if not usable:
        return []
    out = [_paper(usable), *_sparser(c, usable), *_deep(usable), *_units(usable)]
    out += [v for gain in GAINS for v in _ahead(usable, gain)]
    return [*out, *_time(usable)]


def _compare(
    usable: dict[str, Task], ours: Sequence[str], rivals: Sequence[Sequence[str]], gain: str, losses: Sequence[float]
) -> tuple[list[str], list[bool]]:
    """Best mean gain of ours and of every set of rivals, by task; ahead by over a standard error where it is known."""
    words, good = [], []
    for name, task in usable.items():
        for loss in losses:
            measured = [{m: g for m in of if (g := gains(task, m, gain, loss))} for of in (ours, *rivals)]
            best = [max(((*mean_and_error(g), m) for m, g in of.items()), key=lambda v: v[0]) for of in measured if of]
            if not measured[0] or len(best) < 2:
                continue
            (mine, error, _), *others = best
            good += [mine - mean > float(np.nansum([error**2, e**2])) ** 0.5 for mean, e, _ in others]
            words.append(f"{name}, −{100 * loss:g} %: " + ", ".join(f"{mean:.1f}× ({m})" for mean, _, m in best))
    return words, good


def _paper(usable: dict[str, Task]) -> Verdict:
    """With the paper's units and its baselines."""
    words, good = _compare(
        usable, ("filters, D = 3", "filters, D = 4"), [("filters, direct", "scales, direct", "dense by filters")],
        "flops", LOSSES[1:],
    )  # fmt: skip
    return Verdict(
        "gated filters save more FLOPs than direct descent with pruning, and than network slimming", TABLE_1,
        "; ".join(words), status(bool(good) and all(good), any(good)),
    )  # fmt: skip


def _sparser(c: Configuration, usable: dict[str, Task]) -> list[Verdict]:
    """Plain filters, own zeros at equal λ, where the time budget lets zeros be seen at all."""
    words, good = [], []
    for name, task in usable.items():
        left = {d: task["own"].get(f"filters, D = {d}", {}) for d in (2, 3, 4)}
        lams = [lam for lam in left[2] if lam in left[3] and lam in left[4] and _reachable(c, name, lam)]
        if lams:
            means = {d: float(np.mean([np.mean(left[d][lam]) for lam in lams])) for d in left}
            good.append(means[2] > means[3] and means[2] > means[4])
            values = ", ".join(f"{100 * v:.0f} % (D = {d})" for d, v in means.items())
            words.append(f"{name}, λ from {min(lams):g}: {values}")
    if not words:
        return []
    return [Verdict(
        "D = 3 and 4 are sparser than D = 2 at equal λ", "sparser",
        f"filters left by threshold, mean over λ: {'; '.join(words)}", status(all(good), any(good)),
    )]  # fmt: skip


def _reachable(c: Configuration, name: str, lam: float) -> bool:
    """Whether a group of norm one without signal falls below the threshold in the steps there are, at any depth."""
    task = next(t for t in c.tasks if t.name == name)
    steps = (task.epochs or c.epochs) * math.ceil((task.rows or 45_000) / c.batch)
    lr = min([task.lr, *dict(task.gated_lr).values()])
    return dg.time_budget(lam, lr, steps, c.momentum, "cosine", THRESHOLD).reachable


def _deep(usable: dict[str, Task]) -> list[Verdict]:
    """Reproduced if no depth gains a tenth at any loss, partly if none does in the geometric mean over losses."""
    name, task = next(iter(usable.items()))
    deep = [m for m in task["points"] if m.startswith("filters") and (depth_of(m) or 0) > 4]
    if not deep or "filters, D = 4" not in task["points"]:
        return []
    at = {m: [gains(task, m, "flops", loss)[0] for loss in LOSSES] for m in ("filters, D = 4", *deep)}
    more = [np.log(at[m]) - np.log(at["filters, D = 4"]) for m in deep]
    return [Verdict(
        "no measurable gain beyond D = 4 (Fig. 15)", "none up to D = 8",
        f"{name}, one seed, FLOPs saved at {'/'.join(f'−{100 * loss:g}' for loss in LOSSES)} %: "
        + "; ".join(f"{m} {'/'.join(f'{g:.1f}×' for g in v)}" for m, v in at.items()),
        status(bool(np.max(more) < np.log(1.1)), max(float(m.mean()) for m in more) < np.log(1.1)),
    )]  # fmt: skip


def _units(usable: dict[str, Task]) -> list[Verdict]:
    """The open question: which units. D = 3, each with its better treatment, by mean log gain in FLOPs; first task."""
    name, task = next(iter(usable.items()))
    score = {}
    for m in (f"{kind}, D = 3" for kind in KINDS if f"{kind}, D = 3" in task["points"]):
        both = {
            t: np.mean([np.log(gains(task, m, "flops", loss, (t,))) for loss in LOSSES], axis=0) for t in TREATMENTS
        }
        treatment = max(both, key=lambda t: float(both[t].mean()))
        score[m, treatment] = both[treatment]
    if len(score) < 2:
        return []
    order = sorted(score, key=lambda k: -score[k].mean())
    seeds = min(len(score[k]) for k in order[:2])
    gap, error = mean_and_error(score[order[0]][:seeds] - score[order[1]][:seeds])
    return [Verdict(
        "which units keep most accuracy behind batch norm: one kind is clearly best (ours)", "open",
        f"{name}, FLOPs saved, geometric mean over losses: "
        + ", ".join(f"{m} ({t}) {np.exp(score[m, t].mean()):.1f}×" for m, t in order)
        + f"; first over second {np.exp(gap):.2f}×"
        + ("" if math.isnan(error) else f" (log {gap:.2f} ± {error:.2f})"),
        status(bool(gap > 2 * error), gap > 0.05),
    )]  # fmt: skip


def _ahead(usable: dict[str, Task], gain: str) -> list[Verdict]:
    """Gates of our units, against the same penalty descended directly and against the published methods."""
    published = [f"dense by {kind}" for kind in PRUNED] + ["filters, direct", "scales, direct", "torch-pruning"]
    words, good = _compare(usable, OURS, [DIRECT, published], gain, LOSSES[:2])
    if not words:
        return []
    return [Verdict(
        f"the compact gated network {AHEAD[gain]} than every baseline's at equal loss (ours)", "–",
        f"the best gates, the best direct descent of the same units, the best published method: {'; '.join(words)}",
        status(all(good), any(good)),
    )]  # fmt: skip


def _time(usable: dict[str, Task]) -> list[Verdict]:
    """Of the networks that are chosen at 1 and at 5 %, with at most two thirds of the FLOPs."""
    words, good = [], []
    for name, task in usable.items():
        found = [
            chosen(task, m, seed, loss) for m in task["points"] for seed in task["points"][m]
            if seed in task["dense"] for loss in LOSSES[:2]
        ]  # fmt: skip
        ratios = [p["speedup"] / p["flops"] for p in found if p is not None and p["flops"] > 1.5]
        if ratios:
            low, middle = np.quantile(ratios, [0.1, 0.5])
            good += [middle >= 0.6, low >= 0.6]
            words.append(f"{name}: median {middle:.2f}, tenth percentile {low:.2f} of {len(ratios)} networks")
    if not words:
        return []
    return [Verdict(
        "a FLOP less is time less: measured speed-up over that in FLOPs at least 0.6 (ours)", "theoretical FLOPs only",
        "; ".join(words), status(all(good), any(good)),
        "" if all(good) else "narrow convolutions compute at a lower rate; pooling and norms shrink with the width, "
        "not with its square (operators: benchmarks/README.md)",
    )]  # fmt: skip


def tables(c: Configuration, summary: Summary) -> str:
    """Gains at equal loss, by task; then units and treatments."""
    parts = []
    for name, task in summary.items():
        if not task["dense"]:
            continue
        rows = []
        for method in task["points"]:
            cells: list[str] = []
            for loss in LOSSES:
                cells += [shown(g, 1) if (g := gains(task, method, gain, loss)) else "–" for gain in GAINS]
                cells.append(shown([100 * test for _, test in at_loss(task, method, loss)], 1))
            rows.append((_named(method), *cells))
        head = [f"{word}, −{100 * loss:g} %" for loss in LOSSES for word in (*GAINS.values(), "test accuracy")]
        mean, error = mean_and_error(100 * d["test"] for d in task["dense"].values())
        spread = "" if math.isnan(error) else f" ± {error:.1f}"
        lost = f" Trainings that diverged: {task['diverged']}." if task["diverged"] else ""
        parts.append(
            f"**{name}** (dense: {mean:.1f}{spread} %): dense over compact at a loss of one, five, ten percent points "
            "on the pictures that choose λ, share and treatment, for each measure by itself, linear between networks; "
            "accuracy on test pictures at that of the FLOPs; mean ± standard error over seeds. Times are compared on "
            f"one machine, that of the dense network of the seed; a dash: timed on another.{lost}"
            f"\n\n{table(['method', *head], rows)}"
        )
    return "\n\n".join([*parts, *_treatments(summary), *_certificate(summary)])


def _named(method: str) -> str:
    return {"scales, direct": "scales, direct (network slimming)"}.get(method, method)


def _treatments(summary: Summary) -> list[str]:
    """Accuracy that the three treatments keep, at equal shares of filters."""
    out = []
    for name, task in summary.items():
        rows = []
        for method, seeds in task["points"].items():
            row = []
            for ratio in (0.5, 0.8, 0.9):
                at = [p for points in seeds.values() for p in points if p.get("ratio") == ratio and "left" in p]
                best = {t: max((p["accuracy"][t]["validation"] for p in at), default=math.nan)
                        for t in ("kept", *TREATMENTS)}  # fmt: skip
                row.append(" / ".join("–" if math.isnan(v) else f"{100 * v:.1f}" for v in best.values()))
            if any(cell != "– / – / –" for cell in row):
                rows.append((_named(method), *row))
        if rows:
            head = ["method", *(f"{100 * r:.0f} % of the channels pruned" for r in (0.5, 0.8, 0.9))]
            out.append(
                f"**{name}**, what becomes of the batch norm of a dead channel: accuracy in % with its shift kept "
                "(this network cannot be cut exactly) / closed / closed and all statistics taken anew; best λ, "
                "pictures to choose by:\n\n" + table(head, rows)
            )
    return out


def _certificate(summary: Summary) -> list[str]:
    """Groups of all runs of a method that the certificate knew, and those that it took back."""
    keys = {"certified": "certified at the end", "certified_above": "certified, above the threshold at the end",
            "revoked": "certified once, not at the end"}  # fmt: skip
    rows = [
        (name, method, len(runs), *(sum(r[key] for r in runs) for key in keys))
        for name, task in summary.items() for method, runs in task["watched"].items()
    ]  # fmt: skip
    return [
        "The absorption certificate, groups of all runs of a method together:\n\n"
        + table(["task", "method", "runs", *keys.values()], rows)
    ] if rows else []  # fmt: skip


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Accuracy against share, FLOPs and time: for every method the best of all its points, mean over seeds."""
    tasks = {name: task for name, task in summary.items() if task["dense"]}
    if not tasks:
        return {}
    made, panels = figure(columns=3, rows=len(tasks))
    for row, (name, task) in zip(panels, tasks.items(), strict=True):
        for panel, key, label in zip(row, ("share", "flops", "speedup"),
                                     ("share of filters left", "FLOPs, dense over compact", "time, dense over compact"),
                                     strict=True):  # fmt: skip
            for method in task["points"]:
                _frontier(panel, method, comparable(task, method, key), key)
            panel.axhline(np.mean([d["test"] for d in task["dense"].values()]), color="k", lw=0.7, ls=":")
            panel.set(xscale="log", xlabel=label, title=name)
        row[0].set_ylabel("test accuracy")
    legend(made, panels, columns=6)
    return {"accuracy": made}


def _frontier(panel: Any, method: str, seeds: dict[int, list[Point]], key: str) -> None:
    """By seed the best accuracy at least so sparse (test; chosen on other pictures); the mean of seeds."""
    series = []
    for points in seeds.values():
        usable = [p for p in points if p[key]]  # a network without a channel has no place on a logarithmic axis
        if usable:
            series.append(sorted(
                ((1 / p[key] if key == "share" else p[key]), *max((p["accuracy"][t]["validation"],
                 p["accuracy"][t]["test"]) for t in TREATMENTS if t in p["accuracy"])) for p in usable))  # fmt: skip
    if not series:
        return
    low, high = max(s[0][0] for s in series), min(s[-1][0] for s in series)
    if not low < high:
        return
    grid = np.geomspace(max(low, 1.0), high, 30).clip(max=high)  # rounding may end above
    best = [[max((p for p in s if p[0] >= x), key=lambda p: p[1])[2] for x in grid] for s in series]
    kind, way = parsed(method.partition(" by ")[0])
    style = STYLE[method.partition(" by ")[2] or kind]
    x = 1 / grid if key == "share" else grid
    panel.plot(x, np.mean(best, axis=0), label=_named(method), color=WAYS[way], ls=style, lw=1.1)
