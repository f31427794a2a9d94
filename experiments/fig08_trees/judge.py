"""What the stored cells of Fig. 8 say: test error and trees left, beside the dense ensemble of the same split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import COLOURS, figure
from experiments.common.statistics import by, mean_and_error, shown, table
from experiments.fig08_trees.measure import Configuration

FEW, NEAR = 5, 1.02  # "fewer than 5 trees", "about" the dense error: within 2 %


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """By method and λ over the splits; errors of gated ensembles are those of the compact ones."""
    main = [r for r in records if _ensemble(r) == (c.trees, c.scale)]
    dense = {r.cell["split"]: r.found["rmse"] for r in main if r.cell["method"] == "dense" and "rmse" in r.found}
    gated: dict[str, list[dict[str, Any]]] = {}
    runs = by([r for r in main if r.cell["method"] not in ("linear", "dense")], lambda e: (e["method"], e["lam"]))
    for (method, lam), group in sorted(runs.items()):
        gated.setdefault(method, []).append({"lam": lam} | _point(group, dense))
    return {
        "linear": {r.cell["split"]: r.found["rmse"] for r in main if r.cell["method"] == "linear"},
        "dense": dense,
        "dense_curves": [r.found for r in main if r.cell["method"] == "dense"],
        "gated": gated,
        "others": _others(c, records),
    }


def _point(runs: Sequence[Record], dense: dict[int, float]) -> dict[str, Any]:
    good = [r for r in runs if "compact" in r.found]
    found = [r.found for r in good]
    return {
        "runs": len(runs),
        "diverged": len(runs) - len(good),
        "rmse": [f["compact"]["rmse"] for f in found],
        "rmse_train": [f["rmse_train"] for f in found],
        "ratio": [f["compact"]["rmse"] / dense[r.cell["split"]] for r, f in zip(good, found, strict=True)
                  if r.cell["split"] in dense],
        "shift": max((abs(f["compact"]["rmse"] - f["rmse"]) for f in found), default=math.nan),
        "left": [f["left"] for f in found],
        "left_epsilon": [f["left_epsilon"] for f in found],
        "seconds": [f["seconds"] for f in found],
        "support": [f["support"] for f in found],
        "known": [f["known"] for f in found],
        "monitor": [f["monitor"] for f in found],
        "compact": [f["compact"] for f in found],
        "curves": found,
    }  # fmt: skip


def _shown(by_split: dict[int, float]) -> str:
    return shown(by_split.values())


def _ensemble(r: Record) -> tuple[int, float]:
    return r.cell["trees"], r.cell["scale"]


def _others(c: Configuration, records: Sequence[Record]) -> list[dict[str, Any]]:
    """The first split with every number of trees and scale, dense and at the strength of the claim."""
    chosen = [
        r for r in records
        if r.cell["split"] == c.splits[0] and (r.cell["method"], r.cell["lam"]) in (("dense", 0.0), ("D = 2", c.claim))
    ]  # fmt: skip
    chosen.sort(key=lambda r: (*_ensemble(r), r.cell["method"] != "dense"))
    return [r.cell | {"found": r.found} for r in chosen]


def _at(c: Configuration, summary: Summary) -> list[dict[str, Any]]:
    """D = 2 with a dense run to compare with; the strength of the claim first, then from the sparsest."""
    points = [p for p in summary["gated"].get("D = 2", []) if p["ratio"]]
    return sorted(points, key=lambda p: (p["lam"] != c.claim, np.mean(p["left"])))


def _holds(point: dict[str, Any]) -> bool:
    return max(point["left"]) < FEW and float(np.mean(point["ratio"])) <= NEAR


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Fewer than five trees at about the dense error; is the dense error any good?"""
    out = []
    points = _at(c, summary)
    if points:
        chosen = next((p for p in points if _holds(p)), points[0])
        named = chosen["lam"] == c.claim
        ours = (
            f"λ = {chosen['lam']:g}: {_span(chosen['left'])} of {c.trees} trees, RMSE {shown(chosen['rmse'])}, dense "
            f"{_shown(summary['dense'])} ({100 * (np.mean(chosen['ratio']) - 1):+.1f} % on the same splits)"
        )
        out.append(
            Verdict(
                "about the dense RMSE with fewer than 5 trees", "about the same, fewer than 5, e.g. at λ = 3e-3", ours,
                ("reproduced" if named else "partly") if _holds(chosen) else "not reproduced",
                "" if named else f"not at λ = {c.claim:g}",
            )
        )  # fmt: skip
    if summary["dense"] and summary["linear"]:
        both = [(d, summary["linear"][s]) for s, d in summary["dense"].items() if s in summary["linear"]]
        gap, error = mean_and_error(linear - d for d, linear in both)
        out.append(
            Verdict(
                "the dense ensemble reaches a baseline RMSE", "reaches it; which one is not said",
                f"dense {_shown(summary['dense'])}, least squares on the same inputs {_shown(summary['linear'])} "
                f"(paired gap {gap:.3f} ± {error:.3f})",
                status(gap > 2 * error, gap > 0),
            )
        )  # fmt: skip
    return out


def tables(c: Configuration, summary: Summary) -> str:
    """Errors and trees; certificate and time; compact models; what the scale of the output does."""
    references = (("least squares", "linear"), ("dense", "dense"))
    rows: list[Sequence[object]] = [
        (name, "", len(summary[key]), _shown(summary[key]), *[""] * 5) for name, key in references if summary[key]
    ]  # fmt: skip
    found = [(method, p) for method, points in summary["gated"].items() for p in points if p["rmse"]]
    for method, p in found:
        less = f"{100 * (np.mean(p['ratio']) - 1):+.1f} %" if p["ratio"] else ""
        violators = [m["violators"] for m in p["monitor"] if "violators" in m]
        rows.append((
            method, f"{p['lam']:g}", len(p["rmse"]), shown(p["rmse"]), less, _span(p["left"]), _span(p["left_epsilon"]),
            _span([m["left"] for m in p["monitor"]]), f"{sum(violators)}" if violators else "–",
        ))  # fmt: skip
    head = [
        "method", "λ", "splits", "test RMSE", "beside dense", f"trees left: norm > {c.threshold:g}", "norm > 1.2e-7",
        "not known to the monitor", "wrongly screened",
    ]  # fmt: skip
    words = "Mean ± standard error over splits; RMSE after the dead trees left"
    parts = [f"{words}:\n\n{table(head, rows)}"]
    if found:
        parts += [_time_table(c, found), _size_table(found)]
    diverged = sum(p["diverged"] for points in summary["gated"].values() for p in points)
    if diverged:
        parts.append(f"Gated runs that diverged: {diverged}.")
    if len({(row["trees"], row["scale"]) for row in summary["others"]}) > 1:
        parts.append(_others_table(c, summary["others"]))
    return "\n\n".join(parts)


def _time_table(c: Configuration, found: Sequence[tuple[str, dict[str, Any]]]) -> str:
    rows = []
    for method, p in found:
        cells = [_when(p[k]) for k in ("support", "known")]
        worst = max(abs(m["rmse"] - f["rmse"]) for m, f in zip(p["monitor"], p["curves"], strict=True))
        above = sum(m["known_above_threshold"] for m in p["monitor"])
        rows.append((method, f"{p['lam']:g}", *cells, f"{above}", f"{worst:.0e}"))
    head = [
        "method", "λ", "final support by threshold: epoch", "all dead trees known to the monitor: epoch",
        "known and above the threshold at the end", "change of RMSE by zeroing what is known",
    ]  # fmt: skip
    return (
        f"When the support settles, of {c.epochs} epochs (looks every {c.every}), and what the monitor adds. For D = 2 "
        "it screens, and the optimality condition decides afterwards which screened trees were alive (the column "
        f"above); for D ≥ 3 it certifies:\n\n{table(head, rows)}"
    )


def _when(looks: Sequence[dict[str, Any] | None]) -> str:
    """Epochs and seconds; how many runs, where some never came to it."""
    seen = [s for s in looks if s is not None]
    if not seen:
        return "–"
    some = "" if len(seen) == len(looks) else f", in {len(seen)} of {len(looks)}"
    return f"{_span([s['epoch'] for s in seen])} ({_span([round(s['seconds']) for s in seen])} s{some})"


def _size_table(found: Sequence[tuple[str, dict[str, Any]]]) -> str:
    rows = [
        (method, f"{p['lam']:g}", f"{p['compact'][0]['parameters'][0]:,} → {_mean(p, 'parameters'):,.0f}",
         f"{np.mean([k['flops'][0] / k['flops'][1] for k in p['compact']]):.0f}×",
         f"{np.median([k['speedup'] for k in p['compact']]):.0f}×", f"{max(k['difference'] for k in p['compact']):.0e}")
        for method, p in found
    ]  # fmt: skip
    head = ["method", "λ", "parameters", "FLOPs, fewer", "time, less (median)", "largest difference of an output"]
    return f"The ensemble after `dgating.compact` (outputs are standardised):\n\n{table(head, rows)}"


def _mean(point: dict[str, Any], key: str) -> float:
    return float(np.mean([k[key][1] for k in point["compact"]]))


def _others_table(c: Configuration, others: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in others:
        f = row["found"]
        start = f["rmse_curve"][0] if f["rmse_curve"] else math.nan
        left = "–" if row["method"] == "dense" else f.get("left", "–")
        rows.append((row["trees"], f"{row['scale']:.3g}", row["method"], *_errors(f), left, f"{start:.3g}"))
    head = ["trees", "scale", "method", "training RMSE", "test RMSE", "trees left", f"test RMSE at epoch {c.every}"]
    return (
        "What the output is, the mean of the trees (scale one over their number), their sum (1) or between, decides "
        f"what the step size can do (split {c.splits[0]}, D = 2 at λ = {c.claim:g}):\n\n{table(head, rows)}"
    )


def _errors(found: dict[str, Any]) -> tuple[str, str]:
    if "diverged" in found:
        return "diverged", "diverged"
    return f"{found['rmse_train']:.3f}", f"{found.get('compact', found)['rmse']:.3f}"


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Error and trees against λ; both against the epoch at the strength of the claim."""
    made = {}
    gated = {method: [p for p in points if p["rmse"]] for method, points in summary["gated"].items()}
    if any(gated.values()):
        fig, panels = figure(columns=2)
        for method, points in gated.items():
            lams = [p["lam"] for p in points]
            for panel, key in zip(panels[0], ("rmse", "left"), strict=True):
                found = [mean_and_error(p[key]) for p in points]
                errors = [0.0 if math.isnan(error) else error for _, error in found]
                panel.errorbar(lams, [mean for mean, _ in found], errors, label=method, color=COLOURS.get(method),
                               marker=".", capsize=2, lw=1.2)  # fmt: skip
        for name, key, style in (("dense", "dense", "-"), ("least squares", "linear", ":")):
            if summary[key]:
                panels[0, 0].axhline(np.mean([*summary[key].values()]), color="k", lw=0.8, ls=style, label=name)
        panels[0, 1].axhline(FEW, color="k", lw=0.8, ls=":")
        panels[0, 0].set(xscale="log", xlabel="λ", ylabel="test RMSE")
        panels[0, 1].set(xscale="log", xlabel="λ", ylabel="trees left", yscale="symlog", ylim=(0, None))
        panels[0, 0].legend(fontsize=7)
        made["trees"] = fig
    at = next((p for p in gated.get("D = 2", []) if p["lam"] == c.claim), None)
    if at is not None:
        fig, panels = figure(columns=2)
        for i, curve in enumerate(at["curves"]):
            first = {"label": "D = 2"} if i == 0 else {}
            panels[0, 0].plot(curve["epochs"], curve["rmse_curve"], color=COLOURS["D = 2"], lw=1, **first)
            for key, name, style in (("left_curve", f"norm > {c.threshold:g}", "-"),
                                     ("not_known_curve", "not screened", "--")):  # fmt: skip
                label = {"label": name} if i == 0 else {}
                panels[0, 1].plot(curve["epochs"], curve[key], color=COLOURS["D = 2"], ls=style, lw=1, **label)
        for i, curve in enumerate(summary["dense_curves"]):
            label = {"label": "dense"} if i == 0 else {}
            panels[0, 0].plot(curve["epochs"], curve["rmse_curve"], color="k", lw=0.8, ls="-", **label)
        panels[0, 0].set(xlabel="epoch", ylabel="test RMSE", title=f"λ = {c.claim:g}, each split")
        panels[0, 1].set(xlabel="epoch", ylabel="trees", yscale="symlog")
        panels[0, 0].legend(fontsize=7)
        panels[0, 1].legend(fontsize=7)
        made["epochs"] = fig
    return made
