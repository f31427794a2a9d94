"""The monitor against sums on paper: sizes, margins, windows, what is measured and what rounding leaves."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dgating as dg
from dgating.maths._certificate import momentum_shift
from dgating.training._bounds import Bounds

LAM, DEPTH = 0.3, 3
KAPPA = 2 * LAM / DEPTH


def _two_groups(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A vector of two weights, each a group: factors 2, 3, 0.5 and 1, 1, 4."""
    net = nn.Module()
    net.w = nn.Parameter(torch.tensor([2.0, 1.0], dtype=dtype))
    dg.gate_(net, dg.by_dim(net, 0, name="w"), depth=DEPTH)
    with torch.no_grad():
        net.parametrizations.w[0].gamma.copy_(torch.tensor([[3.0, 1.0], [0.5, 4.0]]))
    return net


def _feed(net: nn.Module, gradient: list[float]) -> None:
    net.zero_grad()
    (net.w * torch.tensor(gradient, dtype=net.w.dtype)).sum().backward()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_momentum_enlarges_the_sizes_and_never_makes_them_smaller(sign: float) -> None:
    """The size of a factor is the larger of where it is and where its momentum points, whichever way that is."""
    net = _two_groups()
    lr, momentum = 0.01, 0.5
    optimizer = torch.optim.SGD(dg.param_groups(net, LAM), lr=lr, momentum=momentum)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=8, safety=1.0)
    c = momentum_shift(lr, momentum, KAPPA)
    assert c is not None
    site = net.parametrizations.w
    for p in (site.original, site[0].gamma):  # ahead is a quarter of the factor, or seven quarters of it
        optimizer.state[p]["momentum_buffer"] = sign * 0.75 * p.detach() / c
    for _ in range(8):
        _feed(net, [0.01, 0.02])
        monitor.update()
    longest = 1.0 if sign > 0 else 1.75
    spare = 1 - torch.finfo(torch.float64).eps / (lr * KAPPA / (1 - momentum))
    by_hand = [g * longest * largest / KAPPA / spare for g, largest in [(0.01, 3.0), (0.02, 4.0)]]
    torch.testing.assert_close(monitor.margins()["w"], torch.tensor(by_hand, dtype=torch.float64), rtol=1e-12, atol=0)


def test_what_rounding_leaves_of_the_penalty_is_no_gradient_of_tiny_gates() -> None:
    """The penalty in the loss is taken out up to its last digit, which is no small number beside gates of 1e-16."""
    net = _two_groups(torch.float32)
    site = net.parametrizations.w
    with torch.no_grad():
        site.original.copy_(torch.tensor([1.2345678, 1.2345678]))
        site[0].gamma.copy_(torch.tensor([[1e-16, 1.0], [1e-16, 1.0]]))
    monitor = dg.AbsorptionMonitor(net, LAM, penalty_in_loss=True, window=8, safety=1.0)
    for step in range(8):
        net.zero_grad()
        ((net.w * 0.01).sum() + dg.penalty(net, LAM)).backward()
        with torch.no_grad():
            site.original.grad.mul_(1 + step * 1e-7)  # as another order of the sum would round
        monitor.update()
    assert monitor.observations()["w"].tolist() == [0, 8]
    assert monitor.margins()["w"].tolist() == [math.inf, pytest.approx(0.01 * 1.2345678 / KAPPA, rel=1e-3)]


def test_a_gradient_as_large_as_its_bound_does_not_exceed_it() -> None:
    bounds = Bounds(2, torch.device("cpu"), torch.float64, 8)
    for _ in range(8):
        bounds.observe(torch.ones(2, dtype=torch.float64))
    assert bounds.grant(torch.full((2,), 0.25, dtype=torch.float64), safety=1.0).all()
    bounds.observe(bounds.granted.clone())
    assert not bounds.exceeded.any()
    bounds.observe(bounds.granted * torch.tensor([1.0, 1.001], dtype=torch.float64))
    assert bounds.exceeded.tolist() == [False, True]
    assert bounds.granted.isfinite().tolist() == [True, False]


def test_a_gradient_from_before_the_monitor_counts_where_there_is_one() -> None:
    """A tensor that this step did not use has none, and was not observed."""
    net = nn.Module()
    for name in ("used", "idle"):
        net.register_parameter(name, nn.Parameter(torch.ones(2)))
        dg.gate_(net, dg.by_dim(net, 0, name=name, group_name=name))
    net.used.sum().backward()
    monitor = dg.AbsorptionMonitor(net, LAM)
    monitor.update()
    seen = monitor.observations()
    assert (seen["used"].tolist(), seen["idle"].tolist()) == ([1, 1], [0, 0])
    net.zero_grad()
    with pytest.raises(RuntimeError, match="no gated weight has a gradient"):
        monitor.update()


def _plain(state: object) -> object:
    return pytree.tree_map(lambda x: x.tolist() if isinstance(x, Tensor) else x, state)


def test_a_state_is_a_picture_that_later_steps_do_not_change() -> None:
    """Neither of the monitor that gave it nor of the one that has loaded it."""
    net = _two_groups()
    optimizer = torch.optim.SGD(dg.param_groups(net, LAM), lr=0.01)
    monitor, other = (dg.AbsorptionMonitor(net, LAM, optimizer, window=8) for _ in range(2))

    def train(watching: dg.AbsorptionMonitor) -> None:
        for _ in range(8):
            _feed(net, [0.01, 0.02])
            watching.update()
            watching.margins()

    train(monitor)
    taken = monitor.state_dict()
    kept = copy.deepcopy(taken)
    other.load_state_dict(taken)
    optimizer.param_groups[0]["lr"] = 0.02
    for watching in (monitor, other):
        train(watching)
        assert len(watching.history) == 2
        assert _plain(taken) == _plain(kept)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("momentum", 0.6, "schedule of the momentum"),
        ("max_momentum", 0.9, "schedule of the momentum"),
        ("dampening", 0.1, "dampening"),
        ("maximize", True, "maximize"),
    ],
)
def test_what_the_theorem_does_not_know_is_said_of_some_factors_too(
    number: int, setting: str, value: object, why: str
) -> None:
    net = _two_groups()
    optimizer = torch.optim.SGD(dg.param_groups(net, LAM), lr=0.01, momentum=0.5)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer)
    assert monitor.coverage == "theorem"
    optimizer.param_groups[number][setting] = value
    assert why in monitor.coverage


@pytest.mark.parametrize("scale", [None, 1.0, 64.0])
def test_gradients_that_no_backward_pass_left_are_measured_as_they_are(scale: float | None) -> None:
    net = _two_groups()
    monitor = dg.AbsorptionMonitor(net, LAM, window=8, safety=1.0)
    site = net.parametrizations.w
    for _ in range(8):
        site.original.grad = 0.01 * (scale or 1.0) * site[0].gamma.detach().prod(0)
        monitor.update(scale)
    by_hand = torch.tensor([3.0, 4.0], dtype=torch.float64) * 0.01 / KAPPA
    torch.testing.assert_close(monitor.margins()["w"], by_hand)


def test_evidence_stands_for_other_optimizers_and_for_nothing_else() -> None:
    """Measurements speak for Adam. Nobody has measured a schedule of the momentum, even where evidence is enough."""
    net = _two_groups()
    optimizer = torch.optim.SGD(dg.param_groups(net, LAM), lr=0.01, momentum=0.5)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=8, evidence=True)
    for _ in range(8):
        _feed(net, [1e-4, 1e-4])
        monitor.update()
    assert monitor.absorbed()["w"].all()
    optimizer.param_groups[0]["momentum"] = 0.6
    assert monitor.margins()["w"].tolist() == [math.inf, math.inf]
    assert not monitor.absorbed()["w"].any()


@pytest.mark.parametrize(("ratio", "given", "kept"), [(0.49, True, True), (0.5, False, False), (0.51, False, False)])
def test_a_margin_of_exactly_one_certifies_nothing(ratio: float, given: bool, kept: bool) -> None:
    """The condition is a strict inequality, for a new certificate (bound 2) as for one that was given before."""
    small, now = torch.tensor([0.25]), torch.tensor([ratio])
    bounds = [Bounds(1, torch.device("cpu"), torch.float32, 8) for _ in range(2)]
    for each in bounds:
        for _ in range(8):
            each.observe(torch.tensor([1.0]))
    assert bounds[0].grant(now, 2.0).item() is given
    assert bounds[1].grant(small, 2.0).item() is True
    assert bounds[1].grant(now, 2.0).item() is kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_decay_that_a_number_format_rounds_away_is_taken_off_the_margin(dtype: torch.dtype) -> None:
    """Of a step's decay, a tenth here, as much may be lost as one unit of the last digit."""
    net = _two_groups(dtype)
    optimizer = torch.optim.SGD(dg.param_groups(net, LAM), lr=0.5)
    monitor = dg.AbsorptionMonitor(net, LAM, optimizer, window=8, safety=1.0)
    for _ in range(8):
        _feed(net, [0.0625, 0.03125])
        monitor.update()
    left = 1 - torch.finfo(dtype).eps / (0.5 * KAPPA)
    by_hand = torch.tensor([0.0625 * 3.0, 0.03125 * 4.0]) / (KAPPA * left)
    torch.testing.assert_close(monitor.margins()["w"], by_hand, rtol=1e-3 if dtype != torch.float32 else 1e-6, atol=0)
