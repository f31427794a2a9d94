"""``add_penalty_grad_``: the penalty as a gradient, added once a step, is coupled decay for every optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dgating as dg
from tests.test_no_sync import watched

optim = torch.optim
LAM = {"inputs": 0.05, "hidden": 0.2}

SAME: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda g: optim.SGD(g, lr=0.05),
    "momentum": lambda g: optim.SGD(g, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda g: optim.Adam(g, lr=0.01),
    "NAdam": lambda g: optim.NAdam(g, lr=0.01),
    "RMSprop": lambda g: optim.RMSprop(g, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda g: optim.Adagrad(g, lr=0.05),
    "Adamax": lambda g: optim.Adamax(g, lr=0.01),
    "Adadelta": lambda g: optim.Adadelta(g, lr=1.0),
}


def network() -> nn.Sequential:
    """Depths 3 and 4, a tensor gated in part; in float64, in which to compare trajectories."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    dg.gate_(net, dg.by_labels(net[0], torch.tensor([0, 1, -1, 2, 2, 3]), group_name="inputs"), depth=4)
    return dg.gate_(net, dg.features(net[2], name="hidden"), depth=3)


def batch(t: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(t)).double()
    return x, x[:, :2].sin()


def train(
    net: nn.Module,
    optimizer: optim.Optimizer,
    before_step: Callable[[], object] = lambda: None,
    micro: int = 1,
    clip: float | None = None,
    steps: int = 25,
) -> list[Tensor]:
    for t in range(steps):
        optimizer.zero_grad()
        x, y = batch(t)
        for xs, ys in zip(x.chunk(micro), y.chunk(micro), strict=True):
            (nn.functional.mse_loss(net(xs), ys) / micro).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        before_step()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("clip", [None, 0.05], ids=["", "clipped"])
@pytest.mark.parametrize("micro", [1, 4])
@pytest.mark.parametrize("name", SAME)
def test_it_is_coupled_decay(name: str, micro: int, clip: float | None) -> None:
    coupled, net = network(), network()
    want = train(coupled, SAME[name](dg.param_groups(coupled, LAM, weight_decay=0.01)), micro=micro, clip=clip)
    optimizer = SAME[name](dg.param_groups(net, 0.0, weight_decay=0.01))
    dg.check_optimizer(net, optimizer, LAM, penalty_in_loss=True)
    assert_same(train(net, optimizer, lambda: dg.add_penalty_grad_(net, LAM), micro, clip), want)


@pytest.mark.parametrize("micro", [1, 4])
def test_adamw_without_decay_is_coupled_adam(micro: int) -> None:
    coupled, net = network(), network()
    want = train(coupled, optim.Adam(dg.param_groups(coupled, LAM), lr=0.01), micro=micro)
    optimizer = optim.AdamW(dg.param_groups(net, 0.0), lr=0.01)
    assert_same(train(net, optimizer, lambda: dg.add_penalty_grad_(net, LAM), micro), want)


@pytest.mark.parametrize("micro", [1, 4])
def test_a_penalty_in_the_loss_counts_once_a_micro_batch(micro: int) -> None:
    """The fault that the gradient form does not have."""
    net = network()
    x, y = batch(0)
    for xs, ys in zip(x.chunk(micro), y.chunk(micro), strict=True):
        (nn.functional.mse_loss(net(xs), ys) / micro + dg.penalty(net, LAM)).backward()
    data = copy.deepcopy(net)
    data.zero_grad()
    nn.functional.mse_loss(data(x), y).backward()
    gamma, of_data = (n.get_parameter("2.parametrizations.weight.0.gamma") for n in (net, data))
    assert gamma.grad is not None
    assert of_data.grad is not None
    torch.testing.assert_close(gamma.grad - of_data.grad, micro * (2 * 0.2 / 3) * gamma.detach())


@pytest.mark.parametrize("scale", [lambda: 1024.0, lambda: torch.tensor(1024.0)], ids=["number", "tensor"])
def test_scaled_gradients_take_a_scaled_penalty(scale: Callable[[], float | Tensor]) -> None:
    net = network()
    x, y = batch(0)
    (1024.0 * nn.functional.mse_loss(net(x), y)).backward()
    twin = copy.deepcopy(net)
    twin.zero_grad()
    nn.functional.mse_loss(twin(x), y).backward()
    dg.add_penalty_grad_(net, LAM, grad_scale=scale())
    dg.add_penalty_grad_(twin, LAM)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad / 1024.0, q.grad)


@pytest.mark.parametrize("unscale", [True, False], ids=["unscaled", "scaled"])
def test_with_a_grad_scaler(unscale: bool) -> None:
    coupled, net = (network().float() for _ in range(2))
    nets = {"coupled": coupled, "gradient": net}
    for name, model in nets.items():
        lam: Any = LAM if name == "coupled" else 0.0
        optimizer = optim.Adam(dg.param_groups(model, lam), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for t in range(10):
            x, y = (z.float() for z in batch(t))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.mse_loss(model(x).float(), y)
            scaler.scale(loss).backward()
            if name == "gradient":
                if unscale:
                    scaler.unscale_(optimizer)
                    dg.add_penalty_grad_(model, LAM)
                else:
                    dg.add_penalty_grad_(model, LAM, grad_scale=scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
    for p, q in zip(coupled.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_factors_without_a_gradient_get_one_and_the_rest_none() -> None:
    net = network()
    dg.add_penalty_grad_(net, LAM)
    factors = {n for n, _ in net.named_parameters() if "gamma" in n or n.endswith(("original", "original0"))}
    assert {n for n, p in net.named_parameters() if p.grad is not None} == factors
    reference = network()
    dg.penalty(reference, LAM).backward()
    for name in factors:
        torch.testing.assert_close(net.get_parameter(name).grad, reference.get_parameter(name).grad)


def test_gradients_are_changed_in_place() -> None:
    net = network()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = {n: p.grad for n, p in net.named_parameters()}
    dg.add_penalty_grad_(net, LAM)
    assert all(p.grad is before[n] for n, p in net.named_parameters())


def test_lam_zero_changes_nothing() -> None:
    net = network()
    dg.add_penalty_grad_(net, 0.0)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0)], ids=["number", "tensor"])
def test_no_value_goes_to_the_host(scale: float | Tensor) -> None:
    net = network()
    with watched() as found:
        dg.add_penalty_grad_(net, LAM, grad_scale=scale)
    assert found == []


def test_mixed_precisions() -> None:
    net = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.Linear(4, 2))
    dg.gate_(net, [dg.features(net[0], name="a"), dg.features(net[1], name="b")])
    dg.add_penalty_grad_(net, 0.3)
    for name, p in net.named_parameters():
        if "bias" not in name:
            assert p.grad is not None
            torch.testing.assert_close(p.grad, 0.2 * p.detach())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lam": -1.0}, ValueError, "lam: expected"),
        ({"lam": {"inputs": 0.1}}, KeyError, "missing"),
        ({"lam": 0.1, "grad_scale": float("inf")}, ValueError, "grad_scale: expected"),
        ({"lam": 0.1, "grad_scale": True}, TypeError, "grad_scale: expected"),
        ({"lam": 0.1, "grad_scale": torch.ones(2)}, ValueError, "grad_scale: expected one number"),
    ],
)
def test_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    net = network()
    with pytest.raises(error, match=message):
        dg.add_penalty_grad_(net, **arguments)
    assert all(p.grad is None for p in net.parameters())


def test_a_model_without_gates_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a gated model"):
        dg.add_penalty_grad_(nn.Linear(2, 2), 0.1)
