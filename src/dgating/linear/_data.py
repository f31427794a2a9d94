r"""Data of a linear model: checked, and in coordinates in which unpenalised columns do no harm.

What is not penalised (free columns and the intercept) may be replaced by any basis of the same space, and any multiple
of it may be taken off the penalised columns: neither changes the predictions that a penalty buys. Here the basis is
orthonormal (in the weighted inner product) and the penalised columns are orthogonal to it. For an intercept alone that
is centring. Whatever the scale of the free columns, and if they are linearly dependent, the solver sees none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dgating.linear._checks import Array, tensor, vector
from dgating.linear._losses import LOSSES, Loss
from dgating.linear._moments import condense, is_tall
from dgating.linear._solve_group_lasso import Problem, State, inverse_curvature, solve
from dgating.maths import check_labels

LossName = Literal["squared", "logistic", "multinomial"]
NULL_TOL = 1e-13  # of the null model, where free columns make it a fit
RANK_TOL = 1e-12  # singular values below this share of the largest count as linear dependence


@dataclass(frozen=True)
class LinearData:
    """The problem in the solver's coordinates: penalised columns, then a basis of the free space as the last group.

    Attributes:
        base: the problem without a λ.
        factors: ``(J + 1,)`` factors c of the groups, zero for the last.
        labels: ``(p,)`` the user's labels.
        penalised: ``(p,)`` which of the user's columns are penalised.
        mean: ``(p,)`` what was taken off the columns, zeros without intercept.
        to_basis: ``(f, p')`` the part of the penalised columns that lies in the free space, in terms of the basis.
        from_basis: ``(g, f)`` the basis as a combination of the free columns, the last of them the intercept's.
        free_to_basis: ``(f, g)`` the free columns as combinations of the basis.
        level: ``(k,)`` what was taken off the targets of a squared loss, zeros without intercept: a large mean would
            leave little of the precision of a gap.
    """

    base: Problem
    factors: Tensor
    labels: Tensor
    penalised: Tensor
    mean: Tensor
    to_basis: Tensor
    from_basis: Tensor
    free_to_basis: Tensor
    level: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Columns and outputs of the user."""
        return len(self.labels), self.base.loss.y.shape[1]

    @property
    def has_intercept(self) -> bool:
        """Whether the last free column is the intercept's."""
        return len(self.from_basis) > int((~self.penalised).sum())

    def problem(self, lam: float, power: float = 1.0) -> Problem:
        """The problem at λ, with this power of the norms."""
        return replace(self.base, strengths=lam * self.factors, power=power)

    @property
    def rounding(self) -> float:
        """A gap of the order of rounding: the loss of the best constant, or of zeros, to 14 digits."""
        return 1e-14 * float(self.base.loss.value(self._constant()))

    def null(self) -> tuple[Tensor, State, float]:
        """The model whose penalised groups are zero, where it stands, and the λ from which on it is the solution."""
        problem, (free, n_penalised) = self.problem(1.0), self.to_basis.shape
        w = self.base.X.new_zeros(n_penalised + free, self.shape[1])
        w[n_penalised:] = self._in_basis(self._constant())
        part, places = problem.part(self.factors == 0)
        if free > self.has_intercept:  # an intercept alone is known in closed form
            w[places] = solve(part, w[places], NULL_TOL, self.rounding, 10_000)[0]
        state = problem.state(w)
        ratio = (state.gradients / self.factors)[self.factors > 0]
        return w, state, float(ratio.max()) if len(ratio) else 0.0

    def outside(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``(p, k)`` and intercept ``(k,)`` of the user's columns."""
        p, k = self.shape
        n_penalised = self.to_basis.shape[1]
        coef, intercept = w.new_zeros(p, k), w.new_zeros(k)
        free = self.from_basis @ (w[n_penalised:] - self.to_basis @ w[:n_penalised])
        coef[self.penalised] = w[:n_penalised]
        if self.has_intercept:
            free, intercept = free[:-1], free[-1]
        coef[~self.penalised] = free
        return coef, intercept + self.level - self.mean @ coef

    def inside(self, start: tuple[Array, Array]) -> Tensor:
        """The solver's coordinates of a model of the user: coefficients and intercept."""
        p, k = self.shape
        if not isinstance(start, tuple | list) or len(start) != 2:
            raise ValueError(f"start: expected coefficients {(p, k)} and intercept {(k,)}, received {type(start)}.")
        coef, intercept = start
        coef, intercept = tensor(coef, "start", self.base.X), tensor(intercept, "start", self.base.X)
        if coef.shape != (p, k) or intercept.shape != (k,):
            raise ValueError(
                f"start: expected coefficients {(p, k)} and intercept {(k,)}, "
                f"received {tuple(coef.shape)} and {tuple(intercept.shape)}."
            )
        penalised, free = coef[self.penalised], coef[~self.penalised]
        if self.has_intercept:
            free = torch.cat([free, (intercept - self.level + self.mean @ coef).unsqueeze(0)])
        return torch.cat([penalised, self.free_to_basis @ free + self.to_basis @ penalised])

    def active(self, coef: Tensor) -> Tensor:
        """``(L, J)`` groups with a non-zero coefficient, of ``coef (L, p, k)``."""
        grouped = self.labels >= 0
        sizes = coef.new_zeros(len(coef), len(self.factors) - 1)
        return sizes.index_add_(1, self.labels[grouped], coef[:, grouped].abs().sum(2)) > 0

    def _constant(self) -> Tensor:
        """Predictions of the intercept alone, ``(n, k)``."""
        y = self.base.loss.y
        return self.base.loss.null().expand_as(y) if self.has_intercept else torch.zeros_like(y)

    def _in_basis(self, predictions: Tensor) -> Tensor:
        """Coefficients in the basis of the part of ``predictions`` that lies in the free space."""
        basis, share = self.base.X[:, self.to_basis.shape[1] :], self.base.loss.share
        height = (share * basis.square()).sum(0).unsqueeze(1)
        return (basis.T @ (share * predictions)) / height


def prepare(
    X: Array,
    y: Array,
    groups: Array | Sequence[int],
    loss: str,
    fit_intercept: bool,
    sample_weight: Array | Sequence[float] | None,
    weights: Array | Sequence[float] | None,
) -> LinearData:
    """Check everything, then change coordinates. Arguments and errors as ``group_lasso_path``."""
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {sorted(LOSSES)}, received {loss!r}.")
    X = X if isinstance(X, Tensor) else np.asarray(X)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X: expected a matrix (n, p) with rows and columns, received shape {tuple(X.shape)}.")
    (n, p), device = X.shape, X.device if isinstance(X, Tensor) else torch.device("cpu")
    labels = groups.to(device) if isinstance(groups, Tensor) else torch.as_tensor(np.asarray(groups), device=device)
    check_labels(labels, torch.Size([p]))
    labels = labels.long()
    if int(labels.min()) < -1:
        raise ValueError(f"groups: expected labels >= -1, received {int(labels.min())}.")
    n_groups = int(labels.max()) + 1
    like = torch.empty(0, dtype=torch.float64, device=device)
    factors = like.new_ones(n_groups) if weights is None else vector(weights, "weights", like, n_groups, "one a group")
    rows = like.new_ones(n) if sample_weight is None else vector(sample_weight, "sample_weight", like, n, "one a row")
    for name, values in {"weights": factors, "sample_weight": rows}.items():
        if bool((values < 0).any()):
            raise ValueError(f"{name}: expected numbers >= 0, received a smallest one of {float(values.min())!r}.")
    if float(rows.sum()) == 0:
        raise ValueError("sample_weight: expected a positive sum, received zeros only.")
    share = (rows / rows.sum()).unsqueeze(1)
    target = _targets(y, loss, like, share)
    if loss == "squared" and is_tall(n, p, target.shape[1]):
        x, target = condense(X, target, share)
        share = torch.full_like(x[:, :1], 1 / len(x))
    else:
        x = tensor(X, "X", like)
    factors = torch.cat([factors, factors.new_zeros(1)])
    level = (share * target).sum(0) * (1.0 if fit_intercept and loss == "squared" else 0.0)
    return _orthogonal(x, labels, factors, LOSSES[loss](target - level, share), fit_intercept, level)


def _orthogonal(
    x: Tensor, labels: Tensor, factors: Tensor, loss: Loss, fit_intercept: bool, level: Tensor
) -> LinearData:
    """The change of coordinates."""
    share, n = loss.share, len(x)
    mean = (share * x).sum(0) if fit_intercept else x.new_zeros(x.shape[1])
    x = x - mean
    penalised = factors[labels] > 0  # label -1 reads the last factor, which is zero
    free = x[:, ~penalised]
    x = x[:, penalised]
    if fit_intercept:
        free = torch.cat([free, x.new_ones(n, 1)], 1)
    sizes = (share * free.square()).sum(0).sqrt()
    sizes = torch.where(sizes > 0, sizes, 1.0)
    _, spread, directions = torch.linalg.svd(share.sqrt() * free / sizes, full_matrices=False)
    kept = spread > RANK_TOL * spread[:1]
    from_basis = directions[kept].T / spread[kept] / sizes.unsqueeze(1)
    basis = free @ from_basis
    to_basis, free_to_basis = basis.T @ (share * x), basis.T @ (share * free)
    x = x - basis @ to_basis
    # the height of a typical column: proximal gradient has one step size for all
    height = float((share * x.square()).sum() / max(x.shape[1], 1)) ** 0.5 or 1.0
    columns = torch.cat([x, height * basis], 1)
    last = labels.new_full((basis.shape[1],), len(factors) - 1)
    base = Problem(columns, torch.cat([labels[penalised], last]), factors, loss, inverse_curvature(columns, loss))
    return LinearData(
        base.with_gram(),
        factors,
        labels,
        penalised,
        mean,
        to_basis / height,
        height * from_basis,
        free_to_basis / height,
        level,
    )


def _targets(y: Array, loss: str, like: Tensor, share: Tensor) -> Tensor:
    """Targets as ``(n, k)``: numbers, zeros and ones, or one-hot rows."""
    n, target = len(share), tensor(y, "y", like)
    if loss == "squared":
        if target.ndim not in (1, 2) or len(target) != n or 0 in target.shape:
            raise ValueError(f"y: expected shape ({n},) or ({n}, k), received {tuple(target.shape)}.")
        return target.reshape(n, -1)
    if target.shape != (n,):
        raise ValueError(f"y: expected classes of shape ({n},) for the {loss} loss, received {tuple(target.shape)}.")
    classes = target.long()
    if bool((classes != target).any()) or int(classes.min()) < 0 or (loss == "logistic" and int(classes.max()) > 1):
        expected = "0 and 1" if loss == "logistic" else "0 .. k - 1"
        raise ValueError(
            f"y: expected classes {expected} for the {loss} loss, received values from {float(target.min()):g} to "
            f"{float(target.max()):g}; number the classes first."
        )
    one_hot = torch.nn.functional.one_hot(classes, 2 if loss == "logistic" else -1).to(like.dtype)
    empty = ((share * one_hot).sum(0) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"y: expected rows of positive weight in every class, received none for {empty}.")
    return one_hot[:, 1:] if loss == "logistic" else one_hot
