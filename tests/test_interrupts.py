"""Ctrl-C at any line of a call that changes a model leaves model and optimizer as before or as after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import dgating as dg
from benchmarks.interrupts import CASES, measure
from dgating.gating._evaluating import evaluating
from dgating.gating._transaction import all_or_nothing, to_the_end

FAST = [name for name in CASES if not name.startswith("compact")]


@pytest.mark.parametrize("only", ["dgating", "parametrize"])
@pytest.mark.parametrize("name", FAST)
def test_a_call_is_done_whole_or_not_at_all(name: str, only: str) -> None:
    if only == "parametrize" and name.startswith("zero_"):
        pytest.skip("zero_ runs none of these lines")
    found = measure(CASES[name], 16, only)
    assert found.pop("lines") > 16
    assert set(found) <= {"before", "after"}
    assert sum(found.values()) == 16


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_interrupts_at_many_lines(name: str) -> None:
    found = measure(CASES[name], 30, "dgating" if name.startswith("compact") else "")
    assert set(found) <= {"lines", "before", "after"}


class Stop(BaseException):
    """Neither an ``Exception`` nor known to anybody."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit, Stop])
def test_whatever_is_raised_is_undone_and_goes_on(error: type[BaseException]) -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": list(net.parameters()), "note": [1]}], lr=0.1)
    weight, bias, data = net.weight, net.bias, net.weight.data_ptr()
    weight.grad = torch.ones(2, 2)

    def change() -> None:
        net.weight.data = torch.zeros(2, 2)
        net.weight.grad = None
        del net.weight
        net.weight = nn.Parameter(torch.ones(3))  # last instead of first
        net.register_buffer("extra", torch.ones(1))
        optimizer.param_groups[0]["params"] = []
        optimizer.param_groups.append({"params": [bias]})
        optimizer.state[bias]["momentum_buffer"] = torch.ones(2)
        raise error

    with torch.no_grad(), pytest.raises(error):
        all_or_nothing(change, [net], optimizer)
    assert [id(p) for p in net.parameters()] == [id(weight), id(bias)]
    assert net.weight.data_ptr() == data
    assert weight.grad is not None
    assert not list(net.buffers())
    assert len(optimizer.param_groups) == 1
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(weight), id(bias)]
    assert not optimizer.state


def test_a_second_interrupt_does_not_stop_the_way_back() -> None:
    net = nn.Linear(2, 2)
    weight, calls = net.weight, []

    class Interrupted(dict):
        def update(self, *args: Any) -> None:
            calls.append(args)
            if len(calls) < 4:
                raise KeyboardInterrupt
            super().update(*args)

    object.__setattr__(net, "_parameters", Interrupted(net._parameters))

    def change() -> None:
        net._parameters.clear()
        raise SystemExit

    with pytest.raises(SystemExit):
        all_or_nothing(change, [net])
    assert len(calls) == 4
    assert net.weight is weight


def test_what_fills_in_values_is_finished() -> None:
    values, interrupts = [1, 1, 1], [KeyboardInterrupt, SystemExit]

    def change() -> None:
        for i in range(3):
            if i == 1 and interrupts:
                raise interrupts.pop(0)
            values[i] = 0

    with pytest.raises(KeyboardInterrupt):
        to_the_end(change)
    assert values == [0, 0, 0]
    assert not interrupts


def test_gradients_are_on_after_an_interrupt_inside_no_grad() -> None:
    def change() -> None:
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        all_or_nothing(change)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("stage", ["inside", "on the way out"])
def test_training_flags_come_back(stage: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    stops = [KeyboardInterrupt] if stage == "on the way out" else []

    class Flaky(nn.Module):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "training" and value and stops and "training" in self.__dict__ and not self.training:
                raise stops.pop()
            super().__setattr__(name, value)

    net.insert(1, Flaky())
    with pytest.raises(KeyboardInterrupt), evaluating(net):
        assert not any(m.training for m in net.modules())
        if stage == "inside":
            raise KeyboardInterrupt
    assert all(m.training for m in net.modules())


def test_out_of_memory_half_way_through_gating(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second tensor of a tie cannot be gated: the first one is as it was, its memory included."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = [(id(p), p.data_ptr()) for p in net.parameters()]
    groups = dg.tie(dg.neurons(net[0]), dg.features(net[1]))
    real, calls = nn.utils.parametrize.register_parametrization, []

    def register(*args: Any, **kwargs: Any) -> nn.Module:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return real(*args, **kwargs)

    monkeypatch.setattr(nn.utils.parametrize, "register_parametrization", register)
    with pytest.raises(MemoryError):
        dg.gate_(net, groups)
    assert [(id(p), p.data_ptr()) for p in net.parameters()] == before
    assert [type(m) for m in net] == [nn.Linear, nn.Linear]
    assert groups.name == "Linear.weight"
