"""Group bridge paths (D >= 3) against brute force, stationarity by autograd, gated training and the direct way."""

import math

import numpy as np
import pytest
import torch
from test_group_lasso import BAD, GOOD_X, GOOD_Y, gradients, mean_loss, members, problem
from torch import nn

import dgating as dg
from dgating.linear import _data as _linear_data
from dgating.linear import _moments as _condense
from dgating.linear._group_bridge import group_bridge_path
from dgating.linear._group_lasso import group_lasso_path, lam_max_linear
from dgating.linear._moments import condense

CASES = [("squared", 1), ("squared", 3), ("logistic", 1), ("multinomial", 3)]


def penalised(loss, X, y, rows, coef, intercept, groups, lam, weights, q):
    norms = torch.stack([coef[m].norm() for m in members(groups)])
    return float(mean_loss(loss, X @ coef + intercept, y, rows) + lam * (weights * norms.pow(q)).sum())


def strengths(X, y, groups, depth, shares=(0.01, 0.05, 0.2, 0.6), **options):
    return lam_max_linear(X, y, groups, depth=depth, **options) * np.array(shares)


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 1.2])
def test_one_group_against_brute_force(depth, share):
    X, y, groups, *_ = problem("squared", 0, 30, [2])
    lam = float(strengths(X, y, groups, depth, [share])[0])
    path = group_bridge_path(X, y, groups, [lam], depth=depth)
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    radius = torch.linspace(0, 1.2 * float(torch.linalg.lstsq(X - X.mean(0), y - y.mean()).solution.norm()), 800)
    grid = torch.stack([torch.outer(radius.double(), angle.cos()), torch.outer(radius.double(), angle.sin())], -1)
    errors = (X - X.mean(0)) @ grid.reshape(-1, 2).T - (y - y.mean()).unsqueeze(1)
    values = errors.square().mean(0) / 2 + lam * grid.reshape(-1, 2).norm(dim=1).pow(2 / depth)
    assert float(path.objective[0]) == pytest.approx(float(values.min()), rel=2e-5)
    assert float(path.objective[0]) <= float(values.min()) * (1 + 1e-12)
    assert bool(path.active[0, 0]) == (share < 1)


@pytest.mark.parametrize("depth", [3, 4])
def test_orthonormal_groups_are_the_prox(depth):
    generator = torch.Generator().manual_seed(0)
    X = torch.linalg.qr(torch.randn(60, 12, generator=generator, dtype=torch.float64))[0] * math.sqrt(60)
    y, groups = torch.randn(60, generator=generator, dtype=torch.float64), torch.arange(12) // 3
    least_squares = X.T @ y / 60
    path = group_bridge_path(X, y, groups, np.logspace(-3, 0, 10), depth=depth, fit_intercept=False, tol=1e-11)
    for lam, coef, active in zip(path.lams, path.coef[:, :, 0], path.active, strict=True):
        norms, edge = least_squares.view(4, 3).norm(dim=1), dg.prox_threshold(float(lam), 2 / depth)
        clear = (norms / edge - 1).abs() > 0.1  # near the jump both sides are local minima
        expected = dg.group_prox(least_squares, groups, float(lam), 2 / depth)
        torch.testing.assert_close(coef[clear[groups]], expected[clear[groups]], rtol=1e-6, atol=1e-9)
        assert torch.equal(active[clear], (norms > edge)[clear])


@pytest.mark.parametrize(("loss", "k"), CASES)
@pytest.mark.parametrize("depth", [3, 4, 6])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_stationary_and_a_local_minimum(loss, k, depth, fit_intercept):
    X, y, groups, rows, weights = problem(loss, 1, 40, [1, 2, 3, 1, 4], k)
    if loss == "squared":
        weights[1] = 0
    options = {"loss": loss, "sample_weight": rows, "weights": weights, "fit_intercept": fit_intercept}
    lams, q = strengths(X, y, groups, depth, **options), 2 / depth
    path = group_bridge_path(X, y, groups, lams, depth=depth, **options)
    assert float(path.residual.max()) <= 1e-7
    generator = torch.Generator().manual_seed(0)
    kept = 0
    for lam, coef, intercept, active, objective in zip(
        lams, path.coef, path.intercept, path.active, path.objective, strict=True
    ):
        _, slope, level = gradients(loss, X, y, rows, coef, intercept)
        for j, m in enumerate(members(groups)):
            size = float(coef[m].norm())
            assert bool(active[j]) == (size > 0)
            if size > 0:
                kept += float(weights[j]) > 0
                pull = lam * float(weights[j]) * q * size ** (q - 2) * coef[m]
                assert float((slope[m] + pull).norm()) <= 1e-5
        if fit_intercept:
            assert float(level.norm()) <= 1e-5
        found = penalised(loss, X, y, rows, coef, intercept, groups, lam, weights, q)
        assert float(objective) == pytest.approx(found, rel=1e-9)
        for _ in range(20):  # zero groups included
            step = 1e-4 * torch.randn(coef.shape, generator=generator, dtype=torch.float64)
            assert penalised(loss, X, y, rows, coef + step, intercept, groups, lam, weights, q) >= found - 1e-12
    assert kept


@pytest.mark.parametrize(("loss", "k"), CASES)
def test_no_strength_ends_above_where_it_began(loss, k):
    X, y, groups, *_ = problem(loss, 2, 50, [2] * 12, k)
    lams = strengths(X, y, groups, 3, np.logspace(-3, 0, 12), loss=loss)
    path = group_bridge_path(X, y, groups, lams, loss=loss)
    ones = torch.ones(12, dtype=torch.float64)
    for i in range(1, 12):
        before = penalised(
            loss, X, y, torch.ones(50), path.coef[i - 1], path.intercept[i - 1], groups, lams[i], ones, 2 / 3
        )
        assert float(path.objective[i]) <= before * (1 + 1e-12)


@pytest.mark.parametrize("depth", [3, 4])
def test_gated_training_stays_at_the_solution_and_returns_to_it(depth):
    X, y, groups, *_ = problem("squared", 3, 60, [3] * 5)
    X, y = X - X.mean(0), y - y.mean()
    lam = float(strengths(X, y, groups, depth, [0.4])[0])
    path = group_bridge_path(X, y, groups, [lam], depth=depth, fit_intercept=False)
    assert 0 < int(path.active.sum()) < 5
    model = nn.Linear(15, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(path.coef[0].T * 1.05)
    dg.gate_(model, dg.by_labels(model, groups.unsqueeze(0)), depth=depth)
    optimizer = torch.optim.SGD(dg.param_groups(model, lam=lam), lr=0.02)
    for _ in range(3000):
        optimizer.zero_grad()
        (0.5 * (model(X)[:, 0] - y).square().mean()).backward()
        optimizer.step()
    dg.collapse_(model)
    torch.testing.assert_close(model.weight.detach().T, path.coef[0], rtol=1e-4, atol=1e-5)


def test_sharper_than_the_group_lasso():
    """The simulation of the paper in small: the right groups, and a smaller error on fresh rows."""
    rng = np.random.default_rng(1)
    X, w = rng.standard_normal((1120, 100)), np.zeros(100)
    w[:20] = rng.standard_normal(20)
    y, groups = X @ w + rng.standard_normal(1120), np.arange(100) // 5
    errors = {}
    for depth in (2, 3, 4):
        lams = lam_max_linear(X[:120], y[:120], groups, depth=depth) * np.logspace(-3, 0, 20)
        solver, more = (group_lasso_path, {}) if depth == 2 else (group_bridge_path, {"depth": depth})
        path = solver(X[:120], y[:120], groups, lams, **more)
        wrong = y[120:, None] - X[120:] @ path.coef[:, :, 0].numpy().T - path.intercept[:, 0].numpy()
        best = int((wrong**2).mean(0).argmin())
        errors[depth] = math.sqrt((wrong[:, best] ** 2).mean())
        if depth > 2:
            assert path.active[best].nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert max(errors[3], errors[4]) < 0.95 * errors[2]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("free", [False, True])
def test_condensed_rows_give_the_same_path(monkeypatch, k, fit_intercept, free):
    X, y, groups, rows, weights = problem("squared", 4, 400, [2, 3, 1, 4], k)
    X = X.clone()
    X[:, 0] += 1e3  # a large mean
    X[:, 1] = X[:, 2]  # linearly dependent
    rows[:50] = 0
    if free:
        weights[1] = 0
    options = {"sample_weight": rows, "weights": weights, "fit_intercept": fit_intercept}
    lams = strengths(X, y, groups, 2, **options)

    def both():
        return group_lasso_path(X, y, groups, lams, tol=1e-10, **options), group_bridge_path(
            X, y, groups, lams, **options
        )

    condensed = both()
    monkeypatch.setattr(_linear_data, "is_tall", lambda *_: False)
    direct = both()
    for ours, theirs in zip(condensed, direct, strict=True):
        assert torch.equal(ours.active, theirs.active)
        torch.testing.assert_close(ours.objective, theirs.objective, rtol=1e-8, atol=0)
        torch.testing.assert_close(ours.coef, theirs.coef, rtol=1e-4, atol=1e-6)
    assert float((condensed[0].gap / condensed[0].objective).max()) <= 1e-10


def test_condensed_rows_have_the_same_moments(monkeypatch):
    monkeypatch.setattr(_condense, "BLOCK", 200)
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(300, 5, generator=generator, dtype=torch.float64) * 10.0 ** torch.arange(-3, 2) + 1e5
    y = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    share = torch.rand(300, 1, generator=generator, dtype=torch.float64)
    share[:40] = 0  # more than a block
    share /= share.sum()
    columns, target = condense(X, y, share)
    assert columns.shape == (8, 5)
    assert target.shape == (8, 2)
    before, after = torch.cat([X, y], 1), torch.cat([columns, target], 1)
    torch.testing.assert_close(after.mean(0), (share * before).sum(0), rtol=1e-12, atol=1e-12)
    centred, few = before - (share * before).sum(0), after - after.mean(0)
    sizes = (share * centred.square()).sum(0).sqrt()
    wide, narrow = centred / sizes, few / sizes
    torch.testing.assert_close(narrow.T @ narrow / 8, (share * wide).T @ wide, rtol=0, atol=1e-7)


@pytest.mark.parametrize("depth", [2, 3])
def test_tall_tables_are_read_in_blocks(tmp_path, monkeypatch, depth):
    X, y, groups, *_ = problem("squared", 5, 500, [2, 3, 1])
    file = np.memmap(tmp_path / "X", np.float32, "w+", shape=(500, 6))
    file[:] = X.numpy()
    table = np.memmap(tmp_path / "X", np.float32, "r", shape=(500, 6))
    sizes = []

    def recorded(value, name, like):
        sizes.append(value.size)
        return _condense_tensor(value, name, like)

    _condense_tensor = _condense.tensor
    solver = group_lasso_path if depth == 2 else group_bridge_path
    expected = solver(X.float().numpy(), y, groups, [0.1])
    monkeypatch.setattr(_condense, "tensor", recorded)
    monkeypatch.setattr(_condense, "BLOCK", 700)
    found = solver(table, y, groups, [0.1])
    assert sum(sizes) == 3000
    assert max(sizes) <= 700
    torch.testing.assert_close(found.coef, expected.coef, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match=r"X\[300:400\]: expected finite numbers, received 1 of 600"):
        solver(np.where(np.arange(500)[:, None] == 321, [[math.nan] + [0.0] * 5], X.numpy()), y, groups, [0.1])


@pytest.mark.parametrize("solver", [group_lasso_path, group_bridge_path])
def test_a_large_mean_of_the_targets_changes_nothing(solver):
    X, y, groups, rows, _ = problem("squared", 12, 60, [2, 3, 1], 2)
    lams = strengths(X, y, groups, 2)
    near, far = (solver(X, y + shift, groups, lams, sample_weight=rows) for shift in (0.0, 1e6))
    torch.testing.assert_close(far.coef, near.coef, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(far.intercept - 1e6, near.intercept, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(far.objective, near.objective, rtol=1e-8, atol=0)
    start = (far.coef[0], far.intercept[0])
    assert int(solver(X, y + 1e6, groups, lams[:1], sample_weight=rows, start=start).n_iter[0]) == 0


@pytest.mark.parametrize("loss", ["squared", "logistic", "multinomial"])
def test_weights_of_rows_are_repetitions(loss):
    X, y, groups, *_ = problem(loss, 6, 25, [2, 1, 3], 3)
    times = torch.arange(25) % 4
    times[:3] = 1
    lams = strengths(X, y, groups, 3, loss=loss)
    weighted = group_bridge_path(X, y, groups, lams, loss=loss, sample_weight=times)
    repeated = group_bridge_path(X.repeat_interleave(times, 0), y.repeat_interleave(times, 0), groups, lams, loss=loss)
    assert torch.equal(weighted.active, repeated.active)
    torch.testing.assert_close(weighted.objective, repeated.objective, rtol=1e-9, atol=0)


@pytest.mark.parametrize("loss", ["squared", "logistic", "multinomial"])
def test_many_columns_and_no_newton(monkeypatch, loss):
    X, y, groups, *_ = problem(loss, 7, 60, [3] * 40, 3)
    lams = strengths(X, y, groups, 3, [0.2, 0.5], loss=loss)
    path = group_bridge_path(X, y, groups, lams, loss=loss)
    assert path.solver.endswith("+newton")
    assert 0 < int(path.active[1].sum()) < 20
    monkeypatch.setattr("dgating.linear._solve_group_lasso.NEWTON_SIZE", 0)
    slow = group_bridge_path(X, y, groups, lams, loss=loss)
    assert not slow.solver.endswith("+newton")
    torch.testing.assert_close(slow.objective, path.objective, rtol=0.05, atol=0)  # both local minima


def test_order_start_determinism_and_kinds_of_input():
    X, y, groups, *_ = problem("squared", 8, 30, [2, 2, 3])
    up = group_bridge_path(X, y, groups, [0.02, 0.1, 0.5], depth=4)
    down = group_bridge_path(X.numpy(), y.tolist(), groups.tolist(), np.array([0.5, 0.1, 0.02]), depth=4)
    for name in ("lams", "coef", "intercept", "active", "objective", "residual", "n_iter"):
        assert torch.equal(getattr(up, name), getattr(down, name).flip(0))
    assert up.depth == 4
    assert up.coef.shape == (3, 7, 1)
    again = group_bridge_path(X, y, groups, [0.1], depth=4, start=(up.coef[1], up.intercept[1]))
    assert int(again.n_iter[0]) == 0
    torch.testing.assert_close(again.coef[0], up.coef[1])


def test_degenerate_data():
    zeros, y = torch.zeros(10, 3, dtype=torch.float64), torch.arange(10.0)
    path = group_bridge_path(zeros, y, [0, 0, 1], [1.0, 0.0])
    assert not bool(path.coef.any())
    torch.testing.assert_close(path.intercept, torch.full((2, 1), 4.5, dtype=torch.float64))
    path = group_bridge_path(torch.randn(10, 3), torch.full((10,), 7.0), [0, 0, 1], [0.0, 0.1])
    assert float(path.coef.abs().max()) < 1e-12
    assert not bool(path.active[1].any())
    X, y, *_ = problem("squared", 9, 30, [3])
    path = group_bridge_path(X, y, [-1, -1, -1], [0.1])
    wide = torch.cat([X, torch.ones(30, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(wide, y.unsqueeze(1)).solution
    torch.testing.assert_close(torch.cat([path.coef[0], path.intercept]), expected)


@pytest.mark.parametrize("depth", [3, 4, 7])
def test_largest_strength_of_one_column(depth):
    """At the largest λ the stationarity condition stops having a solution."""
    X, y, groups, *_ = problem("squared", 10, 30, [1])
    lam, q = lam_max_linear(X, y, groups, depth=depth), 2 / depth
    x, t = X[:, 0] - X.mean(), y - y.mean()
    slope, height = abs(float(x @ t)) / 30, float(x @ x) / 30
    r = np.linspace(1e-9, slope / height, 200_001)
    assert lam == pytest.approx(float(((slope - height * r) * r ** (1 - q) / q).max()), rel=1e-6)
    path = group_bridge_path(X, y, groups, [lam * 1.001], depth=depth)
    assert not bool(path.active.any())
    halved = lam_max_linear(X, y, groups, depth=depth, weights=[2.0])
    assert halved == pytest.approx(lam / 2, rel=1e-12)


@pytest.mark.parametrize("depth", [1, 2.5, True])
def test_largest_strength_refuses_depths(depth):
    with pytest.raises((TypeError, ValueError), match="depth: expected a whole number >= 2"):
        lam_max_linear(GOOD_X, GOOD_Y, [0, 0, 1, 1], depth=depth)


def test_too_few_steps_warn():
    X, y, groups, *_ = problem("logistic", 11, 60, [2] * 10)
    with pytest.warns(RuntimeWarning, match="residual .* raise max_iter"):
        path = group_bridge_path(X, y, groups, [1e-4], loss="logistic", max_iter=1)
    assert float(path.residual[0]) > 1e-7


MORE_BAD = {f"depth {d!r}": ({"depth": d}, ValueError, "depth: expected a whole number >= 3") for d in (2, 3.0, True)}


@pytest.mark.parametrize("case", [*BAD, *MORE_BAD])
def test_bad_input_says_what_was_expected(case):
    changed, error, message = (BAD | MORE_BAD)[case]
    arguments = {"X": GOOD_X, "y": GOOD_Y, "groups": [0, 0, 1, 1], "lams": [0.1], **changed}
    with pytest.raises(error, match=message):
        group_bridge_path(**arguments)
