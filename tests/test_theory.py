"""The paper's statements, each against the library: flow, one-step identities, equivalence with the non-smooth problem.

Numbers in brackets are equations of arXiv 2509.23898.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import dgating as dg

DEPTHS = [2, 3, 4]


class Quadratic(nn.Module):
    """Two groups of three weights and the loss ``1/2 ||A w - b||^2``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
        self.a = torch.randn(6, 6, dtype=torch.float64) * 0.4
        self.b = torch.randn(6, dtype=torch.float64)

    def forward(self) -> Tensor:
        return (self.a @ self.w.reshape(-1) - self.b).square().sum() / 2


def _factors(model: Quadratic) -> tuple[nn.Parameter, nn.Parameter]:
    chain = model.parametrizations.w
    return chain.original, chain[0].gamma


def _imbalances(omega: Tensor, gamma: Tensor) -> Tensor:
    """Squared factor norms relative to those of omega: ``||omega||^2 - gamma_d^2`` (13)."""
    return omega.detach().square().sum(1) - gamma.detach().square()


def _spread_gates(model: Quadratic, depth: int) -> None:
    with torch.no_grad():
        _factors(model)[1].mul_(torch.linspace(0.7, 1.3, depth - 1, dtype=torch.float64)[:, None])


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("lam", [0.05, 0.2, 0.8])
def test_imbalance_decays_at_4_lam_over_d_under_gradient_flow(depth: int, lam: float) -> None:
    """(14), by Runge-Kutta on the library's own gradients."""
    model = Quadratic()
    dg.gate_(model, dg.by_dim(model, 0, name="w"), depth=depth)
    _spread_gates(model, depth)
    params = list(_factors(model))

    def flow(values: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            for p, v in zip(params, values, strict=True):
                p.copy_(v)
        loss = model() + dg.penalty(model, lam)
        return [-g for g in torch.autograd.grad(loss, params)]

    h, steps = 0.005, 200
    state = [p.detach().clone() for p in params]
    start = _imbalances(*state)
    for _ in range(steps):
        k1 = flow(state)
        k2 = flow([s + h / 2 * k for s, k in zip(state, k1, strict=True)])
        k3 = flow([s + h / 2 * k for s, k in zip(state, k2, strict=True)])
        k4 = flow([s + h * k for s, k in zip(state, k3, strict=True)])
        state = [s + h / 6 * (a + 2 * b + 2 * c + d) for s, a, b, c, d in zip(state, k1, k2, k3, k4, strict=True)]
    expected = start * math.exp(-4 * lam / depth * h * steps)
    assert float(((_imbalances(*state) - expected) / start).abs().max()) < 1e-6


@pytest.mark.parametrize("depth", DEPTHS)
def test_one_step_identities(depth: int) -> None:
    """Lemma 4 (18), its contraction form, and the exactly multiplicative rule between gates."""
    lam, eta = 0.3, 0.07
    model = Quadratic()
    dg.gate_(model, dg.by_dim(model, 0, name="w"), depth=depth)
    _spread_gates(model, depth)
    omega, gamma = _factors(model)
    w = model.w.detach().clone().requires_grad_()
    g = torch.autograd.grad((model.a @ w.reshape(-1) - model.b).square().sum() / 2, w)[0]
    o, gam = omega.detach().clone(), gamma.detach().clone()
    s = (o * g).sum(1)
    optimizer = torch.optim.SGD(dg.param_groups(model, lam), lr=eta)
    model().backward()
    optimizer.step()

    def others(*leave: int) -> Tensor:
        keep = [d for d in range(depth - 1) if d not in leave]
        return gam[keep].prod(0)

    before, after = _imbalances(o, gam), _imbalances(omega, gamma)
    kappa = 2 * lam / depth
    for d in range(depth - 1):
        error = others(d).square() * (gam[d].square() * g.square().sum(1) - s.square())
        contraction = (1 - eta * kappa) ** 2 * before[d] + eta**2 * error
        torch.testing.assert_close(after[d], contraction, rtol=1e-12, atol=1e-14)
        delta = error + kappa**2 * before[d]
        torch.testing.assert_close(after[d], (1 - 2 * eta * kappa) * before[d] + eta**2 * delta, rtol=1e-12, atol=1e-14)
        for e in range(d):
            old, new = gam[d] ** 2 - gam[e] ** 2, gamma[d] ** 2 - gamma[e] ** 2
            rule = (1 - eta * kappa) ** 2 - eta**2 * others(d, e).square() * s.square()
            torch.testing.assert_close(new.detach(), rule * old, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("depth", DEPTHS)
def test_objective_gap_is_lam_times_misalignment(depth: int) -> None:
    """(15), (16): at any factors; zero when balanced (8)."""
    model = Quadratic()
    dg.gate_(model, dg.by_dim(model, 0, name="w"), depth=depth)
    _spread_gates(model, depth)
    gap = dg.penalty(model, 0.7).detach() - dg.effective_penalty(model, 0.7)
    torch.testing.assert_close(gap, 0.7 * dg.misalignment(model), rtol=1e-12, atol=0)
    assert gap > 0
    omega, gamma = _factors(model)
    with torch.no_grad():
        size = dg.group_norms(model)["w"] ** (1 / depth)
        direction = model.w / model.w.norm(dim=1, keepdim=True)
        omega.copy_(direction * size[:, None])
        gamma.copy_(size.expand_as(gamma))
    assert abs(dg.misalignment(model)) < 1e-14
    assert float(dg.imbalance(model)["w"].max()) < 1e-14


def regression(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The group-lasso simulation of paper section 9.2: 200 rows, 40 groups of 5, seven of them informative."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 200, generator=generator, dtype=torch.float64)
    w = torch.zeros(200, dtype=torch.float64)
    w[:35] = torch.randn(35, generator=generator, dtype=torch.float64)
    y = x @ w + torch.randn(200, generator=generator, dtype=torch.float64)
    return x, y, torch.arange(200) // 5


def gated_regression(x: Tensor, y: Tensor, depth: int, lam: float, lr: float = 0.05, steps: int = 2500) -> nn.Linear:
    """Full-batch momentum descent on ``1/(2n) ||y - Xw||^2`` with gated groups of five."""
    model = nn.Linear(200, 1, bias=False).double()
    dg.gate_(model, dg.by_dim(model, 1, block=5, group_name="w"), depth=depth)
    optimizer = torch.optim.SGD(dg.param_groups(model, lam), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr / 50)
    gram, moment = x.T @ x / len(y), x.T @ y / len(y)
    for _ in range(steps):
        optimizer.zero_grad()
        w = model.weight[0]
        (w @ gram @ w / 2 - moment @ w).backward()
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 10))])
def test_depth_2_equals_fista(seed: int) -> None:
    """Theorem 1 for D = 2: the gated objective ends at the group lasso optimum, to 1e-6 of its value."""
    x, y, labels = regression(seed)
    lam = 0.15
    solution = dg.proximal_gradient(x, y, labels, lam)
    assert solution.converged
    model = gated_regression(x, y, 2, lam)
    w = model.weight[0].detach()
    objective = float((y - x @ w).square().mean() / 2 + dg.effective_penalty(model, lam))
    assert objective == pytest.approx(solution.objective, rel=1e-6)
    assert objective >= solution.objective * (1 - 1e-12)  # FISTA is the minimum


@pytest.mark.parametrize("depth", [3, 4])
def test_deeper_solutions_are_fixed_points_of_the_prox(depth: int) -> None:
    """A converged gated solution does not move under a proximal-gradient step of the non-smooth objective."""
    x, y, labels = regression(0)
    lam = 0.15
    model = gated_regression(x, y, depth, lam)
    w = model.weight[0].detach()
    gram, moment = x.T @ x / len(y), x.T @ y / len(y)
    step = 1 / float(torch.linalg.eigvalsh(gram)[-1])
    moved = dg.group_prox(w - step * (gram @ w - moment), labels, step * lam, 2 / depth)
    assert float((moved - w).abs().max()) < 1e-8
    norms = dg.group_norms(model)["w"]
    assert int((norms > 1e-3).sum()) == 7  # the true support
    assert (norms[:7] > 1e-3).all()


def test_reference_solver_meets_the_kkt_conditions() -> None:
    x, y, labels = regression(1)
    lam = 0.3
    solution = dg.proximal_gradient(x, y, labels, lam)
    grad = (x.T @ (x @ solution.coef - y) / len(y)).view(40, 5)
    w = solution.coef.view(40, 5)
    active = w.norm(dim=1) > 0
    assert 0 < int(active.sum()) < 40
    pull = grad[active] + lam * w[active] / w[active].norm(dim=1, keepdim=True)
    assert float(pull.norm(dim=1).max()) < 1e-10
    assert float(grad[~active].norm(dim=1).max()) <= lam
    lam_max = float((x.T @ y / len(y)).view(40, 5).norm(dim=1).max())
    assert (dg.proximal_gradient(x, y, labels, lam_max * 1.0001).coef == 0).all()
    assert (dg.proximal_gradient(x, y, labels, lam_max * 0.99).coef != 0).any()


@pytest.mark.parametrize("depth", [3, 4])
def test_deeper_reference_solutions_are_fixed_points(depth: int) -> None:
    x, y, labels = regression(2)
    dense = dg.proximal_gradient(x, y, labels, 0.15)
    solution = dg.proximal_gradient(x, y, labels, 0.15, depth, init=dense.coef)
    again = dg.proximal_gradient(x, y, labels, 0.15, depth, init=solution.coef, max_iter=1)
    assert solution.converged
    assert float((again.coef - solution.coef).abs().max()) < 1e-11
