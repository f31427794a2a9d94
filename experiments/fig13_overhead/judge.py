"""What the stored cells of Fig. 13 and 14 say: overheads by model, batch size and depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.common.experiment import Record, Summary, Verdict
from experiments.common.plots import COLOURS, figure, legend
from experiments.common.statistics import table
from experiments.fig13_overhead.measure import Configuration

# Table 5 of the paper: overhead in parameters at D = 4. LeNet: its largest input has 784 columns
RATES = {"linear": 6.0e-1, "LeNet-300-100": 8.8e-3, "VGG-16": 8.4e-4, "NanoGPT": 2.0e-5}
LIMIT = 1.3  # "between 0 and 30 % longer"
USUAL = {"linear": 200, "LeNet-300-100": 256, "VGG-16": 128, "NanoGPT": 32}  # the paper's batch sizes


def summarise(c: Configuration, records: Sequence[Record]) -> Summary:
    """A row for every model, batch size and way of running."""
    return {"rows": [{**r.cell, "depths": {d["depth"]: d for d in r.found["depths"]}} for r in records]}


def verdicts(c: Configuration, summary: Summary) -> list[Verdict]:
    """Parameters as in Table 5; time below the paper's; memory indistinguishable."""
    rows: list[dict[str, Any]] = summary["rows"]
    if not rows:
        return []
    deep = max(c.depths)
    found = {r["model"]: r["depths"][deep]["parameters"] / r["depths"][1]["parameters"] - 1 for r in rows}
    same = [abs(rate / RATES[m] - 1) < 0.03 for m, rate in found.items()]
    eager = [(r, d, r["depths"][d]["ratio"][1]) for r in rows if not r["compiled"] for d in c.depths]
    below = [ratio < LIMIT for *_, ratio in eager]
    over = [f"{r['model']}, batch {r['batch']}, D = {d}: {100 * (v - 1):+.0f} %" for r, d, v in eager if v >= LIMIT]
    out = [
        Verdict(
            f"parameters: overhead at D = {deep} (Table 5)", ", ".join(f"{m} {RATES[m]:.1e}" for m in found),
            ", ".join(f"{m} {rate:.1e}" for m, rate in found.items()),
            "reproduced" if all(same) else "partly" if any(same) else "not reproduced",
        ),
        Verdict(
            "time: between 0 and 30 % longer at small batches, nothing for usual ones", "0 to 30 %",
            f"median ratios of a step {min(v for *_, v in eager):.2f} to {max(v for *_, v in eager):.2f} over "
            f"{len(eager)} settings (eager), below {LIMIT:g} in {sum(below)}",
            "reproduced" if all(below) else "partly" if any(below) else "not reproduced",
            f"above at {'; '.join(over)}" if over else "",
        ),
    ]  # fmt: skip
    peaks = [
        r["depths"][d]["peak_bytes"] / r["depths"][1]["peak_bytes"]
        for r in rows if r["depths"][1]["peak_bytes"] for d in c.depths
    ]  # fmt: skip
    if peaks:
        good = sum(p < 1.05 for p in peaks)
        out.append(Verdict(
            "peak memory is hardly distinguishable", "indistinguishable in most settings",
            f"ratios {min(peaks):.2f} to {max(peaks):.2f}, below 1.05 in {good} of {len(peaks)}",
            "reproduced" if good > len(peaks) / 2 else "not reproduced",
        ))  # fmt: skip
    return out


def tables(c: Configuration, summary: Summary) -> str:
    """Milliseconds and ratios, memory, parameters."""
    rows = []
    for r in summary["rows"]:
        plain = r["depths"][1]
        cells = []
        for d in c.depths:
            low, middle, high = r["depths"][d]["ratio"]
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        peaks = [
            "–" if r["depths"][d]["peak_bytes"] is None else f"{r['depths'][d]['peak_bytes'] / plain['peak_bytes']:.3f}"
            for d in c.depths
        ]
        rates = [f"{r['depths'][d]['parameters'] / plain['parameters'] - 1:.1e}" for d in c.depths]
        rows.append((
            r["model"], r["batch"], "compiled" if r["compiled"] else "eager", f"{plain['ms']:.3g}", *cells,
            " / ".join(peaks), " / ".join(rates),
        ))  # fmt: skip
    depths = " / ".join(map(str, c.depths))
    head = ["model", "batch", "run", "ungated, ms", *(f"time, D = {d}" for d in c.depths), f"peak memory, D = {depths}",
            f"more parameters, D = {depths}"]  # fmt: skip
    return (
        "A training step (forward, backward, optimizer), gated over ungated: medians and quartiles of the ratios of "
        "neighbouring steps. Memory: parameters, optimizer state and the peak of forward and backward.\n\n"
        + table(head, rows)
    )


def plots(c: Configuration, summary: Summary) -> dict[str, Any]:
    """Ratio of times against the batch size, a panel a model."""
    models = list(dict.fromkeys(r["model"] for r in summary["rows"]))
    if not models:
        return {}
    made, panels = figure(columns=len(models), sharey=True)
    for panel, model in zip(panels[0], models, strict=True):
        for d in c.depths:
            for compiled, style in ((False, "-"), (True, ":")):
                rows = [r for r in summary["rows"] if r["model"] == model and r["compiled"] == compiled]
                label = f"D = {d}" + (", compiled" if compiled else "")
                panel.plot([r["batch"] for r in rows], [r["depths"][d]["ratio"][1] for r in rows], label=label,
                           color=COLOURS[f"D = {d}"], ls=style, marker=".", lw=1)  # fmt: skip
        panel.axhline(1, color="k", lw=0.7)
        panel.axhline(LIMIT, color="k", lw=0.7, ls=":")
        panel.axvline(USUAL[model], color="k", lw=0.5, ls=":")
        panel.set(xscale="log", xlabel="batch size", title=model)
    panels[0, 0].set_ylabel("time of a step, gated over ungated")
    legend(made, panels)
    return {"overhead": made}
