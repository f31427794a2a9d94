"""What the stored cells of Fig. 7 say: heads left along λ, accuracy, size and speed of what is left."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import figure, legend
from experiments.common.statistics import by, cost_at, frontier, table
from experiments.fig07_heads.measure import THRESHOLD, Configuration, kinds_of, parsed

LOSSES = (0.01, 0.05)  # of next characters guessed right, below the dense model
OURS = ("heads and neurons, D = 3", "heads and neurons, quick D = 3")  # what makes a model small, recommended depth
STYLE = {"values": "-", "heads": "--", "heads and neurons": ":"}
COLOUR = {
    "D = 2": "#1f77b4",
    "D = 3": "#d62728",
    "D = 4": "#2ca02c",
    "quick D = 3": "#ff7f0e",
    "direct": "#7f7f7f",
    "dense": "k",
}
Point = dict[str, Any]


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """For every method its runs along λ and all their points; those of the dense model by kind of unit."""
    good = [r for r in records if "points" in r.found]
    runs = {
        method: sorted(({**r.cell, **r.found} for r in of), key=lambda r: r["lam"])
        for method, of in by(good, lambda cell: cell["method"]).items()
    }
    dense = runs.pop("dense", [])
    points = {
        method: [{**p, "seed": r["seed"], "lam": r["lam"]} for r in of for p in r["points"]]
        for method, of in runs.items()
    }
    for kind in kinds_of(c):
        found = [{**p, "seed": r["seed"], "lam": 0.0} for r in dense for p in r["points"] if p["kind"] == kind]
        if found:
            points[f"{kind}, dense"] = found
    whole = {r["seed"]: r["points"][0] for r in dense}
    return {
        "dense": whole, "runs": runs, "points": points, "heads": c.layers * c.heads,
        "diverged": sum("diverged" in r.found for r in records),
    }  # fmt: skip


def chosen(summary: Summary, points: Sequence[Point], loss: float, cost: Callable[[Point], float]) -> Point | None:
    """The cheapest point whose accuracy on the text to choose by is at most ``loss`` below the dense model's.

    Of the first seed that has a dense model; ``None`` if there is none.
    """
    seed = min(summary["dense"])
    least = summary["dense"][seed]["accuracy"]["validation"] - loss
    good = [p for p in points if p["seed"] == seed and p["accuracy"]["validation"] >= least]
    return min(good, key=cost, default=None)


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Direct descent gives no dead heads; gating does, and more of them before the model gets worse; small and fast."""
    if not summary["dense"]:
        return []
    out = [*_never(summary), *_merge(summary), *_more(summary), *_fewer(summary)]
    return out + [v for word, cost in COSTS.items() for v in _ahead(summary, word, cost)]


def _alive(run: dict[str, Any]) -> int:
    return sum(v > THRESHOLD for layer in run["norms"] for v in layer)


def _never(summary: Summary) -> list[Verdict]:
    direct = summary["runs"].get("values, direct", [])
    gated = {m: runs for m, runs in summary["runs"].items() if parsed(m)[0] == "values" and "D = " in m}
    if not direct or not gated:
        return []
    alive, fewest = min(map(_alive, direct)), {m: min(map(_alive, runs)) for m, runs in gated.items()}
    good = [n < summary["heads"] for n in fewest.values()]
    return [Verdict(
        "the penalty itself, descended directly, never gives a dead head; gating does", "never",
        f"fewest of {summary['heads']} heads above {THRESHOLD:g} at any λ: {alive} (direct), "
        + ", ".join(f"{n} ({m})" for m, n in fewest.items()),
        status(alive == summary["heads"] and all(good), alive == summary["heads"] or any(good)),
        "" if alive == summary["heads"] else
        "a norm that is pulled across zero hovers about it at the size of a step, and a cosine takes that to zero",
    )]  # fmt: skip


def _merge(summary: Summary) -> list[Verdict]:
    direct = summary["runs"].get("values, direct", [])
    if len(direct) < 2:
        return []
    ratios = [min(flat) / max(flat) for r in (direct[0], direct[-1]) for flat in [np.concatenate(r["norms"])]]
    return [Verdict(
        "with direct descent the smallest and the largest norm merge at large λ", "merge",
        f"smallest over largest norm: {ratios[0]:.2f} at λ = {direct[0]['lam']:g}, {ratios[1]:.2f} at λ = "
        f"{direct[-1]['lam']:g}",
        status(ratios[1] > 0.8, ratios[1] > ratios[0]),
    )]  # fmt: skip


def _more(summary: Summary) -> list[Verdict]:
    """Heads left never grow with λ."""
    falls = {}
    for method, runs in summary["runs"].items():
        if "D = " in method and len(runs) > 1:
            heads = [r["points"][0]["heads"] for r in runs if r["seed"] == min(summary["dense"])]
            falls[method] = heads
    if not falls:
        return []
    good = [all(b <= a for a, b in itertools.pairwise(h)) and h[-1] < h[0] for h in falls.values()]
    return [Verdict(
        "gating gives more sparsity with more λ", "increasing",
        "heads left along λ: " + "; ".join(f"{m}: {' '.join(map(str, h))}" for m, h in falls.items()),
        status(all(good), any(good)),
    )]  # fmt: skip


def _fewer(summary: Summary) -> list[Verdict]:
    """The paper's second claim, with its units: the better of ours against the better of the two baselines."""
    claim = "gated value matrices keep the accuracy with fewer heads than the penalty itself with pruning"
    return [
        *_fewest(summary, ("values, D = 3", "values, D = 4"), claim, "many fewer"),
        *_fewest(summary, ("values, quick D = 3",), f"{claim}, with larger steps of the gates (ours)", "–"),
    ]


def _fewest(summary: Summary, gated: Sequence[str], claim: str, paper: str) -> list[Verdict]:
    points = summary["points"]
    ours = [m for m in gated if m in points]
    others = [m for m in ("values, direct", "values, dense") if m in points]
    if not ours or not others:
        return []
    words, good = [], []
    for loss in LOSSES:
        left = {
            m: summary["heads"] if (p := chosen(summary, points[m], loss, lambda p: p["heads"])) is None else p["heads"]
            for m in (*ours, *others)
        }
        good.append(min(left[m] for m in ours) < min(left[m] for m in others))
        words.append(f"{100 * loss:g} points: " + ", ".join(f"{n} ({m})" for m, n in left.items()))
    return [Verdict(
        claim, paper,
        f"fewest of {summary['heads']} heads with an accuracy below the dense model's by at most {'; '.join(words)}",
        status(all(good), any(good)),
    )]  # fmt: skip


COSTS: dict[str, Callable[[Point], float]] = {
    "smaller": lambda p: p["parameters"][1] / p["parameters"][0],
    "faster": lambda p: 1 / p["speedup"],
}


def _ahead(summary: Summary, word: str, cost: Callable[[Point], float]) -> list[Verdict]:
    """Gates of ours with these units, steps as usual or larger, against every baseline; linear between models."""
    points, seed = summary["points"], min(summary["dense"])
    ours = [m for m in points if m in OURS]
    others = [m for m in points if m.endswith(("direct", "dense"))]
    if not ours or not others:
        return []
    dense = summary["dense"][seed]["accuracy"]["validation"]
    words, good = [], []
    for loss in LOSSES:
        costs = {
            m: cost_at(dense - loss, [(1.0, dense)] + [
                (cost(p), p["accuracy"]["validation"]) for p in points[m] if p["seed"] == seed
            ]) for m in (*ours, *others)
        }  # fmt: skip
        best = min(others, key=lambda m: costs[m])
        good.append(min(costs[m] for m in ours) < costs[best])
        words.append(f"{100 * loss:g} points: " + ", ".join(f"{100 * costs[m]:.0f} % ({m})" for m in (*ours, best)))
    name = "parameters" if word == "smaller" else "time"
    return [Verdict(
        f"at an equal loss of accuracy the compact gated model of heads and neurons is {word} than every baseline's "
        "(ours)", "–",
        f"{name} left, linear between models, gated and the best baseline, at a loss of {'; '.join(words)}",
        status(all(good), any(good)),
    )]  # fmt: skip


def tables(c: Configuration, summary: Summary) -> str:
    """Along λ, then what is left at an equal loss of accuracy."""
    rows: list[Sequence[object]] = [("dense", "", *_row(p), "–", "–") for p in summary["dense"].values()]
    for method, runs in summary["runs"].items():
        for r in runs:
            known, when = r.get("certified"), r.get("certified_for_good")
            rows.append(
                (method, f"{r['lam']:g}", *_row(r["points"][0]), *("–" if v is None else v for v in (known, when)))
            )
    head = ["method", "λ", "heads", "neurons", "perplexity", "next character right", "parameters",
            "characters a second", "faster", "certified groups", "all dead groups certified from step"]  # fmt: skip
    lost = f" Trainings that diverged: {summary['diverged']}." if summary["diverged"] else ""
    own = (
        f"Every model without its own dead groups (norm up to {THRESHOLD:g}), compacted; test text; speed of scoring a "
        f"batch, beside the full model of the same cell.{lost}\n\n{table(head, rows)}"
    )
    return own + ("\n\n" + _equal(summary) if summary["dense"] else "")


def _equal(summary: Summary) -> str:
    rows: list[Sequence[object]] = []
    for method, points in summary["points"].items():
        for loss in LOSSES:
            p = chosen(summary, points, loss, COSTS["smaller"])
            if p is not None:
                how = "own zeros" if p.get("own") else f"{100 * p['ratio']:g} % pruned"
                rows.append((method, f"{100 * loss:g}", f"{p['lam']:g}", how, *_row(p)))
    head = ["method", "points below the dense model", "λ", "dead groups", "heads", "neurons", "perplexity",
            "next character right", "parameters", "characters a second", "faster"]  # fmt: skip
    return (
        "The smallest model of each method at an equal loss of accuracy; λ and share are chosen on other text than the "
        f"figures are of:\n\n{table(head, rows)}"
    )


def _row(p: Point) -> tuple[object, ...]:
    return (
        p["heads"], p["neurons"], f"{p['perplexity']:.2f}", f"{p['accuracy']['test']:.3f}",
        f"{p['parameters'][0]:,} → {p['parameters'][1]:,}", f"{p['per_second'][1]:,}", f"{p['speedup']:.2f}×",
    )  # fmt: skip


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Best accuracy at every number of heads, every size and every time; the norms of value matrices along λ."""
    if not summary["dense"]:
        return {}
    made, panels = figure(columns=2, rows=2)
    axes = {
        "heads left": lambda p: p["heads"], "parameters left, %": lambda p: 100 * COSTS["smaller"](p),
        "time left, %": lambda p: 100 * COSTS["faster"](p),
    }  # fmt: skip
    for method, points in summary["points"].items():
        kind, way = parsed(method)
        for panel, cost in zip(panels.flat, axes.values(), strict=False):
            at = frontier([(cost(p), p["accuracy"]["test"]) for p in points])
            panel.plot(*zip(*at, strict=True), label=method, color=COLOUR[way], ls=STYLE[kind], lw=1, marker=".", ms=3)
    top = max(p["accuracy"]["test"] for p in summary["dense"].values())
    for panel, name in zip(panels.flat, axes, strict=False):
        panel.set(xlabel=name, ylabel="next character right", ylim=(0.6 * top, 1.02 * top))
    last = panels.flat[3]
    for method, colour in (("values, direct", COLOUR["direct"]), ("values, D = 3", COLOUR["D = 3"])):
        runs = summary["runs"].get(method, [])
        for pick, style in ((min, ":"), (max, "-")) if runs else ():
            norms = [max(pick(v for layer in r["norms"] for v in layer), 1e-9) for r in runs]
            last.plot([r["lam"] for r in runs], norms, color=colour, ls=style, lw=1,
                      label=f"{method}: {pick.__name__}imal norm")  # fmt: skip
    last.axhline(THRESHOLD, color="k", lw=0.7, ls=":")
    last.set(xscale="log", yscale="log", xlabel="λ", ylabel="norm of a value matrix")
    legend(made, panels, columns=4)
    return {"heads": made}
