"""The parts of compaction against small arrays and models written by hand: nothing wrong, and nothing too much."""

from __future__ import annotations

import numpy as np

from dgating.structure._solve import irregular


def test_a_row_that_leaves_anyway_asks_for_nothing() -> None:
    """Two heads of width three. The first leaves as a head, so that the second may be as narrow as it likes."""
    entries = np.arange(1, 7).reshape(1, 2, 3)
    heads = np.array([7, 8]).reshape(1, 2, 1)
    dead = np.zeros(9, dtype=bool)
    dead[[6, 7]] = True
    assert irregular([entries, heads], dead) == []
    dead[7] = False  # both stay: the narrow one gets its entry back
    ((revived, _),) = irregular([entries, heads], dead)
    assert revived.tolist() == [6]
