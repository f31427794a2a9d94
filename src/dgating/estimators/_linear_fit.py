"""What the linear estimators share: standardised columns, and the path of the depth asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dgating.linear import (
    Array,
    GroupBridgePath,
    GroupLassoPath,
    LossName,
    condense,
    group_bridge_path,
    group_lasso_path,
    is_tall,
    lam_max_linear,
    tensor,
    vector,
)

LinearPath = GroupLassoPath | GroupBridgePath
CONSTANT = 1e-10  # a spread below this share of the size of a column is rounding


@dataclass(frozen=True)
class Options:
    """How to solve, the same for every λ and every fold."""

    depth: int
    loss: LossName
    fit_intercept: bool
    standardize: bool
    tol: float
    max_iter: int


@dataclass(frozen=True)
class Standardized:
    """Rows whose columns have unit spread.

    Attributes:
        X: ``(n, p)`` columns over ``scale``, float64.
        y: targets.
        rows: ``(n,)`` weights.
        scale: ``(p,)`` the spread of the user's columns: their standard deviation, without intercept their root mean
            square, one for a constant column or without standardising.
        labels: ``(p,)`` group of each column.
        options: how to solve.
    """

    X: Tensor
    y: Array
    rows: Tensor
    scale: Tensor
    labels: np.ndarray
    options: Options

    @property
    def lam_max(self) -> float:
        """The largest λ worth a try; one where nothing depends on the columns, and any λ gives the null model."""
        o = self.options
        if o.loss == "squared" and o.fit_intercept:
            y = tensor(self.y, "y", self.X).reshape(len(self.X), -1)
            if not bool((_spread(y, self.rows) > CONSTANT * _size(y, self.rows)).any()):
                return 1.0
        found = lam_max_linear(
            self.X,
            self.y,
            self.labels,
            loss=o.loss,
            fit_intercept=o.fit_intercept,
            sample_weight=self.rows,
            depth=o.depth,
        )
        return found if found > 0 else 1.0

    def path(self, lams: list[float]) -> LinearPath:
        """The path in units of the user's columns; its objective is that of the standardised ones."""
        o = self.options
        common = {
            "loss": o.loss,
            "fit_intercept": o.fit_intercept,
            "sample_weight": self.rows,
            "tol": o.tol,
            "max_iter": o.max_iter,
        }
        if o.depth == 2:
            found: LinearPath = group_lasso_path(self.X, self.y, self.labels, lams, **common)
        else:
            found = group_bridge_path(self.X, self.y, self.labels, lams, depth=o.depth, **common)
        return replace(found, coef=found.coef / self.scale.unsqueeze(1))


def standardized(X: Array, y: np.ndarray, rows: np.ndarray, labels: np.ndarray, options: Options) -> Standardized:
    """Condense a tall table of a squared loss (no copy of it is made), then scale its columns."""
    like = torch.empty(0, dtype=torch.float64)
    weights, target = vector(rows, "sample_weight", like, len(X), "one a row"), y
    if float(weights.min()) < 0 or float(weights.sum()) == 0:
        raise ValueError(
            f"sample_weight: expected numbers >= 0 with a positive sum, received a smallest one of "
            f"{float(weights.min())!r} and the sum {float(weights.sum())!r}."
        )
    outputs = 1 if y.ndim == 1 else y.shape[1]
    if options.loss == "squared" and is_tall(len(X), X.shape[1], outputs):
        target = tensor(y, "y", like).reshape(len(X), -1)
        columns, target = condense(X, target, (weights / weights.sum()).unsqueeze(1))
        weights = torch.ones(len(columns), dtype=torch.float64)
    else:
        columns = tensor(X, "X", like)
    scale = torch.ones(columns.shape[1], dtype=torch.float64)
    spread = size = _size(columns, weights)
    if options.fit_intercept:
        spread = _spread(columns, weights)
        columns = torch.where(spread > CONSTANT * size, columns, 0.0)  # what varies by rounding is the intercept's
    if options.standardize:
        scale = torch.where(spread > CONSTANT * size, spread, 1.0)
        columns = columns / scale
    return Standardized(columns, target, weights, scale, labels, options)


def _size(columns: Tensor, rows: Tensor) -> Tensor:
    """Root mean square of every column."""
    return (rows @ columns.square() / rows.sum()).sqrt()


def _spread(columns: Tensor, rows: Tensor) -> Tensor:
    """Standard deviation of every column."""
    return _size(columns - rows @ columns / rows.sum(), rows)
