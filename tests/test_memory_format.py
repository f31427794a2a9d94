"""Memory formats: a model stored channels-last stays so when it becomes smaller, its optimizer's state with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dgating as dg

CONVOLUTIONS: dict[int, tuple[Any, Any, torch.memory_format]] = {
    4: (nn.Conv2d, nn.BatchNorm2d, torch.channels_last),
    5: (nn.Conv3d, nn.BatchNorm3d, torch.channels_last_3d),
}


def _net(dims: int, last: bool) -> tuple[nn.Module, Tensor]:
    """Two convolutions with four dead channels between them, and an input."""
    conv, norm, memory_format = CONVOLUTIONS[dims]
    torch.manual_seed(0)
    net = nn.Sequential(conv(3, 8, 3), norm(8), nn.ReLU(), conv(8, 5, 3), nn.ReLU(), conv(5, 2, 1)).eval()
    with torch.no_grad():
        for p in (*net[0].parameters(), *net[1].parameters()):
            p[::2] = 0
    x = torch.randn(2, 3, *[7] * (dims - 2))
    if last:
        net.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
        x = x.contiguous(memory_format=memory_format)
    return net, x


def _weights(net: nn.Module) -> list[Tensor]:
    """Of the kernels with more than one pixel: with one, both formats are the same numbers in the same order."""
    return [p for p in net.parameters() if p.ndim > 2 and p.shape[-1] > 1]


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "contiguous"])
@pytest.mark.parametrize("target", ["module", "graph"])
@pytest.mark.parametrize("dims", CONVOLUTIONS)
def test_compact_weights_are_stored_as_the_full_ones(dims: int, target: Any, last: bool) -> None:
    net, x = _net(dims, last)
    small = dg.compact(net, (x,), target=target)
    assert [p.shape[:2] for p in _weights(small)] == [(4, 3), (5, 4)]
    for p in _weights(small):
        assert p.is_contiguous(memory_format=CONVOLUTIONS[dims][2]) is last
        assert p.is_contiguous() is not last
    assert small(x).stride() == net(x).stride()
    torch.testing.assert_close(small(x), net(x), rtol=0, atol=1e-6)


def test_momentum_is_stored_as_its_weight() -> None:
    net, x = _net(4, last=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(x).sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            assert p.grad is not None
            p.grad[p == 0] = 0
    optimizer.step()
    small = dg.compact(net, (x,), optimizer=optimizer)
    for p in _weights(small):
        state = optimizer.state[p]["momentum_buffer"]
        assert state.shape == p.shape
        assert state.is_contiguous(memory_format=torch.channels_last)


def test_gated_weights_keep_their_format() -> None:
    net, x = _net(4, last=True)
    before = net(x)
    dg.gate_(net, dg.filters(net), depth=3)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in _weights(net))
    assert net(x).stride() == before.stride()
    dg.collapse_(net)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in _weights(net))
