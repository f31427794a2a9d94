"""What a loader returns, a random split of it, and its columns brought to one scale."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows and what is to be predicted of them, as the files have it: nothing scaled, filled in or shuffled.

    Args:
        X: n × p float64 for a table, n × height × width uint8 for grey pictures, n × 3 × height × width uint8 for
            coloured ones.
        y: n classes counted from 0 (int64), or n numbers (float64).
        X_test: the rows of the official test part; ``None`` where there is none.
        y_test: as ``y``, of ``X_test``.
        feature_names: p names of the columns, where the source names them.
    """

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Text:
    """A text, as the file has it."""

    text: str


def split(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set with a part of its rows, drawn at random, as its test part; classes keep their shares.

    Args:
        dataset: one without a test part.
        share: of the rows that go to the test part, between 0 and 1.
        seed: decides which rows.

    Raises:
        ValueError: there is a test part already, or a class has too few rows.
    """
    from sklearn.model_selection import train_test_split

    if dataset.X_test is not None:
        raise ValueError("split: expected a data set without a test part, received one that has it.")
    classes = dataset.y if np.issubdtype(dataset.y.dtype, np.integer) else None
    X, X_test, y, y_test = train_test_split(
        dataset.X, dataset.y, test_size=float(share), random_state=seed, stratify=classes
    )
    return replace(dataset, X=X, y=y, X_test=X_test, y_test=y_test)


def standardised(dataset: Dataset) -> Dataset:
    """The data set as flat float32 tables with columns of mean 0 and variance 1 over the rows to train on.

    A column x becomes (x − mean) / sd with mean and sd (divisor n) of the training rows that have a value. A missing
    value becomes 0, the mean; a column that is constant over the training rows becomes 0 throughout. Pictures become
    rows of pixels, those of a coloured one channel by channel.
    """
    X = dataset.X.reshape(len(dataset.X), -1)
    if np.issubdtype(X.dtype, np.floating) and np.isnan(X).any():
        empty = np.isnan(X).all(0)
        known = np.where(empty, 0, X)  # a column without a value is a constant one
        mean, sd, low, high = np.nanmean(known, 0), np.nanstd(known, 0), np.nanmin(known, 0), np.nanmax(known, 0)
    else:
        mean, sd, low, high = X.mean(0, dtype=float), X.std(0, dtype=float), X.min(0), X.max(0)
    varies = low < high  # not sd > 0: the mean of equal numbers is rounded
    sd = np.where(varies, sd, 1)

    def scaled(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), X.shape[1]), np.float32)
        for start in range(0, len(rows), 4096):  # in pieces: float64 pictures take eight times their memory
            piece = rows[start : start + 4096].reshape(-1, X.shape[1])
            out[start : start + 4096] = np.where(varies & ~np.isnan(piece), (piece - mean) / sd, 0)
        return out

    test = None if dataset.X_test is None else scaled(dataset.X_test)
    return replace(dataset, X=scaled(dataset.X), X_test=test)
