"""Wrappers that pass an optimizer on are looked through wherever an optimizer is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dgating._optim_state import bare


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
