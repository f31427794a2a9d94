"""The column that is predicted: classes or numbers, checked against the folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dgating.tables._kinds import CATEGORY, DATE, NUMBER, column_of, labels, numbers

CLASSIFICATION, REGRESSION = "classification", "regression"
TASKS = (CLASSIFICATION, REGRESSION)
FEW_CLASSES = 10  # whole numbers with at most so many values are classes


@dataclass(frozen=True)
class Target:
    """``y (n,)``: float64 numbers, or codes of ``classes``."""

    name: str
    y: np.ndarray
    classes: tuple[Any, ...] | None

    @property
    def task(self) -> str:
        """``"classification"`` or ``"regression"``."""
        return REGRESSION if self.classes is None else CLASSIFICATION


def target_of(series: pd.Series, task: str | None = None) -> Target:
    """Numbers or classes; every value is there.

    Raises:
        ValueError: one value only, text or dates where numbers are wanted.
    """
    name = str(series.name)
    kind = column_of(series, categorical=task == CLASSIFICATION).kind
    if kind == DATE or (kind == CATEGORY and task == REGRESSION and not _numeric(series)):
        what = "dates" if kind == DATE else f"words such as {str(series.iloc[0])!r}"
        raise ValueError(
            f"--target {name!r}: expected {'classes or ' if task is None else ''}numbers, received {what}; convert the "
            "column, or name another one."
        )
    if series.nunique() < 2:
        raise ValueError(
            f"--target {name!r}: every row has the value {str(series.iloc[0])!r}; expected at least two different ones."
        )
    if task == REGRESSION or (task is None and kind == NUMBER and not _few_whole(numbers(series))):
        return Target(name, numbers(series), None)
    if not _numeric(series):
        codes, words = labels(series)
        return Target(name, codes, tuple(words))
    values, codes = np.unique(numbers(series), return_inverse=True)
    return Target(name, codes, tuple(int(v) if float(v).is_integer() else float(v) for v in values))


def check_folds(target: Target, y: np.ndarray, folds: int, held_back: bool) -> None:
    """Refuse training rows ``y`` that are too few for the folds."""
    rows = " for training" if held_back else ""
    if len(y) < 2 * folds:
        raise ValueError(
            f"--folds {folds}: expected at least {2 * folds} rows{rows}, received {len(y)}; take fewer folds"
            f"{', or --test 0' if held_back else ''}."
        )
    if target.classes is None:
        return
    counts = np.bincount(y, minlength=len(target.classes))
    rare = np.flatnonzero(counts < folds)
    if len(rare):
        shown = ", ".join(f"{target.classes[i]!r} has {counts[i]}" for i in rare[:5])
        whole = not any(isinstance(c, str) for c in target.classes)
        raise ValueError(
            f"--folds {folds}: expected at least {folds} rows{rows} of every class of {target.name!r}, class {shown}"
            f"{' and more' if len(rare) > 5 else ''}; leave out or join rare classes, take fewer folds"
            f"{', or --task regression' if whole else ''}."
        )


def _numeric(series: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)


def _few_whole(values: np.ndarray) -> bool:
    return bool((values == np.round(values)).all()) and len(np.unique(values)) <= FEW_CLASSES
