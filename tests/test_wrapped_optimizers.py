"""Wrappers that pass an optimizer on are looked through wherever an optimizer is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import dgating as dg
from dgating.gating._optimizer_state import bare


class Passing(torch.optim.Optimizer):
    """Like ``accelerate.optimizer.AcceleratedOptimizer``: no ``super().__init__``, everything is passed on."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, param_groups: Any) -> None:
        self.optimizer.param_groups = param_groups

    @property
    def defaults(self) -> Any:
        return self.optimizer.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class Proxy:
    """Like Lightning's: not an ``Optimizer`` itself; what it lacks it looks up in the one it holds."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)


class Lookahead(torch.optim.Optimizer):
    """Shares the parameter groups, but has a state of its own and a step that does more."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.defaults = optimizer.defaults
        self.state = {}


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    "wrap",
    [lambda o: o, Passing, Proxy, lambda o: Passing(Passing(o)), lambda o: Proxy(Passing(o))],
    ids=["none", "passing", "proxy", "two", "mixed"],
)
def test_bare_is_the_optimizer_inside(wrap: Any) -> None:
    inner = sgd()
    assert bare(wrap(inner)) is inner


def test_bare_stops_at_what_does_more() -> None:
    outer = Lookahead(sgd())
    assert bare(outer) is outer
    assert bare(Passing(outer)) is outer


def test_bare_returns_what_holds_itself_or_no_optimizer() -> None:
    itself, other = sgd(), sgd()
    itself.optimizer = itself  # type: ignore[attr-defined]
    other.optimizer = "sgd"  # type: ignore[attr-defined]
    assert bare(itself) is itself
    assert bare(other) is other
    assert bare(None) is None


WRAPPERS: dict[str, Any] = {"passing": Passing, "proxy": Proxy, "two": lambda o: Passing(Passing(o))}
MAKERS: dict[str, Any] = {
    "SGD": lambda g: torch.optim.SGD(g, lr=0.05, momentum=0.9),
    "Adam": lambda g: torch.optim.Adam(g, lr=0.01),
}


def trained(make: Any, wrap: Any) -> tuple[nn.Sequential, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    dg.gate_(net, [dg.by_labels(net[0], torch.tensor([0, -1, 1, 1]), group_name="inputs"), dg.neurons(net[2])])
    optimizer = wrap(make(dg.param_groups(net, 0.1, weight_decay=0.01)))
    train(net, optimizer)
    return net, optimizer


def train(net: nn.Module, optimizer: Any) -> None:
    for t in range(4):
        optimizer.zero_grad()
        net(torch.linspace(-1, 1, 20).view(5, 4) * (t + 1)).square().mean().backward()
        optimizer.step()


def everything(net: nn.Module, optimizer: Any) -> list[object]:
    names = {id(p): n for n, p in net.named_parameters()}
    kept = bare(optimizer)
    state = {
        names[id(p)]: {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in s.items()}
        for p, s in kept.state.items()
    }
    groups = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in kept.param_groups]
    return [[(n, p.tolist()) for n, p in net.named_parameters()], groups, state]


CALLS: dict[str, Any] = {
    "zero_": lambda net, o: dg.zero_(net, {"inputs": torch.tensor([True, False])}, o),
    "collapse_": dg.collapse_,
    "both": lambda net, o: (dg.zero_(net, {"inputs": torch.tensor([True, False])}, o), dg.collapse_(net, o)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("call", CALLS)
def test_a_wrapper_makes_no_difference(call: str, maker: str, wrapper: str) -> None:
    """State, membership and settings afterwards, and the training that follows."""
    want, got = (trained(MAKERS[maker], wrap) for wrap in (lambda o: o, WRAPPERS[wrapper]))
    for net, optimizer in (want, got):
        dg.check_optimizer(net, optimizer, 0.1)
        CALLS[call](net, optimizer)
    assert everything(*got) == everything(*want)
    assert len(bare(got[1]).state) == len(bare(want[1]).state) > 0
    for net, optimizer in (want, got):
        train(net, optimizer)
    assert everything(*got) == everything(*want)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("maker", MAKERS)
def test_compaction_looks_through(maker: str, wrapper: str) -> None:
    found = []
    for wrap in (lambda o: o, WRAPPERS[wrapper]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        optimizer = wrap(MAKERS[maker](net.parameters()))
        train(net, optimizer)
        with torch.no_grad():
            for p in (net[0].weight, net[0].bias):
                for x in (p, *(v for v in bare(optimizer).state[p].values() if getattr(v, "ndim", 0))):
                    x[:2] = 0
        small = dg.compact(net, (torch.ones(3, 4),), optimizer=optimizer)
        assert small[0].weight.shape == (4, 4)
        train(small, optimizer)
        found.append(everything(small, optimizer))
    assert found[0] == found[1]


def test_what_is_no_optimizer_is_refused_in_any_wrapper() -> None:
    net, _ = trained(MAKERS["SGD"], lambda o: o)
    for wrong in (Proxy(torch.optim.LBFGS(net.parameters())), Passing(torch.optim.LBFGS(net.parameters()))):
        with pytest.raises(ValueError, match="LBFGS"):
            dg.collapse_(net, wrong)
    assert dg.is_gated(net)


class EightBit(torch.optim.SGD):
    """Keeps codes of eight bits: a code of zero is not the number zero."""

    def step(self, closure: Any = None) -> Any:
        out = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["state1"] = torch.full(p.shape, 127, dtype=torch.uint8)
        return out


def test_state_in_codes_is_not_edited() -> None:
    net, optimizer = trained(lambda g: EightBit(g, lr=0.1), Passing)
    before = everything(net, optimizer)
    for call in CALLS.values():
        with pytest.raises(ValueError, match=r"EightBit keeps 'state1' in codes of eight bits"):
            call(net, optimizer)
    assert everything(net, optimizer) == before
    dg.collapse_(net)
    with pytest.raises(ValueError, match=r"EightBit keeps 'state1' in codes of eight bits"):
        dg.compact(net, (torch.ones(3, 4),), optimizer=optimizer)
