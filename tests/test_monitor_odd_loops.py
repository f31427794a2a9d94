"""Loops in which the monitor once saw another gradient than the optimizer, forgot what it knew, or stopped the run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dgating as dg

LAM = 0.05


def _net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    return dg.gate_(net, dg.features(net[0], name="inputs"))


def _sgd(net: nn.Module, lam: float = LAM, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(dg.param_groups(net, lam), **{"lr": 0.05, **options})


def _monitor(net: nn.Module, optimizer: torch.optim.Optimizer | None, **options: Any) -> dg.AbsorptionMonitor:
    return dg.AbsorptionMonitor(net, LAM, optimizer, window=10, **options)


def _loss(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()


def _norms(net: nn.Module, x: Tensor) -> Tensor:
    """Norms of the gradient of the effective weight, by an ordinary copy of the model."""
    plain = copy.deepcopy(net)
    dg.collapse_(plain)
    (grad,) = torch.autograd.grad(_loss(plain, x), plain[0].weight)
    return grad.norm(dim=0)


def _seen(monitor: dg.AbsorptionMonitor) -> Tensor:
    return monitor._bounds.current


# --- what the optimizer applies -------------------------------------------------------------------


def _sum_over_workers(net: nn.Module) -> None:
    for p in net.parameters():
        p.grad.mul_(4)


def _replaced(net: nn.Module) -> None:
    for p in net.parameters():
        p.grad = 4 * p.grad


@pytest.mark.parametrize("change", [_sum_over_workers, _replaced])
@pytest.mark.parametrize("update_first", [False, True])
def test_gradients_that_grow_before_the_step_are_seen(change: Callable[[nn.Module], None], update_first: bool) -> None:
    x, net = torch.randn(32, 5), _net()
    expected = 4 * _norms(net, x)
    optimizer = _sgd(net)
    monitor = _monitor(net, optimizer)
    _loss(net, x).backward()
    if update_first:
        monitor.update()
    change(net)
    optimizer.step()
    if not update_first:
        monitor.update()
    torch.testing.assert_close(_seen(monitor), expected, rtol=1e-4, atol=1e-7)
    assert monitor.observations()["inputs"].tolist() == [1] * 5


@pytest.mark.parametrize("scale", [0.3, 0.25])
@pytest.mark.parametrize("place", ["before unscale", "after unscale", "after step"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scale_below_one_makes_no_gradient_smaller(scale: float, place: str, fused: bool) -> None:
    x, net = torch.randn(32, 5), _net()
    expected = _norms(net, x)
    optimizer = _sgd(net, fused=fused)
    monitor = _monitor(net, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(_loss(net, x)).backward()
    if place == "before unscale":
        monitor.update()
    if place == "after unscale":
        scaler.unscale_(optimizer)
        monitor.update()
    scaler.step(optimizer)
    if place == "after step":
        monitor.update()
    torch.testing.assert_close(_seen(monitor), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("scale", "covered"), [(0.25, False), (2.0**10, True)])
def test_a_penalty_taken_out_before_a_small_loss_scale_certifies_nothing(scale: float, covered: bool) -> None:
    x, net = torch.randn(32, 5), _net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    monitor = dg.AbsorptionMonitor(net, 0.1, optimizer, penalty_in_loss=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(_loss(net, x) + dg.penalty(net, 0.1)).backward()
    monitor.update()
    scaler.step(optimizer)
    assert (monitor.coverage == "theorem") is covered


@pytest.mark.parametrize("scale", [1024.0, 1000.0, 0.3])
def test_a_fused_step_is_told_the_loss_scale(scale: float) -> None:
    x, net = torch.randn(32, 5), _net()
    expected = _norms(net, x)
    optimizer = _sgd(net, fused=True)
    monitor = _monitor(net, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(_loss(net, x)).backward()
    scaler.step(optimizer)
    monitor.update()
    torch.testing.assert_close(_seen(monitor), expected, rtol=1e-4, atol=1e-7)


def test_an_overflow_in_one_group_is_no_observation_of_the_others() -> None:
    """The scaler skips the step; the other groups would be seen as many times larger as the loss was scaled."""
    net = _net()
    optimizer = _sgd(net)
    monitor = _monitor(net, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale((net[0].weight * torch.tensor([1e35, 1.0, 1.0, 1.0, 1.0])).sum()).backward()
    monitor.update()
    scaler.step(optimizer)
    assert monitor.observations()["inputs"].tolist() == [0] * 5


@pytest.mark.parametrize("jump", [0.0, 10 * LAM])
def test_the_penalty_of_this_step_is_taken_out_when_the_step_comes_before_update(jump: float) -> None:
    x, net = torch.randn(32, 5), _net()
    now = {"lam": jump}
    optimizer = _sgd(net, 0.0)
    monitor = dg.AbsorptionMonitor(net, lambda: now["lam"], optimizer, window=10, penalty_in_loss=True)
    now["lam"] = LAM
    expected = _norms(net, x)
    (_loss(net, x) + dg.penalty(net, LAM)).backward()
    optimizer.step()
    monitor.update()
    torch.testing.assert_close(_seen(monitor), expected, rtol=1e-4, atol=1e-6)


# --- passes that reach no gate, or many times one -------------------------------------------------


def test_a_step_without_the_gated_layers_is_no_mistake() -> None:
    x = torch.randn(32, 5)
    net = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
    dg.gate_(net, dg.features(net[1], name="inputs"))
    optimizer = _sgd(net)
    monitor = _monitor(net, optimizer)
    for step in range(6):
        optimizer.zero_grad()
        h = net[0](x)
        (net[1](h) if step % 2 else h).square().mean().backward()
        monitor.update()
        optimizer.step()
    assert monitor.steps == 6
    assert monitor.observations()["inputs"].tolist() == [3] * 5


def test_optimizers_that_step_inside_backward_are_refused_by_update_and_not_in_backward() -> None:
    x, net = torch.randn(32, 5), _net()
    own = {p: torch.optim.SGD([p], lr=0.1) for p in net.parameters()}

    def step(p: nn.Parameter) -> None:
        own[p].step()
        own[p].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    monitor = _monitor(net, None)
    _loss(net, x).backward()
    with pytest.raises(RuntimeError, match="no gated weight has a gradient"):
        monitor.update()


def test_checkpointed_layers_are_read_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*[nn.Linear(5, 5) for _ in range(4)])
    for layer in net:
        dg.gate_(layer, dg.features(layer))
    monitor = _monitor(net, _sgd(net))
    reads: list[None] = []
    norms = monitor._reader.gradients.norms
    monkeypatch.setattr(monitor._reader.gradients, "norms", lambda *a: reads.append(None) or norms(*a))
    h = torch.randn(8, 5)
    for layer in net:
        h = checkpoint(layer, h, use_reentrant=False)
    h.square().mean().backward()
    monitor.update()
    assert len(reads) == 1
    assert all((seen == 1).all() for seen in monitor.observations().values())


# --- other parameters, other optimizers, copies ---------------------------------------------------


def _assigned(net: nn.Module) -> None:
    net.load_state_dict({name: x.clone() for name, x in net.state_dict().items()}, assign=True)


def _gated_again(net: nn.Sequential) -> None:
    dg.collapse_(net)
    dg.gate_(net, dg.features(net[0], name="inputs"))


@pytest.mark.parametrize("change", [_assigned, _gated_again])
def test_new_parameters_need_a_new_monitor(change: Callable[[nn.Sequential], None]) -> None:
    x, net = torch.randn(32, 5), _net()
    monitor = _monitor(net, _sgd(net))
    _loss(net, x).backward()
    monitor.update()
    change(net)
    for call in (monitor.absorbed, monitor.margins, lambda: monitor.coverage):
        with pytest.raises(RuntimeError, match="new monitor"):
            call()
    _loss(net, x).backward()
    with pytest.raises(RuntimeError, match="new monitor"):
        monitor.update()


def test_a_copy_of_a_run_watches_the_copy() -> None:
    x, net = torch.randn(32, 5), _net()
    optimizer = _sgd(net)
    monitor = _monitor(net, optimizer)
    net2, optimizer2, monitor2 = copy.deepcopy((net, optimizer, monitor))
    expected = _norms(net2, x)
    _loss(net2, x).backward()
    nn.utils.clip_grad_norm_(net2.parameters(), 1e-4)
    monitor2.update()
    torch.testing.assert_close(_seen(monitor2), expected, rtol=1e-4, atol=1e-7)
    _loss(net2, x).backward()
    optimizer2.step()
    monitor2.update()
    assert monitor2.observations()["inputs"].tolist() == [2] * 5
    assert monitor.observations()["inputs"].tolist() == [0] * 5


@pytest.mark.parametrize("other", [torch.optim.Adam, torch.optim.SGD])
def test_another_optimizer_than_the_one_that_was_given_is_noticed(other: type[torch.optim.Optimizer]) -> None:
    x, net = 1e-3 * torch.randn(32, 5), _net()
    optimizer = _sgd(net)
    monitor = _monitor(net, optimizer)
    training: torch.optim.Optimizer = optimizer
    for step in range(30):
        if step == 15:
            assert monitor.coverage == "theorem"
            assert monitor.absorbed()["inputs"].any()
            training = other(dg.param_groups(net, LAM), lr=0.05)
        training.zero_grad()
        _loss(net, x).backward()
        monitor.update()
        training.step()
    assert "another optimizer" in monitor.coverage
    assert not monitor.absorbed()["inputs"].any()
    optimizer.zero_grad()
    _loss(net, x).backward()
    optimizer.step()
    monitor.update()
    assert monitor.coverage == "theorem"


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["optimizer", "function"])
def test_a_run_with_a_schedule_of_the_strength_can_be_resumed(kind: str) -> None:
    x, net = torch.randn(32, 5), _net()
    now = {"lam": 0.01}
    optimizer = _sgd(net, 0.01)
    source = None if kind == "optimizer" else lambda: now["lam"]
    monitor = dg.AbsorptionMonitor(net, source, optimizer, window=10)
    for step in range(20):
        now["lam"] = 0.01 + 0.001 * step
        for group in optimizer.param_groups[:2]:
            group["weight_decay"] = 2 * now["lam"] / 3
        optimizer.zero_grad()
        _loss(net, x).backward()
        monitor.update()
        optimizer.step()
    again = dg.AbsorptionMonitor(net, source, optimizer, window=10)
    again.load_state_dict(monitor.state_dict())
    assert torch.equal(again.margins()["inputs"], monitor.margins()["inputs"])
    assert again.lam == monitor.lam


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no strength": lambda s: s["top_lam"].clear(),
    "strengths that are no dict": lambda s: s.update(top_lam=None),
    "another entry in the bounds": lambda s: s["bounds"].update(window=torch.tensor(3.0)),
    "bounds that are no dict": lambda s: s.update(bounds=3),
    "a history that is no list": lambda s: s.update(history=5),
    "settings that are no dict": lambda s: s.update(settings=None),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_state_is_refused_and_changes_nothing(name: str) -> None:
    net = _net()
    monitor = _monitor(net, _sgd(net))
    before, state = str(monitor.state_dict()), monitor.state_dict()
    DAMAGED[name](state)
    with pytest.raises(ValueError, match="state"):
        monitor.load_state_dict(state)
    assert str(monitor.state_dict()) == before
    assert monitor._bounds.window == 10
