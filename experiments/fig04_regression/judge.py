"""What the stored cells of Fig. 4 and 16 say: curves, best strengths, agreement with the group lasso."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import band, figure, legend
from experiments.common.statistics import by, mean_and_error, shown, table
from experiments.fig04_regression.measure import Configuration

ALIGNED = 1e-4  # misalignment, of a penalty of about 10, that counts as zero
# an earlier replication of the same protocol on ten other tables: RMSE, groups left at the best λ, by loss
REPLICATION = {
    "half": {
        "oracle": (1.092, 7),
        "FISTA": (1.259, 27.8), "D = 2": (1.259, 31.4), "D = 3": (1.125, 7.7), "D = 4": (1.109, 7.3),
    },
    "mse": {
        "oracle": (1.092, 7),
        "FISTA": (1.263, 31.7), "D = 2": (1.263, 33.2), "D = 3": (1.131, 8.7), "D = 4": (1.128, None),
    },
}  # fmt: skip


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every loss and method: curves over λ, the λ of the best mean test error, and what is found there."""
    out: Summary = {}
    for (loss, method), runs in by(records, lambda cell: (cell["loss"], cell["method"])).items():
        out.setdefault(loss, {})[method] = _method(runs)
    return out


def _method(runs: Sequence[Record]) -> dict[str, Any]:
    rows = [run.found["points"] for run in runs]
    columns = [[p for p in points if "diverged" not in p] for points in zip(*rows, strict=True)]
    rmse = [mean_and_error(p["rmse"] for p in points)[0] if points else np.nan for points in columns]
    # as many diverged runs as there are good ones say nothing about a strength
    usable = [value if 2 * len(points) > len(rows) else np.inf for value, points in zip(rmse, columns, strict=True)]
    best = int(np.nanargmin(usable))
    at = columns[best]
    compact = [p["compact"] for points in columns for p in points if "compact" in p]
    return {
        "seeds": [run.cell["seed"] for run in runs],
        "lams": [points[0]["lam"] for points in zip(*rows, strict=True)],
        "rmse": [[p.get("rmse", np.nan) for p in points] for points in rows],
        "left": [[p.get("left", np.nan) for p in points] for points in rows],
        "diverged": sum("diverged" in p for points in rows for p in points),
        "points": sum(len(points) for points in rows),
        "best": {
            "lam": at[0]["lam"],
            "rmse": [p["rmse"] for p in at],
            "left": [p["left"] for p in at],
            "exact": sum(p["false"] == p["missed"] == 0 for p in at),
            "runs": len(at),
            "seeds": [r.cell["seed"] for r, points in zip(runs, rows, strict=True) if "diverged" not in points[best]],
            **{k: [p[k] for p in at] for k in ("support_step", "certified_step", "certified") if k in at[0]},
        },
        "agreement": [
            {"lam": p["lam"], "misalignment": p["misalignment"], "distance": p["distance"], "left": p["left"]}
            for points in columns for p in points if "distance" in p
        ],
        "certified": sum(p.get("certified") or 0 for points in columns for p in points),
        "certified_above": sum(p.get("certified_above") or 0 for points in columns for p in points),
        "compact": compact,
    }  # fmt: skip


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """The claims of section 9.2, for the loss of which every run is stable."""
    found = summary.get("half", {})
    if not {"FISTA", "D = 2", "D = 3", "D = 4", "direct"} <= found.keys():
        return []
    out = [
        _coincides(found),
        *(_beats(found, depth) for depth in c.depths if depth > 2),
        _direct(c, found),
    ]
    out += _deep(c, found)
    return out


def _deep(c: Configuration, found: Summary) -> list[Verdict]:
    deep = [f"D = {d}" for d in c.ablation if f"D = {d}" in found]
    if not deep:
        return []
    words, gains = [], []
    for method in deep:
        gap, error = _gap(found["D = 4"]["best"], found[method]["best"])
        gains.append(gap > 2 * error)
        words.append(
            f"{method}: RMSE {np.mean(found[method]['best']['rmse']):.3f} (D = 4 on the same tables less that: "
            f"{gap:.3f} ± {error:.3f}), {found[method]['diverged']} of {found[method]['points']} runs diverged"
        )
    unstable = sum(found[m]["diverged"] for m in deep) > sum(found[m]["diverged"] for m in ("D = 2", "D = 3", "D = 4"))
    return [
        Verdict(
            "no gain beyond D = 4, growing instability (Fig. 16)", "jagged paths for D > 6", "; ".join(words),
            "reproduced" if unstable and not any(gains) else "partly",
        )
    ]  # fmt: skip


def _gap(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, float]:
    """Mean and standard error of first minus second test error, over the tables on which neither diverged."""
    pairs = [dict(zip(m["seeds"], m["rmse"], strict=True)) for m in (first, second)]
    return mean_and_error(pairs[0][s] - pairs[1][s] for s in pairs[0].keys() & pairs[1].keys())


def _coincides(found: Summary) -> Verdict:
    points = [p for p in found["D = 2"]["agreement"] if p["distance"] is not None]
    aligned = [p["distance"] for p in points if p["misalignment"] < ALIGNED]
    other = [p["distance"] for p in points if p["misalignment"] >= ALIGNED]
    good = bool(aligned) and float(np.median(aligned)) < 1e-3 and float(np.max(aligned)) < 1e-2
    shown_other = f", median {np.median(other):.2g} over the {len(other)} others" if other else ""
    return Verdict(
        "D = 2 coincides with the group lasso where the misalignment is zero", "coincides above some λ",
        f"‖w − w*‖/‖w*‖ over {len(aligned)} aligned runs (misalignment < {ALIGNED:g}): median "
        f"{np.median(aligned) if aligned else np.nan:.1g}, largest {max(aligned, default=np.nan):.1g}{shown_other}",
        "reproduced" if good else "partly",
    )  # fmt: skip


def _beats(found: Summary, depth: int) -> Verdict:
    ours, lasso = found[f"D = {depth}"]["best"], found["FISTA"]["best"]
    gap, error = _gap(lasso, ours)
    lower, sparser = gap > 2 * error, np.mean(ours["left"]) < np.mean(lasso["left"])
    return Verdict(
        f"D = {depth} beats the group lasso in test error and in sparsity", "lower RMSE, sparser (Fig. 4)",
        f"RMSE {shown(ours['rmse'])}, {np.mean(ours['left']):.1f} groups, against {shown(lasso['rmse'])}, "
        f"{np.mean(lasso['left']):.1f} groups (each at its best λ; paired gap {gap:.3f} ± {error:.3f})",
        status(lower and bool(sparser), lower or bool(sparser)),
    )  # fmt: skip


def _direct(c: Configuration, found: Summary) -> Verdict:
    """Judged where the optimum has zeros: at small λ no method has any."""
    gone, optimum = (c.groups - np.nanmean(np.array(found[m]["left"], dtype=float), 0) for m in ("direct", "FISTA"))
    share = float(gone[optimum > 0].sum() / optimum.sum())
    most = int(gone.argmax())
    return Verdict(
        "gradient descent on the penalty itself gives no sparse groups", "never",
        f"{100 * share:.0f} % of the zeros of FISTA over all λ; most at λ = {found['direct']['lams'][most]:.2g}: "
        f"{gone[most]:.1f} of {c.groups} groups below 1e-6, FISTA {optimum[most]:.1f}",
        status(share < 0.02, share < 0.5),
        "" if share < 0.02 else "as the step size goes to zero, so does the size of the steps across zero",
    )  # fmt: skip


def _apart(loss: str, found: Summary) -> str:
    """Ours and theirs are means over ten random tables: their difference has about √2 of our standard error."""
    far = [
        abs(mean - REPLICATION[loss][method][0]) / (np.sqrt(2) * error)
        for method, (mean, error) in ((m, mean_and_error(v["best"]["rmse"])) for m, v in found.items())
        if method in REPLICATION[loss] and error > 0
    ]
    if not far:
        return ""
    return (
        f"The earlier replication had ten other tables: its errors are {min(far):.1f} to {max(far):.1f} standard "
        "errors of the difference from these. The best λ is the best on the test rows, there and here."
    )


def tables(c: Configuration, summary: Summary) -> str:
    """Best strengths beside the earlier replication; time to the support; compact models."""
    parts = []
    for loss, found in summary.items():
        rows = []
        for method, m in found.items():
            earlier = REPLICATION[loss].get(method)
            rows.append([
                method, "–" if m["best"]["lam"] is None else f"{m['best']['lam']:.2g}", shown(m["best"]["rmse"]),
                f"{np.mean(m['best']['left']):.1f}", f"{m['best']['exact']}/{m['best']['runs']}",
                f"{m['diverged']}/{m['points']}",
                "–" if earlier is None else f"{earlier[0]:.3f}" + (f", {earlier[1]}" if earlier[1] else ""),
            ])  # fmt: skip
        name = "½·MSE" if loss == "half" else "MSE"
        head = ["method", "best λ", "test RMSE", "groups left", "exact support", "diverged", "earlier replication"]
        parts.append(
            f"Loss {name}; mean ± standard error over at most {len(c.seeds)} tables, at the λ of the best mean:\n\n"
            + table(head, rows)
            + f"\n\n{_apart(loss, found)}"
        )
    deep = [(m, v) for m, v in summary.get("half", {}).items() if v["compact"]]
    rows = []
    for method, m in deep:
        steps, known = m["best"]["support_step"], [s for s in m["best"].get("certified_step", []) if s is not None]
        rows.append([
            method, f"{np.median(steps):.0f}", f"{np.median(known):.0f}" if known else "–",
            f"{m['certified']}" if known else "–", f"{m['certified_above']}" if known else "–",
            f"{m['compact'][0]['parameters'][0]} → {np.mean([k['parameters'][1] for k in m['compact']]):.0f}",
            f"{max(k['difference'] for k in m['compact']):.0g}",
        ])  # fmt: skip
    head = [
        "method", f"support by threshold, step of {c.steps}", "all dead groups certified, first at step",
        "certified at the end of all runs", "certified at some look, above 1e-6 at the end",
        "weights, full → compact", "difference of outputs",
    ]  # fmt: skip
    words = "Certificate beside threshold (median over tables at the best λ, ½·MSE), and the model without dead columns"
    parts.append(f"{words} (at λ ≈ {c.compact_at:g}):\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Test error and groups left against λ, for each loss."""
    made = {}
    for loss, found in summary.items():
        for name, methods in (("paths", ("FISTA", "direct", *(f"D = {d}" for d in c.depths))),
                              ("depths", tuple(f"D = {d}" for d in (*c.depths, *c.ablation)))):  # fmt: skip
            present = [m for m in methods if m in found]
            if not present:
                continue
            fig, panels = figure(columns=2)
            for method in present:
                m = found[method]
                band(panels[0, 0], m["lams"], m["rmse"], method)
                band(panels[0, 1], m["lams"], m["left"], method)
            for panel, label in zip(panels[0], ("test RMSE", "groups left"), strict=True):
                panel.set(xscale="log", xlabel="λ", ylabel=label)
            if "oracle" in found:
                panels[0, 0].axhline(
                    np.mean(found["oracle"]["best"]["rmse"]), color="k", lw=0.7, ls=":", label="oracle"
                )
            panels[0, 1].axhline(c.informative, color="k", lw=0.7, ls=":")
            panels[0, 0].set_ylim(1.0, 2.5)
            legend(fig, panels)
            made[f"{name}_{loss}"] = fig
    return made
