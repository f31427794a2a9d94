"""What the stored cells of Fig. 3, 17 and 18 say: decay curves, fitted rates beside 4λ/D and 8λ/D."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import COLOURS, figure, legend
from experiments.common.statistics import by, shown, table
from experiments.fig03_dynamics.measure import Configuration

STRAIGHT = 0.95  # R² of a line through the logarithm of the gap: less is no exponential


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every optimizer, λ and D: curves, fitted rates in units of 4λ/D, what is left of the network."""
    out: Summary = {"sgd": [], "adam": [], "larger": []}
    grouped = by(records, lambda cell: (cell["optimizer"], cell["lr"], cell["lam"], cell["depth"]))
    for (optimizer, lr, lam, depth), runs in grouped.items():
        found = [run.found for run in runs]
        out["larger" if optimizer == "sgd" and lr in c.larger_lrs else optimizer].append({
            "lam": lam, "depth": depth, "lr": lr, "steps": found[0]["steps"],
            "curves": [f["curve"] for f in found],
            "rates": [f["fit"]["rate"] * depth / (4 * lam) for f in found] if found[0]["fit"] else None,
            "r2": [f["fit"]["r2"] for f in found] if found[0]["fit"] else None,
            "decades": [float(np.log10(f["curve"][0][1] / max(f["curve"][-1][1], 1e-12))) for f in found],
            "tenth": [_tenth(f["curve"]) for f in found],
            "identity": max(_identity(f["curve"]) for f in found),
            **{k: [f[k] for f in found] for k in ("accuracy", "left", "certified")},
            # nothing is gone, or the last look still saw a change: there is no step from which the support was final
            "support_step": [f["support_step"] if f["left"] < _neurons(c) and f["support_step"] < f["steps"] else None
                             for f in found],
            "certified_step": [f["certified_for_good"] for f in found],
            "compact": [f["compact"] for f in found],
        })  # fmt: skip
    return out


def _neurons(c: Configuration) -> int:
    return sum(c.hidden)


def _tenth(curve: list[list[float]]) -> float:
    """Steps from which the gap stays at or below a tenth of its start, nan if it does not (Adam's dips at first)."""
    above = [i for i, (_, m, _) in enumerate(curve) if m > 0.1 * curve[0][1]]
    return curve[above[-1] + 1][0] if above[-1] + 1 < len(curve) else np.nan


def _identity(curve: list[list[float]]) -> float:
    """Largest |M - (R - R_w)| in units of the first gap."""
    return max(abs(m - r) for _, m, r in curve) / curve[0][1]


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Exponential decay, its dependence on λ and D, and Adam."""
    out = []
    if summary["sgd"]:
        rates = [(r, s["lam"], s["depth"]) for s in summary["sgd"] for r in s["rates"]]
        inside = [1 <= r <= 2 for r, *_ in rates]
        r2 = [v for s in summary["sgd"] for v in s["r2"]]
        straight = min(r2) > STRAIGHT
        outside = ", ".join(
            f"λ = {lam:g}, D = {d}: {r:.3f}" for (r, lam, d), good in zip(rates, inside, strict=True) if not good
        )
        out.append(Verdict(
            "SGD: L − L_w decays exponentially, at a rate between 4λ/D and 8λ/D", "exponential for every λ and D",
            f"{sum(inside)} of {len(rates)} runs inside; rates {min(r for r, *_ in rates):.2f} to "
            f"{max(r for r, *_ in rates):.2f} times 4λ/D, R² of log gap on time at least {min(r2):.3f}",
            status(all(inside) and straight, sum(inside) > len(inside) / 2),
            f"outside: {outside}" if outside else "",
        ))  # fmt: skip
        mean = {(s["lam"], s["depth"]): np.mean(s["rates"]) * 4 * s["lam"] / s["depth"] for s in summary["sgd"]}
        rising = [
            mean[a, d] < mean[b, d]
            for a, b in zip(c.lams, c.lams[1:], strict=False)
            for d in c.depths
            if {(a, d), (b, d)} <= mean.keys()
        ]
        falling = [
            mean[a, d] > mean[a, e]
            for a in c.lams
            for d, e in zip(c.depths, c.depths[1:], strict=False)
            if {(a, d), (a, e)} <= mean.keys()
        ]
        if rising and falling:
            out.append(Verdict(
                "the rate increases with λ and decreases with D", "both",
                f"with λ in {sum(rising)} of {len(rising)} comparisons, with D in {sum(falling)} of {len(falling)}",
                status(all(rising) and all(falling), sum(rising + falling) > len(rising + falling) / 2),
            ))  # fmt: skip
    if summary["adam"]:
        tenth = {(s["lam"], s["depth"]): float(np.mean(s["tenth"])) for s in summary["adam"]}
        reached = sum(np.isfinite(v) for v in tenth.values())
        spread = _spread(summary["adam"])
        slower = _spread(summary["sgd"])
        out.append(Verdict(
            "Adam: the gap converges, too, with a weaker dependence on D", "yes, not a clean exponential",
            f"below a tenth for good in {reached} of {len(tenth)} settings within {c.adam_steps} steps; steps until "
            f"then, largest over smallest D: {spread:.2f} (Adam), {slower:.2f} (SGD)",
            status(reached == len(tenth) and spread < slower, reached > len(tenth) / 2),
        ))  # fmt: skip
    return out


def _spread(settings: list[dict[str, Any]]) -> float:
    """Steps until the gap stays below a tenth, at the largest D over those at the smallest; mean over λ."""
    by_lam: dict[float, dict[int, float]] = {}
    for s in settings:
        by_lam.setdefault(s["lam"], {})[s["depth"]] = float(np.mean(s["tenth"]))
    ratios = [v[max(v)] / v[min(v)] for v in by_lam.values() if len(v) > 1]
    ratios = [r for r in ratios if np.isfinite(r)]
    return float(np.mean(ratios)) if ratios else np.nan


def tables(c: Configuration, summary: Summary) -> str:
    """Rates, then what the run leaves: certificate, threshold, compact network."""
    rates = table(
        ["λ", "D", "steps", "rate / (4λ/D)", "R²", "largest defect of (66)"],
        [(f"{s['lam']:g}", s["depth"], s["steps"], shown(s["rates"]), f"{min(s['r2']):.4f}", f"{s['identity']:.0e}")
         for s in summary["sgd"]],
    )  # fmt: skip
    rows = []
    for optimizer in ("sgd", "adam"):
        for s in summary[optimizer]:
            known = [k for k in s["certified"] if k is not None]
            steps = [_mean_step(s[k]) for k in ("support_step", "certified_step")]
            rows.append((
                optimizer, f"{s['lam']:g}", s["depth"], f"{np.mean(s['accuracy']):.4f}", f"{np.mean(s['left']):.0f}",
                f"{np.mean(known):.0f}" if known else "–",
                " / ".join(steps),
                f"{s['compact'][0]['parameters'][0]} → {np.mean([k['parameters'][1] for k in s['compact']]):.0f}",
                f"{max(k['difference'] for k in s['compact']):.0e}",
            ))  # fmt: skip
    left = table(
        ["optimizer", "λ", "D", "test accuracy", "neurons left", "certified dead",
         "final support, step: threshold / certificate", "parameters, full → compact", "difference of outputs"], rows,
    )  # fmt: skip
    words = "Fitted rates (SGD, mean ± standard error over seeds, in units of 4λ/D; 1 to 2 is the theory):"
    parts = [f"{words}\n\n{rates}", f"At the end of the runs:\n\n{left}"]
    if summary["larger"]:
        parts.insert(1, _larger(summary))
    return "\n\n".join(parts)


def _mean_step(steps: list[int | None]) -> str:
    known = [step for step in steps if step is not None]
    some = "" if len(known) == len(steps) else f" (in {len(known)} of {len(steps)})"
    return f"{np.mean(known):.0f}{some}" if known else "–"


def _larger(summary: Summary) -> str:
    """The slowest decay with larger steps, beside the same seed with the steps of all other runs."""
    slow = summary["larger"][0]
    same = [s for s in summary["sgd"] if (s["lam"], s["depth"]) == (slow["lam"], slow["depth"])]
    rows = [
        (f"{s['lr']:g}", f"{s['rates'][0]:.3f}", f"{s['r2'][0]:.4f}", _rises(s["curves"][0]))
        for s in (*same, *summary["larger"])
    ]
    return (
        f"The slowest decay (λ = {slow['lam']:g}, D = {slow['depth']}) at larger step sizes, one seed. The theory is "
        "that of a flow; with larger steps the gap falls more slowly, and jumps up now and then:\n\n"
        + table(["step size", "rate / (4λ/D)", "R²", "looks at which the gap rose"], rows)
    )


def _rises(curve: list[list[float]]) -> str:
    gaps = [m for _, m, _ in curve]
    return f"{sum(b > a for a, b in itertools.pairwise(gaps))} of {len(gaps) - 1}"


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Fig. 3 (SGD) and 18 (Adam), with the two theoretical slopes; Fig. 17 is the same picture by (66)."""
    made = {}
    for optimizer in ("sgd", "adam"):
        settings = summary[optimizer]
        lams = [lam for lam in c.lams if any(s["lam"] == lam for s in settings)]
        if not lams:
            continue
        fig, panels = figure(columns=len(lams), sharey=True)
        for panel, lam in zip(panels[0], lams, strict=True):
            for s in (s for s in settings if s["lam"] == lam):
                colour = COLOURS[f"D = {s['depth']}"]
                for i, curve in enumerate(s["curves"]):
                    label = f"D = {s['depth']}" if i == 0 else None
                    panel.plot([p[0] for p in curve], [p[1] * lam for p in curve], color=colour, lw=1, label=label)
                if optimizer == "sgd":
                    steps = np.array([p[0] for p in s["curves"][0]])
                    for factor, style in ((4, ":"), (8, "--")):
                        line = lam * s["curves"][0][0][1] * np.exp(-factor * lam * s["lr"] * steps / s["depth"])
                        panel.plot(steps, line, color=colour, lw=0.6, ls=style, alpha=0.7)
            panel.set(yscale="log", xlabel="step", title=f"λ = {lam:g}")
        panels[0, 0].set_ylabel("L − L_w")
        legend(fig, panels)
        made[f"gap_{optimizer}"] = fig
    return made
