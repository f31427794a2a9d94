"""What the stored cells of Fig. 22 say: error and shape functions left along λ, and whether those left out are zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dgating.maths import choose
from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import COLOURS, figure, legend
from experiments.common.statistics import by, mean_and_error, shown, table
from experiments.fig22_additive.measure import PLAIN, THRESHOLD, Configuration
from experiments.fig22_additive.simulation import FUNCTIONS

Method = dict[str, Any]
COLOUR = {**COLOURS, "SNAM": COLOURS["direct"], "L1": "#17becf", "L2": "#8c564b"}
MUCH = 2 / 3  # much sparser: at most so many of the functions
SMALL = 0.01  # a function of this standard deviation is as good as zero beside effects of one


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every method: what every fold gives at every strength, and the strengths that the two rules take."""
    grouped = by(records, lambda cell: cell["method"])
    return {method: _method(c, grouped[method]) for method in c.methods if method in grouped}


def _method(c: Configuration, runs: Sequence[Record]) -> Method:
    at = by(runs, lambda cell: cell["lam"])
    most = max(map(len, at.values()))
    # a strength that not every table has yet cannot be compared
    points = [_point(lam, [run.found for run in at[lam]]) for lam in sorted(at) if len(at[lam]) == most]
    scores = -np.array([p["error"] for p in points]).T
    best = choose(scores, "best")
    return {"points": points, "best": points[best], "1se": points[choose(scores, "1se")]}


def _point(lam: float, found: list[dict[str, Any]]) -> dict[str, Any]:
    """All folds of all tables at one strength."""
    folds = [fold for f in found for fold in f["folds"]]
    true = len(FUNCTIONS)
    return {
        "lam": lam,
        **{key: [v for f in found for v in f[key]] for key in ("error", "train", "kept", "running")},
        "left": [len(fold["left"]) for fold in folds],
        "true": [sum(k < true for k in fold["left"]) for fold in folds],
        "norms": [fold["norms"] for fold in folds],
        "dead_size": max((f["dead_size"] for f in found if f["dead_size"] is not None), default=None),
        "support_epoch": [fold["support_epoch"] for fold in folds],
        **{key: [fold[key] for fold in folds if key in fold]
           for key in ("certified", "certified_epoch", "certified_above", "revoked")},
        "sizes": [f["sizes"] for f in found],
    }  # fmt: skip


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """The claims of section 9.10, and the rule that calls a function zero."""
    out = []
    gated = [f"D = {d}" for d in c.depths if f"D = {d}" in summary]
    deep = [m for m in gated if m != "D = 2"]
    if deep and {"D = 2", "SNAM"} <= summary.keys():
        out.append(_sparser(summary, deep))
    if deep and "SNAM" in summary:
        out.append(_lower(summary, deep))
    if gated and "SNAM" in summary:
        out.append(_reaches(c, summary, gated))
    dead = [m for m in gated if _dead_size(summary[m]) is not None]
    if dead:
        out.append(_vanish(summary, dead))
    return out


def _sparser(summary: Summary, deep: list[str]) -> Verdict:
    left = {m: float(np.mean(summary[m]["best"]["left"])) for m in (*deep, "D = 2", "SNAM")}
    good = [left[m] <= MUCH * min(left["D = 2"], left["SNAM"]) for m in deep]
    return Verdict(
        "the model of least cross-validated error is sparser for D = 3 and 4 than for D = 2 and for SNAM",
        "much sparser", "functions left: " + ", ".join(f"{value:.1f} ({m})" for m, value in left.items()),
        status(all(good), any(good)), _kept(summary, deep),
    )  # fmt: skip


def _kept(summary: Summary, methods: list[str]) -> str:
    """The claim is one about the paper's rule: where what the rule leaves out is not zero, that is said."""
    words = [
        f"{m}: sd up to {best['dead_size']:.2g}, error {np.mean(best['kept']):.3f} with them"
        for m, best in ((m, summary[m]["best"]) for m in methods)
        if best["dead_size"] is not None and best["dead_size"] >= SMALL
    ]
    return f"by the rule that sets functions to zero which are not ({'; '.join(words)})" if words else ""


def _lower(summary: Summary, deep: list[str]) -> Verdict:
    snam = summary["SNAM"]["best"]["error"]
    words, good = [], []
    for m in deep:
        errors = summary[m]["best"]["error"]
        paired = len(errors) == len(snam)
        gap, spread = mean_and_error(np.subtract(snam, errors)) if paired else (np.mean(snam) - np.mean(errors), np.nan)
        good.append(gap > 0 and not gap <= 2 * spread)
        words.append(f"{m}: {shown(errors)}, lower by {gap:.3f} ± {spread:.3f}")
    return Verdict(
        "and its error is lower than SNAM's", "markedly lower",
        f"mean squared error of the folds; SNAM: {shown(snam)}; {'; '.join(words)} (paired)",
        status(all(good), any(good)), _kept(summary, deep),
    )  # fmt: skip


def _reaches(c: Configuration, summary: Summary, gated: list[str]) -> Verdict:
    fewest = {m: min(float(np.mean(p["left"])) for p in summary[m]["points"]) for m in (*gated, "SNAM")}
    sparse = [fewest[m] < c.columns for m in gated]
    return Verdict(
        "gating reaches sparsity in shape functions, SNAM without pruning does not", "only gating does",
        f"fewest functions above {THRESHOLD:g} at any λ, of {c.columns}: "
        + ", ".join(f"{value:.1f} ({m})" for m, value in fewest.items()),
        status(all(sparse) and fewest["SNAM"] == c.columns, any(sparse)), _plain(summary),
    )  # fmt: skip


def _plain(summary: Summary) -> str:
    """SNAM and gating beside each other where no batch norm divides the norms out."""
    pairs = [
        (m.removesuffix(PLAIN), summary[m]["best"]) for m in summary if m.endswith(PLAIN) and "SNAM" + PLAIN in summary
    ]
    words = [f"{m} {np.mean(b['left']):.1f} functions, error {np.mean(b['error']):.3f}" for m, b in pairs]
    return f"without batch norm both do: {', '.join(words)} at the best λ" if len(words) > 1 else ""


def _dead_size(method: Method) -> float | None:
    return max((p["dead_size"] for p in method["points"] if p["dead_size"] is not None), default=None)


def _vanish(summary: Summary, dead: list[str]) -> Verdict:
    sizes = {m: _dead_size(summary[m]) for m in (*dead, *(m for m in summary if m.endswith(PLAIN)))}
    large = {m: size for m, size in sizes.items() if size is not None}
    with_norm = [large[m] < SMALL for m in dead]
    return Verdict(
        f"a function whose weights have a norm below {THRESHOLD:g} is zero", "counted as zero",
        "largest standard deviation of one (the effects have one), over all λ: "
        + ", ".join(f"{size:.2g} ({m})" for m, size in large.items()),
        status(all(with_norm), any(with_norm)),
        "" if all(with_norm) else "batch norm divides small weights out again; above, such functions are set to zero",
    )  # fmt: skip


def tables(c: Configuration, summary: Summary) -> str:
    """What the rules take; what batch norm does; time and size."""
    if not summary:
        return ""
    parts = [
        f"Least cross-validated error and one-standard-error rule ({c.folds} folds, means ± standard errors over "
        f"folds; functions left, of them with an effect; the noise has variance {c.noise**2:g}):\n\n"
        + table(
            ["method", "best λ", "error", "functions left", "1-SE λ", "error", "functions left", "fewest at any λ"],
            [_choice_row(m, v) for m, v in summary.items()],
        ),
        f"The same best models three ways: functions below {THRESHOLD:g} set to zero (as above); kept as they are; "
        "kept, with the intercept and the running statistics of batch norm that the training left instead of those of "
        "the training rows. Then over all λ: the largest standard deviation of a function below the threshold, and the "
        "largest rise of the error when such functions are set to zero:\n\n"
        + table(
            ["method", "set to zero", "kept", "as trained", "largest function below", "largest rise"],
            [_norm_row(m, v) for m, v in summary.items()],
        ),
        "At the best λ: the epoch from which the threshold shows the final support, and from which the certificate "
        "holds of every column left out (medians over folds; for Adam the certificate is measured evidence, not a "
        "theorem; D = 2 has none). Over all λ: columns certified at some epoch and not at the end. Then the model of "
        "the first fold at the best λ, parameters and FLOPs of one row: full, after `compact`, and without the dead "
        "columns:\n\n"
        + table(
            ["method", "threshold, epoch", "certificate, epoch", "revoked of certified", "full", "compact",
             "without dead columns", "largest difference of outputs"],
            [_time_row(m, v) for m, v in summary.items()],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _left(point: dict[str, Any]) -> str:
    return f"{np.mean(point['left']):.1f} ({np.mean(point['true']):.1f})"


def _choice_row(name: str, m: Method) -> Sequence[object]:
    chosen = (x for rule in ("best", "1se") for x in (f"{m[rule]['lam']:.3g}", shown(m[rule]["error"]), _left(m[rule])))
    return name, *chosen, f"{min(float(np.mean(p['left'])) for p in m['points']):.1f}"


def _norm_row(name: str, m: Method) -> Sequence[object]:
    best, size = m["best"], _dead_size(m)
    rise = max(float(np.mean(np.subtract(p["error"], p["kept"]))) for p in m["points"])
    return (
        name, f"{np.mean(best['error']):.3f}", f"{np.mean(best['kept']):.3f}", f"{np.mean(best['running']):.4g}",
        "–" if size is None else f"{size:.2g}", "–" if size is None else f"{rise:.3f}",
    )  # fmt: skip


def _time_row(name: str, m: Method) -> Sequence[object]:
    best = m["best"]
    known = [epoch for epoch in best["certified_epoch"] if epoch is not None]
    revoked = sum(sum(p["revoked"]) for p in m["points"])
    held = sum(sum(p["certified"]) for p in m["points"])
    sizes = (
        "{:,.0f}; {:,.0f}".format(*(np.mean([s[which][key] for s in best["sizes"]]) for key in ("parameters", "flops")))
        for which in ("full", "compact", "without")
    )
    cut = [s[which] for p in m["points"] for s in p["sizes"] for which in ("compact", "without")]
    return (
        name, f"{np.median(best['support_epoch']):.0f}",
        f"{np.median(known):.0f} (in {len(known)} of {len(best['left'])})" if known else "–",
        f"{revoked} of {revoked + held}" if best["certified"] else "–", *sizes,
        f"{max(size['difference'] for size in cut):.0e}",
    )  # fmt: skip


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Error and functions left along λ; norms along λ."""
    if not summary:
        return {}
    paths, panels = figure(columns=2)
    for name, m in summary.items():
        base = name.removesuffix(PLAIN)
        style = {"color": COLOUR.get(base), "ls": ":" if name.endswith(PLAIN) else "-", "lw": 1.2}
        lams = [p["lam"] for p in m["points"]]
        # means alone: folds differ much more than methods do on one fold, and bands would hide that
        panels[0, 0].plot(lams, [np.mean(p["error"]) for p in m["points"]], label=name, **style)
        panels[0, 1].plot(lams, [np.mean(p["left"]) for p in m["points"]], label=name, **style)
        panels[0, 1].plot(m["best"]["lam"], np.mean(m["best"]["left"]), marker="o", ms=4, color=style["color"])
    panels[0, 1].axhline(len(FUNCTIONS), color="k", lw=0.7, ls=":")
    panels[0, 0].axhline(c.noise**2, color="k", lw=0.7, ls=":")
    panels[0, 0].set(ylabel="cross-validated squared error", ylim=(0.95 * c.noise**2, 1.5 * c.noise**2))
    panels[0, 1].set(ylabel="functions left, mean (dot: at the best λ)")
    for panel in panels[0]:
        panel.set(xscale="log", xlabel="λ")
    legend(paths, panels)
    columns = min(4, len(summary))
    norms, panels = figure(columns=columns, rows=-(-len(summary) // columns), sharex=True, sharey=True)
    for panel, (name, m) in zip(panels.flat, summary.items(), strict=False):
        _norms(panel, m)
        panel.set(xscale="log", yscale="log", title=name, xlabel="λ")
    for panel in panels.flat[len(summary) :]:
        panel.set_visible(False)
    for row in panels:
        row[0].set_ylabel("norm of the weights of a column")
    panels.flat[0].legend(fontsize=6)
    return {"paths": paths, "norms": norms}


def _norms(panel: Any, m: Method) -> None:
    lams = [p["lam"] for p in m["points"]]
    for which, label, colour in (
        (slice(0, len(FUNCTIONS)), "with an effect", "#d62728"), (slice(len(FUNCTIONS), None), "without", "#1f77b4"),
    ):  # fmt: skip
        # norms far below the threshold are of no interest, and some are exactly zero
        values = [np.maximum(np.array(p["norms"])[:, which].ravel(), 1e-8) for p in m["points"]]
        low, middle, high = (np.array([np.quantile(v, q) for v in values]) for q in (0.0, 0.5, 1.0))
        panel.plot(lams, middle, color=colour, label=f"{label}: median and range")
        panel.fill_between(lams, low, high, color=colour, alpha=0.15, linewidth=0)
    panel.axhline(THRESHOLD, color="k", lw=0.7, ls=":")
