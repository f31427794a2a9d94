"""What every cross-validated estimator shares: the folds, their scores, and the name of a scorer."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold, check_cv

from dgating._checks import check_rows
from dgating.maths import choose, standard_errors
from dgating.tasks import Result

THREADS = 1  # of cross-validation, in every process: results do not depend on how many there are
Split = tuple[np.ndarray, np.ndarray]


def splits_of(cv: Any, X: np.ndarray, y: np.ndarray, classifier: bool, random_state: Any) -> list[Split]:
    """Training and test rows of every fold; an int is shuffled if there is a ``random_state``."""
    if isinstance(cv, int) and random_state is not None:
        kind = StratifiedKFold if classifier else KFold
        cv = kind(cv, shuffle=True, random_state=random_state)
    splitter: Any = check_cv(cv, y, classifier=classifier)
    made = []
    for i, fold in enumerate(splitter.split(X, y)):
        train, test = (check_rows(f"cv: rows of fold {i}", rows, len(X)) for rows in fold)
        made.append((train, test))
    if not made:
        raise ValueError(f"cv: expected at least one fold, received {cv!r}.")
    return made


def keep_scores(estimator: Any, lams: list[float], results: list[Result]) -> None:
    """Store what the folds found on the estimator, and the index that its rule takes."""
    estimator.lams_ = np.array(lams)
    estimator.scores_ = np.stack([r["scores"] for r in results])
    estimator.standard_errors_ = standard_errors(estimator.scores_)
    estimator.n_groups_ = np.stack([r["n_groups"] for r in results])
    estimator.best_index_ = choose(estimator.scores_, estimator.rule, estimator.within)
