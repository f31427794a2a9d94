"""Columns as numbers for a model: one group of matrix columns for every column of the table.

A number keeps its value, a category has a column for each of its words, a date has year, month and day of the week
(Monday is 0). Where training rows miss values, one more column of the group says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dgating.tables._kinds import CATEGORY, DATE, LARGEST, Column, dates, labels, numbers

MOST_WORDS = 50  # of a category: the most frequent ones have a column, all others share the zeros
DATE_PARTS = ("year", "month", "day of week")


@dataclass(frozen=True)
class Feature:
    """A column and how it is encoded.

    Attributes:
        name: of the column.
        kind: ``"number"``, ``"category"`` or ``"date"``.
        text: whether a file must be read without making numbers of its words.
        fill: of a number its median, of a date the three medians: what stands in for missing values.
        words: of a category, sorted; other words are zeros in all columns.
        indicator: whether there is a column that marks missing values.
    """

    name: str
    kind: str
    text: bool
    fill: tuple[float, ...]
    words: tuple[str, ...]
    indicator: bool

    @property
    def names(self) -> list[str]:
        """Of the columns of the matrix."""
        values = [self.name]
        if self.kind == CATEGORY:
            values = [f"{self.name} = {word}" for word in self.words]
        elif self.kind == DATE:
            values = [f"{self.name}: {part}" for part in DATE_PARTS]
        return values + [f"{self.name} is missing"] * self.indicator

    def encode(self, series: pd.Series) -> tuple[np.ndarray, int, int]:
        """The columns ``(n, width)``, and how many rows are missing and how many have an unknown word.

        Raises:
            ValueError: values of another kind, infinite ones.
        """
        if self.kind == CATEGORY:
            codes, words = labels(series)
            known = {word: i for i, word in enumerate(self.words)}
            place = np.array([known.get(word, -1) for word in words] + [-1], dtype=np.int64)[codes]
            missing = codes < 0
            values = (place[:, None] == np.arange(len(self.words))).astype(np.float64)
            unknown = int(((place < 0) & ~missing).sum())
        else:
            values, unknown = _measured(self.kind, series), 0
            if bool((np.abs(values) > LARGEST).any()):
                raise ValueError(f"{self.name!r}: expected finite numbers, received an infinite one.")
            missing = np.isnan(values[:, 0])
            values = np.where(missing[:, None], self.fill, values)
        columns = [values, missing[:, None].astype(np.float64)] if self.indicator else [values]
        return np.hstack(columns), int(missing.sum()), unknown


def feature_of(column: Column, train: pd.Series) -> Feature:
    """Learn fill values and words from training rows."""
    indicator = bool(train.isna().any())
    fill: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    if column.kind == CATEGORY:
        codes, found = labels(train)
        counts = np.bincount(codes[codes >= 0], minlength=len(found))
        words = tuple(found[i] for i in np.sort(np.argsort(-counts, kind="stable")[:MOST_WORDS]))
    else:
        values = _measured(column.kind, train)
        some = values[~np.isnan(values[:, 0])]
        fill = tuple(np.median(some, axis=0).tolist()) if len(some) else (0.0,) * values.shape[1]
    return Feature(column.name, column.kind, column.text, fill, words, indicator)


@dataclass(frozen=True)
class Encoded:
    """A table as numbers.

    Attributes:
        X: ``(n, p)`` float64.
        missing: rows without a value, by column.
        unknown: rows with a word that was not seen in training, by column.
    """

    X: np.ndarray
    missing: dict[str, int]
    unknown: dict[str, int]


def encode(features: Sequence[Feature], frame: pd.DataFrame) -> Encoded:
    """All features of a table side by side."""
    parts = {f.name: f.encode(frame[f.name]) for f in features}
    X = np.hstack([np.empty((len(frame), 0)), *(columns for columns, _, _ in parts.values())])
    return Encoded(X, {n: m for n, (_, m, _) in parts.items() if m}, {n: u for n, (_, _, u) in parts.items() if u})


def group_labels(features: Sequence[Feature]) -> np.ndarray:
    """``(p,)`` number of the feature that each column of the matrix belongs to."""
    return np.repeat(np.arange(len(features)), [len(f.names) for f in features])


def _measured(kind: str, series: pd.Series) -> np.ndarray:
    """``(n, 1)`` numbers, or ``(n, 3)`` parts of dates."""
    if kind != DATE:
        return numbers(series)[:, None]
    when = dates(series).dt
    return np.stack(
        [p.to_numpy(dtype=np.float64, na_value=np.nan) for p in (when.year, when.month, when.day_of_week)], 1
    )
