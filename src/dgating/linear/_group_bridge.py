r"""Regularization path of linear models with a group bridge penalty: the non-convex cases D >= 3."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgating.linear._checks import Array, solver_options
from dgating.linear._data import LinearData, LossName, prepare
from dgating.linear._solve_group_bridge import solve_bridge
from dgating.linear._solve_group_lasso import solve

# of the group lasso that the path begins with: a rough one will do
START_SHARE, START_TOL, START_STEPS = 0.1, 1e-3, 500


@dataclass(frozen=True)
class GroupBridgePath:
    """Result of :func:`group_bridge_path`; ``L`` strengths, ``p`` columns, ``k`` outputs, ``J`` groups, all float64.

    Attributes:
        lams: ``(L,)`` strengths λ, in the order given.
        coef: ``(L, p, k)`` coefficients; ``k = 1`` for one target and for the logistic loss.
        intercept: ``(L, k)``, zeros without intercept.
        active: ``(L, J)`` whether the group has a non-zero coefficient.
        objective: ``(L,)`` penalised objective.
        residual: ``(L,)`` how far from a fixed point of the proximal gradient step, see ``tol`` there.
        n_iter: ``(L,)`` steps, proximal and Newton.
        seconds: time of the whole path.
        solver: ``"prox-gram"`` or ``"prox"``, and ``"+newton"`` where Newton steps were taken.
        depth: ``D``.
    """

    lams: Tensor
    coef: Tensor
    intercept: Tensor
    active: Tensor
    objective: Tensor
    residual: Tensor
    n_iter: Tensor
    seconds: float
    solver: str
    depth: int


def group_bridge_path(
    X: Array,
    y: Array,
    groups: Array | Sequence[int],
    lams: Array | Sequence[float],
    *,
    depth: int = 3,
    loss: LossName = "squared",
    fit_intercept: bool = True,
    sample_weight: Array | Sequence[float] | None = None,
    weights: Array | Sequence[float] | None = None,
    tol: float = 1e-7,
    max_iter: int = 20_000,
    start: tuple[Array, Array] | None = None,
) -> GroupBridgePath:
    r"""A local minimum of the group bridge for every λ, each found from that of the next smaller one.

    .. math:: \min_{W, b}\; \sum_i a_i\, \ell(y_i,\; W^\top x_i + b) + \lambda \sum_j c_j \|W_j\|_F^{2/D},
        \qquad a_i = s_i / \textstyle\sum_l s_l,

    the objective of a linear layer gated with depth ``D``; losses, weights and intercept as in
    :func:`group_lasso_path`, which is the case ``D = 2``. For ``D >= 3`` the penalty is not convex and zero is a local
    minimum of every group at every λ. The path therefore **rises**: it begins with the group lasso solution at the
    smallest λ (or at a tenth of its own largest, if that is less) and lets groups go. Neither the group lasso solution
    as the start of every λ, nor the better of both, chose better groups or predicted better in the simulation of the
    paper.

    Proximal gradient steps, which can zero a group exactly, and Newton steps on the support take turns; none goes
    uphill. There is no randomness. A table with many more rows than columns is read once, in blocks, when the loss is
    squared: ``X`` may be a ``numpy.memmap`` of any size and no copy of it is made. The other losses, and the squared
    one of fewer rows, hold a float64 copy.

    Args:
        X: ``(n, p)`` dense real features.
        y: ``(n,)`` or ``(n, k)`` targets, or ``(n,)`` integer classes.
        groups: ``(p,)`` integer group of each column; ``-1`` unpenalised.
        lams: strengths λ, ``>= 0``, in any order; a grid from small to large finds better minima than one λ alone.
        depth: ``D >= 3``.
        loss: ``"squared"``, ``"logistic"`` or ``"multinomial"``.
        fit_intercept: whether there is a ``b``.
        sample_weight: ``(n,)`` row weights ``>= 0``; ones by default.
        weights: ``(J,)`` factors ``c_j >= 0`` of the groups, 0 for an unpenalised one; ones by default.
        tol: stop where the proximal step :math:`\|W^+ - W\|_F / s` of size ``s = 1 / L`` is at most ``tol`` times
            :math:`\sqrt{2 L f_0}`, the largest gradient that a loss of curvature ``L`` and null value :math:`f_0` has.
        max_iter: give up after so many steps at one λ, with a ``RuntimeWarning``.
        start: ``coef (p, k)`` and ``intercept (k,)`` to begin with, instead of the group lasso.

    Returns:
        A :class:`GroupBridgePath`, on the device of ``X``.

    Raises:
        TypeError: labels that are not integers, complex or sparse ``X``.
        ValueError: ``depth < 3``, shapes that do not fit, values that are not finite, negative weights or λ, an unknown
            loss, classes without rows.

    Example:
        >>> import torch
        >>> X = torch.eye(4, dtype=torch.float64) * 2; y = torch.tensor([4., 3., .1, .1])
        >>> path = group_bridge_path(X, y, [0, 0, 1, 1], [0.05, 0.5], fit_intercept=False)
        >>> path.coef[1, :, 0].round(decimals=4).tolist(), path.active.tolist()
        ([1.7964, 1.3473, 0.0, 0.0], [[True, False], [True, False]])

    Reference: objective and D: arXiv 2509.23898, eq. (1); prox: Xu et al. 2012 and Cao et al. 2013.
    """
    began = time.perf_counter()
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 3:
        raise ValueError(f"depth: expected a whole number >= 3, received {depth!r}; group_lasso_path is depth 2.")
    strengths = solver_options(lams, tol, max_iter, depth, 3)
    data = prepare(X, y, groups, loss, fit_intercept, sample_weight, weights)
    strengths = strengths.to(data.base.X.device)
    w, scale = _beginning(data, float(strengths.min()))
    if start is not None:
        w = data.inside(start)
    length, (p, k), used_newton = len(strengths), data.shape, False
    coef, intercept, numbers = w.new_zeros(length, p, k), w.new_zeros(length, k), w.new_zeros(length, 3)
    for i in strengths.argsort().tolist():
        problem = data.problem(float(strengths[i]), 2 / depth)
        w, step, proximal, newton = solve_bridge(problem, w, tol * scale, max_iter)
        used_newton = used_newton or newton > 0
        residual = step / scale if scale else 0.0
        if residual > tol:
            warnings.warn(
                f"group_bridge_path: at lam = {float(strengths[i]):g} the residual is {residual:.1e} after "
                f"{proximal + newton} steps, expected {tol:g}: raise max_iter or tol.",
                RuntimeWarning,
                stacklevel=2,
            )
        coef[i], intercept[i] = data.outside(w)
        numbers[i] = numbers.new_tensor([problem.objective(w), residual, proximal + newton])
    return GroupBridgePath(
        lams=strengths,
        coef=coef,
        intercept=intercept,
        active=data.active(coef),
        objective=numbers[:, 0],
        residual=numbers[:, 1],
        n_iter=numbers[:, 2].long(),
        seconds=time.perf_counter() - began,
        solver=("prox" if data.base.gram is None else "prox-gram") + ("+newton" if used_newton else ""),
        depth=depth,
    )


def _beginning(data: LinearData, smallest: float) -> tuple[Tensor, float]:
    """The group lasso solution that a path begins with, and the scale of gradients."""
    null, at_null, lam_max = data.null()
    loss, curvature = data.base.loss, 1 / data.base.step
    at_zero = float(loss.value(torch.zeros_like(loss.y)))
    # the second term: where the null model fits exactly, what is left of its gradient is rounding
    scale = math.sqrt(2 * curvature) * (math.sqrt(at_null.objective) + 1e-8 * math.sqrt(at_zero))
    problem = data.problem(min(smallest, START_SHARE * lam_max))
    return solve(problem, null, START_TOL, data.rounding, START_STEPS)[0], scale
