"""Gradients that the primary weights do not show, and steps that the optimizer of the monitor does not make.

In every loop here a group that matters, with a norm of one or two, was once certified.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import dgating as dg

STEPS = 600


def _gated(n: int) -> nn.Linear:
    net = nn.Linear(n, 1)
    dg.gate_(net, dg.features(net, name="in"))
    return net


def _sgd(net: nn.Module, lam: float, lr: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD(dg.param_groups(net, lam=lam), lr=lr)


def _wrong(net: nn.Module, monitor: dg.AbsorptionMonitor, alive: float = 0.1) -> list[int]:
    """Groups that are certified and alive."""
    certified = monitor.absorbed()["in"] & (dg.group_norms(net)["in"] > alive)
    return certified.nonzero().flatten().tolist()


def _two_signals(n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.randn(400, n)
    return x, 1.5 * x[:, :1] + x[:, 1:2] + 0.05 * torch.randn(400, 1)


def test_gates_that_are_trained_on_other_data() -> None:
    x, other = torch.randn(40, 8), torch.randn(400, 8)
    x[:, 4:] *= 0.02
    target = torch.tensor([1.0, 0, 0, 0, 2, 2, 0, 0]).unsqueeze(1)
    net = _gated(8)
    gates = [p for name, p in net.named_parameters() if name.endswith("gamma")]
    weights = [p for name, p in net.named_parameters() if not name.endswith("gamma")]
    optimizer = _sgd(net, 0.05, 0.02)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, window=20)
    for step in range(2 * STEPS):
        for data, inputs in ((x, weights), (other, gates)):
            optimizer.zero_grad()
            mse_loss(net(data), data @ target).backward(inputs=inputs)
            monitor.update()
            optimizer.step()
        if step % 50 == 49:
            assert _wrong(net, monitor) == []
    assert float(dg.group_norms(net)["in"][4:6].max()) > 0.5  # it does learn from the other data
    assert int(monitor.absorbed()["in"].sum()) > 0


def test_a_second_optimizer_of_the_same_factors() -> None:
    x = torch.randn(400, 6)
    quiet = x.clone()
    quiet[:, 2] *= 0.02
    net = _gated(6)
    first, second = _sgd(net, 0.05), _sgd(net, 0.05)
    monitor = dg.AbsorptionMonitor(net, 0.05, first, window=20)
    for _ in range(STEPS):
        first.zero_grad()
        mse_loss(net(quiet), x[:, :1]).backward()
        monitor.update()
        first.step()
        second.zero_grad()
        mse_loss(net(x), x[:, :1] + 2 * x[:, 2:3]).backward()
        second.step()
    assert "another optimizer" in monitor.coverage
    assert _wrong(net, monitor) == []


def _scaled(net: nn.Module, optimizer: torch.optim.Optimizer, monitor: dg.AbsorptionMonitor, loss: Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-8)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    monitor.update()
    dg.add_penalty_grad_(net, 0.05)
    optimizer.step()


def _grown_before(
    net: nn.Module, optimizer: torch.optim.Optimizer, monitor: dg.AbsorptionMonitor, loss: Tensor
) -> None:
    (loss / 16).backward()
    for p in net.parameters():
        p.grad *= 16
    monitor.update()
    dg.add_penalty_grad_(net, 0.05)
    optimizer.step()


def _grown_after(net: nn.Module, optimizer: torch.optim.Optimizer, monitor: dg.AbsorptionMonitor, loss: Tensor) -> None:
    (loss / 16).backward()
    monitor.update()
    for p in net.parameters():
        p.grad *= 16
    dg.add_penalty_grad_(net, 0.05)
    optimizer.step()


def _told(net: nn.Module, optimizer: torch.optim.Optimizer, monitor: dg.AbsorptionMonitor, loss: Tensor) -> None:
    (loss / 16).backward()
    dg.add_penalty_grad_(net, 0.05, grad_scale=1 / 16)
    for p in net.parameters():
        p.grad *= 16
    optimizer.step()
    monitor.update()


@pytest.mark.parametrize("step", [_scaled, _grown_before, _grown_after, _told])
def test_gradients_are_read_when_the_penalty_is_added(step: Callable[..., None]) -> None:
    x, y = _two_signals()
    net = _gated(6)
    optimizer = _sgd(net, 0.0)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, penalty_in_grad=True, window=20)
    for _ in range(STEPS):
        optimizer.zero_grad()
        step(net, optimizer, monitor, mse_loss(net(x), y))
    assert monitor.coverage == "theorem"
    assert monitor.absorbed()["in"].tolist() == [False] * 2 + [True] * 4
    assert monitor.observations()["in"].tolist() == [STEPS] * 6


def test_a_large_loss_scale_does_not_hide_dead_groups_from_a_penalty_in_the_gradients() -> None:
    """The recipe of the documentation: unscale, then add the penalty."""
    x, y = _two_signals()
    net = _gated(6)
    optimizer = _sgd(net, 0.0)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, penalty_in_grad=True, window=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(mse_loss(net(x), y)).backward()
        scaler.unscale_(optimizer)
        dg.add_penalty_grad_(net, 0.05)
        scaler.step(optimizer)
        scaler.update()
        monitor.update()
    assert monitor.absorbed()["in"].tolist() == [False] * 2 + [True] * 4


@pytest.mark.parametrize("early", [False, True])
def test_a_penalty_that_is_never_added_or_too_early_certifies_nothing(early: bool) -> None:
    x, y = _two_signals()
    net = _gated(6)
    optimizer = _sgd(net, 0.0)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, penalty_in_grad=True, window=20)
    for _ in range(50):
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        if early:
            dg.add_penalty_grad_(net, 0.05)
            mse_loss(net(x), y).backward()
        optimizer.step()
        monitor.update()
    assert "add_penalty_grad_ was not called" in monitor.coverage
    assert not monitor.absorbed()["in"].any()


def test_clipping_by_value_after_the_penalty_is_added_is_noticed() -> None:
    x, y = _two_signals()
    net = _gated(6)
    optimizer = _sgd(net, 0.0)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, penalty_in_grad=True, window=20)
    for _ in range(20):
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        dg.add_penalty_grad_(net, 0.05)
        nn.utils.clip_grad_value_(net.parameters(), 0.01)
        optimizer.step()
        monitor.update()
    assert "clipped by value" in monitor.coverage


def test_a_hook_of_the_step_that_was_registered_later() -> None:
    x, y = _two_signals()
    net = _gated(6)
    optimizer = _sgd(net, 0.05)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, window=20)

    def summed(*_: Any) -> None:
        for p in net.parameters():
            p.grad *= 16

    optimizer.register_step_pre_hook(summed)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (mse_loss(net(x), y) / 16).backward()
        monitor.update()
        optimizer.step()
    assert monitor.absorbed()["in"].tolist() == [False] * 2 + [True] * 4


@pytest.mark.parametrize("first", ["clean", "update"])
def test_a_step_whose_gradients_were_cleaned_counts(first: str) -> None:
    x = torch.randn(400, 6)
    quiet = x.clone()
    quiet[:, 2] *= 0.005
    net = _gated(6)
    optimizer = _sgd(net, 0.03)
    monitor = dg.AbsorptionMonitor(net, 0.03, optimizer, window=20)
    for step in range(STEPS):
        data = quiet if step % 5 else x
        optimizer.zero_grad()
        loss = mse_loss(net(data), data[:, :1] + 1.5 * data[:, 2:3])
        if step % 5 == 0:
            loss = loss + (0 * net.weight[0, 5]).abs().sqrt()  # nan for one input
        loss.backward()
        if first == "update":
            monitor.update()
        for p in net.parameters():
            p.grad.nan_to_num_(0, 0, 0)
        if first == "clean":
            monitor.update()
        optimizer.step()
    assert _wrong(net, monitor) == []
    assert float(dg.group_norms(net)["in"][2]) > 0.5


def test_a_term_of_the_loss_that_holds_the_factors_themselves() -> None:
    """L2-SP, FedProx, EWC: groups settle at small norms other than zero."""
    x = torch.randn(400, 8)
    y = 1.5 * x[:, :1] + 0.1 * torch.randn(400, 1)
    net = nn.Linear(8, 1)
    nn.init.normal_(net.weight, std=0.05)
    dg.gate_(net, dg.features(net, name="in"))
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = _sgd(net, 0.05)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, window=20)
    for _ in range(1500):
        near = sum((p - q).square().sum() for p, q in zip(net.parameters(), start, strict=True))
        optimizer.zero_grad()
        (mse_loss(net(x), y) + 0.15 * near).backward()
        monitor.update()
        optimizer.step()
    assert not monitor.absorbed()["in"].any()


def test_a_hook_on_the_primary_weights_alone() -> None:
    x, y = _two_signals()
    net = _gated(6)
    net.parametrizations.weight.original.register_hook(lambda grad: 0.05 * grad)
    optimizer = _sgd(net, 0.05)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, window=20)
    for _ in range(2 * STEPS):
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        monitor.update()
        optimizer.step()
    assert _wrong(net, monitor) == []
    assert monitor.absorbed()["in"][2:].any()


@pytest.mark.parametrize("how", ["no gradient", "no step size"])
def test_gates_that_stand_still(how: str) -> None:
    """The group does not grow, but it does not go to zero either."""
    x, y = _two_signals()
    net = _gated(6)
    optimizer = _sgd(net, 0.05)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, window=20)
    gates = next(group for group in optimizer.param_groups if group[_role()] == "gates")
    for step in range(200):
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        if step >= 100 and how == "no gradient":
            gates["params"][0].grad = None
        if step == 100 and how == "no step size":
            gates["lr"] = 0.0
        monitor.update()
        optimizer.step()
    assert "not trained" in monitor.coverage or "step size" in monitor.coverage
    assert not monitor.absorbed()["in"].any()
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the end of a cosine: nothing moves, and what was certified stays
    if how == "no step size":
        assert monitor.absorbed()["in"].any()


def _role() -> str:
    from dgating.gating._optimizer_state import ROLE

    return ROLE


# --- arguments ---


@contextlib.contextmanager
def _one_step() -> Iterator[tuple[nn.Linear, torch.optim.SGD, dg.AbsorptionMonitor]]:
    net = _gated(6)
    optimizer = _sgd(net, 0.05)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer)
    x, y = _two_signals()
    mse_loss(net(x), y).backward()
    yield net, optimizer, monitor
    monitor.update()  # a refused call has lost nothing
    assert monitor.observations()["in"].tolist() == [1] * 6


@pytest.mark.parametrize(
    ("scale", "error"),
    [
        *[("x", TypeError), (True, TypeError), (0.0, ValueError), (-1.0, ValueError), (float("nan"), ValueError)],
        *[(float("inf"), ValueError), (torch.ones(2), ValueError)],
    ],
)
def test_a_loss_scale_that_is_none_is_refused(scale: Any, error: type[Exception]) -> None:
    with _one_step() as (_, _, monitor), pytest.raises(error, match="grad_scale: expected"):
        monitor.update(grad_scale=scale)


def test_frozen_factors_are_refused_without_an_optimizer_too() -> None:
    net = _gated(6)
    net.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen|requires_grad"):
        dg.AbsorptionMonitor(net, 0.05)


def test_a_function_that_returns_no_strength() -> None:
    with pytest.raises(TypeError, match="lam: expected"):
        dg.AbsorptionMonitor(_gated(6), lambda: None)


def test_parameter_groups_that_have_left_the_optimizer() -> None:
    net = _gated(6)
    optimizer = _sgd(net, 0.05)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer)
    optimizer.param_groups.pop()
    with pytest.raises(RuntimeError, match="parameter groups"):
        monitor.absorbed()


@pytest.mark.parametrize(
    ("closure", "size", "error", "said"),
    [
        (None, 0.1, TypeError, "closure: expected"),
        (lambda: None, 0.1, RuntimeError, "backward"),
        (lambda: None, -1.0, ValueError, "size: expected"),
    ],
)
def test_a_recheck_that_could_say_nothing(closure: Any, size: float, error: type[Exception], said: str) -> None:
    net = nn.Linear(6, 1)
    dg.gate_(net, dg.features(net, name="in"), depth=2)
    monitor = dg.AbsorptionMonitor(net, 0.05)
    with pytest.raises(error, match=said):
        monitor.recheck(closure, size)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("", "until_check", 0), ("", "until_check", 10**9), ("bounds", "count", 2**62), ("", "history", [1])],
)
def test_a_state_that_no_monitor_can_have(part: str, name: str, value: Any) -> None:
    net = _gated(6)
    monitor = dg.AbsorptionMonitor(net, 0.05, _sgd(net, 0.05))
    state = monitor.state_dict()
    place = state[part] if part else state
    place[name] = torch.full_like(place[name], value) if isinstance(place[name], Tensor) else value
    with pytest.raises(ValueError, match="state: "):
        monitor.load_state_dict(state)
