"""Group lasso paths against plain proximal gradient, optimality conditions by autograd, and closed cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import dgating as dg
from dgating.linear._group_lasso import group_lasso_path, lam_max_linear

LOSSES = ["squared", "logistic", "multinomial"]


def mean_loss(loss, eta, y, rows):
    """The data term from torch's own losses."""
    share = rows / rows.sum()
    if loss == "squared":
        return 0.5 * (share * F.mse_loss(eta, y.reshape(len(y), -1), reduction="none").sum(1)).sum()
    if loss == "logistic":
        return (share * F.binary_cross_entropy_with_logits(eta[:, 0], y, reduction="none")).sum()
    return (share * F.cross_entropy(eta, y.long(), reduction="none")).sum()


def gradients(loss, X, y, rows, coef, intercept):
    """Value of the data term and its gradients in coefficients and intercept."""
    coef, intercept = coef.clone().requires_grad_(), intercept.clone().requires_grad_()
    value = mean_loss(loss, X @ coef + intercept, y, rows)
    slope, level = torch.autograd.grad(value, [coef, intercept])
    return value.detach(), slope, level


def members(groups):
    return [(groups == j).nonzero()[:, 0] for j in range(int(groups.max()) + 1)]


def penalised(loss, X, y, rows, coef, intercept, groups, lam, weights):
    norms = torch.stack([coef[m].norm() for m in members(groups)])
    return float(mean_loss(loss, X @ coef + intercept, y, rows) + lam * (weights * norms).sum())


def slow(loss, X, y, groups, lam, *, rows, weights, fit_intercept=True, steps=200_000):
    """Plain proximal gradient, a loop over groups, until a step is shorter than 1e-12."""
    k = {"squared": 1 if y.ndim == 1 else y.shape[1], "logistic": 1, "multinomial": int(y.max()) + 1}[loss]
    coef, intercept = torch.zeros(X.shape[1], k).to(X), torch.zeros(k).to(X)
    wide = torch.cat([X, torch.ones(len(X), 1).to(X)], 1)
    step = 1 / float(torch.linalg.eigvalsh(wide.T @ (wide * (rows / rows.sum()).unsqueeze(1)))[-1])
    for _ in range(steps):
        _, slope, level = gradients(loss, X, y, rows, coef, intercept)
        new = coef - step * slope
        for j, m in enumerate(members(groups)):
            size = float(new[m].norm())
            new[m] *= max(0.0, 1 - step * lam * float(weights[j]) / size) if size else 0.0
        moved = float((new - coef).norm()) + (float(level.norm()) * step if fit_intercept else 0.0)
        coef, intercept = new, intercept - step * level if fit_intercept else intercept
        if moved < 1e-12:
            break
    return coef, intercept


def problem(loss, seed, n, sizes, k=1, scale=1.0):
    """Random data with groups of the given sizes, in shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=generator)]
    X = scale * torch.randn(n, len(groups), generator=generator, dtype=torch.float64) + 0.5
    eta = X @ torch.randn(len(groups), max(k, 1), generator=generator, dtype=torch.float64)
    eta = eta + torch.randn(eta.shape, generator=generator, dtype=torch.float64)
    if loss == "squared":
        y = eta if k > 1 else eta[:, 0]
    elif loss == "logistic":
        y = (eta[:, 0] > eta[:, 0].median()).double()
    else:
        y = eta.argmax(1)
        y[:k] = torch.arange(k)  # every class has a row
    rows = torch.rand(n, generator=generator, dtype=torch.float64) + 0.1
    weights = torch.rand(len(sizes), generator=generator, dtype=torch.float64) + 0.5
    return X, y, groups, rows, weights


@pytest.mark.parametrize(("loss", "k"), [("squared", 1), ("squared", 3), ("logistic", 1), ("multinomial", 3)])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_agrees_with_plain_proximal_gradient(loss, k, share):
    X, y, groups, rows, weights = problem(loss, 0, 40, [1, 2, 3, 1], k, scale=1.5)
    lam = share * lam_max_linear(X, y, groups, loss=loss, sample_weight=rows, weights=weights)
    path = group_lasso_path(X, y, groups, [lam], loss=loss, sample_weight=rows, weights=weights, tol=1e-11)
    coef, intercept = slow(loss, X, y, groups, lam, rows=rows, weights=weights, steps=20_000)
    best = penalised(loss, X, y, rows, coef, intercept, groups, lam, weights)
    assert float(path.objective[0]) == pytest.approx(best, rel=1e-9)
    torch.testing.assert_close(path.coef[0], coef, rtol=1e-4, atol=1e-5)
    if loss != "multinomial":  # a common shift of all classes changes nothing
        torch.testing.assert_close(path.intercept[0], intercept, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(
    loss=st.sampled_from(LOSSES),
    seed=st.integers(0, 10_000),
    n=st.integers(8, 40),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    k=st.integers(2, 4),
    fit_intercept=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    free=st.booleans(),
)
def test_kkt_conditions_hold(loss, seed, n, sizes, k, fit_intercept, scale, free):
    X, y, groups, rows, weights = problem(loss, seed, n, sizes, k if loss != "logistic" else 1, scale)
    if free and loss == "squared" and len(sizes) > 1:
        weights[0] = 0
    options = {"loss": loss, "fit_intercept": fit_intercept, "sample_weight": rows, "weights": weights}
    largest = lam_max_linear(X, y, groups, **options)
    lams = largest * np.array([2.0, 0.6, 0.1, 0.01])
    path = group_lasso_path(X, y, groups, lams, tol=1e-9, **options)
    assert bool((path.gap <= 1e-9 * path.objective + 1e-13 * path.objective[0]).all())
    for i, lam in enumerate(lams):
        coef, intercept = path.coef[i], path.intercept[i]
        value, slope, level = gradients(loss, X, y, rows, coef, intercept)
        # a gap of g leaves gradients of order sqrt(g): what is compared is small against lam, not against rounding
        slack = 2e-3 * lam * float(weights.max())
        for j, m in enumerate(members(groups)):
            size, pull = float(coef[m].norm()), lam * weights[j]
            assert bool(path.active[i, j]) == (size > 0)
            if size > 0 or weights[j] == 0:
                direction = coef[m] / max(size, 1e-300)
                assert float((slope[m] + pull * direction).norm()) <= slack
            else:
                assert float(slope[m].norm()) <= pull + slack
        norms = torch.stack([coef[m].norm() for m in members(groups)])
        assert float(path.objective[i]) == pytest.approx(float(value + lam * (weights * norms).sum()), rel=1e-9)
        if fit_intercept:
            assert float(level.norm()) <= slack / scale + 1e-7
        else:
            assert not bool(intercept.any())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("free", [None, "weight", "label"])
def test_lam_max_is_the_edge(loss, fit_intercept, free):
    X, y, groups, rows, weights = problem(loss, 3, 50, [2, 1, 4, 3], 3, scale=0.5)
    if free == "weight":
        weights[1] = 0
    if free == "label":
        groups[groups == 1] = -1
    options = {"loss": loss, "fit_intercept": fit_intercept, "sample_weight": rows, "weights": weights}
    edge = lam_max_linear(X, y, groups, **options)
    # just below the edge the zero model is nearly optimal: only a tight gap tells them apart
    path = group_lasso_path(X, y, groups, [edge * 1.5, edge, edge * (1 - 1e-3)], tol=1e-11, **options)
    penalised_groups = torch.tensor([0, 2, 3] if free else [0, 1, 2, 3])
    columns = torch.isin(groups, penalised_groups)
    assert not bool(path.coef[:2, columns].any())
    assert bool(path.active[2, penalised_groups].any())
    if free:
        assert bool(path.coef[:, ~columns].any(2).any(1).all())


def test_lam_max_closed_forms():
    X, y, groups, *_ = problem("squared", 1, 30, [2, 2, 3])
    slope = (X - X.mean(0)).T @ y / 30
    expected = max(float(slope[m].norm()) for m in members(groups))
    assert lam_max_linear(X, y, groups) == pytest.approx(expected, rel=1e-12)
    assert lam_max_linear(X, y, torch.full_like(groups, -1)) == 0


def test_zero_strength_is_least_squares():
    X, y, groups, *_ = problem("squared", 2, 30, [2, 2, 3])
    path = group_lasso_path(X, y, groups, [0.0])
    wide = torch.cat([X, torch.ones(30, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(wide, y.unsqueeze(1)).solution
    torch.testing.assert_close(torch.cat([path.coef[0], path.intercept]), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_rows_are_repetitions(loss):
    X, y, groups, *_ = problem(loss, 4, 25, [2, 1, 3], 3)
    times = torch.arange(25) % 4
    times[:3] = 1
    lams = [0.1, 0.01]
    weighted = group_lasso_path(X, y, groups, lams, loss=loss, sample_weight=times, tol=1e-12)
    X, y = X.repeat_interleave(times, 0), y.repeat_interleave(times, 0)
    repeated = group_lasso_path(X, y, groups, lams, loss=loss, tol=1e-12)
    torch.testing.assert_close(weighted.objective, repeated.objective, rtol=1e-10, atol=0)
    torch.testing.assert_close(weighted.coef, repeated.coef, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gap_bounds_the_distance_from_the_optimum(loss):
    X, y, groups, *_ = problem(loss, 5, 60, [2] * 10, 3)
    lams = lam_max_linear(X, y, groups, loss=loss) * np.logspace(0, -2, 8)
    loose = group_lasso_path(X, y, groups, lams, loss=loss, tol=0.05)
    tight = group_lasso_path(X, y, groups, lams, loss=loss, tol=1e-11)
    excess = loose.objective - tight.objective
    assert float((excess / tight.objective).max()) > 1e-6  # there is something to bound
    assert bool((excess <= loose.gap + 1e-12).all())
    assert bool((loose.gap <= 0.05 * loose.objective).all())


@pytest.mark.parametrize("loss", LOSSES)
def test_many_columns(loss):
    """Strong rule and working sets: the solution of the whole problem, whatever was discarded."""
    X, y, groups, *_ = problem(loss, 6, 40, [3] * 100, 3)
    lams = lam_max_linear(X, y, groups, loss=loss) * np.logspace(0, -2, 10)
    path = group_lasso_path(X, y, groups, lams, loss=loss)
    assert bool((path.gap <= 1e-7 * path.objective).all())
    assert int(path.active[-1].sum()) < 60
    one = group_lasso_path(X, y, groups, [lams[-1]], loss=loss)  # without the path before it
    assert float(one.objective[0]) == pytest.approx(float(path.objective[-1]), rel=2e-7)


def test_the_paper_simulation():
    """Section 9.2 in small, against the oracle of gated training at every strength."""
    rng = np.random.default_rng(0)
    X, w = rng.standard_normal((80, 80)), np.zeros(80)
    w[:15] = rng.standard_normal(15)
    y, groups = X @ w + rng.standard_normal(80), np.arange(80) // 5
    lams = np.logspace(math.log10(15), -3, 12)
    path = group_lasso_path(X, y, groups, lams, fit_intercept=False)
    assert path.solver == "fista-gram+newton"
    x, target, labels = torch.tensor(X), torch.tensor(y), torch.tensor(groups)
    init = None
    for i, lam in enumerate(lams):
        reference = dg.proximal_gradient(x, target, labels, float(lam), init=init, tol=1e-10)
        init = reference.coef
        assert float(path.objective[i]) <= reference.objective * (1 + 1e-6)


@pytest.mark.parametrize("penalty", [0.3, 0.02])
def test_logistic_lasso_of_scikit_learn(penalty):
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y, groups, *_ = problem("logistic", 7, 80, [1] * 12, scale=0.5)
    lam = penalty * lam_max_linear(X, y, groups, loss="logistic")
    path = group_lasso_path(X, y, groups, [lam], loss="logistic", tol=1e-11)
    theirs = linear_model.LogisticRegression(
        l1_ratio=1, C=1 / (len(y) * lam), solver="saga", tol=1e-11, max_iter=100_000, random_state=0
    ).fit(X.numpy(), y.numpy())
    np.testing.assert_allclose(path.coef[0, :, 0], theirs.coef_[0], atol=1e-5)
    np.testing.assert_allclose(path.intercept[0], theirs.intercept_, atol=1e-5)


def test_order_of_strengths_and_kind_of_input():
    X, y, groups, *_ = problem("squared", 8, 30, [2, 2, 3])
    down = group_lasso_path(X, y, groups, [0.5, 0.1, 0.02])
    up = group_lasso_path(X.numpy(), y.numpy().tolist(), groups.tolist(), np.array([0.02, 0.1, 0.5]))
    assert torch.equal(up.lams, down.lams.flip(0))
    for name in ("coef", "intercept", "active", "objective", "gap", "n_iter"):
        assert torch.equal(getattr(up, name), getattr(down, name).flip(0))
    assert up.coef.shape == (3, 7, 1)
    assert up.intercept.shape == (3, 1)
    assert up.active.shape == (3, 3)
    assert up.coef.dtype == torch.float64


def test_inputs_stay_as_they_were():
    X, y, groups, rows, weights = problem("squared", 8, 30, [2, 2, 3])
    given_ = (X, y, groups, rows, weights)
    before = [t.clone() for t in given_]
    group_lasso_path(X, y, groups, [0.1], sample_weight=rows, weights=weights)
    assert all(torch.equal(a, b) for a, b in zip(given_, before, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_start_at_the_solution_takes_no_steps(loss, fit_intercept):
    X, y, groups, *_ = problem(loss, 9, 40, [2, 2, 3], 3)
    lam = 0.1 * lam_max_linear(X, y, groups, loss=loss, fit_intercept=fit_intercept)
    first = group_lasso_path(X, y, groups, [lam], loss=loss, fit_intercept=fit_intercept)
    assert int(first.n_iter[0]) > 0
    start = (first.coef[0], first.intercept[0])
    again = group_lasso_path(X, y, groups, [lam], loss=loss, fit_intercept=fit_intercept, start=start)
    assert int(again.n_iter[0]) == 0
    torch.testing.assert_close(again.coef, first.coef)


def test_degenerate_data():
    zeros, y = torch.zeros(10, 3, dtype=torch.float64), torch.arange(10.0)
    path = group_lasso_path(zeros, y, [0, 0, 1], [1.0, 0.0])
    assert not bool(path.coef.any())
    torch.testing.assert_close(path.intercept, torch.full((2, 1), 4.5, dtype=torch.float64))
    path = group_lasso_path(torch.ones(10, 3), torch.zeros(10), [0, 0, 2], [0.1])  # group 1 has no column
    assert path.active.tolist() == [[False, False, False]]
    assert float(path.objective[0]) == 0


def test_large_groups_go_without_newton(monkeypatch):
    monkeypatch.setattr("dgating.linear._solve_group_lasso.NEWTON_SIZE", 0)
    X, y, groups, *_ = problem("squared", 10, 60, [2] * 10)
    path = group_lasso_path(X, y, groups, [0.5, 0.1])
    assert path.solver == "fista-gram"
    assert bool((path.gap <= 1e-7 * path.objective).all())


def test_too_few_steps_warn():
    X, y, groups, *_ = problem("logistic", 11, 60, [2] * 10)
    with pytest.warns(RuntimeWarning, match="duality gap .* raise max_iter"):
        path = group_lasso_path(X, y, groups, [1e-4], loss="logistic", max_iter=1)
    assert float(path.gap[0]) > 1e-7 * float(path.objective[0])


GOOD_X, GOOD_Y = torch.eye(4, dtype=torch.float64), torch.tensor([0.0, 1.0, 0.0, 1.0])
BAD = {
    "X is a vector": ({"X": torch.ones(4)}, ValueError, r"X: expected a matrix.*received shape \(4,\)"),
    "X has no rows": ({"X": torch.ones(0, 4)}, ValueError, r"X: expected a matrix"),
    "X has NaN": ({"X": GOOD_X / 0}, ValueError, "X: expected finite numbers, received 16 of 16"),
    "X is complex": ({"X": GOOD_X + 0j}, TypeError, "X: expected real numbers, received torch.complex128"),
    "X is sparse": ({"X": GOOD_X.to_sparse()}, TypeError, "X: expected a dense tensor.*to_dense"),
    "y too short": ({"y": torch.ones(3)}, ValueError, r"y: expected shape \(4,\) or \(4, k\), received \(3,\)"),
    "y has NaN": ({"y": GOOD_Y * math.nan}, ValueError, "y: expected finite"),
    "labels too short": ({"groups": [0, 1]}, ValueError, r"labels: expected shape \(4,\).*received \(2,\)"),
    "labels are floats": ({"groups": [0.0, 1.0, 0.0, 1.0]}, TypeError, "labels: expected integers"),
    "labels below -1": ({"groups": [0, 1, -2, 0]}, ValueError, "groups: expected labels >= -1, received -2"),
    "no lams": ({"lams": []}, ValueError, "lams: expected at least one number"),
    "negative lam": ({"lams": [1.0, -1.0]}, ValueError, "lams: .* >= 0, received"),
    "infinite lam": ({"lams": [math.inf]}, ValueError, "lams: expected finite"),
    "lam without list": ({"lams": 0.1}, ValueError, "lams: expected one dimension"),
    "unknown loss": ({"loss": "hinge"}, ValueError, r"loss: expected one of \['logistic'.*received 'hinge'"),
    "negative weights": ({"weights": [1.0, -1.0]}, ValueError, "weights: expected numbers >= 0, received .* -1.0"),
    "weights too short": ({"weights": [1.0]}, ValueError, r"weights: expected shape \(2,\), one a group"),
    "negative rows": ({"sample_weight": [1, 1, 1, -1]}, ValueError, "sample_weight: expected numbers >= 0"),
    "no rows count": ({"sample_weight": [0, 0, 0, 0]}, ValueError, "sample_weight: expected a positive sum"),
    "rows too short": ({"sample_weight": [1, 1]}, ValueError, r"sample_weight: expected shape \(4,\), one a row"),
    "tol": ({"tol": 0.0}, ValueError, r"tol: expected a number in \(0, 1\), received 0.0"),
    "max_iter": ({"max_iter": 0}, ValueError, "max_iter: expected a whole number >= 1, received 0"),
    "start": ({"start": (torch.zeros(3, 1), torch.zeros(1))}, ValueError, r"start: expected coefficients \(4, 1\)"),
    "classes of two columns": ({"loss": "logistic", "y": GOOD_X}, ValueError, r"y: expected classes of shape \(4,\)"),
    "classes -1 and 1": ({"loss": "logistic", "y": 2 * GOOD_Y - 1}, ValueError, "classes 0 and 1 .* from -1 to 1"),
    "three classes": ({"loss": "logistic", "y": torch.tensor([0, 1, 2, 1])}, ValueError, "classes 0 and 1"),
    "class of a half": ({"loss": "multinomial", "y": GOOD_Y / 2}, ValueError, "classes 0 .. k - 1"),
    "class without rows": ({"loss": "multinomial", "y": 2 * GOOD_Y}, ValueError, r"every class, .* none for \[1\]"),
    "one class": ({"loss": "logistic", "y": 0 * GOOD_Y}, ValueError, r"every class, .* none for \[1\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_was_expected(case):
    changed, error, message = BAD[case]
    arguments = {"X": GOOD_X, "y": GOOD_Y, "groups": [0, 0, 1, 1], "lams": [0.1], **changed}
    with pytest.raises(error, match=message):
        group_lasso_path(**arguments)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 1.0, 0.5, 1.0, 1.0]])
def test_only_groups_that_the_strong_rule_keeps_are_solved_for(weights, monkeypatch):
    """|g_j| >= c_j (2 lam - before), by hand on orthonormal columns, where gradients are known."""
    from dgating.linear import _group_lasso as module

    p = 6
    X = torch.eye(p, dtype=torch.float64) * p**0.5  # X'X / n = 1
    g = torch.tensor([6.0, 5.0, 4.0, 3.0, 1.0, 0.5], dtype=torch.float64)  # X'y / n
    c = torch.ones(p).double() if weights is None else torch.tensor(weights).double()
    lams = [5.6, 4.7, 3.2, 2.0]
    asked = []  # the last group of every problem is the free space, which is empty here
    solve = module.solve
    monkeypatch.setattr(module, "solve", lambda part, *a: asked.append(len(part.strengths) - 1) or solve(part, *a))
    options = {"fit_intercept": False, "weights": weights}
    found = group_lasso_path(X, g * p**0.5, list(range(p)), lams, **options)
    before, expected, gradients, alive = float((g / c).max()), [], g.clone(), torch.zeros(p, dtype=torch.bool)
    for lam in lams:
        keep = (gradients >= c * (2 * lam - before)) | alive
        while True:
            expected.append(int(keep.sum()))
            alive = keep & (g > lam * c)
            gradients = torch.where(alive, lam * c, g)
            wrong = ~keep & (g > lam * c)
            if not bool(wrong.any()):
                break
            keep |= wrong
        before = lam
    assert asked == expected
    assert min(asked) < p
    assert found.active.tolist() == [(g > lam * c).tolist() for lam in lams]
