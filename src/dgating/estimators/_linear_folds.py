"""Cross-validation of linear paths: every fold is one task, all folds on the same strengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dgating.estimators._folds import Split
from dgating.estimators._linear_fit import Options, standardized
from dgating.tasks import Result, Task

Scorer = Callable[..., float]


def fold_tasks(
    X: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    score_rows: np.ndarray | None,
    labels: np.ndarray,
    lams: list[float],
    splits: list[Split],
    options: Options,
    template: Any,
    scorer: Scorer,
) -> list[Task]:
    """One task a fold; see :func:`_fold`."""
    common = (X, y, rows, score_rows, labels, lams)
    return [Task(f"fold_{i}", _fold, (*common, *split, options, template, scorer)) for i, split in enumerate(splits)]


def _fold(
    X: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    score_rows: np.ndarray | None,
    labels: np.ndarray,
    lams: list[float],
    train: np.ndarray,
    test: np.ndarray,
    options: Options,
    template: Any,
    scorer: Scorer,
) -> Result:
    """Scores and numbers of groups ``(L,)`` of one fold.

    Rows that are left out get weight zero: no copy of a table that lies on disk, and a row drawn twice counts twice.
    """
    weights = rows * np.bincount(train, minlength=len(X))
    path = standardized(X, y, weights, labels, options).path(lams)
    held, target = X[test], template._as_given(y[test])
    extra = {} if score_rows is None else {"sample_weight": score_rows[test]}
    models = (template._with(c, b) for c, b in zip(path.coef.numpy(), path.intercept.numpy(), strict=True))
    scores = np.array([scorer(model, held, target, **extra) for model in models], dtype=np.float64)
    return {"scores": scores, "n_groups": path.active.sum(1).numpy(), "n_iter": path.n_iter.numpy()}
