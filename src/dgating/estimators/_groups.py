"""The ``groups`` argument of estimators: which columns of a table come and go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np

ACCEPTED = "None, an int, 'auto', sizes, (p,) labels, or lists of columns"


@dataclass(frozen=True)
class ColumnGroups:
    """Parsed groups of ``p`` columns.

    Attributes:
        labels: ``(p,)`` group of each column, ``-1`` unpenalised.
        names: the name of each group, in the order of the labels.
    """

    labels: np.ndarray
    names: list[Any]


def column_groups(groups: Any, X: np.ndarray, columns: Sequence[str] | None = None) -> ColumnGroups:
    """Parse ``groups`` for the table ``X`` with these column names.

    Args:
        groups: one of

            * ``None``: every column is a group;
            * an int: blocks of so many consecutive columns;
            * a tuple of ints, or a list of ints that is not of length ``p``: sizes of consecutive groups, sum ``p``;
            * ``p`` labels, ints or strings, as an array, a Series or a list; the int ``-1`` is not penalised;
            * a list of lists of column indices or names, which name every column once;
            * ``"auto"``: see :func:`indicator_groups`.
        X: ``(n, p)``; only ``"auto"`` reads its values.
        columns: names, if there are any.

    Raises:
        TypeError: none of these kinds.
        ValueError: sizes, labels or lists that do not fit the columns; ``"auto"`` or names without column names.
    """
    p = X.shape[1]
    if groups is None:
        return ColumnGroups(np.arange(p), list(range(p)) if columns is None else list(columns))
    if isinstance(groups, str):
        if groups != "auto":
            raise ValueError(f"groups: expected {ACCEPTED}, received {groups!r}.")
        return _labelled(indicator_groups(X, columns))
    if isinstance(groups, Integral) and not isinstance(groups, bool | np.bool_):
        size = int(groups)
        if size < 1 or p % size:
            raise ValueError(f"groups: expected a block size that divides the {p} columns, received {size}.")
        return _sized([size] * (p // size), p)
    if not isinstance(groups, Iterable):
        raise TypeError(f"groups: expected {ACCEPTED}, received {type(groups).__name__}.")
    items = list(groups)
    if items and all(isinstance(g, list | tuple | np.ndarray) for g in items):
        return _listed(items, p, columns)
    labels = np.asarray(items)
    if labels.ndim != 1 or labels.dtype.kind not in "iuUSO":
        raise TypeError(f"groups: expected {ACCEPTED}, received values of type {labels.dtype}.")
    whole = labels.dtype.kind in "iu"
    if whole and (isinstance(groups, tuple) or (isinstance(groups, list) and len(labels) != p)):
        return _sized(items, p)
    if len(labels) != p:
        raise ValueError(f"groups: expected {p} labels, one a column, received {len(labels)}.")
    return _labelled(labels)


def indicator_groups(X: np.ndarray, columns: Sequence[str] | None) -> np.ndarray:
    """Labels for tables with one-hot columns, guessed from names and values.

    Columns form a group when **all** of this holds: they are at least two; their names agree up to the last underscore;
    every value is zero or one; no row has more than one of them set. The group is called ``prefix_*``; any other column
    is a group of its own. A category whose own name has an underscore (``color_dark_red``) falls out of the group:
    :func:`one_hot_groups` reads the groups from the encoder itself, and is to be preferred.

    Raises:
        ValueError: there are no names.
    """
    if columns is None:
        raise ValueError(
            "groups: 'auto' reads the names of the columns, received X without any; pass a pandas DataFrame, or "
            "groups=one_hot_groups(encoder)."
        )
    labels = np.array([str(name) for name in columns], dtype=object)
    prefixes = np.array([name.rpartition("_")[0] for name in labels])
    candidates = np.flatnonzero(((X == 0) | (X == 1)).all(0) & (prefixes != ""))
    if len(candidates) == 0:
        return labels
    candidates = candidates[np.argsort(prefixes[candidates], kind="stable")]
    _, starts, counts = np.unique(prefixes[candidates], return_index=True, return_counts=True)
    exclusive = (np.add.reduceat(X[:, candidates], starts, axis=1) <= 1).all(0)
    grouped = candidates[np.repeat(exclusive & (counts > 1), counts)]
    labels[grouped] = [f"{prefix}_*" for prefix in prefixes[grouped]]
    return labels


def _sized(sizes: Sequence[Any], p: int) -> ColumnGroups:
    counts = np.asarray(sizes)
    if counts.min(initial=1) < 1 or counts.sum() != p:
        raise ValueError(
            f"groups: expected sizes >= 1 with the sum {p}, or one label for each of the {p} columns, received "
            f"{len(counts)} numbers with the sum {counts.sum()}."
        )
    return ColumnGroups(np.repeat(np.arange(len(counts)), counts), list(range(len(counts))))


def _labelled(labels: np.ndarray) -> ColumnGroups:
    """Groups numbered in the order in which their labels first appear."""
    free = labels == -1 if labels.dtype.kind in "iu" else np.zeros(len(labels), dtype=bool)
    names = list(dict.fromkeys(labels[~free].tolist()))
    number = {name: i for i, name in enumerate(names)}
    return ColumnGroups(np.array([number.get(label, -1) for label in labels.tolist()]), names)


def _listed(lists: Sequence[Any], p: int, columns: Sequence[str] | None) -> ColumnGroups:
    number = {i: i for i in range(p)} | {name: i for i, name in enumerate(columns if columns is not None else [])}
    flat = [c.item() if isinstance(c, np.generic) else c for members in lists for c in members]
    unknown = [c for c in flat if c not in number]
    if unknown:
        raise ValueError(
            f"groups: expected column indices below {p} or names of columns of X, received {unknown[0]!r}."
        )
    counts = np.bincount([number[c] for c in flat], minlength=p)
    if (counts != 1).any():
        wrong = int(np.flatnonzero(counts != 1)[0])
        raise ValueError(f"groups: expected every column in one list, column {wrong} is in {counts[wrong]}.")
    labels = np.empty(p, dtype=np.int64)
    labels[[number[c] for c in flat]] = np.repeat(np.arange(len(lists)), [len(m) for m in lists])
    return ColumnGroups(labels, list(range(len(lists))))
