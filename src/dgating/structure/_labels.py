"""Labels: who must live or die together. A union-find over integers, vectorised; label 0 is fixed from the start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
FIXED = 0


class Labels:
    """Classes of labels, each free or fixed for a reason.

    ``union`` and ``find`` take whole arrays: the cost is near linear in the number of labels and there is no Python
    loop over them. A class is fixed as soon as one of its labels is, and keeps the reason.
    """

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, dtype=np.int64)
        self._reason: Ids = np.ones(1, dtype=np.int64)
        self._reasons: list[str] = ["", "not a unit"]
        self._index: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, shape: Sequence[int]) -> Ids:
        """New labels, every one a class of its own."""
        n, start = int(np.prod(shape)), len(self._parent)
        new = np.arange(start, start + n, dtype=np.int64)
        self._parent = np.concatenate([self._parent, new])
        self._reason = np.concatenate([self._reason, np.zeros(n, dtype=np.int64)])
        return new.reshape(tuple(shape))

    def find(self, ids: Ids) -> Ids:
        """The representative (smallest label) of the class of each label."""
        root = self._parent[ids]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self._parent[ids] = root
        return root

    def union(self, a: Ids, b: Ids) -> None:
        """Merge the classes of ``a`` and ``b``, entry by entry; the arrays broadcast against each other."""
        a, b = np.broadcast_arrays(a, b)
        a, b = self.find(a.ravel()), self.find(b.ravel())
        differ = a != b
        a, b = a[differ], b[differ]
        touched = np.unique(np.concatenate([a, b]))
        while a.size:
            # Each larger root points at the smallest of its partners; what that leaves apart is met next round.
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))
            while True:  # a chain of n links is followed in log n steps
                above = self._parent[touched]
                further = self._parent[above]
                if np.array_equal(above, further):
                    break
                self._parent[touched] = further
            a, b = self.find(a), self.find(b)
            differ = a != b
            a, b = a[differ], b[differ]
        np.maximum.at(self._reason, self.find(touched), self._reason[touched])

    def fix(self, ids: Ids, reason: str) -> None:
        """Fix the classes of these labels; a class that is fixed already keeps its first reason."""
        roots = np.unique(self.find(ids.ravel()))
        free = roots[self._reason[roots] == 0]
        if free.size:
            number = self._index.setdefault(reason, len(self._reasons))
            if number == len(self._reasons):
                self._reasons.append(reason)
            self._reason[free] = number

    def fixed(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each label is in a fixed class."""
        return self._reason[self.find(ids)] != 0

    def reason(self, label: int) -> str:
        """Why the class of a label is fixed; empty when it is free."""
        return self._reasons[int(self._reason[self.find(np.asarray([label]))[0]])]
