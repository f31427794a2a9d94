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
from experiments.common.networks import lenet

LAM = 1e-4  # small: nothing may collapse while the clock runs, denormal numbers are slow
DECAY = 5e-4  # of the ungated model, as usual: weight decay is not an overhead of gating
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Model:
    """A network of the paper, what is gated in it, and a batch for it."""

    build: Callable[[], nn.Module]
    groups: Callable[[Any], list[dg.Groups]]
    batch: Callable[[int], Batch]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


def _linear_groups(net: nn.Linear) -> list[dg.Groups]:
    return [dg.by_labels(net, (torch.arange(net.in_features) // 5)[None], name="weight")]


def _pictures(n: int) -> Batch:
    return torch.randn(n, 3, 32, 32), torch.randint(10, (n,))


def _text(n: int) -> Batch:
    return torch.randint(91, (n, 256)), torch.randint(91, (n, 256))


MODELS = {
    "linear": Model(
        lambda: nn.Linear(200, 1, bias=False), _linear_groups, lambda n: (torch.randn(n, 200), torch.randn(n, 1)),
        F.mse_loss,
    ),
    "LeNet-300-100": Model(
        lambda: lenet(784, 10), lambda net: [dg.features(net[0])],
        lambda n: (torch.randn(n, 784), torch.randint(10, (n,))),
    ),
    "VGG-16": Model(lambda: vgg(VGG16, 512, 10, 3, 32), lambda net: [dg.filters(net)], _pictures),
    "NanoGPT": Model(
        lambda: GPT(91, 256, 384, 6, 12, 0.2),
        lambda net: dg.heads(net, (torch.zeros(2, 256, dtype=torch.long),), which="value"), _text,
        lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """``batches``: (model, batch size, repetitions). ``compiled``: models that are measured under ``torch.compile``."""

    batches: tuple[tuple[str, int, int], ...]
    compiled: tuple[str, ...] = ()
    depths: tuple[int, ...] = (2, 3, 4)
    version: int = 1


def cells(c: Configuration) -> list[Cell]:
    """A model and a batch size, eager and compiled."""
    return [
        {"model": model, "batch": batch, "repeats": repeats, "compiled": compiled}
        for model, batch, repeats in c.batches for compiled in (False, True) if not compiled or model in c.compiled
    ]  # fmt: skip


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
        self.optimizer = torch.optim.SGD(
            dg.param_groups(net, LAM, weight_decay=DECAY) if depth > 1 else decay, lr=1e-4, momentum=0.9
        )
        self.forward = torch.compile(self.net) if compiled else self.net

    def step(self) -> None:
        """The step of every training loop."""
        self.optimizer.zero_grad()
        self.loss(self.forward(self.x), self.y).backward()
        self.optimizer.step()

    def milliseconds(self) -> float:
        """Of one step."""
        _wait(self.x)
        start = time.perf_counter()
        self.step()
        _wait(self.x)
        return 1e3 * (time.perf_counter() - start)


def _wait(x: Tensor) -> None:
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """All depths take turns in every repetition, and the order swaps each time: they see the same machine."""
    model, depths = MODELS[cell["model"]], (1, *c.depths)
    if cell["compiled"]:
        torch.compiler.reset()
    runs = {d: Training(model, cell["batch"], d, place.device, cell["compiled"]) for d in depths}
    for run in runs.values():
        for _ in range(3):
            run.step()
    times: dict[int, list[float]] = {d: [] for d in depths}
    order = list(depths)
    for _ in range(cell["repeats"]):
        for d in order:
            times[d].append(runs[d].milliseconds())
        order.reverse()
    return {"depths": [_found(d, runs[d], times[d], times[1], cell["compiled"]) for d in depths]}


def _found(depth: int, run: Training, own: list[float], plain: list[float], compiled: bool) -> dict[str, Any]:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(own, plain, strict=True)], n=4)
    return {
        "depth": depth,
        "parameters": sum(p.numel() for p in run.net.parameters()),
        "ms": round(statistics.median(own), 4),
        "ratio": [round(v, 4) for v in (low, middle, high)],
        "peak_bytes": None if compiled else _peak(run),
    }


def _peak(run: Training) -> int | None:
    """Parameters, optimizer state, and what forward and backward hold at their peak besides."""
    held = [*run.net.parameters(), *run.net.buffers()]
    state = [v for s in run.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    peak = dg.profile(run.net, (run.x,), backward=True, repeats=1, warmup=1).peak_bytes
    return None if peak is None else peak + sum(t.nbytes for t in (*held, *state))
