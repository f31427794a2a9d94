"""``torch.inference_mode`` and ``torch.no_grad`` around the calls: what comes out can be trained, or it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import dgating as dg

MODES = {"plain": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def groups(net: nn.Sequential) -> list[dg.Groups]:
    labels = torch.tensor([0, 1, -1, 1])  # input 2 is in no group: its weights are a parameter of their own
    return [dg.by_labels(net[0], labels, group_name="inputs"), dg.by_dim(net[2], 1, group_name="hidden")]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(dg.param_groups(net, 0.1), lr=0.01)


def test_gating_in_inference_mode_is_refused() -> None:
    net = network()
    before = list(net.parameters())
    todo = groups(net)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside torch\.inference_mode"):
        dg.gate_(net, todo)
    assert not dg.is_gated(net)
    assert [id(p) for p in net.parameters()] == [id(p) for p in before]


def test_applying_a_configuration_in_inference_mode_is_refused() -> None:
    config = dg.GateConfig.from_model(_gated())
    fresh = network()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside torch\.inference_mode"):
        config.apply_(fresh)
    assert not dg.is_gated(fresh)


def _gated() -> nn.Sequential:
    net = network()
    return dg.gate_(net, groups(net))


@pytest.mark.parametrize("find", [lambda net: dg.features(net[0]), dg.whole], ids=["features", "whole"])
def test_parameters_made_in_inference_mode_are_refused(find: Callable[[nn.Module], dg.Groups]) -> None:
    with torch.inference_mode():
        net = network()
    with pytest.raises(ValueError, match=r"weight.*made in torch\.inference_mode"):
        dg.gate_(net, find(net))


def test_gating_without_gradients_trains_afterwards() -> None:
    net = network()
    with torch.no_grad():
        dg.gate_(net, groups(net))
    assert all(p.requires_grad for p in net.parameters())
    before = dg.group_norms(net)["inputs"].clone()
    train(net, adam(net))
    assert not torch.equal(dg.group_norms(net)["inputs"], before)


@pytest.mark.parametrize("mode", MODES)
def test_zero_and_training_go_on(mode: str) -> None:
    net = _gated()
    optimizer = adam(net)
    train(net, optimizer)
    with MODES[mode]():
        dg.zero_(net, {"inputs": torch.tensor([True, False])}, optimizer)
    train(net, optimizer)
    assert (dg.group_norms(net)["inputs"] == 0).tolist() == [True, False]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("mode", MODES)
def test_collapse_leaves_parameters(mode: str, frozen: bool) -> None:
    """A tensor that is gated in part is made anew: as a parameter, whatever mode it is made in."""
    net = _gated()
    optimizer = adam(net)
    train(net, optimizer)
    net.requires_grad_(not frozen)
    want = net(torch.ones(1, 4)).detach()
    with MODES[mode]():
        dg.collapse_(net, optimizer)
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert not list(net.named_buffers())
    assert all(p.requires_grad is not frozen and not p.is_inference() for p in net.parameters())
    torch.testing.assert_close(net(torch.ones(1, 4)).detach(), want)
    net.requires_grad_(True)
    train(net, optimizer)
    assert not torch.equal(net(torch.ones(1, 4)).detach(), want)
