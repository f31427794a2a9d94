"""Time and memory of a training step, gated beside ungated, in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dgating as dg
from experiments.common.convnets import VGG16, vgg
from experiments.common.experiment import Cell, Place
from experiments.common.gpt import GPT
from experiments.common.memory import peak_bytes
from experiments.common.networks import lenet

LAM = 1e-4  # small: nothing may collapse while the clock runs, subnormal numbers are slow
DECAY = 5e-4  # of the ungated model, as usual: weight decay is not an overhead of gating
Batch = tuple[Tensor, Tensor]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Of all models but the transformer."""
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Of the transformer."""
    return torch.optim.Adam(parameters, lr=1e-5)


@dataclass(frozen=True)
class Model:
    """A network of the paper, what is gated in it, a batch for it, and the batch size that the paper trains it with."""

    build: Callable[[], nn.Module]
    groups: Callable[[Any], list[dg.Groups]]
    batch: Callable[[int], Batch]
    usual: int
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    optimizer: Callable[[Any], torch.optim.Optimizer] = sgd


def _linear_groups(net: nn.Linear) -> list[dg.Groups]:
    return [dg.by_labels(net, (torch.arange(net.in_features) // 5)[None], name="weight")]


def _pictures(n: int) -> Batch:
    return torch.randn(n, 3, 32, 32), torch.randint(10, (n,))


def _text(n: int) -> Batch:
    return torch.randint(91, (n, 256)), torch.randint(91, (n, 256))


MODELS = {
    "linear": Model(
        lambda: nn.Linear(200, 1, bias=False), _linear_groups, lambda n: (torch.randn(n, 200), torch.randn(n, 1)),
        200, F.mse_loss,
    ),
    "LeNet-300-100": Model(
        lambda: lenet(784, 10), lambda net: [dg.features(net[0])],
        lambda n: (torch.randn(n, 784), torch.randint(10, (n,))), 256,
    ),
    "VGG-16": Model(lambda: vgg(VGG16, 512, 10, 3, 32), lambda net: [dg.filters(net)], _pictures, 128),
    "NanoGPT": Model(
        lambda: GPT(91, 256, 384, 6, 12, 0.2),
        lambda net: dg.heads(net, (torch.zeros(2, 256, dtype=torch.long),), which="value"), _text, 32,
        lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()), adam,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """``rounds`` times a burst of steps of every depth; of a burst the first step warms up, the median counts."""

    model: str
    batch: int
    rounds: int
    burst: int = 4
    compiled: bool = False
    depths: tuple[int, ...] = (2, 3, 4)


@dataclass(frozen=True)
class Configuration:
    """Section 9.7. Open there and ours: batch sizes (the usual ones are those that the models are trained with)."""

    runs: tuple[Run, ...]
    warm_up: int = 3
    version: int = 1


def cells(c: Configuration) -> list[Cell]:
    """A model, a batch size, eager or compiled."""
    return [{"model": run.model, "batch": run.batch, "compiled": run.compiled} for run in c.runs]


class Training:
    """A model with its optimizer and one batch, ready to step. ``depth`` one is ungated."""

    def __init__(self, model: Model, size: int, depth: int, device: str, compiled: bool) -> None:
        torch.manual_seed(0)  # the same weights and batch for every depth
        self.loss, net = model.loss, model.build()
        self.x, self.y = (part.to(device) for part in model.batch(size))
        if depth > 1:
            for groups in model.groups(net):
                dg.gate_(net, groups, depth=depth)
        self.net = net.to(device)
        decay = [{"params": list(net.parameters()), "weight_decay": DECAY}]
        self.optimizer = model.optimizer(dg.param_groups(net, LAM, weight_decay=DECAY) if depth > 1 else decay)
        self.forward = torch.compile(self.net) if compiled else self.net

    def step(self) -> None:
        """The step of every training loop."""
        self.optimizer.zero_grad()
        self.loss(self.forward(self.x), self.y).backward()
        self.optimizer.step()

    def milliseconds(self, burst: int) -> float:
        """Of a step, as the median of a burst without its first: that one brings the model back into the caches."""
        return statistics.median([self._timed() for _ in range(burst)][1:])

    def _timed(self) -> float:
        _wait(self.x)
        start = time.perf_counter()
        self.step()
        _wait(self.x)
        return 1e3 * (time.perf_counter() - start)

    def held_bytes(self) -> int:
        """Parameters, buffers, optimizer state, and what a step holds at its peak besides."""
        state = [v for s in self.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        lasting = sum(t.nbytes for t in (*self.net.parameters(), *self.net.buffers(), *state))
        return lasting + peak_bytes(self.step, self.x.device.type, before=self.optimizer.zero_grad)


def _wait(x: Tensor) -> None:
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """All depths take turns in every round, another one first each time: they see the same machine."""
    run = next(run for run, of in zip(c.runs, cells(c), strict=True) if of == cell)
    if run.compiled:
        torch.compiler.reset()
    depths = (1, *run.depths)
    trainings = {d: Training(MODELS[run.model], run.batch, d, place.device, run.compiled) for d in depths}
    try:
        for training in trainings.values():
            for _ in range(c.warm_up):
                training.step()
    except RuntimeError as error:
        if not run.compiled:
            raise
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    times: dict[int, list[float]] = {d: [] for d in depths}
    for i in range(run.rounds):
        for d in (*depths[i % len(depths) :], *depths[: i % len(depths)]):
            times[d].append(trainings[d].milliseconds(run.burst))
    return {
        "depths": [
            {
                "depth": d,
                "parameters": sum(p.numel() for p in trainings[d].net.parameters()),
                "ms": round(statistics.median(times[d]), 4),
                "ratio": ratios(times[d], times[1]),
                "bytes": None if run.compiled else trainings[d].held_bytes(),
            }
            for d in depths
        ]
    }


def ratios(own: list[float], plain: list[float]) -> list[float]:
    """Quartiles of the ratios within a round."""
    return [round(q, 4) for q in statistics.quantiles([a / b for a, b in zip(own, plain, strict=True)], n=4)]
