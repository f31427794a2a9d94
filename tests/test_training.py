"""Training a gated model is training hand-written factors, step by step, for every optimizer that may be used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dgating as dg

STEPS = 100
LAM, DECAY = 0.03, 0.01

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
}


class Reference(nn.Module):
    """A two-layer network with explicit factors; columns of the first layer are the groups."""

    def __init__(self, first: nn.Linear, second: nn.Linear, depth: int) -> None:
        super().__init__()
        self.omega = nn.Parameter(first.weight.detach().clone())
        self.gates = nn.ParameterList([nn.Parameter(torch.ones(first.in_features)) for _ in range(depth - 1)])
        self.bias = nn.Parameter(first.bias.detach().clone())
        self.weight2 = nn.Parameter(second.weight.detach().clone())
        self.bias2 = nn.Parameter(second.bias.detach().clone())

    def weight(self) -> Tensor:
        w = self.omega
        for g in self.gates:
            w = w * g
        return w

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight().T + self.bias) @ self.weight2.T + self.bias2

    def loss(self, x: Tensor, y: Tensor, depth: int) -> Tensor:
        squares = self.omega.square().sum() + sum(g.square().sum() for g in self.gates)
        rest = sum(p.square().sum() for p in (self.bias, self.weight2, self.bias2))
        return (self(x) - y).square().mean() + LAM / depth * squares + DECAY / 2 * rest


def _data() -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 6)
    return x, torch.tanh(x[:, :2]) + 0.1 * torch.randn(64, 2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("where", ["weight decay", "loss"])
def test_equals_explicit_factors_step_by_step(optimizer: str, depth: int, where: str) -> None:
    x, y = _data()
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    reference = Reference(net[0], net[2], depth)
    dg.gate_(net, dg.features(net[0]), depth=depth)
    make = OPTIMIZERS[optimizer]
    theirs = make(reference.parameters())
    if where == "weight decay":
        ours = make(dg.param_groups(net, LAM, weight_decay=DECAY))
    else:
        groups = dg.param_groups(net, 0.0, weight_decay=DECAY)
        ours = make(groups)
    for _ in range(STEPS):
        theirs.zero_grad()
        reference.loss(x, y, depth).backward()
        theirs.step()
        ours.zero_grad()
        loss = (net(x) - y).square().mean()
        if where == "loss":
            loss = loss + dg.penalty(net, LAM)
        loss.backward()
        ours.step()
        torch.testing.assert_close(net[0].weight, reference.weight(), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(net[2].weight, reference.weight2, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equal_gates_stay_equal(optimizer: str) -> None:
    x, y = _data()
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    dg.gate_(net, dg.features(net[0]), depth=5)
    ours = OPTIMIZERS[optimizer](dg.param_groups(net, LAM))
    for _ in range(STEPS):
        ours.zero_grad()
        (net(x.double()) - y.double()).square().mean().backward()
        ours.step()
    gamma = net[0].parametrizations.weight[0].gamma
    assert float((gamma - gamma[0]).detach().abs().max()) <= 1e-14
    assert float((gamma - 1).detach().abs().max()) > 0.05


def test_partial_labels_leave_ungated_entries_without_penalty() -> None:
    """Only the gated columns feel lam; the others feel the user's own decay, exactly."""
    net = nn.Linear(4, 3, bias=False).double()
    start = net.weight.detach().clone()
    dg.gate_(net, dg.by_labels(net, torch.tensor([0, -1, 1, -1])), depth=2)
    optimizer = torch.optim.SGD(dg.param_groups(net, lam=0.5, weight_decay=0.1), lr=0.1)
    net(torch.zeros(1, 4).double()).sum().backward()  # no data gradient: decay alone acts
    optimizer.step()
    factor = torch.tensor(
        [(1 - 0.1 * 0.5) ** 2, 1 - 0.1 * 0.1, (1 - 0.1 * 0.5) ** 2, 1 - 0.1 * 0.1], dtype=torch.float64
    )
    torch.testing.assert_close(net.weight.detach(), start * factor, rtol=1e-12, atol=0)


def test_lam_by_name_and_gate_lr() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    dg.gate_(net, [dg.features(net[0], name="a"), dg.features(net[1], name="b")], depth=2)
    groups = dg.param_groups(net, {"a": 0.1, "b": 0.2}, gate_lr=0.5, no_decay=lambda n, p: p.ndim == 1)
    assert [(g["dgating"], g["weight_decay"], g.get("lr")) for g in groups] == [
        ("omega", 0.1, None),
        ("omega", 0.2, None),
        ("gates", 0.1, 0.5),
        ("gates", 0.2, 0.5),
        ("rest, no decay", 0.0, None),
    ]
    torch.optim.SGD(groups, lr=0.1)


def test_optimizer_of_an_all_gated_model_after_collapse() -> None:
    net = nn.Linear(4, 3, bias=False)
    dg.gate_(net, dg.features(net))
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.3, weight_decay=0.02), lr=0.1, momentum=0.9)
    net(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    dg.collapse_(net, optimizer)
    (held,) = [g for g in optimizer.param_groups if g["params"]]
    assert held["weight_decay"] == 0.02
    assert held["params"][0] is net.weight
