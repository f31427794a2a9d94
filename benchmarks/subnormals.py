"""What dying groups cost a processor: time of a training step as their weights fall towards zero, and two remedies.

A dying group falls without end. Its weights, and earlier the products of several dying layers, pass 1e-38, the
smallest normal number of float32, and arithmetic with the subnormal numbers below is many times slower. Four networks
of one kind train in turns: without gates, with gates, with gates while subnormal numbers are flushed to zero, and with
gates while certified groups are set to exact zeros. λ is large, so that most groups die soon.

    python -m benchmarks.subnormals [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dgating as dg
from benchmarks._common import environment, store
from benchmarks.compaction_speed import narrow_vgg
from dgating.maths import FLOAT32_EPS
from experiments.common.networks import lenet
from experiments.common.subnormals import flushing_subnormals

LR, MOMENTUM, BATCH = 0.1, 0.9, 64
WAYS = ("ungated", "gated", "subnormals flushed", "certified groups zeroed")


@dataclass(frozen=True)
class Case:
    """A network, its groups, the side of its pictures (flattened where there is none), λ, turns and steps of a turn."""

    build: Callable[[], nn.Module]
    groups: Callable[[nn.Module, Tensor], list[dg.Groups]]
    side: int | None
    lam: float
    turns: int
    steps: int


CASES = {
    "LeNet-300-100, pixels and rows": Case(
        lambda: lenet(64, 10), lambda net, x: [dg.features(net[0]), dg.neurons(net[2])], None, 0.05, 10, 100
    ),
    "VGG-6 of Fig. 6, coupled": Case(
        narrow_vgg, lambda net, x: dg.coupled(net, (x,)), 14, 0.04, 14, 30,
    ),
}  # fmt: skip


def digits(side: int | None) -> tuple[Tensor, Tensor]:
    """Those of scikit-learn, from 0 to 1."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pictures = torch.as_tensor(x / 16, dtype=torch.float32)
    if side is not None:
        pictures = nn.functional.interpolate(pictures.reshape(-1, 1, 8, 8), size=(side, side), mode="bilinear")
    return pictures, torch.as_tensor(y)


class Training:
    """One network on its way; a turn takes it some steps further."""

    def __init__(self, case: Case, way: str, x: Tensor, y: Tensor) -> None:
        torch.manual_seed(0)
        self.net, self.way, self.x, self.y = case.build(), way, x, y
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.monitor: dg.AbsorptionMonitor | None = None
        if way == "ungated":
            self.optimizer = torch.optim.SGD(self.net.parameters(), LR, MOMENTUM)
        else:
            dg.gate_(self.net, case.groups(self.net, x[:2]))
            self.optimizer = torch.optim.SGD(dg.param_groups(self.net, case.lam), LR, MOMENTUM)
        if way == "certified groups zeroed":
            self.monitor = dg.AbsorptionMonitor(self.net, case.lam, self.optimizer, window=case.steps)
        self.generator = torch.Generator().manual_seed(0)

    def turn(self, steps: int) -> float:
        """Milliseconds of a step; certified groups are set to zero after the last one, outside the clock."""
        start = time.perf_counter()
        with flushing_subnormals() if self.way == "subnormals flushed" else contextlib.nullcontext():
            for _ in range(steps):
                rows = torch.randint(len(self.y), (BATCH,), generator=self.generator)
                self.optimizer.zero_grad()
                nn.functional.cross_entropy(self.net(self.x[rows]), self.y[rows]).backward()
                if self.monitor is not None:
                    self.monitor.update()
                self.optimizer.step()
        seconds = time.perf_counter() - start
        if self.monitor is not None:
            dg.zero_(self.net, self.monitor.absorbed(), self.optimizer)
        return 1000 * seconds / steps

    def dead(self) -> float:
        """Share of groups below float32 epsilon."""
        norms = torch.cat(list(dg.group_norms(self.net).values()))
        return float((norms < FLOAT32_EPS).double().mean())


def measure(case: Case, turns: int) -> list[dict[str, Any]]:
    """By turn, the time of a step beside that of the ungated network, and the share of dead groups of the gated one."""
    x, y = digits(case.side)
    trainings = {way: Training(case, way, x, y) for way in WAYS}
    found = []
    for turn in range(turns):
        milliseconds = {way: training.turn(case.steps) for way, training in trainings.items()}
        found.append({
            "steps": (turn + 1) * case.steps,
            "dead": trainings["gated"].dead(),
            "milliseconds": {way: round(ms, 3) for way, ms in milliseconds.items()},
            "ratios": {way: round(ms / milliseconds["ungated"], 3) for way, ms in milliseconds.items()},
        })  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns, print only")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # the flag is one of a thread, and those of a pool that waits do not hear of it
    runs = {}
    for name, case in CASES.items():
        runs[name] = measure(case, 2 if quick else case.turns)
        print(f"| {name}: steps | dead | " + " | ".join(WAYS) + " |\n|" + "---|" * (2 + len(WAYS)))
        for row in runs[name]:
            print(f"| {row['steps']} | {row['dead']:.0%} | " + " | ".join(f"{r:.2f}" for r in row["ratios"].values())
                  + " |", flush=True)  # fmt: skip
    if not quick:
        settings = {"lr": LR, "momentum": MOMENTUM, "batch": BATCH, "lam": {n: c.lam for n, c in CASES.items()}}
        store("subnormals", {"environment": environment(), "settings": settings, "runs": runs})


if __name__ == "__main__":
    main()
