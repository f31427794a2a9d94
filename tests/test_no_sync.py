"""A training step never waits for the device: no operation hands a tensor's value to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dgating as dg
from dgating.gating._gate import gate_product

SYNCS = {"aten._local_scalar_dense.default", "aten.item.default", "aten.nonzero.default", "aten.equal.default"}


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in SYNCS or "masked_select" in str(func):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[list[str]]:
    with _Watch() as mode:
        yield mode.found


@pytest.mark.parametrize("in_loss", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_gated_step_with_monitor(depth: int, in_loss: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    labels = torch.tensor([0, 1, -1, 0, 2, 1, -1, 3])
    dg.gate_(net, [dg.by_dim(net[0], 1, block=2), dg.by_labels(net[2], labels)], depth=depth)
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.0 if in_loss else 0.1), lr=0.1, momentum=0.9)
    monitor = dg.AbsorptionMonitor(net, 0.1, optimizer, window=2, penalty_in_loss=in_loss)
    x = torch.randn(5, 6)
    with watched() as found:
        for _ in range(5):  # windows end inside
            optimizer.zero_grad()
            loss = net(x).square().mean()
            (loss + dg.penalty(net, 0.1) if in_loss else loss).backward()
            monitor.update()
            optimizer.step()
        monitor.absorbed()
    assert found == []


def test_the_watch_sees_a_sync() -> None:
    with watched() as found:
        bool((torch.ones(3) > 0).all())
    assert found


def test_the_product_of_gates_does_not_use_torch_prod() -> None:
    """Its backward looks for zeros among the factors on the host (seen by the profiler, hidden from dispatch modes)."""

    def syncs(product: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        gamma = torch.ones(3, 4, requires_grad=True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            product(gamma).sum().backward()
        return any(event.key == "aten::item" for event in profile.key_averages())

    assert syncs(lambda gamma: gamma.prod(0))
    assert not syncs(gate_product)
