"""What the stored cells of Fig. 13 and 14 say: overheads by model, batch size and depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.common.experiment import Record, Summary, Verdict, status
from experiments.common.plots import COLOURS, figure, legend
from experiments.common.statistics import table
from experiments.fig13_overhead.measure import MODELS, Configuration

# Table 5 of the paper: overhead in parameters at D = 4. LeNet: its largest input has 784 columns
RATES = {"linear": 6.0e-1, "LeNet-300-100": 8.8e-3, "VGG-16": 8.4e-4, "NanoGPT": 2.0e-5}
DEPTH = 4
LIMIT = 1.3  # "between 0 and 30 % longer"
SAME = 1.05  # "hardly distinguishable", in numbers that we chose
Row = dict[str, Any]


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """A row for every model, batch size and way of running."""
    return {
        "rows": [
            {**r.cell, "depths": {d["depth"]: d for d in r.found["depths"]}} for r in records if "depths" in r.found
        ],
        "failed": [{**r.cell, "why": r.found["failed"]} for r in records if "failed" in r.found],
    }


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Parameters as in Table 5; time below the paper's, at usual batch sizes and at all; memory alike."""
    rows: list[Row] = summary["rows"]
    eager = [r for r in rows if not r["compiled"]]
    usual = [r for r in eager if r["batch"] == MODELS[r["model"]].usual]
    out = [_parameters(eager)] if eager else []
    if usual:
        out.append(_time("time at the batch sizes that the models are trained with: nothing for large models", usual))
    if eager:
        out.append(_time("time at all batch sizes: between 0 and 30 % longer at small ones", eager))
        out += _vanishing(eager)
    if len(rows) > len(eager):
        out.append(_time("time under torch.compile", [r for r in rows if r["compiled"]], paper="–"))
    return out + ([_memory(usual)] if usual else [])


def _parameters(rows: list[Row]) -> Verdict:
    found = {
        r["model"]: r["depths"][DEPTH]["parameters"] / r["depths"][1]["parameters"] - 1
        for r in rows if DEPTH in r["depths"]
    }  # fmt: skip
    same = [abs(rate / RATES[m] - 1) < 0.03 for m, rate in found.items()]
    return Verdict(
        f"parameters: overhead at D = {DEPTH} (Table 5)", ", ".join(f"{m} {RATES[m]:.1e}" for m in found),
        ", ".join(f"{m} {rate:.1e}" for m, rate in found.items()), status(all(same), any(same)),
    )  # fmt: skip


def _time(claim: str, rows: list[Row], paper: str = "0 to 30 %") -> Verdict:
    """The median ratio of every setting against 30 %."""
    found = [(r, d, v["ratio"][1]) for r in rows for d, v in r["depths"].items() if d > 1]
    below = [ratio < LIMIT for *_, ratio in found]
    words = {m: [ratio for r, _, ratio in found if r["model"] == m] for m in dict.fromkeys(r["model"] for r in rows)}
    over = [
        f"{r['model']}, batch {r['batch']}, D = {d}: {100 * (v - 1):+.0f} % of {r['depths'][1]['ms']:.2g} ms"
        for r, d, v in found if v >= LIMIT
    ]  # fmt: skip
    return Verdict(
        claim, paper,
        f"median ratios of a step below {LIMIT:g} in {sum(below)} of {len(found)} settings: "
        + "; ".join(f"{m} {min(v):.2f} to {max(v):.2f}" for m, v in words.items()),
        status(all(below), sum(below) > len(below) / 2), f"above at {'; '.join(over)}" if over else "",
    )  # fmt: skip


def _vanishing(rows: list[Row]) -> list[Verdict]:
    """Smallest against largest batch of every model that has several; both medians, of the largest depth."""
    pairs = {}
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = sorted((r for r in rows if r["model"] == model), key=lambda r: r["batch"])
        if len(mine) > 1:
            pairs[model] = [r["depths"][max(r["depths"])]["ratio"][1] for r in (mine[0], mine[-1])]
    if not pairs:
        return []
    less = [last < max(first, SAME) for first, last in pairs.values()]
    return [Verdict(
        "the overhead vanishes with larger batches", "vanishes",
        "smallest and largest batch: " + "; ".join(f"{m} {a:.2f} and {b:.2f}" for m, (a, b) in pairs.items()),
        status(all(less), any(less)),
    )]  # fmt: skip


def _memory(rows: list[Row]) -> Verdict:
    """At the usual batch sizes."""
    worst = {
        r["model"]: max(v["bytes"] for d, v in r["depths"].items() if d > 1) / r["depths"][1]["bytes"] for r in rows
    }
    alike = [ratio < SAME for ratio in worst.values()]
    return Verdict(
        "peak memory is hardly distinguishable in most settings", "indistinguishable",
        f"largest ratio over D, at the usual batch size: {', '.join(f'{m} {v:.2f}' for m, v in worst.items())}",
        status(sum(alike) > len(alike) / 2, any(alike)),
    )  # fmt: skip


def tables(c: Configuration, summary: Summary) -> str:
    """Milliseconds and ratios, memory, parameters."""
    depths = sorted({d for r in summary["rows"] for d in r["depths"]} - {1})
    rows = []
    for r in summary["rows"]:
        plain = r["depths"][1]
        gated = [r["depths"].get(d) for d in depths]
        times = [f"{g['ratio'][1]:.2f} ({g['ratio'][0]:.2f} to {g['ratio'][2]:.2f})" if g else "–" for g in gated]
        peaks = [f"{g['bytes'] / plain['bytes']:.3f}" if g and g["bytes"] else "–" for g in gated]
        rates = [f"{g['parameters'] / plain['parameters'] - 1:.1e}" if g else "–" for g in gated]
        rows.append((
            r["model"], r["batch"], "compiled" if r["compiled"] else "eager", f"{plain['ms']:.3g}", *times,
            " / ".join(peaks), " / ".join(rates),
        ))  # fmt: skip
    each = " / ".join(map(str, depths))
    head = ["model", "batch", "run", "ungated, ms", *(f"time, D = {d}" for d in depths), f"peak memory, D = {each}",
            f"more parameters, D = {each}"]  # fmt: skip
    failed = "".join(f"\n\nNot compiled: {f['model']}, batch {f['batch']}: {f['why']}" for f in summary["failed"])
    return (
        "A training step (forward, backward, optimizer), gated over ungated: medians and quartiles of the ratios of "
        "neighbouring steps. Memory: parameters, optimizer state and what a step holds at its peak besides.\n\n"
        + table(head, rows)
        + failed
    )


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Ratio of times against the batch size, a panel a model."""
    models = list(dict.fromkeys(r["model"] for r in summary["rows"]))
    if not models:
        return {}
    made, panels = figure(columns=2, rows=(len(models) + 1) // 2, sharey=True)
    for panel in panels.flat[len(models) :]:
        panel.remove()
    for panel, model in zip(panels.flat, models, strict=False):
        for compiled, style in ((False, "-"), (True, "none")):
            mine = [r for r in summary["rows"] if r["model"] == model and r["compiled"] == compiled]
            for d in sorted({d for r in mine for d in r["depths"]} - {1}):
                rows = sorted((r for r in mine if d in r["depths"]), key=lambda r: r["batch"])
                panel.plot([r["batch"] for r in rows], [r["depths"][d]["ratio"][1] for r in rows], ls=style, lw=1,
                           label=f"D = {d}" + (", compiled" if compiled else ""), marker="x" if compiled else ".",
                           color=COLOURS[f"D = {d}"])  # fmt: skip
        panel.axhline(1, color="k", lw=0.7)
        panel.axhline(LIMIT, color="k", lw=0.7, ls=":")
        panel.axvline(MODELS[model].usual, color="k", lw=0.5, ls=":")
        panel.set(xscale="log", xlabel="batch size", title=model)
        sizes = sorted({r["batch"] for r in summary["rows"] if r["model"] == model})
        panel.set_xticks(sizes, [str(n) for n in sizes])
        panel.minorticks_off()
    for row in panels:
        row[0].set_ylabel("gated over ungated, time")
    legend(made, panels)
    return {"overhead": made}
