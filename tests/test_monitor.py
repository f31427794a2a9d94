"""The monitor in real training loops: what it measures, what it certifies, every way of feeding it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dgating as dg

LAM = 0.08


def _data(n: int = 256) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 8)
    return x, torch.stack([x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]], 1)


def _net(depth: int = 3) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    return dg.gate_(net, dg.features(net[0], name="inputs"), depth=depth)


def _sgd(net: nn.Module, lam: float = LAM, **options: float) -> torch.optim.SGD:
    return torch.optim.SGD(dg.param_groups(net, lam), **{"lr": 0.05, "momentum": 0.9, **options})


def _loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(net(x), y)


def _bound(monitor: dg.AbsorptionMonitor) -> Tensor:
    return monitor._bounds.current


def _true_gradient(net: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """Norms of the gradient with respect to the effective weight, by a plain copy of the network."""
    plain = copy.deepcopy(net)
    dg.collapse_(plain)
    (grad,) = torch.autograd.grad(_loss(plain, x, y), plain[0].weight)
    return grad.norm(dim=0)


def test_measures_the_gradient_of_the_effective_weight() -> None:
    x, y = _data()
    net = _net()
    optimizer = _sgd(net)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10)
    largest = torch.zeros(8)
    for _ in range(7):
        rows = torch.randint(len(x), (32,))
        largest = torch.maximum(largest, _true_gradient(net, x[rows], y[rows]))
        optimizer.zero_grad()
        _loss(net, x[rows], y[rows]).backward()
        monitor.update()
        optimizer.step()
        torch.testing.assert_close(_bound(monitor), largest, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("way", ["penalty in the loss", "accumulation", "amp scale", "unscaled amp", "clipping after"])
def test_every_way_of_training_gives_the_same_bound(way: str) -> None:
    x, y = _data(64)
    net = _net()
    in_loss = way == "penalty in the loss"
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.0 if in_loss else LAM), lr=0.05)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, penalty_in_loss=in_loss, window=5)
    expected = _true_gradient(net, x, y)
    if way == "accumulation":
        for part in torch.arange(64).split(16):
            (_loss(net, x[part], y[part]) / 4).backward()
        monitor.update()
    elif way == "amp scale":
        (_loss(net, x, y) * 1024).backward()
        monitor.update(grad_scale=torch.tensor(1024.0))
    elif way == "unscaled amp":
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        scaler.scale(_loss(net, x, y)).backward()
        scaler.unscale_(optimizer)
        monitor.update()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss = _loss(net, x, y) + (dg.penalty(net, LAM) if in_loss else 0.0)
        loss.backward()
        monitor.update()
        nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    torch.testing.assert_close(_bound(monitor), expected, rtol=1e-4, atol=1e-7)


def test_an_overflowing_step_is_not_observed() -> None:
    x, y = _data(64)
    net = _net()
    monitor = dg.AbsorptionMonitor(net, LAM, window=5)
    (_loss(net, x, y) * torch.inf).backward()
    monitor.update()
    assert (_bound(monitor) == 0).all()


def _train(
    net: nn.Module, optimizer: torch.optim.Optimizer, monitor: dg.AbsorptionMonitor, x: Tensor, y: Tensor, steps: int
) -> None:
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        _loss(net, x[rows], y[rows]).backward()
        monitor.update()
        optimizer.step()


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize(
    "options", [{"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str
)
def test_certified_groups_are_dead_long_after(depth: int, options: dict[str, float]) -> None:
    x, y = _data()
    net = _net(depth)
    optimizer = _sgd(net, **{"lr": 0.02 if options["momentum"] else 0.2}, **options)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=20)
    assert monitor.coverage == "theorem"
    _train(net, optimizer, monitor, x, y, 150)
    mask = monitor.absorbed()["inputs"]
    norms = dg.group_norms(net)["inputs"]
    assert 3 <= int(mask.sum()) <= 6
    assert not mask[:2].any()  # the two inputs that the target needs
    assert float(norms[mask].max()) > 1.2e-7  # the threshold does not know yet
    _train(net, optimizer, monitor, x, y, 1500)
    assert float(dg.group_norms(net)["inputs"][mask].max()) < 1.2e-7
    assert not monitor.revoked()["inputs"].any()


def test_nothing_is_certified_before_a_window_has_passed() -> None:
    x, y = _data()
    net = _net()
    optimizer = _sgd(net, lam=5.0, lr=0.001, momentum=0.0)
    monitor = dg.AbsorptionMonitor(net, 5.0, optimizer, window=30)
    _train(net, optimizer, monitor, x, y, 29)
    assert not monitor.absorbed()["inputs"].any()
    _train(net, optimizer, monitor, x, y, 1)
    assert monitor.absorbed()["inputs"].any()


def test_coverage_says_what_is_proved() -> None:
    net = _net()
    assert "no optimizer" in dg.AbsorptionMonitor(net, LAM).coverage
    adam = torch.optim.Adam(dg.param_groups(net, LAM))
    assert "evidence only" in dg.AbsorptionMonitor(net, LAM, adam).coverage
    assert "oscillate" in dg.AbsorptionMonitor(net, LAM, _sgd(net, lr=5.0)).coverage
    assert "dampening" in dg.AbsorptionMonitor(net, LAM, _sgd(net, dampening=0.5)).coverage
    assert "screened" in dg.AbsorptionMonitor(_net(2), LAM).coverage


def test_state_dict_resumes_exactly() -> None:
    x, y = _data()
    net = _net()
    optimizer = _sgd(net)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=7)
    _train(net, optimizer, monitor, x, y, 40)
    again = dg.AbsorptionMonitor(net, LAM, optimizer, window=7)
    again.load_state_dict(copy.deepcopy(monitor.state_dict()))
    assert torch.equal(again.absorbed()["inputs"], monitor.absorbed()["inputs"])
    torch.testing.assert_close(again.margins()["inputs"], monitor.margins()["inputs"])
    with pytest.raises(ValueError, match="another model"):
        other = nn.Linear(3, 2)
        dg.gate_(other, dg.features(other))
        dg.AbsorptionMonitor(other, LAM).load_state_dict(monitor.state_dict())


def test_history_has_a_record_a_window() -> None:
    x, y = _data()
    net = _net()
    optimizer = _sgd(net)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10)
    _train(net, optimizer, monitor, x, y, 35)
    assert [r["step"] for r in monitor.history] == [10, 20, 30]
    assert monitor.history[-1]["groups"]["inputs"]["groups"] == 8


def test_a_collapsed_model_is_refused() -> None:
    net = _net()
    monitor = dg.AbsorptionMonitor(net, LAM)
    dg.collapse_(net)
    with pytest.raises(RuntimeError, match="not gated any more"):
        monitor.absorbed()


def _full_batch(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    return lambda: _loss(net, x, y).backward()


def test_depth_2_revives_what_the_screen_got_wrong() -> None:
    """Zero a group that the optimum needs: recheck finds it, revives it, and training recovers the optimum."""
    x, y = _data()
    net = nn.Linear(8, 2, bias=False)
    dg.gate_(net, dg.features(net, name="inputs"), depth=2)
    optimizer = _sgd(net, lam=0.3, lr=0.05, momentum=0.0)
    monitor = dg.AbsorptionMonitor(net, 0.3, optimizer, window=10)
    for _ in range(400):
        optimizer.zero_grad()
        _loss(net, x, y).backward()
        monitor.update()
        optimizer.step()
    optimum = dg.group_norms(net)["inputs"]
    assert (optimum[:2] > 0.1).all()
    masks = {"inputs": torch.tensor([True, False, True, True, True, True, True, True])}  # input 0 is a mistake
    dg.zero_(net, masks, optimizer)
    before = net.weight.detach().clone()
    grads = [p.grad.clone() for p in net.parameters()]
    revived = monitor.recheck(_full_batch(net, x, y))["inputs"]
    assert revived.tolist() == [True] + [False] * 7
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    assert torch.equal(net.weight[:, 1:], before[:, 1:])
    assert float(dg.group_norms(net)["inputs"][0]) == pytest.approx(0.01)
    for _ in range(800):
        optimizer.zero_grad()
        _loss(net, x, y).backward()
        optimizer.step()
    torch.testing.assert_close(dg.group_norms(net)["inputs"][:2], optimum[:2], rtol=1e-3, atol=1e-4)
    assert not monitor.recheck(_full_batch(net, x, y))["inputs"].any()


def test_depth_2_screen_then_recheck_ends_at_the_group_lasso() -> None:
    x, y = _data()
    net = nn.Linear(8, 2, bias=False)
    dg.gate_(net, dg.features(net, name="inputs"), depth=2)
    optimizer = _sgd(net, lam=0.2, lr=0.05, momentum=0.0)
    monitor = dg.AbsorptionMonitor(net, 0.2, optimizer, window=20)
    for _ in range(300):
        optimizer.zero_grad()
        _loss(net, x, y).backward()
        monitor.update()
        optimizer.step()
    masks = monitor.absorbed()
    assert masks["inputs"].tolist() == [False, False] + [True] * 6
    dg.zero_(net, masks, optimizer)
    assert not monitor.recheck(_full_batch(net, x, y))["inputs"].any()


def test_recheck_needs_depth_2() -> None:
    net = _net(3)
    with pytest.raises(ValueError, match="depth 2"):
        dg.AbsorptionMonitor(net, LAM).recheck(lambda: None)


def test_a_group_that_was_never_observed_is_never_certified() -> None:
    x, y = _data()
    net = _net()
    optimizer = _sgd(net)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=3)
    with pytest.raises(RuntimeError, match="after backward"):
        monitor.update()
    for _ in range(7):  # every step overflows
        _loss(net, x, y).backward()
        for p in net.parameters():
            p.grad.fill_(torch.inf)
        monitor.update()
    assert not monitor.absorbed()["inputs"].any()
    assert (monitor.margins()["inputs"] == torch.inf).all()


def test_one_zero_gate_is_no_certificate() -> None:
    """The product of the gates is zero, so the gradient of W is not seen; the other factors may carry it back."""
    net = nn.Linear(1, 1, bias=False)
    dg.gate_(net, dg.features(net), depth=3)
    with torch.no_grad():
        net.parametrizations.weight[0].gamma[0, 0] = 0
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.01), lr=0.05)
    monitor = dg.AbsorptionMonitor(net, 0.01, optimizer, window=3)
    x = torch.ones(8, 1)
    for _ in range(5):
        optimizer.zero_grad()
        _loss(net, x, 3 * x).backward()
        monitor.update()
        if monitor.steps <= 4:
            assert not monitor.absorbed()["weight"].any()
        optimizer.step()
    for _ in range(300):
        optimizer.zero_grad()
        _loss(net, x, 3 * x).backward()
        optimizer.step()
    assert float(dg.group_norms(net)["weight"]) > 2


def test_frozen_groups_are_not_certified() -> None:
    x, y = _data()
    net = _net()
    optimizer = _sgd(net, lr=0.02)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=20)
    _train(net, optimizer, monitor, x, y, 150)
    assert monitor.absorbed()["inputs"].any()
    net[0].requires_grad_(False)
    assert not monitor.absorbed()["inputs"].any()


def test_a_decay_that_is_switched_off_later_ends_the_certificates() -> None:
    x, y = _data()
    net = _net()
    optimizer = _sgd(net, lr=0.02)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=20)
    _train(net, optimizer, monitor, x, y, 150)
    assert monitor.absorbed()["inputs"].any()
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    assert not monitor.absorbed()["inputs"].any()
    assert "no decay" in monitor.coverage
    assert monitor.lam == {"inputs": 0.0}


def test_an_optimizer_without_decay_is_refused() -> None:
    net = _net()
    with pytest.raises(ValueError, match="Rprop has no weight decay"):
        dg.AbsorptionMonitor(net, LAM, torch.optim.Rprop(dg.param_groups(net, LAM)))


def test_cycled_momentum_is_not_covered() -> None:
    net = _net()
    optimizer = _sgd(net, lr=0.001)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=50)
    assert "schedule of the momentum" in dg.AbsorptionMonitor(net, LAM, optimizer).coverage
