"""The absorption theorem against adversaries: any gradients of norm at most G, any factors, any bounded step sizes.

The proof is in docs/concepts/absorption.md; here torch's own SGD runs against the worst gradients we can think of.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dgating as dg
from dgating.maths._certificate import largest_product, margin, momentum_shift

SIZES = 6
ADVERSARIES = ["grow omega", "grow against momentum", "random", "silent"]


class Group(nn.Module):
    """One gated group of ``SIZES`` weights, in float64."""

    def __init__(self, omega: Tensor, gates: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(omega.clone()[None])
        dg.gate_(self, dg.by_dim(self, 0, name="w"), depth=len(gates) + 1)
        with torch.no_grad():
            self.gamma.copy_(gates[:, None])

    @property
    def omega(self) -> nn.Parameter:
        return self.parametrizations.w.original

    @property
    def gamma(self) -> nn.Parameter:
        return self.parametrizations.w[0].gamma

    def sizes(self) -> Tensor:
        return torch.cat([self.omega.detach().norm()[None], self.gamma.detach().abs()[:, 0]])


def _adversary(kind: str, model: Group, step: int, bound: float, velocity: Tensor | None) -> Tensor:
    """A data gradient of W of norm exactly ``bound`` (or zero)."""
    omega = model.omega.detach()[0]
    sign = math.copysign(1.0, float(model.gamma.detach().prod()))
    if kind == "silent":
        return torch.zeros_like(omega)
    if kind == "random" or float(omega.norm()) == 0:
        direction = torch.randn(SIZES, dtype=torch.float64)
    elif kind == "grow against momentum" and velocity is not None and float(velocity.norm()) > 0 and step % 3 == 0:
        direction = velocity[0] * sign
    else:
        direction = -omega * sign  # raises ||omega|| and every gate at once
    return direction / direction.norm() * bound


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    depth=st.integers(2, 6),
    momentum=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    nesterov=st.booleans(),
    kind=st.sampled_from(ADVERSARIES),
    schedule=st.sampled_from(["constant", "cosine", "jumps"]),
    tightness=st.floats(0.05, 0.999),
    step_share=st.floats(0.05, 1.0),
    seed=st.integers(0, 2**16),
)
def test_certified_groups_shrink_at_every_step_and_vanish(
    depth: int,
    momentum: float,
    nesterov: bool,
    kind: str,
    schedule: str,
    tightness: float,
    step_share: float,
    seed: int,
) -> None:
    nesterov = nesterov and momentum > 0
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    lam = 0.5
    kappa = 2 * lam / depth
    # the largest step for which the theorem speaks, found by bisection of the library's own condition
    low, high = 0.0, 2 / kappa
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if momentum_shift(middle, momentum, kappa, nesterov) is not None else (low, middle)
    lr = step_share * low
    shift = momentum_shift(lr, momentum, kappa, nesterov)
    assert shift is not None
    model = Group(
        torch.randn(SIZES, dtype=torch.float64, generator=generator),
        torch.rand(depth - 1, dtype=torch.float64, generator=generator) * 2 + 0.01,
    )
    optimizer = torch.optim.SGD(dg.param_groups(model, lam), lr=lr, momentum=momentum, nesterov=nesterov)
    # start in mid-run, with momentum that points outwards
    if momentum:
        for p in (model.omega, model.gamma):
            optimizer.state[p]["momentum_buffer"] = (
                -0.3 * p.detach() * float(torch.rand(1, generator=generator)) / max(shift, 1)
            )

    def sizes() -> Tensor:
        if not momentum:
            return model.sizes()
        ahead = [p.detach() - shift * optimizer.state[p]["momentum_buffer"] for p in (model.omega, model.gamma)]
        return torch.maximum(model.sizes(), torch.cat([ahead[0].norm()[None], ahead[1].abs()[:, 0]]))

    start = sizes()
    bound = tightness * kappa / float(largest_product(start[:, None]))
    assert float(margin(start[:, None], torch.tensor([bound]), lam)) < 1
    # the invariant box of the proof: no factor leaves max(b_d, second smallest)
    floor = start.sort().values[1]
    box = torch.maximum(start, floor)
    total = 0.0
    for step in range(60):
        scale = {
            "constant": 1.0,
            "cosine": 0.5 + 0.5 * math.cos(step / 60 * math.pi),
            "jumps": float((step * 7919) % 5) / 4,
        }[schedule]
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        velocity = optimizer.state[model.omega].get("momentum_buffer")
        gradient = _adversary(kind, model, step, bound, velocity)
        optimizer.zero_grad()
        (model.w[0] * gradient).sum().backward()
        optimizer.step()
        delta = kappa * (1 - tightness)
        box = box * (1 - lr * scale * delta)
        total += lr * scale * delta
        assert bool((sizes() <= box * (1 + 1e-12)).all()), f"left the box at step {step}"
    assert float(sizes().max()) <= float(torch.maximum(start, floor).max()) * math.exp(-total) * (1 + 1e-9)


def test_the_condition_is_sharp() -> None:
    """Just above the bound there is a gradient that keeps the group alive for ever: the constant cannot be improved."""
    depth, lam = 4, 0.5
    kappa = 2 * lam / depth
    model = Group(torch.ones(SIZES, dtype=torch.float64) / math.sqrt(SIZES), torch.ones(depth - 1, dtype=torch.float64))
    optimizer = torch.optim.SGD(dg.param_groups(model, lam), lr=0.1)
    for _ in range(2000):
        gradient = _adversary("grow omega", model, 1, kappa * 1.001, None)
        optimizer.zero_grad()
        (model.w[0] * gradient).sum().backward()
        optimizer.step()
        if float(model.sizes().max()) > 3:
            break
    assert float(model.sizes().min()) > 1


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("nesterov", [False, True])
def test_shift_is_a_root_and_the_region_is_where_it_is_real(momentum: float, nesterov: bool) -> None:
    kappa, lr = 0.01, 0.002
    c = momentum_shift(lr, momentum, kappa, nesterov)
    assert c is not None
    if nesterov:
        value = kappa * c**2 - (1 - momentum - kappa * lr * (1 + momentum)) * c + momentum**2 * lr
    else:
        value = kappa * c**2 - (1 - momentum - kappa * lr) * c + momentum * lr
        edge = (1 - math.sqrt(momentum)) ** 2 / kappa
        assert momentum_shift(edge * 0.999, momentum, kappa) is not None
        assert momentum_shift(edge * 1.001, momentum, kappa) is None
    assert value == pytest.approx(0, abs=1e-12)


def test_two_largest_of_four_not_the_square_of_the_largest() -> None:
    """The product of the D - 2 largest is sharper than r^(D-2) whenever one factor sticks out."""
    sizes = torch.tensor([[1.0], [0.1], [0.1], [0.1]])
    assert float(largest_product(sizes)) == pytest.approx(0.1)
    assert float(margin(sizes, torch.tensor([1.0]), 0.5)) == pytest.approx(0.4)
