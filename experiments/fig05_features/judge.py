"""What the stored cells of Fig. 5 and 15 (left) say: accuracy at k features, method beside method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict, status
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
    known = [p for p in points if p["certified_for_good"] is not None]
    return {
        "runs": len(points),
        "dead": sum(p["compact"]["parameters"][0] > p["compact"]["parameters"][1] for p in points),
        "certified": len(known),
        "earlier": float(np.mean([p["certified_for_good"] / p["support_step"] for p in known])) if known else None,
        "difference": max(p["compact"]["difference"] for p in points),
        "share": [
            p["compact"]["parameters"][1] / p["compact"]["parameters"][0] for p in points if 0 < p["features"] <= 50
        ],
    }


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Who is best at which number of features."""
    found = [
        (f"{d} {k}", {m: _reached(v, k) for m, v in methods.items() if m in _compared(c)})
        for d, methods in summary.items() for k in c.ks
        if any(g in methods for g in GATED) and any(p in methods for p in PEERS)
    ]  # fmt: skip
    if not found:
        return []
    out = [_best(found)]
    second = [f["D = 2"][0] < min(f[p][0] for p in PEERS if p in f) for _, f in found if "D = 2" in f]
    if second:
        out.append(Verdict(
            "D = 2 is often worse than LassoNet and HSIC-Lasso", "often",
            f"below both in {sum(second)} of {len(second)} cells",
            status(sum(second) > len(second) / 3, any(second)),
        ))  # fmt: skip
    return out + _deep(c, summary.get("isolet", {}))


def _reached(method: dict[str, Any], k: int) -> tuple[float, float]:
    """Mean and standard error at k features; a method of which no seed came so far has nothing there, not a hole."""
    return mean_and_error(method["at"][k]) if method["at"][k] else (0.0, math.nan)


def _best(found: list[tuple[str, dict[str, tuple[float, float]]]]) -> Verdict:
    """The better of D = 3 and 4 against the best of all others: ahead or behind by more than one standard error."""
    ahead, behind = 0, []
    for name, f in found:
        ours = max((f[g] for g in GATED if g in f), key=lambda value: value[0])
        rival = max((m for m in f if m not in GATED), key=lambda m: f[m][0])
        gap, error = ours[0] - f[rival][0], float(np.nansum([ours[1] ** 2, f[rival][1] ** 2])) ** 0.5
        ahead += gap > error
        if gap < -error:
            behind.append(f"{name}: {rival} {f[rival][0]:.1f}, ours {ours[0]:.1f}")
    level = len(found) - ahead - len(behind)
    return Verdict(
        "D = 3 and 4 are best at almost all sparsities", "best for almost all",
        f"ahead of all others in {ahead} of {len(found)} cells (data set × number of features), level in {level}, "
        f"behind in {len(behind)} (by more than a standard error of the difference)",
        status(ahead >= 0.8 * len(found) and len(behind) <= 0.1 * len(found), ahead > len(found) / 2),
        f"behind at {'; '.join(behind)}" if behind else "",
    )  # fmt: skip


def _deep(c: Configuration, isolet: dict[str, Any]) -> list[Verdict]:
    deep = {d: isolet.get(f"D = {d}") for d in (4, *c.deep)}
    if not c.deep or not all(deep.values()):
        return []
    seeds = min(v["seeds"] for v in deep.values() if v)  # of the deep ones: the same for D = 4
    at = {
        d: [float(np.mean(v["at"][k][:seeds])) if v and v["at"][k] else math.nan for k in c.ks] for d, v in deep.items()
    }
    gain = float(np.nanmax([np.subtract(at[d], at[4]) for d in c.deep]))
    return [Verdict(
        "no measurable gain beyond D = 4 (Fig. 15, ISOLET)", "none up to D = 20",
        f"at {'/'.join(map(str, c.ks))} features, {seeds} seeds: "
        + "; ".join(f"D = {d}: " + "/".join(_percent(a) for a in row) for d, row in at.items()),
        status(gain < 1, gain < 5),
        f"largest gain over D = 4: {gain:.1f} points",
    )]  # fmt: skip


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
                some = f" ({len(v['at'][k])})" if 0 < len(v["at"][k]) < v["seeds"] else ""
                spread = "" if math.isnan(error) else f" ± {error:.1f}"
                cells.append("–" if math.isnan(mean) else f"{mean:.1f}{spread}{some}")
            rows.append((method, v["seeds"], *cells, f"{np.mean(v['seconds']):.0f}"))
        head = ["method", "seeds", *(f"{k} features" for k in c.ks), "seconds a cell"]
        parts.append(
            f"**{dataset}**, test accuracy in %, mean ± standard error (in brackets: of so many "
            f"seeds, where not all came to so few or so many features):\n\n{table(head, rows)}"
        )
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
                "–" if depth == 2 else sum(f["certified"] for f in found),
                f"{np.mean(earlier):.2f}" if earlier else "–",
                f"{100 * np.mean(shares):.0f} %" if shares else "–", f"{max(f['difference'] for f in found):.0e}",
            ))  # fmt: skip
    head = [
        "method", "trainings", "with dead features", "all of them certified", "certificate's step / threshold's step",
        "size at up to 50 features", "difference of outputs",
    ]  # fmt: skip
    parts.append(
        "Certificate beside threshold (D = 2 has none), and the network without the dead columns:\n\n"
        + table(head, rows)
    )
    return "\n\n".join(parts)


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Test accuracy against features kept."""
    if not summary:
        return {}
    fig, panels = figure(columns=min(3, len(summary)), rows=math.ceil(len(summary) / 3))
    for panel, (dataset, methods) in zip(panels.flat, summary.items(), strict=False):
        for method, v in methods.items():
            if ", " not in method:  # variants are in the tables
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
