"""Means and standard errors over seeds, what a level of quality costs, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from experiments.common.experiment import Record

Key = TypeVar("Key")


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    r"""Mean and its standard error :math:`s / \sqrt n` (nan for a single value)."""
    array = np.array(list(values), dtype=float)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)


def shown(values: Iterable[float], digits: int = 3) -> str:
    """``mean ± standard error``."""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"


def frontier(points: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Of (cost, quality, ...), from cheap to dear: those that are better than every cheaper one."""
    best, kept = -math.inf, []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if point[1] > best:
            best = point[1]
            kept.append(point)
    return kept


def at_quality(level: float, points: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """What has this quality: (cost, quality, ...), linear between the points of the frontier.

    It does not depend on whether a point of a coarse grid just meets the level, and a coin that chooses between two
    models attains it. At most the best point, at least the cheapest.
    """
    columns = list(zip(*frontier(points), strict=True))
    return tuple(float(np.interp(level, columns[1], column)) for column in columns)


def cost_at(level: float, points: Iterable[tuple[float, ...]]) -> float:
    """The cost of this quality (:func:`at_quality`)."""
    return at_quality(level, points)[0]


def by(records: Sequence[Record], key: Callable[[dict[str, Any]], Key]) -> dict[Key, list[Record]]:
    """Records with the same ``key(cell)`` together, in their order."""
    out: dict[Key, list[Record]] = {}
    for record in records:
        out.setdefault(key(record.cell), []).append(record)
    return out


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
