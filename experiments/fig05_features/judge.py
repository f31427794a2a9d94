"""What the stored cells of Fig. 5 and 15 (left) say: accuracy at k features, method beside method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict
from experiments.common.plots import COLOURS, figure, legend
from experiments.common.statistics import by, mean_and_error, table
from experiments.fig05_features.measure import Configuration

GATED, PEERS = ("D = 3", "D = 4"), ("LassoNet", "HSIC-Lasso")


def accuracy_at(points: Sequence[dict[str, Any]], k: int) -> float | None:
    """Accuracy at ``k`` features, by a line between neighbours over log k; ``None`` outside of what was reached.

    Of several trainings with the same number of features the mean counts.
    """
    seen: dict[int, list[float]] = {}
    for point in points:
        if point.get("features", 0) > 0:
            seen.setdefault(point["features"], []).append(point["accuracy"])
    left = sorted(seen)
    if not left or not left[0] <= k <= left[-1]:
        return None
    return float(np.interp(math.log(k), np.log(left), [np.mean(seen[n]) for n in left]))


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every data set and method: points of each seed, percent right at ``ks``, seconds, certificate."""
    out: Summary = {}
    for (dataset, method), runs in by(records, lambda cell: (cell["dataset"], cell["method"])).items():
        series = [points for run in runs for points in run.found.get("runs", [run.found.get("points")])]
        gated = [p for points in series for p in points if "support_step" in p]
        out.setdefault(dataset, {})[method] = {
            "series": [[(p["features"], p["accuracy"]) for p in points if "features" in p] for points in series],
            "at": {k: [100 * a for points in series if (a := accuracy_at(points, k)) is not None] for k in c.ks},
            "seeds": len(series),
            "seconds": [run.seconds for run in runs],
            "diverged": sum("diverged" in p for points in series for p in points),
            "gated": _gated(gated),
        }
    return out


def _gated(points: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not points:
        return None
    known = [p for p in points if p["certified_step"] is not None]
    return {
        "runs": len(points),
        "dead": sum(p["compact"]["parameters"][0] > p["compact"]["parameters"][1] for p in points),
        "certified": len(known),
        "earlier": float(np.mean([p["certified_step"] / p["support_step"] for p in known])) if known else None,
        "difference": max(p["compact"]["difference"] for p in points),
        "share": [
            p["compact"]["parameters"][1] / p["compact"]["parameters"][0] for p in points if 0 < p["features"] <= 50
        ],
    }


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Who is best at which number of features."""
    means = {
        (d, k): {m: mean_and_error(v["at"][k]) for m, v in methods.items() if v["at"][k] and m in _compared(c)}
        for d, methods in summary.items() for k in c.ks
    }  # fmt: skip
    full = {
        cell: found
        for cell, found in means.items()
        if any(g in found for g in GATED) and any(p in found for p in PEERS)
    }
    if not full:
        return []
    best = {cell: max(found, key=lambda m: found[m][0]) for cell, found in full.items()}
    won = [cell for cell, m in best.items() if m in GATED]
    ours = {cell: max(found[g][0] for g in GATED if g in found) for cell, found in full.items()}
    lost = [
        f"{d} {k}: {best[d, k]} {full[d, k][best[d, k]][0]:.1f}, ours {ours[d, k]:.1f}"
        for d, k in full if (d, k) not in won
    ]  # fmt: skip
    second = [
        cell for cell, f in full.items() if "D = 2" in f and f["D = 2"][0] < max(f[p][0] for p in PEERS if p in f)
    ]
    with_second = [cell for cell, f in full.items() if "D = 2" in f]
    out = [
        Verdict(
            "D = 3 and 4 are best at almost all sparsities", "best for almost all",
            f"best mean in {len(won)} of {len(full)} cells (data set × number of features)",
            "reproduced" if len(won) >= 0.9 * len(full) else "partly" if len(won) > len(full) / 2 else "not reproduced",
            f"elsewhere: {'; '.join(lost)}" if lost else "",
        ),
        Verdict(
            "D = 2 is often worse than LassoNet and HSIC-Lasso", "often",
            f"below the better of the two in {len(second)} of {len(with_second)} cells",
            "reproduced" if len(second) > len(with_second) / 2 else "not reproduced",
        ),
    ]  # fmt: skip
    deep = {d: summary.get("isolet", {}).get(f"D = {d}") for d in (4, *c.deep)}
    if all(deep.values()):
        at = {d: [mean_and_error(v["at"][k])[0] if v and v["at"][k] else np.nan for k in c.ks] for d, v in deep.items()}
        gain = np.nanmax([np.subtract(at[d], at[4]) for d in c.deep])
        out.append(Verdict(
            "no measurable gain beyond D = 4 (Fig. 15, ISOLET)", "none up to D = 20",
            "; ".join(f"D = {d}: " + "/".join(_percent(a) for a in row) for d, row in at.items()),
            "reproduced" if gain < 1 else "partly", f"largest gain over D = 4: {gain:.1f} points",
        ))  # fmt: skip
    return out


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _compared(c: Configuration) -> tuple[str, ...]:
    """The methods of the paper; the warm path is beyond it, and not in the count."""
    return (*(f"D = {d}" for d in c.depths), *PEERS)


def tables(c: Configuration, summary: Summary) -> str:
    """Accuracy × features × method, then seconds and certificates."""
    parts = []
    for dataset, methods in summary.items():
        rows = []
        for method, v in methods.items():
            cells = []
            for k in c.ks:
                mean, error = mean_and_error(v["at"][k]) if v["at"][k] else (math.nan, math.nan)
                cells.append(
                    "–" if math.isnan(mean) else f"{mean:.1f}" if math.isnan(error) else f"{mean:.1f} ± {error:.1f}"
                )
            rows.append((method, v["seeds"], *cells, f"{np.mean(v['seconds']):.0f}"))
        head = ["method", "seeds", *(f"{k} features" for k in c.ks), "seconds a cell"]
        parts.append(f"**{dataset}**, test accuracy in %, mean ± standard error:\n\n{table(head, rows)}")
    rows = []
    for depth in (*c.depths, *c.deep):
        found = [
            m[f"D = {depth}"]["gated"] for m in summary.values() if f"D = {depth}" in m and m[f"D = {depth}"]["gated"]
        ]
        if found:
            earlier = [f["earlier"] for f in found if f["earlier"] is not None]
            shares = [s for f in found for s in f["share"]]
            rows.append((
                f"D = {depth}", sum(f["runs"] for f in found), sum(f["dead"] for f in found),
                sum(f["certified"] for f in found), f"{np.mean(earlier):.2f}" if earlier else "–",
                f"{100 * np.mean(shares):.0f} %" if shares else "–", f"{max(f['difference'] for f in found):.0e}",
            ))  # fmt: skip
    head = [
        "method", "trainings", "with dead features", "all of them certified", "certificate's step / threshold's step",
        "size at up to 50 features", "difference of outputs",
    ]  # fmt: skip
    parts.append("Certificate beside threshold, and the network without the dead columns:\n\n" + table(head, rows))
    return "\n\n".join(parts)


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Test accuracy against features kept."""
    if not summary:
        return {}
    fig, panels = figure(columns=min(3, len(summary)), rows=math.ceil(len(summary) / 3))
    for panel, (dataset, methods) in zip(panels.flat, summary.items(), strict=False):
        for method, v in methods.items():
            _draw(panel, c, method, v)
        panel.set(xscale="log", title=dataset, xlabel="features", ylabel="test accuracy in %")
    legend(fig, panels)
    for panel in list(panels.flat)[len(summary) :]:
        panel.set_visible(False)
    return {"accuracy": fig}


def _draw(panel: Any, c: Configuration, method: str, v: dict[str, Any]) -> None:
    ks = [k for k in c.ks if v["at"][k]]
    if not ks:
        return
    found = [mean_and_error(v["at"][k]) for k in ks]
    style = "--" if method in PEERS else ":" if method not in _compared(c) else "-"
    panel.errorbar(ks, [m for m, _ in found], [0 if math.isnan(e) else e for _, e in found], label=method, ls=style,
                   color=COLOURS.get(method), marker=".", lw=1.2, capsize=2)  # fmt: skip
