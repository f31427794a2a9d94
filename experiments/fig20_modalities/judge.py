"""What the stored cells of Fig. 20 say: which modality is left, by rule, and what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import dgating as dg
from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import COLOURS, figure
from experiments.common.statistics import by, mean_and_error, shown, table
from experiments.fig20_modalities.choice import RULES
from experiments.fig20_modalities.measure import THRESHOLD, Configuration
from experiments.fig20_modalities.network import MODALITIES

Setting = dict[str, Any]  # an α and a depth, over the splits
WORDS = {"best": "validation optimum", "1se": "one standard error"}
ENOUGH = 0.9  # of the splits


def relevant(alpha: float) -> list[str]:
    """Modalities that the target depends on."""
    return [name for name, share in zip(MODALITIES, (alpha, 1 - alpha), strict=True) if share > 0]


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every α and D: norms and errors along λ, and what either rule takes."""
    settings = []
    grouped = by(records, lambda cell: (cell["alpha"], cell["depth"]))
    for (alpha, depth), runs in sorted(grouped.items()):
        good = [run for run in runs if run.found["best"] is not None]
        whole = [run.found for run in good]
        paths = [[p for p in found["points"] if "diverged" not in p] for found in whole]
        points = [p for path in paths for p in path]
        if whole:
            settings.append({
                "alpha": alpha, "depth": depth, "splits": [run.cell["split"] for run in good],
                "paths": paths, "points": len(points),
                "diverged": sum("diverged" in p for run in runs for p in run.found["points"]),
                "window": [sum(p["left"] == relevant(alpha) for p in path) for path in paths],
                "decades": [_decades(path[0], alpha) for path in paths] if len(relevant(alpha)) == 1 else [],
                "covered": sum(p["theorem"] for p in points),
                "certified_above": sum(p["certified_above"] or 0 for p in points),
                "screened": sum(len(p.get("screened", ())) for p in points),
                "revived": sum(len(p.get("revived", ())) for p in points),
                **{rule: [_taken(c, found, rule) for found in whole] for rule in RULES},
            })  # fmt: skip
    return {"settings": settings}


def _taken(c: Configuration, found: dict[str, Any], rule: str) -> dict[str, Any]:
    point = found["points"][found[rule]["at"]]
    return {
        "lam": point["lam"], "left": point["left"], "norms": point["norms"], "test": point["rmse"][2],
        "sizes": {name: found[rule][name] for name in ("full", "compact", "without")},
        "support_epoch": point["support_epoch"], "certified_epoch": point["certified_epoch"],
        "last": point["lam"] == c.grid[-1],
    }  # fmt: skip


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """The three claims of section 9.9."""
    ends = [s for s in summary["settings"] if len(relevant(s["alpha"])) == 1]
    mixed = [s for s in summary["settings"] if len(relevant(s["alpha"])) > 1]
    out = [_removed(ends)] if ends else []
    out += [_clearer(c, ends)] if len({s["depth"] for s in ends}) > 1 else []
    return out + ([_kept(mixed)] if mixed else [])


def _hits(s: Setting, rule: str) -> int:
    """Splits in which a rule leaves exactly the relevant modalities."""
    return sum(taken["left"] == relevant(s["alpha"]) for taken in s[rule])


def _removed(ends: list[Setting]) -> Verdict:
    good = [_hits(s, "1se") >= ENOUGH * len(s["1se"]) for s in ends]
    words = []
    for alpha in sorted({s["alpha"] for s in ends}):
        gone = next(name for name in MODALITIES if name not in relevant(alpha))
        counts = [
            f"{_hits(s, '1se')} of {len(s['1se'])} splits (D = {s['depth']})" for s in ends if s["alpha"] == alpha
        ]
        words.append(f"α = {alpha:g}: the {gone} alone removed in {', '.join(counts)}")
    return Verdict(
        "with the one-standard-error rule the irrelevant modality is removed at α = 0 and α = 1", "removed",
        "; ".join(words), status(all(good), any(good)), "; ".join(filter(None, map(_above, ends))),
    )  # fmt: skip


def _above(s: Setting) -> str:
    """How far above the threshold the irrelevant modality is where the rule leaves both."""
    at = next(i for i, name in enumerate(MODALITIES) if name not in relevant(s["alpha"]))
    both = [(taken["norms"][at], taken["lam"]) for taken in s["1se"] if len(taken["left"]) == len(MODALITIES)]
    if not both:
        return ""
    norms, lams = zip(*both, strict=True)
    return (
        f"α = {s['alpha']:g}, D = {s['depth']}: where it stays its norm is {min(norms):.1e} to {max(norms):.1e}, "
        f"at λ = {' to '.join(f'{lam:.2g}' for lam in sorted({min(lams), max(lams)}))}"
    )


def _clearer(c: Configuration, ends: list[Setting]) -> Verdict:
    """Largest D against the smallest, on the same splits."""
    words, sure, ahead = [], [], []
    for alpha in sorted({s["alpha"] for s in ends}):
        by_depth = {s["depth"]: s for s in ends if s["alpha"] == alpha}
        first, last = (by_depth[pick(by_depth)] for pick in (min, max))
        gap, error = mean_and_error(np.subtract(b, a) for a, b in _paired(first, last))
        sure.append(gap > 2 * error)
        ahead.append(gap > 0)
        decades, window = (
            ", ".join(f"{np.mean(s[key]):.1f} (D = {d})" for d, s in sorted(by_depth.items()))
            for key in ("decades", "window")
        )
        words.append(
            f"α = {alpha:g}: {decades}, last less first {gap:.1f} ± {error:.1f}; strengths, of {c.lams}, that leave "
            f"exactly the relevant one: {window}"
        )
    return Verdict(
        "the separation is clearer for larger D", "clearer",
        f"decades between the norms of relevant and irrelevant modality at λ = {c.grid[0]:g}, mean over splits; "
        f"{'; '.join(words)}",
        status(all(sure), any(ahead)),
    )  # fmt: skip


def _decades(point: dict[str, Any], alpha: float) -> float:
    """Between the norms of what matters and of what does not."""
    sides: dict[bool, float] = {
        name in relevant(alpha): max(norm, 1e-30) for name, norm in zip(MODALITIES, point["norms"], strict=True)
    }
    return float(np.log10(sides[True] / sides[False]))


def _paired(first: Setting, second: Setting) -> list[tuple[float, float]]:
    values = [dict(zip(s["splits"], s["decades"], strict=True)) for s in (first, second)]
    return [(values[0][split], values[1][split]) for split in values[0] if split in values[1]]


def _kept(mixed: list[Setting]) -> Verdict:
    counts = [(_hits(s, rule), len(s[rule])) for s in mixed for rule in RULES]
    words = "; ".join(
        f"{WORDS[rule]}: both left in "
        + ", ".join(f"{_hits(s, rule)} of {len(s[rule])} splits (D = {s['depth']})" for s in mixed)
        for rule in RULES
    )
    whole, most = all(hits == n for hits, n in counts), any(hits >= ENOUGH * n for hits, n in counts)
    return Verdict(
        "at α = 0.5 neither rule removes a modality", "none removed", words,
        status(whole, most),
    )  # fmt: skip


def tables(c: Configuration, summary: Summary) -> str:
    """What either rule takes; time to the support; sizes."""
    settings: list[Setting] = summary["settings"]
    if not settings:
        return ""
    lost = sum(s["diverged"] for s in settings)
    parts = [
        f"What either rule takes (test RMSE: mean ± standard error over splits; the noise alone has {c.noise:g}"
        + (f"; {lost} trainings diverged" if lost else "")
        + "):\n\n"
        + table(
            ["α", "D", "rule", "λ, median (range)", "image removed", "table removed", "test RMSE"],
            [_rule_row(s, rule) for s in settings for rule in RULES],
        )
    ]
    # splits in which the 1-SE rule removes what is irrelevant, and nothing else
    right = [(s, [t for t in s["1se"] if t["left"] == relevant(s["alpha"])]) for s in settings]
    right = [(s, taken) for s, taken in right if taken and len(taken[0]["left"]) < len(MODALITIES)]
    if right:
        parts += [
            _times(c, right),
            "The same models: parameters; FLOPs of one row. `compact` keeps the forward of the model, and with it one "
            "unit of a dead branch; the last model leaves the branch out:\n\n"
            + table(
                ["α", "D", "full", "compact", "without the dead branch", "largest difference of outputs"],
                [_size_row(s, taken) for s, taken in right],
            ),
        ]
    return "\n\n".join(parts)


def _rule_row(s: Setting, rule: str) -> Sequence[object]:
    taken = s[rule]
    lams = [t["lam"] for t in taken]
    gone = (f"{sum(name not in t['left'] for t in taken)}/{len(taken)}" for name in MODALITIES)
    end = sum(t["last"] for t in taken)
    spread = f"{np.median(lams):.2g} ({min(lams):.2g} to {max(lams):.2g}{f', {end} at the end' if end else ''})"
    return f"{s['alpha']:g}", s["depth"], WORDS[rule], spread, *gone, shown(t["test"] for t in taken)


def _times(c: Configuration, right: list[tuple[Setting, list[dict[str, Any]]]]) -> str:
    rows = []
    for s, taken in right:
        known = [t["certified_epoch"] for t in taken if t["certified_epoch"] is not None]
        deep = s["depth"] > 2
        rows.append((
            f"{s['alpha']:g}", s["depth"], len(taken), f"{np.median([t['support_epoch'] for t in taken]):.0f}",
            f"{np.median(known):.0f} (in {len(known)})" if known else "–",
            s["certified_above"] if deep else "–",
            f"{s['covered']} of {s['points']}" if deep else "–",
            "–" if deep else f"{s['screened']} ({s['revived']})",
        ))  # fmt: skip
    steps = c.recipe(c.epochs).steps(c.rows)
    budget = dg.time_budget(c.grid[-1], c.lr, steps, c.momentum, c.schedule, tol=THRESHOLD)
    words = (
        "Splits in which the one-standard-error rule removes the irrelevant modality and nothing else: the epoch from "
        f"which the threshold {THRESHOLD:g} shows the support, and from which the certificate does (medians). "
        "Certified above: groups certified at some epoch and above the threshold at the end of that strength. "
        "Covered: strengths at which the certificate is a theorem (at the others step size, momentum and λ make the "
        "decay oscillate). Screened: for D = 2 groups are screened instead, and the optimality condition wants some "
        "back. These three columns count over all splits and strengths. By the time budget, a group of norm one "
        f"without signal falls below {THRESHOLD:g} within the {c.epochs} epochs of a strength if λ is at least "
        f"{budget.lam_needed:.2g}."
    )
    head = ["α", "D", "splits", "threshold, epoch", "certificate, epoch", "certified above", "covered", "screened"]
    return f"{words}\n\n{table(head, rows)}"


def _size_row(s: Setting, taken: list[dict[str, Any]]) -> Sequence[object]:
    sizes = [t["sizes"] for t in taken]
    cells = (
        "{:,.0f}; {:,.0f}".format(*(np.mean([size[name][key] for size in sizes]) for key in ("parameters", "flops")))
        for name in ("full", "compact", "without")
    )
    difference = max(size[name]["difference"] for size in sizes for name in ("compact", "without"))
    return f"{s['alpha']:g}", s["depth"], *cells, f"{difference:.0e}"


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Norms of the two groups along λ with the strengths taken; validation error along λ."""
    settings: list[Setting] = summary["settings"]
    if not settings:
        return {}
    alphas, depths = sorted({s["alpha"] for s in settings}), sorted({s["depth"] for s in settings})
    fig, panels = figure(columns=len(alphas), rows=len(depths), sharex=True, sharey=True)
    errors, error_panels = figure(columns=len(alphas))
    for s in settings:
        row, column = depths.index(s["depth"]), alphas.index(s["alpha"])
        _norms(panels[row, column], s)
        panels[row, column].set(xscale="log", yscale="log", title=f"α = {s['alpha']:g}, D = {s['depth']}")
        lams, median = _median(s["paths"])
        name = f"D = {s['depth']}"
        error_panels[0, column].plot(lams, median, color=COLOURS.get(name), marker=".", label=name)
        error_panels[0, column].set(xscale="log", xlabel="λ", title=f"α = {s['alpha']:g}")
    for panel in panels[-1]:
        panel.set_xlabel("λ")
    for row in panels:
        row[0].set_ylabel(f"norm, at least {THRESHOLD:g}")
    for panel in error_panels[0]:
        panel.axhline(c.noise, color="k", lw=0.7, ls=":")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7)
    error_panels[0, 0].set_ylabel("validation RMSE, median over splits")
    if panels.flat[0].get_legend_handles_labels()[0]:
        panels.flat[0].legend(fontsize=6)
    return {"norms": fig, "validation": errors}


def _norms(panel: Any, s: Setting) -> None:
    for k, (name, colour) in enumerate(zip(MODALITIES, ("#1f77b4", "#ff7f0e"), strict=True)):
        for i, path in enumerate(s["paths"]):
            norms = np.maximum([p["norms"][k] for p in path], THRESHOLD)
            panel.plot([p["lam"] for p in path], norms, color=colour, lw=0.8, alpha=0.6, label=None if i else name)
    for rule, style in (("best", ":"), ("1se", "-")):
        lam = float(np.median([t["lam"] for t in s[rule]]))
        panel.axvline(lam, color="k", lw=0.8, ls=style, label=f"{WORDS[rule]}, median")


def _median(paths: list[list[dict[str, Any]]]) -> tuple[list[float], list[float]]:
    """Of the validation error, over the splits whose path has the strength: a path ends where nothing is left."""
    values: dict[float, list[float]] = {}
    for p in (p for path in paths for p in path):
        values.setdefault(p["lam"], []).append(p["rmse"][1])
    lams = sorted(values)
    return lams, [float(np.median(values[lam])) for lam in lams]
