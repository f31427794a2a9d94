"""Many groups and large layers: time and memory of every call, and whether both grow linearly.

``python -m benchmarks.scale [--quick]``. One million groups, and one layer of a hundred million weights; each at a
hundredth, a tenth and the whole of its size. Needs about 5 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import dgating as dg
from benchmarks._common import environment, store

LAM = 1e-3
THREADS = 2
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A layer that is made for a size ``n``, its groups, and an input; ``n`` is what time should be linear in."""

    name: str
    n: int
    unit: str
    layer: Callable[[int], nn.Module]
    batch: Callable[[int], Tensor]


def side(weights: int) -> int:
    """The side of a square layer with about this many weights."""
    return round(math.sqrt(weights))


CASES = {
    c.name: c
    for c in (
        Case("Linear(n, 1), columns", 1_000_000, "groups", lambda n: nn.Linear(n, 1), lambda n: torch.randn(8, n)),
        Case(
            "Embedding(n, 4), rows",
            1_000_000,
            "groups",
            lambda n: nn.Embedding(n, 4),
            lambda n: torch.randint(n, (1024,)),
        ),
        Case(
            "Linear(√n, √n), columns",
            100_000_000,
            "weights",
            lambda n: nn.Linear(side(n), side(n)),
            lambda n: torch.randn(32, side(n)),
        ),
    )
}


# --- memory of this process -----------------------------------------------------------------------------------------


def status_bytes(field: str) -> int | None:
    """``VmRSS`` or ``VmHWM`` of this process where the system has ``/proc``."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


def reset_peak() -> bool:
    """Let ``VmHWM`` start again from the present size, so that each call gets a peak of its own."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


# --- one size, in a process of its own ------------------------------------------------------------------------------


class Clock:
    """Best time and largest peak of each call, over several rounds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.growth: dict[str, int | None] = {}

    def __call__(self, name: str, call: Callable[[], T]) -> T:
        can_see = reset_peak()
        before = status_bytes("VmRSS")
        start = time.perf_counter()
        out = call()
        seconds = time.perf_counter() - start
        self.seconds[name] = min(seconds, self.seconds.get(name, math.inf))
        peak = status_bytes("VmHWM")
        if can_see and before is not None and peak is not None:
            self.growth[name] = max(peak - before, self.growth.get(name) or 0)
        else:
            self.growth[name] = None
        return out


def life(case: Case, n: int, clock: Clock) -> int:
    """Gate, train two steps, look, zero half of the groups, collapse. Returns the number of weights."""
    torch.manual_seed(0)
    model, x = case.layer(n), case.batch(n)
    weights = sum(p.numel() for p in model.parameters())
    groups = clock("features", lambda: dg.features(model))
    clock("gate_", lambda: dg.gate_(model, groups, depth=3))
    optimizer = torch.optim.SGD(dg.param_groups(model, LAM), lr=1e-3, momentum=0.9)
    # a window of two: the first update only observes, the second closes the window (rotates and takes the records)
    monitor = clock("AbsorptionMonitor", lambda: dg.AbsorptionMonitor(model, LAM, optimizer, window=2))

    def backward() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()

    def step() -> None:
        backward()
        optimizer.step()

    clock("training step, first", step)  # this one makes the optimizer's state
    clock("training step", step)
    backward()
    clock("monitor.update", monitor.update)
    clock("monitor.update, end of window", monitor.update)
    optimizer.zero_grad()
    clock("monitor.absorbed", monitor.absorbed)
    norms = clock("group_norms", lambda: dg.group_norms(model))
    clock("report", lambda: dg.report(model, monitor=monitor))
    masks = {name: torch.arange(v.numel()) % 2 == 0 for name, v in norms.items()}
    clock("zero_", lambda: dg.zero_(model, masks, optimizer=optimizer))
    clock("collapse_", lambda: dg.collapse_(model, optimizer=optimizer))
    return weights


def run_one(name: str, n: int, rounds: int) -> dict[str, Any]:
    """All rounds of one size; the best time of each call counts, so that the first round is a warm-up."""
    torch.set_num_threads(THREADS)
    clock = Clock()
    before = status_bytes("VmRSS")
    weights = [life(CASES[name], n, clock) for _ in range(rounds)][-1]
    # ru_maxrss is not reset by reset_peak: the largest size of the whole life of this process
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "n": n,
        "weights": weights,
        "weight_bytes": 4 * weights,
        "seconds": {k: round(v, 6) for k, v in clock.seconds.items()},
        "peak_growth_bytes": clock.growth,
        "peak_growth_bytes_in_all": None if before is None else whole - before,
    }


def in_process(name: str, n: int, rounds: int) -> dict[str, Any]:
    """A fresh process a size: what one size leaves in the allocator must not hide the growth of the next."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", name, "--n", str(n), "--rounds", str(rounds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- all sizes ------------------------------------------------------------------------------------------------------


def slope(ns: list[int], values: list[float]) -> float:
    """Least-squares slope in log-log coordinates: one is linear, less is a fixed cost that still shows."""
    x, y = [math.log(n) for n in ns], [math.log(v) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return round(top / sum((a - mx) ** 2 for a in x), 3)


def growth(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per call: the slope over all sizes, and the slope of the last decade, where fixed costs are gone."""
    ns = [r["n"] for r in runs]
    out = {}
    for call in runs[0]["seconds"]:
        seconds = [max(r["seconds"][call], 1e-6) for r in runs]
        out[call] = {"slope": slope(ns, seconds), "slope_of_last_decade": slope(ns[-2:], seconds[-2:])}
    return out


def table(results: list[dict[str, Any]]) -> str:
    lines = []
    for r in results:
        sizes = " | ".join(f"{x['n']:,} {r['unit']}" for x in r["sizes"])
        lines += ["", f"**{r['case']}**", "", f"| call | {sizes} | slope | last decade | peak growth, weights |"]
        lines.append("|" + "---|" * (len(r["sizes"]) + 4))
        last = r["sizes"][-1]
        for call, fit in r["growth"].items():
            ms = " | ".join(f"{x['seconds'][call] * 1e3:,.2f} ms" for x in r["sizes"])
            grown = last["peak_growth_bytes"][call]
            times = "–" if grown is None else f"{grown / last['weight_bytes']:.1f} x"
            lines.append(f"| {call} | {ms} | {fit['slope']:.2f} | {fit['slope_of_last_decade']:.2f} | {times} |")
    return "\n".join(lines)


def run(quick: bool) -> dict[str, Any]:
    results = []
    for case in CASES.values():
        whole = case.n // 100 if quick else case.n
        sizes = []
        for n in (whole // 100, whole // 10, whole):
            rounds = 2 if n * 10 > case.n else 5
            sizes.append(in_process(case.name, n, rounds))
            print(f"{case.name}: n = {n:,} done", flush=True)
        results.append({"case": case.name, "unit": case.unit, "sizes": sizes, "growth": growth(sizes)})
    return {"environment": environment(), "settings": {"lam": LAM, "depth": 3, "quick": quick}, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of all sizes; nothing is stored")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--n", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(run_one(args.one, args.n, args.rounds)))
        return
    torch.set_num_threads(THREADS)
    start = time.perf_counter()
    result = run(args.quick)
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(table(result["results"]))
    if not args.quick:
        store("scale", result)


if __name__ == "__main__":
    main()
