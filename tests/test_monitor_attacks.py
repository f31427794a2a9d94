"""What once made the monitor certify a living group without a word, each as a case that must stay refused.

The letters are those of ``docs/concepts/absorption.md``, section "How it was attacked".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dgating as dg
from dgating.training._bounds import Bounds

LAM = 0.05


class Bare(nn.Module):
    """One gated tensor, a group a row, and nothing else."""

    def __init__(self, rows: int = 4, columns: int = 3, depth: int = 3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(rows, columns, dtype=dtype))
        dg.gate_(self, dg.by_dim(self, 0, name="w"), depth=depth)

    @property
    def omega(self) -> nn.Parameter:
        return self.parametrizations.w.original

    @property
    def gamma(self) -> nn.Parameter:
        return self.parametrizations.w[0].gamma


def _sgd(net: nn.Module, lam: float = LAM, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(dg.param_groups(net, lam), **{"lr": 0.1, **options})


def _feed(net: Bare, gradient: Tensor) -> None:
    """A backward pass that leaves this gradient of the effective weight."""
    net.zero_grad()
    (net.w * gradient).sum().backward()


def _watch(net: Bare, monitor: dg.AbsorptionMonitor, size: float, steps: int) -> None:
    """Steps of observation without training: gradients of this size in every group."""
    for _ in range(steps):
        _feed(net, torch.full_like(net.w, size))
        monitor.update()


def _plain_gradient(net: nn.Module, name: str, x: Tensor) -> Tensor:
    """The gradient of an effective weight, by an ordinary copy of the model."""
    plain = copy.deepcopy(net)
    dg.collapse_(plain)
    (grad,) = torch.autograd.grad(plain(x).square().mean(), plain.get_parameter(name))
    return grad


# --- a: rare features ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 20])
def test_a_feature_that_one_row_has_is_never_certified_while_it_lives(window: int | None) -> None:
    """Half of the inputs are zero in all rows but one of their own, and carry the largest weights."""
    rows, batch, n, rare, lam = 3200, 16, 8, 4, 0.02
    x = torch.randn(rows, n)
    x[:, rare:] = 0
    x[torch.arange(rare) * 7, torch.arange(rare, n)] = 3.0
    truth = torch.tensor([1.0, -1.0, 0.0, 0.0, *[5.0] * rare])
    y = x @ truth
    net = nn.Linear(n, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(truth)
    dg.gate_(net, dg.features(net, name="inputs"))
    optimizer = _sgd(net, lam, lr=0.005)
    monitor = dg.AbsorptionMonitor(net, lam, optimizer, window=window)
    ever = torch.zeros(n, dtype=torch.bool)
    for _ in range(10):
        for index in torch.randperm(rows).split(batch):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x[index])[:, 0], y[index]).backward()
            monitor.update()
            optimizer.step()
            if monitor.steps % 10 == 0:
                ever |= monitor.absorbed()["inputs"]
    alive = dg.group_norms(net)["inputs"] > 0.5
    assert alive[rare:].all()
    assert not (ever & alive).any()
    assert monitor.observations()["inputs"].tolist() == [1999] * rare + [10] * rare  # the first loss is zero


@pytest.mark.parametrize("window", [None, 200, 50])
def test_centred_rare_features_need_a_window_of_an_epoch(window: int | None) -> None:
    """Centred, a rare column has a small gradient in every step, and 50 steps do not see every row."""
    rows, batch, n, rare = 3200, 16, 8, 4
    x = torch.randn(rows, n)
    x[:, rare:] = 0
    x[torch.arange(rare) * 7, torch.arange(rare, n)] = 1.0
    x = (x - x.mean(0)) / x.std(0)
    y = x @ torch.tensor([1.0, -1.0, 0.0, 0.0, *[1.0] * rare])
    net = nn.Linear(n, 1, bias=False)
    nn.init.constant_(net.weight, 0.5)
    dg.gate_(net, dg.features(net, name="inputs"))
    optimizer = _sgd(net, lr=0.005)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=window)
    ever = torch.zeros(n, dtype=torch.bool)
    for _ in range(6):
        for index in torch.randperm(rows).split(batch):
            optimizer.zero_grad()
            nn.functional.smooth_l1_loss(net(x[index])[:, 0], y[index]).backward()
            monitor.update()
            optimizer.step()
            if monitor.steps % 10 == 0:
                ever |= monitor.absorbed()["inputs"]
    assert (dg.group_norms(net)["inputs"][rare:] > 0.3).all()
    if window == 50:  # what the documentation says of short windows; the monitor tells when it is too late
        assert ever[rare:].any()
        assert monitor.exceeded()["inputs"][rare:].any()
    else:
        assert not ever.any()


def test_zero_gradients_are_no_observations() -> None:
    net = Bare()
    monitor = dg.AbsorptionMonitor(net, 10.0, _sgd(net, 10.0, lr=0.01), window=10)
    sizes = torch.tensor([0.1, 0.0, 1e-3, 0.0])[:, None].expand(4, 3)
    for step in range(40):
        _feed(net, sizes if step % 2 else sizes.flip(0) * 0)
        monitor.update()
    assert monitor.observations()["w"].tolist() == [20, 0, 20, 0]
    assert monitor.absorbed()["w"].tolist() == [True, False, True, False]


def test_a_few_gradients_are_not_enough() -> None:
    net = Bare()
    monitor = dg.AbsorptionMonitor(net, 10.0, _sgd(net, 10.0, lr=0.01), window=1)
    _watch(net, monitor, 1e-3, 7)
    assert not monitor.absorbed()["w"].any()
    _watch(net, monitor, 1e-3, 1)
    assert monitor.absorbed()["w"].all()


def test_windows_grow_with_what_was_seen_unless_their_length_is_given() -> None:
    seen = Bounds(1, torch.device("cpu"), torch.float32, None)
    bounds = []
    for step in range(4999):
        seen.observe(torch.tensor([5.0 if step == 0 else 1.0]))
        bounds.append(float(seen.largest[0]))
    assert bounds[498] == math.inf  # nothing is known before the first window has ended
    ends = [i for i in range(1, 4999) if bounds[i] != bounds[i - 1]]
    assert ends == [499, 999]  # the large one is in the first window; it is forgotten when the second has ended
    assert seen.total.tolist() == [3375]  # 500, 500, 500, 750, 1125: each at least half of all before it


def test_the_bound_comes_from_the_open_window_too() -> None:
    """The window before alone would not know of what has begun since."""
    net = Bare(rows=1)
    monitor = dg.AbsorptionMonitor(net, LAM, _sgd(net), window=10)
    _watch(net, monitor, 1e-3, 10)
    before = float(monitor.margins()["w"])
    _watch(net, monitor, 1.0, 1)
    assert float(monitor.margins()["w"]) == pytest.approx(before * 1000, rel=1e-3)


# --- b: update in the wrong place ------------------------------------------------------------------------------------


def _zero_grad(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)


def _clip(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(net.parameters(), 1e-4)


def _step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()


def _step_and_forget(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()


def _nothing(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    pass


@pytest.mark.parametrize("kind", ["decay", "loss", "gradient"])
@pytest.mark.parametrize("first", [_nothing, _zero_grad, _clip, _step, _step_and_forget])
def test_wherever_update_is_called_it_sees_the_gradient_of_backward(
    first: Callable[[nn.Module, torch.optim.Optimizer], None], kind: str
) -> None:
    x = torch.randn(64, 5)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    dg.gate_(net, dg.features(net[0], name="inputs"))
    plain = _plain_gradient(net, "0.weight", x)
    optimizer = _sgd(net, LAM if kind == "decay" else 0.0)
    options = {"decay": {}, "loss": {"penalty_in_loss": True}, "gradient": {"penalty_in_grad": True}}
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10, **options[kind])
    loss = net(x).square().mean()
    (loss + dg.penalty(net, LAM) if kind == "loss" else loss).backward()
    if kind == "gradient":
        dg.add_penalty_grad_(net, LAM)
    if first is _zero_grad and kind == "loss":
        first(net, optimizer)
        monitor.update()
        assert (monitor._bounds.current == 0).all()  # the penalty cannot be taken out of nothing: not observed
        return
    first(net, optimizer)
    monitor.update()
    torch.testing.assert_close(monitor._bounds.current, plain.norm(dim=0), rtol=1e-3, atol=1e-6)
    with pytest.raises(RuntimeError, match="after backward"):
        optimizer.zero_grad()
        monitor.update()


@pytest.mark.parametrize("in_loss", [False, True])
@pytest.mark.parametrize("place", ["before unscale", "after unscale", "after step", "before unscale, told"])
def test_a_loss_scale_is_noticed_or_told(place: str, in_loss: bool) -> None:
    x = torch.randn(64, 5)
    net = nn.Linear(5, 1)
    dg.gate_(net, dg.features(net, name="inputs"))
    plain = _plain_gradient(net, "weight", x)
    optimizer = _sgd(net, 0.0 if in_loss else LAM)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10, penalty_in_loss=in_loss)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    loss = net(x).square().mean() + (dg.penalty(net, LAM) if in_loss else 0.0)
    scaler.scale(loss).backward()
    if place == "before unscale":
        monitor.update()
        assert (monitor._bounds.current > 1e3 * plain.norm(dim=0)).all()  # too large: certifies nothing, never wrong
        return
    if place.endswith("told"):
        monitor.update(grad_scale=scaler.get_scale())
    if place == "after unscale":
        scaler.unscale_(optimizer)
        monitor.update()
    scaler.step(optimizer)
    scaler.update()
    if place == "after step":
        monitor.update()
    torch.testing.assert_close(monitor._bounds.current, plain.norm(dim=0), rtol=1e-4, atol=1e-6)


def test_accumulated_gradients_count_whole_and_once() -> None:
    x = torch.randn(64, 5)
    net = nn.Linear(5, 1)
    dg.gate_(net, dg.features(net, name="inputs"))
    plain = _plain_gradient(net, "weight", x)
    monitor = dg.AbsorptionMonitor(net, LAM, _sgd(net), window=10)
    for part in x.split(16):
        (net(part).square().mean() / 4).backward()
    monitor.update()
    torch.testing.assert_close(monitor._bounds.current, plain.norm(dim=0), rtol=1e-4, atol=1e-6)
    assert monitor.observations()["inputs"].tolist() == [1] * 5


def test_a_monitor_that_is_gone_leaves_no_hook() -> None:
    net = Bare()
    optimizer = _sgd(net)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer)
    _watch(net, monitor, 1.0, 1)
    assert net.gamma._post_accumulate_grad_hooks
    del monitor
    _feed(net, torch.ones_like(net.w))
    optimizer.step()
    assert not net.gamma._post_accumulate_grad_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_a_backward_pass_that_fails_half_way_does_not_silence_the_monitor() -> None:
    net = Bare()
    monitor = dg.AbsorptionMonitor(net, LAM, _sgd(net), window=10)

    def burst(grad: Tensor) -> Tensor:
        raise RuntimeError("burst")

    leaf = torch.ones(1, requires_grad=True)
    leaf.register_hook(burst)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="burst"):
            ((net.w.sum() * 2) + (leaf * 1).sum()).backward()
    _watch(net, monitor, 1.0, 3)
    assert monitor.observations()["w"].tolist() == [3] * 4


# --- c: recheck ------------------------------------------------------------------------------------------------------


def test_a_revived_group_is_not_zeroed_again_by_what_was_known_before() -> None:
    x = torch.randn(4096, 4)
    y = x[:, :1] - x[:, 1:2]
    net = nn.Linear(4, 1, bias=False)
    dg.gate_(net, dg.features(net, name="inputs"), depth=2)
    optimizer = _sgd(net, 0.2, lr=0.05)
    monitor = dg.AbsorptionMonitor(net, 0.2, optimizer, window=10)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), 0 * y).backward()  # other data: every input is useless
        monitor.update()
        optimizer.step()
    assert monitor.absorbed()["inputs"].all()
    dg.zero_(net, monitor.absorbed(), optimizer)
    revived = monitor.recheck(lambda: nn.functional.mse_loss(net(x), y).backward())["inputs"]
    assert revived.tolist() == [True, True, False, False]
    assert monitor.absorbed()["inputs"].tolist() == [False, False, True, True]
    assert monitor.observations()["inputs"].tolist()[:2] == [0, 0]


# --- d: low precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_optimizer", [False, True])
def test_a_decay_that_is_rounded_away_certifies_nothing(dtype: torch.dtype, with_optimizer: bool) -> None:
    net = Bare(dtype=dtype)
    optimizer = _sgd(net, 0.01, lr=0.01)
    monitor = dg.AbsorptionMonitor(net, 0.01, optimizer if with_optimizer else None, window=10)
    for _ in range(50):
        _feed(net, torch.full_like(net.w, 1e-5))
        monitor.update()
        optimizer.step()
    assert float(dg.group_norms(net)["w"].min()) == pytest.approx(math.sqrt(3), rel=1e-2)  # it does not move
    assert not monitor.absorbed()["w"].any()
    assert str(dtype).removeprefix("torch.") in monitor.coverage


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_large_steps_in_bfloat16_do_reach_zero(momentum: float) -> None:
    net = Bare(dtype=torch.bfloat16)
    optimizer = _sgd(net, 3.0, lr=0.05 * (1 - momentum) / 4, momentum=momentum)
    monitor = dg.AbsorptionMonitor(net, 3.0, optimizer, window=10)
    for _ in range(20):
        _feed(net, torch.full_like(net.w, 0.01))
        monitor.update()
        optimizer.step()
    assert monitor.coverage == "theorem"
    assert monitor.absorbed()["w"].all()
    for _ in range(3000):
        _feed(net, torch.full_like(net.w, 0.01))
        optimizer.step()
    assert float(dg.group_norms(net)["w"].max()) < 1e-7


# --- e, h: where the theorem does not hold ---------------------------------------------------------------------------


class Renamed(torch.optim.SGD):
    """A subclass may do anything in its step."""


def _two_sites() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False))
    return dg.gate_(net, dg.tie(dg.by_dim(net[0], 0), dg.by_dim(net[1], 0), name="w"))


def _unequal(net: nn.Module, **second: float) -> torch.optim.SGD:
    """The two tensors of one unit in parameter groups of their own."""
    sites = [net[i].parametrizations.weight.original for i in (0, 1)]
    rest = [net[0].parametrizations.weight[0].gamma]
    decay = 2 * LAM / 3
    return torch.optim.SGD(
        [
            {"params": [sites[0], *rest], "weight_decay": decay},
            {"params": [sites[1]], "weight_decay": decay, **second},
        ],
        lr=0.1,
        momentum=0.5,
    )


def _momentum_by_hand(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["momentum"] = 0.2


NOT_COVERED = {
    "overshooting steps": (Bare, lambda net: _sgd(net, 45.0, lr=0.1), 45.0, None, "oscillate"),
    "momentum that oscillates": (Bare, lambda net: _sgd(net, lr=2.0, momentum=0.9), LAM, None, "oscillate"),
    "a subclass of SGD": (Bare, lambda net: Renamed(dg.param_groups(net, LAM), lr=0.1), LAM, None, "Renamed"),
    "Adam": (Bare, lambda net: torch.optim.Adam(dg.param_groups(net, LAM)), LAM, None, "Adam"),
    "dampening": (Bare, lambda net: _sgd(net, momentum=0.5, dampening=0.5), LAM, None, "dampening"),
    "maximize": (Bare, lambda net: _sgd(net, maximize=True), LAM, None, "maximize"),
    "tied tensors with two momenta": (_two_sites, lambda n: _unequal(n, momentum=0.9), LAM, None, "different momentum"),
    "tied tensors with two step sizes": (_two_sites, lambda n: _unequal(n, lr=0.01), LAM, None, "different lr"),
    "momentum changed by hand": (Bare, lambda n: _sgd(n, momentum=0.5), LAM, _momentum_by_hand, "schedule of the mom"),
}


@pytest.mark.parametrize("name", NOT_COVERED)
def test_where_the_theorem_does_not_hold_nothing_is_certified(name: str) -> None:
    make, optimizer_of, lam, change, words = NOT_COVERED[name]
    net = make()
    optimizer = optimizer_of(net)
    monitor = dg.AbsorptionMonitor(net, lam, optimizer, window=10)
    for step in range(30):
        net.zero_grad()
        sum((p * 1e-4).sum() for n, p in _weights(net)).backward()
        monitor.update()
        if step == 15 and change is not None:
            change(optimizer)
    assert words in monitor.coverage
    (mask,) = monitor.absorbed().values()
    assert not mask.any()
    (margins,) = monitor.margins().values()
    assert (margins == math.inf).all()


def _weights(net: nn.Module) -> list[tuple[str, Tensor]]:
    if isinstance(net, Bare):
        return [("w", net.w)]
    return [(str(i), net[i].weight) for i in (0, 1)]


def test_evidence_can_be_asked_for_where_there_is_some() -> None:
    net = Bare()
    optimizer = torch.optim.Adam(dg.param_groups(net, LAM))
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10, evidence=True)
    _watch(net, monitor, 1e-5, 10)
    assert "evidence only" in monitor.coverage
    assert monitor.absorbed()["w"].all()


def test_a_step_size_still_to_come_is_reckoned_with() -> None:
    """The condition holds for the momentum shift of today's step, not for that of max_lr."""
    net = Bare()
    optimizer = _sgd(net, momentum=0.9, lr=1e-4)
    kappa = 2 * LAM / 3
    for p in (net.omega, net.gamma):
        optimizer.state[p]["momentum_buffer"] = -200 * p.detach()
    for max_lr, expected in ((0.0, True), (0.02, False)):
        monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10, max_lr=max_lr)
        _watch(net, monitor, 0.1 * kappa / math.sqrt(3), 10)
        assert monitor.coverage == "theorem"
        assert bool(monitor.absorbed()["w"].all()) is expected


def test_a_certificate_ends_when_the_step_size_rises_above_all_that_was_known() -> None:
    net = Bare()
    optimizer = _sgd(net, momentum=0.9, lr=1e-4)
    for p in (net.omega, net.gamma):
        optimizer.state[p]["momentum_buffer"] = -200 * p.detach()
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10)
    _watch(net, monitor, 1e-3, 10)
    assert monitor.absorbed()["w"].all()
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    assert monitor.revoked()["w"].all()
    assert not monitor.exceeded()["w"].any()


# --- f: underflow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [1e-10, 1e-14, 1e-16, 1e-20])
def test_tiny_gates_hide_no_gradient(gate: float) -> None:
    """With omega of one the gradient of the gates is large, and the group comes back."""
    net = nn.Linear(1, 1, bias=False)
    dg.gate_(net, dg.features(net))
    with torch.no_grad():
        net.parametrizations.weight.original.fill_(1.0)
        net.parametrizations.weight[0].gamma.fill_(gate)
    optimizer = _sgd(net, 1e-4, lr=0.05)
    monitor = dg.AbsorptionMonitor(net, 1e-4, optimizer, window=8)
    x = torch.ones(8, 1)
    ever = False
    for _ in range(200):
        optimizer.zero_grad()
        (net(x) * -50.0).mean().backward()
        monitor.update()
        optimizer.step()
        ever |= bool(monitor.absorbed()["weight"].any())
        if float(dg.group_norms(net)["weight"]) > 1:
            break
    assert float(dg.group_norms(net)["weight"]) > 1
    assert not ever


def test_sizes_below_the_roots_of_tiny_numbers_are_never_taken_for_zero() -> None:
    net = Bare(rows=1)
    with torch.no_grad():
        net.omega.fill_(1e-30)  # its square is zero in float32
        net.gamma.fill_(1e-36)
    monitor = dg.AbsorptionMonitor(net, LAM, _sgd(net))
    assert not monitor.absorbed()["w"].any()
    sizes = monitor._conditions()[0].sizes()
    assert float(sizes[0, 0]) >= 1e-30
    with torch.no_grad():
        net.omega.zero_()
        net.gamma.zero_()
    assert monitor.absorbed()["w"].all()


# --- g: clipping by value --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_value_, nn.utils.clip_grad_norm_])
@pytest.mark.parametrize("in_loss", [False, True])
def test_clipping_by_value_is_not_covered_with_the_penalty_in_the_loss(
    clip: Callable[[Any, float], Any], in_loss: bool
) -> None:
    net = Bare()
    with torch.no_grad():
        net.omega.mul_(torch.rand_like(net.omega))
    optimizer = _sgd(net, 0.0 if in_loss else LAM)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10, penalty_in_loss=in_loss)
    for _ in range(30):
        net.zero_grad()
        loss = (net.w * 1e-3).sum()
        (loss + dg.penalty(net, LAM) if in_loss else loss).backward()
        monitor.update()
        clip(net.parameters(), 1e-3)
        optimizer.step()
    wrong = in_loss and clip is nn.utils.clip_grad_value_
    assert ("clipped by value" in monitor.coverage) is wrong
    assert bool(monitor.absorbed()["w"].any()) is not wrong


# --- i: momentum that is still there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9), torch.optim.Adam])
def test_a_zero_group_that_momentum_moves_is_not_dead(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    net = Bare()
    optimizer = make(dg.param_groups(net, LAM))
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=100)
    for _ in range(5):
        _feed(net, torch.full_like(net.w, -1.0))
        monitor.update()
        optimizer.step()
    mask = {"w": torch.tensor([True, True, False, False])}
    dg.zero_(net, mask)
    assert not monitor.absorbed()["w"].any()
    dg.zero_(net, mask, optimizer)
    assert torch.equal(monitor.absorbed()["w"], mask["w"])


# --- certificates that stay ------------------------------------------------------------------------------------------


def test_a_certificate_stays_until_the_bound_of_its_box_is_exceeded() -> None:
    net = Bare(rows=1)
    monitor = dg.AbsorptionMonitor(net, LAM, _sgd(net), window=10, safety=4.0)
    kappa, third = 2 * LAM / 3, 1 / math.sqrt(3)
    with torch.no_grad():
        net.omega.fill_(third)
    _watch(net, monitor, 0.2 * kappa * third, 10)  # four times that is below kappa, and all sizes are one: certified
    assert monitor.absorbed()["w"].all()
    _watch(net, monitor, 0.9 * kappa * third, 20)  # four times that would not be certified, but the box allows it
    assert float(4 * monitor._bounds.largest) > 3 * kappa
    assert monitor.absorbed()["w"].all()
    assert not monitor.revoked()["w"].any()
    _watch(net, monitor, 1.01 * kappa * third, 1)
    assert not monitor.absorbed()["w"].any()
    assert monitor.revoked()["w"].all()
    assert monitor.exceeded()["w"].all()
    with torch.no_grad():  # the group shrinks further: certified again, with a larger bound
        net.gamma.fill_(0.01)
        net.omega.fill_(0.01)
    assert monitor.absorbed()["w"].all()
    assert not monitor.revoked()["w"].any()
    assert monitor.exceeded()["w"].all()
    _watch(net, monitor, 40 * kappa * third, 1)
    assert monitor.absorbed()["w"].all()


def test_a_lower_strength_ends_a_certificate_that_needed_the_higher_one() -> None:
    net = Bare(rows=1)
    optimizer = _sgd(net)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10)
    with torch.no_grad():
        net.omega.fill_(1 / math.sqrt(3))
    _watch(net, monitor, 0.2 * 2 * LAM / 3 / math.sqrt(3), 10)
    assert monitor.absorbed()["w"].all()
    for group in optimizer.param_groups:
        group["weight_decay"] /= 10
    assert monitor.lam["w"] == pytest.approx(LAM / 10)
    assert monitor.revoked()["w"].all()
    assert monitor.coverage == "theorem"


# --- schedules of λ, states ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["optimizer", "function", "loss"])
def test_the_strength_may_follow_a_schedule(kind: str) -> None:
    """The monitor reads it in every step and says nothing in mid-window."""
    x = torch.randn(128, 6)
    y = x[:, :1]
    net = nn.Linear(6, 1, bias=False)
    dg.gate_(net, dg.features(net, name="inputs"))
    now = {"lam": 0.0}
    in_loss = kind == "loss"
    optimizer = _sgd(net, 0.0, lr=0.05)
    source = None if kind == "optimizer" else lambda: now["lam"]
    monitor = dg.AbsorptionMonitor(net, source, optimizer, window=10, penalty_in_loss=in_loss)
    for step in range(300):
        now["lam"] = 0.1 * min(1.0, step / 100)
        if not in_loss:
            for group in optimizer.param_groups[:2]:
                group["weight_decay"] = 2 * now["lam"] / 3
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        (loss + dg.penalty(net, now["lam"]) if in_loss else loss).backward()
        monitor.update()
        optimizer.step()
    assert monitor.lam["inputs"] == pytest.approx(0.1)
    assert monitor.absorbed()["inputs"].tolist() == [False] + [True] * 5


def test_a_strength_of_zero_is_a_mistake_unless_it_is_a_schedule() -> None:
    net = Bare()
    with pytest.raises(ValueError, match="lam: expected a strength > 0"):
        dg.AbsorptionMonitor(net, 0.0)
    with pytest.raises(ValueError, match="lam: expected a number"):
        dg.AbsorptionMonitor(net)


def _state(monitor: dg.AbsorptionMonitor) -> dict[str, Any]:
    return copy.deepcopy(monitor.state_dict())


def test_a_resumed_monitor_decides_as_the_one_that_went_on(tmp_path) -> None:
    """Largest step sizes, certificates and history are part of the state; it survives a file."""
    runs = []
    for resumed in (False, True):
        torch.manual_seed(0)
        net = Bare()
        optimizer = _sgd(net, momentum=0.9, lr=0.05)
        monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10)
        for step in range(60):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 if step < 10 else 0.001
            _feed(net, 1e-3 * torch.randn(4, 3))
            monitor.update()
            optimizer.step()
            if resumed and step == 35:
                torch.save(monitor.state_dict(), tmp_path / "state.pt")
                monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10)
                monitor.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        runs.append((monitor.margins()["w"], monitor.absorbed()["w"], len(monitor.history), monitor.steps))
        assert max(row["lr"] for row in monitor.state_dict()["optimizer"]) == 0.05
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*runs, strict=True))


REFUSED_STATES: dict[str, Callable[[dict[str, Any]], None]] = {
    "another window": lambda s: s["settings"].update(window=11),
    "another safety": lambda s: s["settings"].update(safety=2.0),
    "another strength": lambda s: s["settings"].update(lam={"w": 1.0}),
    "another optimizer": lambda s: s["settings"].update(optimizer="Adam"),
    "negative steps": lambda s: s.update(steps=-1),
    "steps that are no number": lambda s: s.update(steps="7"),
    "nan in the bounds": lambda s: s["bounds"]["previous"].fill_(math.nan),
    "negative bounds": lambda s: s["bounds"]["granted"].fill_(-1.0),
    "negative counts": lambda s: s["bounds"]["count"].fill_(-1),
    "bounds of another model": lambda s: s["bounds"].update(current=torch.zeros(9)),
    "bounds that are missing": lambda s: s["bounds"].pop("granted"),
    "a negative step size": lambda s: s["optimizer"][0].update(lr=-1.0),
    "too few parameter groups": lambda s: s["optimizer"].pop(),
    "an old format": lambda s: s.update(format="dgating/monitor/1"),
    "a part that is missing": lambda s: s.pop("history"),
    "a strength that is nan": lambda s: s["top_lam"].update(w=math.nan),
}


@pytest.mark.parametrize("name", REFUSED_STATES)
def test_a_state_of_something_else_is_refused_and_changes_nothing(name: str) -> None:
    net = Bare()
    monitor = dg.AbsorptionMonitor(net, LAM, _sgd(net), window=10)
    _watch(net, monitor, 1.0, 12)
    before, state = _state(monitor), _state(monitor)
    REFUSED_STATES[name](state)
    with pytest.raises((ValueError, TypeError), match=r"state|lr"):
        monitor.load_state_dict(state)
    after = _state(monitor)
    assert str(before) == str(after)


# --- divergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_said_and_certifies_nothing(value: float) -> None:
    net = Bare()
    optimizer = _sgd(net)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=10)
    _watch(net, monitor, 1e-4, 10)
    assert monitor.absorbed()["w"].all()
    with torch.no_grad():
        net.omega[0, 0] = value
    assert monitor.absorbed()["w"].tolist() == [False, True, True, True]
    assert "diverged" in monitor.coverage
    assert "'w'" in monitor.coverage


# --- D = 2 -----------------------------------------------------------------------------------------------------------


def test_a_small_group_that_grows_is_not_screened() -> None:
    net = Bare(rows=2, depth=2)
    monitor = dg.AbsorptionMonitor(net, LAM, _sgd(net), window=10)
    _watch(net, monitor, 1.0, 10)
    with torch.no_grad():
        net.omega.mul_(1e-3)  # both are below a hundredth of their peak
    _watch(net, monitor, 1.0, 10)
    with torch.no_grad():
        net.omega.mul_(torch.tensor([[0.5], [1.5]]))  # since then one shrinks, the other grows
    _watch(net, monitor, 1.0, 10)
    assert monitor.absorbed()["w"].tolist() == [True, False]


def test_the_peak_of_a_norm_is_the_largest_so_far() -> None:
    """A group that grew before it shrank is small beside its largest size, not beside its first."""
    net = Bare(rows=1, depth=2)
    monitor = dg.AbsorptionMonitor(net, LAM, _sgd(net), window=10)
    for factor in (100.0, 0.02, 0.25):  # norms 100, 2, 0.5 times the first: 0.5 % of the peak
        with torch.no_grad():
            net.omega.mul_(factor)
        _watch(net, monitor, 1.0, 10)
    with torch.no_grad():
        net.omega.mul_(0.9)
    assert monitor.absorbed()["w"].all()
