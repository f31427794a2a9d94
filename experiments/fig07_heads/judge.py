"""What the stored cells of Fig. 7 say: heads left along λ, perplexity and speed of what is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.experiment import Record, Summary, Verdict
from experiments.common.plots import figure, legend
from experiments.common.statistics import by, table
from experiments.fig07_heads.measure import THRESHOLD, Configuration

LOSS = 0.05  # nats a character above the dense model
STYLE = {"values": "-", "heads": "--", "heads and neurons": ":"}
COLOUR = {"2": "#1f77b4", "3": "#d62728", "4": "#2ca02c", "": "#7f7f7f"}


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """The dense models, and for every method its points along λ."""
    good = [r for r in records if "points" in r.found]
    dense = [r.found for r in good if r.cell["method"] == "dense"]
    methods = {
        method: [{"lam": r.cell["lam"], "seed": r.cell["seed"], **r.found} for r in runs]
        for method, runs in by([r for r in good if r.cell["method"] != "dense"], lambda cell: cell["method"]).items()
    }
    diverged = sum("diverged" in r.found for r in records)
    return {"dense": dense, "methods": methods, "diverged": diverged, "heads": c.layers * c.heads}


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Direct descent gives no dead heads; gating does, and more of them before the model gets worse."""
    gated = {m: runs for m, runs in summary["methods"].items() if m != "direct"}
    direct = summary["methods"].get("direct", [])
    if not summary["dense"] or not gated or not direct:
        return []
    fewest = {m: min(r["points"][0]["heads"] for r in runs) for m, runs in gated.items()}
    alive = min(sum(v > THRESHOLD for v in r["norms"]) for r in direct)
    out = [Verdict(
        "the penalty itself, descended directly, never gives a dead head; gating gives more with more λ", "never",
        f"fewest of {summary['heads']} heads above {THRESHOLD:g} at any λ: {alive} (direct), "
        + ", ".join(f"{n} ({m})" for m, n in fewest.items()),
        "reproduced" if alive == summary["heads"] and all(n < alive for n in fewest.values()) else "partly",
    )]  # fmt: skip
    ours = {m: _fewest(summary, runs) for m, runs in gated.items()}
    best = min(ours, key=lambda m: ours[m])
    pruned = min(_fewest(summary, direct), _fewest(summary, [{"points": d["points"]} for d in summary["dense"]]))
    out.append(Verdict(
        "gating removes more heads before the model gets worse than direct descent with pruning", "many more",
        f"fewest heads at a cross-entropy within {LOSS:g} of the dense model: {ours[best]:.0f} ({best}), {pruned:.0f} "
        "(direct or dense, with the value matrices of smallest norm set to zero)",
        "reproduced" if ours[best] < pruned else "not reproduced",
    ))  # fmt: skip
    return out


def _fewest(summary: Summary, runs: Sequence[dict[str, Any]]) -> float:
    limit = float(np.mean([d["loss"] for d in summary["dense"]])) + LOSS
    return min((p["heads"] for r in runs for p in r["points"] if p["loss"] <= limit), default=summary["heads"])


def tables(c: Configuration, summary: Summary) -> str:
    """Along λ: heads, neurons, perplexity, size, speed, certificate."""
    rows: list[Sequence[object]] = []
    for found in summary["dense"]:
        rows.append(("dense", "", *_row(found["points"][0]), "–", "–"))
    for method, runs in summary["methods"].items():
        for r in sorted(runs, key=lambda r: r["lam"]):
            known = "–" if r.get("certified") is None else r["certified"]
            when = r.get("certified_for_good")
            rows.append((method, f"{r['lam']:g}", *_row(r["points"][0]), known, "–" if when is None else when))
    head = ["method", "λ", "heads", "neurons", "perplexity", "next character right", "parameters",
            "characters a second", "faster", "certified groups", "all dead groups certified from step"]  # fmt: skip
    lost = f" Trainings that diverged: {summary['diverged']}." if summary["diverged"] else ""
    return (
        f"Every model without its own dead groups (norm up to {THRESHOLD:g}), compacted; speed beside the full model "
        f"of the same cell.{lost}\n\n{table(head, rows)}"
    )


def _row(p: dict[str, Any]) -> tuple[object, ...]:
    return (
        p["heads"], p["neurons"], f"{p['perplexity']:.2f}", f"{p['accuracy']:.3f}",
        f"{p['parameters'][0]:,} → {p['parameters'][1]:,}", f"{p['per_second'][1]:,}", f"{p['speedup']:.2f}×",
    )  # fmt: skip


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Perplexity against heads left and against speed; the norms of direct descent along λ."""
    if not summary["dense"]:
        return {}
    made, panels = figure(columns=3)
    series = {m: [p for r in runs for p in r["points"]] for m, runs in summary["methods"].items()}
    series["dense, pruned"] = [p for d in summary["dense"] for p in d["points"]]
    for method, points in series.items():
        kind, _, depth = method.partition(", D = ")
        style = {"color": "k" if kind.startswith("dense") else COLOUR[depth], "ls": STYLE.get(kind, "-"), "lw": 1}
        for panel, key in zip(panels[0], ("heads", "speedup"), strict=False):
            at = sorted((p[key], min(p["perplexity"], 1e3)) for p in points)
            panel.plot([x for x, _ in at], [y for _, y in at], label=method, marker=".", ms=4, **style)
    low = min(d["points"][0]["perplexity"] for d in summary["dense"])
    panels[0, 0].set(xlabel="heads left", ylabel="perplexity", ylim=(0.9 * low, 3 * low))
    panels[0, 1].set(xlabel="time, full over compact", ylim=(0.9 * low, 3 * low))
    for method, colour in (("direct", COLOUR[""]), ("values, D = 3", COLOUR["3"])):
        runs = sorted(summary["methods"].get(method, []), key=lambda r: r["lam"])
        if runs:
            lams = [r["lam"] for r in runs]
            for pick, style in ((min, ":"), (max, "-")):
                norms = [max(pick(r["norms"]), 1e-9) for r in runs]
                panels[0, 2].plot(
                    lams, norms, color=colour, ls=style, lw=1, label=f"{method}: {pick.__name__}imal norm"
                )
    panels[0, 2].axhline(THRESHOLD, color="k", lw=0.7, ls=":")
    panels[0, 2].set(xscale="log", yscale="log", xlabel="λ", ylabel="norm of a value matrix")
    legend(made, panels)
    assert math.isfinite(low)
    return {"heads": made}
