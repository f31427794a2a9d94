"""The pure maths against brute force and the closed formulas: prox, thresholds, AM-GM, time budget."""

import math

import pytest
import torch

import dgating as dg

QS = [1.0, 2 / 3, 1 / 2, 2 / 5, 1 / 3]
TAUS = [1e-3, 0.1, 1.0, 7.3]


def objective(t, r, tau, q):
    return 0.5 * (t - r) ** 2 + tau * t**q


def brute_force(r, tau, q):
    """Global minimiser over ``[0, r]``: a grid, refined around its best point, compared with zero."""
    low, high = torch.zeros_like(r), r.clone()
    for _ in range(12):
        grid = low + (high - low) * torch.linspace(0, 1, 201, dtype=r.dtype)[:, None]
        grid[0] = torch.where(low == 0, grid[1] * 1e-3, grid[0])  # zero itself is compared at the end
        best = objective(grid, r, tau, q).argmin(0)
        width = (high - low) / 100
        centre = grid.gather(0, best[None])[0]
        low, high = (centre - width).clamp_min(0), torch.minimum(centre + width, r)
    # the grid ends at the square root of the precision; Newton on the derivative finishes
    for _ in range(3):
        slope, curve = centre - r + tau * q * centre ** (q - 1), 1 + tau * q * (q - 1) * centre ** (q - 2)
        step = torch.where(curve > 0, slope / curve, torch.zeros_like(slope))
        centre = torch.where((centre - step).abs() < 2 * centre, centre - step, centre)
    zero = torch.zeros_like(r)
    return torch.where(objective(centre, r, tau, q) < objective(zero, r, tau, q), centre, zero)


def radii(tau, q):
    """Norms on both sides of the threshold, near and far."""
    far = dg.prox_threshold(tau, q) * torch.logspace(-2, 2, 101, dtype=torch.float64)
    return far[(far / dg.prox_threshold(tau, q) - 1).abs() > 1e-6]


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("tau", TAUS)
def test_prox_is_the_global_minimum(tau, q):
    r = radii(tau, q)
    found, expected = dg.prox_norm(r, tau, q), brute_force(r, tau, q)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    excess = objective(found, r, tau, q) - objective(expected, r, tau, q)
    assert float((excess / objective(expected, r, tau, q)).max()) <= 1e-14


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("tau", TAUS)
def test_prox_is_stationary_where_it_is_not_zero(tau, q):
    r = radii(tau, q)
    t = dg.prox_norm(r, tau, q)
    alive = t > 0
    assert torch.equal(alive, r > dg.prox_threshold(tau, q))
    slope = t[alive] - r[alive] + tau * q * t[alive] ** (q - 1)
    assert float((slope / r[alive]).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("q", "threshold", "jump"),
    [
        (1.0, lambda tau: tau, lambda tau: 0.0),
        (2 / 3, lambda tau: 2 * (2 * tau / 3) ** 0.75, lambda tau: (2 * tau / 3) ** 0.75),
        (1 / 2, lambda tau: 1.5 * tau ** (2 / 3), lambda tau: tau ** (2 / 3)),
        (2 / 5, lambda tau: 4 / 3 * (1.2 * tau) ** 0.625, lambda tau: (1.2 * tau) ** 0.625),
        (1 / 3, lambda tau: 1.25 * (4 * tau / 3) ** 0.6, lambda tau: (4 * tau / 3) ** 0.6),
    ],
)
@pytest.mark.parametrize("tau", TAUS)
def test_threshold_and_jump(q, threshold, jump, tau):
    edge = threshold(tau)
    assert dg.prox_threshold(tau, q) == pytest.approx(edge, rel=1e-12)
    below, above = dg.prox_norm(torch.tensor([edge * (1 - 1e-9), edge * (1 + 1e-9)], dtype=torch.float64), tau, q)
    assert below == 0
    assert float(above) == pytest.approx(jump(tau), rel=1e-6, abs=1e-8 * edge)


def test_two_thirds_threshold_as_printed():
    assert dg.prox_threshold(1.0, 2 / 3) == pytest.approx(1.475576, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", QS)
def test_prox_of_extreme_norms_is_finite(q, dtype):
    r = torch.tensor([0.0, 1e-30, 1e-8, 1.0, 1e4, 1e8], dtype=dtype)
    for tau in (1e-12, 1.0, 1e3):
        t = dg.prox_norm(r, tau, q)
        assert t.dtype == dtype
        assert t.isfinite().all()
        assert bool((t >= 0).all())
        assert bool((t <= r * (1 + 100 * torch.finfo(dtype).eps)).all())
        assert bool((t.diff() >= 0).all())


@pytest.mark.parametrize("q", QS)
def test_prox_without_penalty_is_the_identity_and_keeps_the_shape(q):
    r = torch.rand(2, 3, 4)
    t = dg.prox_norm(r, 0.0, q)
    assert torch.equal(t, r)
    assert t is not r
    assert dg.prox_norm(r, 0.3, q).shape == r.shape


@pytest.mark.parametrize("q", QS)
def test_group_prox_scales_each_group_and_leaves_the_ungated(q):
    w = torch.randn(4, 5, dtype=torch.float64)
    labels = torch.randint(-1, 3, (4, 5))
    before = w.clone()
    out = dg.group_prox(w, labels, 0.5, q)
    assert torch.equal(w, before)
    assert torch.equal(out[labels < 0], w[labels < 0])
    for j in range(3):
        group = w[labels == j]
        expected = group / group.norm() * dg.prox_norm(group.norm(), 0.5, q)
        torch.testing.assert_close(out[labels == j], expected)


def test_group_prox_of_zero_groups_is_zero():
    out = dg.group_prox(torch.tensor([0.0, 0.0, 3.0]), torch.tensor([0, 0, 1]), 1.0, 1.0)
    assert out.tolist() == [0.0, 0.0, 2.0]


def test_group_prox_with_nothing_to_penalise_is_the_identity():
    w = torch.randn(3)
    assert torch.equal(dg.group_prox(w, torch.full((3,), -1), 1.0, 0.5), w)


def test_group_prox_minimises_its_objective():
    """No random step from the prox is better, on the whole objective over three groups."""
    w, labels, tau, q = torch.randn(9, dtype=torch.float64), torch.arange(9) % 3, 0.4, 2 / 3

    def value(x):
        norms = torch.stack([x[..., labels == j].norm(dim=-1) for j in range(3)])
        return 0.5 * (x - w).square().sum(-1) + tau * norms.pow(q).sum(0)

    best = dg.group_prox(w, labels, tau, q)
    steps = torch.randn(2000, 9, dtype=torch.float64) * torch.logspace(-4, 1, 2000, dtype=torch.float64)[:, None]
    assert bool((value(best + steps) >= value(best)).all())
    assert bool((value(steps) >= value(best)).all())


def gated_vector(weight, depth):
    net = torch.nn.Linear(len(weight), 1, bias=False, dtype=torch.float64)
    dg.gate_(net, dg.whole(net, name="w"), depth=depth)
    gate = net.parametrizations.weight[0]
    return net, net.parametrizations.weight.original, gate.gamma


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 6, 8])
def test_no_factorisation_costs_less_than_the_penalty_and_the_balanced_one_costs_the_same(depth):
    lam = 0.7
    w = torch.randn(5, dtype=torch.float64)
    net, omega, gamma = gated_vector(w, depth)
    wanted = lam * float(w.norm()) ** (2 / depth)
    with torch.no_grad():
        for spread in (0.01, 0.1, 1.0):
            for _ in range(10):
                gamma.copy_(torch.randn_like(gamma).mul(spread).exp() * torch.randn_like(gamma).sign())
                omega.copy_(w / gamma.prod())
                assert float(dg.penalty(net, lam)) >= wanted * (1 - 1e-12)
                assert float(dg.effective_penalty(net, lam)) == pytest.approx(wanted, rel=1e-12)
                gap = float(dg.penalty(net, lam)) - float(dg.effective_penalty(net, lam))
                assert lam * float(dg.misalignment(net)) == pytest.approx(gap, rel=1e-9, abs=1e-13)
        gamma.fill_(float(w.norm()) ** (1 / depth))
        omega.copy_(w / gamma.prod())
        assert float(dg.penalty(net, lam)) == pytest.approx(wanted, rel=1e-12)
    assert float(dg.misalignment(net)) == pytest.approx(0, abs=1e-14)
    assert float(dg.imbalance(net)["w"]) == pytest.approx(0, abs=1e-14)


def decay(optimizer, lr, multipliers):
    """What is left of a factor of one that feels no data gradient."""
    (p,) = optimizer.param_groups[0]["params"]
    p.grad = torch.zeros_like(p)
    for m in multipliers:
        optimizer.param_groups[0]["lr"] = lr * m
        optimizer.step()
    return float(p.detach())


SCHEDULES = {
    "constant": lambda s: 1.0,
    "cosine": lambda s: (1 + math.cos(math.pi * s)) / 2,
    "linear": lambda s: 1 - s,
}


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_budget_against_a_simulated_decay(schedule, momentum, nesterov, depth):
    lam, lr, steps = 0.01, 0.1 * (1 - momentum), 3000
    budget = dg.time_budget(lam, lr, steps, momentum, schedule)
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([p], lr, momentum=momentum, weight_decay=2 * lam / depth, nesterov=nesterov)
    factor = decay(sgd, lr, [SCHEDULES[schedule](t / steps) for t in range(steps)])
    assert -depth * math.log(factor) == pytest.approx(budget.exponent, rel=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_by_name_function_and_sequence_agree(schedule):
    steps = 1000
    by_name = dg.time_budget(0.1, 0.1, steps, schedule=schedule)
    f = SCHEDULES[schedule]
    by_function = dg.time_budget(0.1, 0.1, steps, schedule=lambda t: f(t / steps))
    by_values = dg.time_budget(0.1, 0.1, steps, schedule=[f(t / steps) for t in range(steps)])
    assert by_values == by_function
    assert by_function.exponent == pytest.approx(by_name.exponent, rel=2 / steps)


def test_time_budget_of_the_paper():
    """0.021 is where the paper's group lasso figure starts to be sparse: lr 0.05, 1500 steps, momentum 0.9, cosine."""
    setting = {"lr": 0.05, "steps": 1500, "momentum": 0.9, "schedule": "cosine"}
    assert dg.time_budget(0.1, **setting).lam_needed == pytest.approx(0.021, rel=0.02)
    assert not dg.time_budget(0.021, **setting).reachable
    assert dg.time_budget(0.022, **setting).reachable


def test_what_the_budget_says_is_needed_is_enough():
    budget = dg.time_budget(0.01, 0.1, 500, 0.9)
    assert not budget.reachable
    assert dg.time_budget(budget.lam_needed * (1 + 1e-9), 0.1, 500, 0.9).reachable
    assert dg.time_budget(0.01, 0.1, math.ceil(budget.steps_needed), 0.9).reachable
    assert not dg.time_budget(0.01, 0.1, math.floor(budget.steps_needed), 0.9).reachable
    assert budget.norm == pytest.approx(math.exp(-budget.exponent))
    assert str(budget).startswith("too short for zeros")
    assert "zeros are reachable" in str(dg.time_budget(1.0, 0.1, 5000))


@pytest.mark.parametrize(("lam", "lr", "steps"), [(0.0, 0.1, 10), (0.1, 0.0, 10), (0.1, 0.1, 0)])
def test_no_decay_no_zeros(lam, lr, steps):
    budget = dg.time_budget(lam, lr, steps)
    assert (budget.exponent, budget.norm, budget.reachable) == (0, 1, False)
    assert math.inf in (budget.lam_needed, budget.steps_needed)
    assert "too short" in str(budget)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64])
def test_labels_are_integers(dtype: torch.dtype) -> None:
    """A mask of two groups is no label: true and false would pass for groups 1 and 0."""
    labels = torch.tensor([1, 0, 1]).to(dtype)
    with pytest.raises(TypeError, match=r"labels: expected integers"):
        dg.group_prox(torch.ones(3), labels, 0.5, 1.0)
    with pytest.raises(TypeError, match=r"labels: expected integers"):
        dg.group_lasso_path(torch.randn(8, 3), torch.randn(8), labels, [0.1])
    with pytest.raises(TypeError, match=r"labels.*integers"):
        dg.by_labels(torch.nn.Linear(3, 2), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integers_are_labels(dtype: torch.dtype) -> None:
    labels = torch.tensor([1, 0, 1]).to(dtype)
    out = dg.group_prox(torch.ones(3), labels, 0.25, 1.0)
    torch.testing.assert_close(out, dg.group_prox(torch.ones(3), labels.long(), 0.25, 1.0))
    assert len(dg.by_labels(torch.nn.Linear(3, 2), labels)) == 2


@pytest.mark.parametrize("q", [1.0, 2 / 3, 0.5, 0.4, 2 / 7])
@pytest.mark.parametrize("tau", [0.01, 1.0, 7.3])
def test_a_norm_at_the_threshold_is_zero(q, tau):
    """Zero and the other minimum are equally good there: zero is taken."""
    at = dg.prox_threshold(tau, q)
    norms = torch.tensor([at * (1 - 1e-9), at, at * (1 + 1e-9)], dtype=torch.float64)
    below, exact, above = dg.prox_norm(norms, tau, q).tolist()
    assert below == exact == 0
    assert above > 0
