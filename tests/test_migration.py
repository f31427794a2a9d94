"""The optimizer after ``collapse_``: training goes on smoothly, whatever the optimizer and however small the gates."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dgating as dg

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.003),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.003, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.003),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.003),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.003),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.02),
}


def _data() -> tuple[Tensor, Tensor]:
    x = torch.randn(256, 10)
    return x, (x[:, 0] * x[:, 1] + x[:, 2].sin()).unsqueeze(1)


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(net(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("zero", [False, True], ids=["as it is", "zeroed"])
@pytest.mark.parametrize("steps", [50, 600])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_smoothly(name: str, steps: int, zero: bool) -> None:
    x, y = _data()
    net = _net()
    dg.gate_(net, dg.by_labels(net[0], torch.arange(10) - 1, group_name="inputs"), depth=4)  # input 0 is ungated
    with torch.no_grad():
        net[0].parametrizations.weight[0].gamma[0, 3] *= -1  # a negative gate product
    optimizer = OPTIMIZERS[name](dg.param_groups(net, 0.02))
    for _ in range(steps):
        before = _step(net, optimizer, x, y)
    if zero:
        dg.zero_(net, {"inputs": dg.group_norms(net)["inputs"] < 1e-2}, optimizer)
    dg.collapse_(net, optimizer)
    after = [_step(net, optimizer, x, y) for _ in range(10)]
    assert max(after) < 1.5 * before + 0.05
    assert all(torch.isfinite(v).all() for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))


def test_momentum_becomes_the_velocity_of_the_weight() -> None:
    """One step later the collapsed weight moves as the gated one would, up to second order in the step."""
    x, y = _data()
    net = _net().double()
    x, y = x.double(), y.double()
    dg.gate_(net, dg.features(net[0]), depth=3)
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.05), lr=1e-4, momentum=0.9)
    for _ in range(30):
        _step(net, optimizer, x, y)
    start = net[0].weight.detach().clone()
    twin = copy.deepcopy(net)
    twin_optimizer = torch.optim.SGD(dg.param_groups(twin, 0.05), lr=1e-4, momentum=0.9)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    dg.collapse_(twin, twin_optimizer)
    buffer = twin_optimizer.state[twin[0].weight]["momentum_buffer"]
    for p in net.parameters():  # coast: no new gradient
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    optimizer.step()
    torch.testing.assert_close(start - net[0].weight, 1e-4 * 0.9 * buffer, rtol=1e-3, atol=1e-9)


def test_adam_moments_follow_the_chain_rule() -> None:
    x, y = _data()
    net = _net()
    dg.gate_(net, dg.features(net[0]), depth=3)
    optimizer = torch.optim.Adam(dg.param_groups(net, 0.1, weight_decay=0.02), lr=0.01)
    _step(net, optimizer, x, y)
    omega = net[0].parametrizations.weight.original
    gates = net[0].parametrizations.weight[0].gamma.prod(0).detach()
    before = {k: v.clone() for k, v in optimizer.state[omega].items()}
    dg.collapse_(net, optimizer)
    after = optimizer.state[net[0].weight]
    torch.testing.assert_close(after["exp_avg"], before["exp_avg"] / gates)
    torch.testing.assert_close(after["exp_avg_sq"], before["exp_avg_sq"] / gates**2)
    assert after["step"] == before["step"]


def test_parameters_stand_in_the_order_of_the_model() -> None:
    """Checkpoints of optimizers count parameters: the one after collapse loads into one of a fresh model."""
    x, y = _data()
    net = _net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    dg.gate_(net, dg.features(net[0]))
    optimizer = torch.optim.Adam([p for g in dg.param_groups(net, 0.0) for p in g["params"]], lr=0.01)
    _step(net, optimizer, x, y)
    dg.collapse_(net, optimizer)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]
    fresh = torch.optim.Adam(_net().parameters())
    fresh.load_state_dict(optimizer.state_dict())
    assert all(fresh.state[p]["exp_avg"].shape == p.shape for g in fresh.param_groups for p in g["params"])


def test_the_users_decay_holds_after_collapse() -> None:
    net = _net()
    dg.gate_(net, dg.features(net[0]))
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.3, weight_decay=0.02), lr=0.1)
    dg.collapse_(net, optimizer)
    home = next(g for g in optimizer.param_groups if any(p is net[0].weight for p in g["params"]))
    assert home["weight_decay"] == 0.02
    held = [p for g in optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in net.parameters()}
    assert len(held) == 4


def test_collapsing_a_part_leaves_the_rest_trained_as_before() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    dg.gate_(net, dg.tie(dg.neurons(net[0]), dg.features(net[2])), depth=2)
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.2, weight_decay=0.01), lr=0.1)
    gamma, omega = net[2].parametrizations.weight[0].gamma, net[2].parametrizations.weight.original
    assert gamma not in dg.collapse_(net[0], optimizer)
    held = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert held == {id(gamma): 0.2, id(omega): 0.2, id(net[0].weight): 0.01}


@pytest.mark.parametrize("gate_lr", [0.2, 0.01, None])
def test_the_step_size_of_the_gates_counts_in_the_velocity(gate_lr: float | None) -> None:
    """Closed form: ``v = s v_omega + (r_gates / r_omega) omega sum_d v_d prod_(e != d) gamma_e``."""
    x, y = _data()
    net = _net()
    dg.gate_(net, dg.features(net[0]), depth=3)
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.05, gate_lr=gate_lr), lr=0.05, momentum=0.9)
    for _ in range(5):
        _step(net, optimizer, x, y)
    omega, gamma = net[0].parametrizations.weight.original, net[0].parametrizations.weight[0].gamma
    of_omega, of_gamma = (optimizer.state[p]["momentum_buffer"].clone() for p in (omega, gamma))
    first, second = gamma.detach().clone()
    rate = 1.0 if gate_lr is None else gate_lr / 0.05
    by_gates = omega.detach() * (of_gamma[0] * second + of_gamma[1] * first)
    want = first * second * of_omega + rate * by_gates
    assert by_gates.abs().max() > 1e-3  # else the rate would not be seen
    dg.collapse_(net, optimizer)
    torch.testing.assert_close(optimizer.state[net[0].weight]["momentum_buffer"], want)


def test_a_step_size_of_zero_gives_no_infinite_velocity() -> None:
    x, y = _data()
    net = _net()
    dg.gate_(net, dg.features(net[0]), depth=3)
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.05), lr=0.05, momentum=0.9)
    _step(net, optimizer, x, y)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the end of a schedule
    dg.collapse_(net, optimizer)
    assert optimizer.state[net[0].weight]["momentum_buffer"].isfinite().all()


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-6, -1e-6, 1e-12, 0.0])
def test_moments_of_dying_groups_are_divided_by_the_floor(scale: float) -> None:
    """Below 1e-4 the product of the gates is replaced by it, with its sign: the step, a ratio, stays the same."""
    x, y = _data()
    net = _net()
    dg.gate_(net, dg.features(net[0]), depth=2)
    optimizer = torch.optim.Adam(dg.param_groups(net, 0.1), lr=0.01)
    _step(net, optimizer, x, y)
    omega, gamma = net[0].parametrizations.weight.original, net[0].parametrizations.weight[0].gamma
    with torch.no_grad():
        gamma[0, 3] = scale
    kept = optimizer.state[omega]
    first, second = kept["exp_avg"][:, 3].clone(), kept["exp_avg_sq"][:, 3].clone()
    divisor = scale if abs(scale) >= 1e-4 else (-1e-4 if scale < 0 else 1e-4)
    dg.collapse_(net, optimizer)
    state = optimizer.state[net[0].weight]
    torch.testing.assert_close(state["exp_avg"][:, 3], first / divisor)
    torch.testing.assert_close(state["exp_avg_sq"][:, 3], second / divisor**2)
