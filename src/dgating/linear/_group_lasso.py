r"""Regularization path of linear models with a group lasso penalty: the convex case D = 2, solved to a duality gap."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgating._checks import check_depth
from dgating.linear._checks import Array, solver_options
from dgating.linear._data import LossName, prepare
from dgating.linear._solve_group_lasso import solve
from dgating.maths import largest_lam


@dataclass(frozen=True)
class GroupLassoPath:
    """Result of :func:`group_lasso_path`; ``L`` strengths, ``p`` columns, ``k`` outputs, ``J`` groups, all float64.

    Attributes:
        lams: ``(L,)`` strengths λ, in the order given.
        coef: ``(L, p, k)`` coefficients; ``k = 1`` for one target and for the logistic loss.
        intercept: ``(L, k)``, zeros without intercept.
        active: ``(L, J)`` whether the group has a non-zero coefficient.
        objective: ``(L,)`` penalised objective.
        gap: ``(L,)`` duality gap: the objective is at most this far above the optimum (see the note there).
        n_iter: ``(L,)`` steps, proximal and Newton.
        seconds: time of the whole path.
        solver: ``"fista-gram"`` or ``"fista"``, and ``"+newton"`` where Newton steps were taken.
    """

    lams: Tensor
    coef: Tensor
    intercept: Tensor
    active: Tensor
    objective: Tensor
    gap: Tensor
    n_iter: Tensor
    seconds: float
    solver: str


def group_lasso_path(
    X: Array,
    y: Array,
    groups: Array | Sequence[int],
    lams: Array | Sequence[float],
    *,
    loss: LossName = "squared",
    fit_intercept: bool = True,
    sample_weight: Array | Sequence[float] | None = None,
    weights: Array | Sequence[float] | None = None,
    tol: float = 1e-7,
    max_iter: int = 20_000,
    start: tuple[Array, Array] | None = None,
) -> GroupLassoPath:
    r"""Solve the group lasso for every λ, each from the solution of the next larger one.

    .. math:: \min_{W, b}\; \sum_i a_i\, \ell(y_i,\; W^\top x_i + b) + \lambda \sum_j c_j \|W_j\|_F,
        \qquad a_i = s_i / \textstyle\sum_l s_l,

    with sample weights :math:`s`, group weights :math:`c` and, for ``loss=``

    * ``"squared"``: :math:`\ell = \frac12 \|y_i - \eta_i\|_2^2`, so **half** the mean squared error, summed over
      several targets;
    * ``"logistic"``: the log loss of one logit, for classes 0 and 1;
    * ``"multinomial"``: the log loss of ``k`` logits, for classes ``0 .. k - 1``.

    A group spans the rows :math:`W_j` of its columns, all outputs of them. There are no factors :math:`\sqrt{p_j}`
    unless ``weights`` brings them. The intercept is never penalised. Proximal gradient steps and Newton steps on the
    support take turns; groups that the sequential strong rule discards are checked afterwards.

    Args:
        X: ``(n, p)`` dense real features.
        y: ``(n,)`` or ``(n, k)`` targets, or ``(n,)`` integer classes.
        groups: ``(p,)`` integer group of each column; ``-1`` unpenalised.
        lams: strengths λ, ``>= 0``, in any order.
        loss: see above.
        fit_intercept: whether there is a ``b``.
        sample_weight: ``(n,)`` row weights ``>= 0``; ones by default.
        weights: ``(J,)`` factors ``c_j >= 0`` of the groups, 0 for an unpenalised one; ones by default.
        tol: stop at a duality gap of ``tol`` times the objective at this λ.
        max_iter: give up after so many steps at one λ, with a ``RuntimeWarning`` that names the gap.
        start: ``coef (p, k)`` and ``intercept (k,)`` to begin with; the null model by default.

    Returns:
        A :class:`GroupLassoPath`, on the device of ``X``.

    Raises:
        TypeError: labels that are not integers, complex or sparse ``X``.
        ValueError: shapes that do not fit, values that are not finite, negative weights or λ, an unknown loss, classes
            without rows.

    Example:
        >>> import torch
        >>> X = torch.eye(4, dtype=torch.float64) * 2; y = torch.tensor([4., 3., .1, .1])
        >>> path = group_lasso_path(X, y, [0, 0, 1, 1], [9.0, 0.5], fit_intercept=False)
        >>> path.coef[1, :, 0].round(decimals=4).tolist(), path.active.tolist()
        ([1.6, 1.2, 0.0, 0.0], [[False, False], [True, False]])

    Note:
        The gap is a bound if no column is free, and for the squared loss with an intercept. Free columns otherwise add
        an estimate of what their own gradient is worth, of the order of rounding once Newton steps were taken.

    Reference: Yuan and Lin 2006; FISTA, Beck and Teboulle 2009; strong rules, Tibshirani et al. 2012.
    """
    began = time.perf_counter()
    strengths = solver_options(lams, tol, max_iter, 2, 2)
    data = prepare(X, y, groups, loss, fit_intercept, sample_weight, weights)
    strengths = strengths.to(data.base.X.device)
    w, at_null, lam_max = data.null()
    floor = data.rounding
    gradients, previous = at_null.gradients, lam_max
    if start is not None:
        w = data.inside(start)
        gradients, previous = data.problem(1.0).state(w).gradients, 0.0
    length, (p, k), used_newton = len(strengths), data.shape, False
    coef, intercept, numbers = w.new_zeros(length, p, k), w.new_zeros(length, k), w.new_zeros(length, 3)
    for i in strengths.argsort(descending=True).tolist():
        lam = float(strengths[i])
        problem = data.problem(lam)
        # strong rule: a gradient moves by at most about the change of λ. A start of unknown λ brings what it violates
        bound = data.factors * (2 * lam - previous if previous else lam)
        keep = (gradients >= bound) | (problem.norms(w) > 0) | (problem.strengths == 0)
        steps = 0
        while True:
            part, places = problem.part(keep)
            v, _, proximal, newton = solve(part, w[places], tol, floor, max_iter - steps)
            steps, used_newton = steps + proximal + newton, used_newton or newton > 0
            w = torch.zeros_like(w).index_copy_(0, places, v)
            state = problem.state(w)
            wrong = ~keep & (state.gradients > problem.strengths)
            if state.gap <= max(tol * state.objective, floor) or steps >= max_iter or not bool(wrong.any()):
                break
            keep |= wrong
        if state.gap > max(tol * state.objective, floor):
            warnings.warn(
                f"group_lasso_path: at lam = {lam:g} the duality gap is {state.gap:.1e} of an objective of "
                f"{state.objective:.3g} after {steps} steps, expected a share of {tol:g}: raise max_iter or tol.",
                RuntimeWarning,
                stacklevel=2,
            )
        gradients, previous = state.gradients, min(lam, lam_max)
        coef[i], intercept[i] = data.outside(w)
        numbers[i] = numbers.new_tensor([state.objective, state.gap, steps])
    return GroupLassoPath(
        lams=strengths,
        coef=coef,
        intercept=intercept,
        active=data.active(coef),
        objective=numbers[:, 0],
        gap=numbers[:, 1],
        n_iter=numbers[:, 2].long(),
        seconds=time.perf_counter() - began,
        solver=("fista" if data.base.gram is None else "fista-gram") + ("+newton" if used_newton else ""),
    )


def lam_max_linear(
    X: Array,
    y: Array,
    groups: Array | Sequence[int],
    *,
    loss: LossName = "squared",
    fit_intercept: bool = True,
    sample_weight: Array | Sequence[float] | None = None,
    weights: Array | Sequence[float] | None = None,
    depth: int = 2,
) -> float:
    r"""The smallest λ at which every penalised group is zero (for ``depth >= 3``: an estimate of it).

    .. math:: \lambda_{\max} = \max_{j: c_j > 0} \|\nabla_j\|_F / c_j,

    the gradient taken at the null model: intercept and unpenalised columns fitted, all else zero. For ``D >= 3`` the
    estimate is that of :func:`lam_max`: the largest λ at which some group alone, along its gradient, is not zero,

    .. math:: \lambda_j = \frac{D}{2 c_j}\, r_j^{1-2/D} (\|\nabla_j\|_F - h_j r_j), \qquad
              r_j = \frac{\|\nabla_j\|_F}{h_j} \cdot \frac{1-2/D}{2-2/D},

    with the curvature :math:`h_j` of the loss in that direction, exact for the squared loss; for the others it is
    bounded by that of a row (1/4 and 1/2). Orthonormal groups are zero above it; in general a few may stay.

    Args:
        X: as in :func:`group_lasso_path`, like all other arguments.
        y: targets.
        groups: group of each column.
        loss: which loss.
        fit_intercept: whether there is an intercept.
        sample_weight: row weights.
        weights: group weights.
        depth: ``D >= 2``.

    Returns:
        λ, or zero where no group is penalised.

    Raises:
        TypeError: as :func:`group_lasso_path`.
        ValueError: as :func:`group_lasso_path`, or ``depth < 2``.

    Example:
        >>> import torch
        >>> lam_max_linear(torch.eye(2, dtype=torch.float64), torch.tensor([3.0, 4.0]), [0, 0], fit_intercept=False)
        2.5
    """
    check_depth(depth)
    data = prepare(X, y, groups, loss, fit_intercept, sample_weight, weights)
    w, state, convex = data.null()
    if depth == 2 or convex == 0:
        return convex
    curvatures = data.base.curvatures(data.base.gradient(w))
    penalised = data.factors > 0
    lams = largest_lam(state.gradients[penalised], curvatures[penalised], depth) / data.factors[penalised]
    return float(lams.max())
