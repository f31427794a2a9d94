"""Factors: which labels the entries of a tensor carry, and how they move with the data.

A factor is an array of labels that broadcasts to the tensor: size one along an axis means that the label does not
change along it. An entry is removed when its label in *any* factor is. A factor over one axis is the usual case (the
channels of an activation); one over several axes is joint (heads x head width right after a ``view``), and what its
entries have in common is decided later, by the operations that use it.

The first axis of the array is virtual: it has size one unless the tensor's rows were *routed* to experts, when it holds
one row of labels an expert (``route`` says by which assignment).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dgating.structure._labels import FIXED, Ids, Labels

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Factor:
    """Labels of a tensor: ``ids`` has one axis more than the tensor, the virtual one in front."""

    ids: Ids
    route: object | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the tensor along which the labels change."""
        return tuple(i - 1 for i, n in enumerate(self.ids.shape) if i and n > 1)

    def depends(self, axis: int) -> bool:
        return self.ids.shape[axis + 1] > 1

    def map(self, f: Callable[[Ids], Ids]) -> Factor:
        return Factor(f(self.ids), self.route)


def single(ids: Ids, axis: int, ndim: int) -> Factor:
    """One label an index of one axis."""
    return Factor(ids.reshape(tuple(ids.size if i == axis + 1 else 1 for i in range(ndim + 1))))


def narrow(ids: Ids) -> Ids:
    """Size one along every axis along which the labels do not change."""
    for axis in range(ids.ndim):
        if ids.shape[axis] > 1:
            first = ids.take([0], axis)
            if np.array_equal(np.broadcast_to(first, ids.shape), ids):
                ids = first
    return ids


def simplify(labels: Labels, factor: Factor) -> Factor | None:
    """Representatives instead of labels; axes along which they do not change get size one.

    ``None`` when nothing free is left. A class that covers a whole axis cannot leave: it is fixed.
    """
    ids = narrow(labels.find(factor.ids))
    factor = Factor(ids, factor.route if ids.shape[0] > 1 else None)
    if not factor.axes:
        labels.fix(ids, "it is the whole of an axis")
        return None
    return None if bool(labels.fixed(ids).all()) else factor


def seal(labels: Labels, factor: Factor, axes: Iterable[int], reason: str) -> Factor | None:
    """Forbid that single indices leave along ``axes``: labels are merged along them, or fixed if nothing else varies.

    Heads x head width, sealed along the width, become heads.
    """
    axes = [a for a in axes if factor.depends(a)]
    if not axes:
        return factor
    ids = factor.ids
    if set(axes) == set(factor.axes):
        labels.fix(ids, reason)
        return None
    first = ids
    for a in axes:
        first = first.take([0], a + 1)
    labels.union(first, ids)
    return simplify(labels, Factor(first, factor.route))


def unroute(labels: Labels, factor: Factor) -> Factor | None:
    """Forget by which expert a row went: the labels of all experts are merged."""
    if factor.ids.shape[0] == 1:
        return factor
    labels.union(factor.ids[:1], factor.ids)
    return simplify(labels, Factor(factor.ids[:1]))


def lift(factor: Factor, ndim: int) -> Factor:
    """The same factor for the tensor with axes of size one put in front, as broadcasting does."""
    ids = factor.ids
    missing = ndim + 1 - ids.ndim
    return Factor(ids.reshape(ids.shape[0], *(1,) * missing, *ids.shape[1:]), factor.route) if missing else factor


def combine(
    labels: Labels, operands: Sequence[tuple[Shape, Sequence[Factor]]], out: Shape, reason: str
) -> list[Factor]:
    """Factors of an elementwise result: labels that meet are merged, what meets a plain axis is sealed along it."""
    shape: Shape = (1,) * len(out)
    done: list[Factor] = []
    for given, factors in operands:
        full = (1,) * (len(out) - len(given)) + tuple(given)
        done = _combine(labels, shape, done, full, [lift(f, len(out)) for f in factors], reason)
        shape = tuple(max(a, b) for a, b in zip(shape, full, strict=True))
    return done


def _combine(
    labels: Labels, shape_a: Shape, a: Sequence[Factor], shape_b: Shape, b: Sequence[Factor], reason: str
) -> list[Factor]:
    fa: list[Factor | None] = list(a)
    fb: list[Factor | None] = list(b)
    changed = True
    while changed:  # sealing one factor may uncover an axis of another; each pass removes axes, so this ends
        changed = False
        for mine, others, other_shape in ((fa, fb, shape_b), (fb, fa, shape_a)):
            for i, f in enumerate(mine):
                if f is None:
                    continue
                met = _met(f, others)
                if len(met) > 1 or (met and met[0].route is not f.route and f.route and met[0].route):
                    labels.fix(f.ids, reason)
                    mine[i] = None
                    changed = True
                    continue
                covered = set(met[0].axes) if met else set()
                bare = [axis for axis in f.axes if other_shape[axis] > 1 and axis not in covered]
                if bare:
                    mine[i] = seal(labels, f, bare, reason)
                    changed = True
                elif met and _inner(f, met[0], other_shape):
                    # Heads x width meets labels of the width alone: the heads are told apart, the width is not.
                    mine[i] = seal(labels, f, met[0].axes, reason)
                    changed = True
    out: list[Factor] = []
    pending = [g for g in fb if g is not None]
    for f in fa:
        if f is None:
            continue
        met = _met(f, pending)
        if met:
            pending = [g for g in pending if g is not met[0]]
            labels.union(f.ids, met[0].ids)
            ids = np.broadcast_to(f.ids, np.broadcast_shapes(f.ids.shape, met[0].ids.shape))
            merged = simplify(labels, Factor(ids, f.route or met[0].route))
            if merged is not None:
                out.append(merged)
        else:
            out.append(f)
    return out + pending


def _met(f: Factor, others: Sequence[Factor | None]) -> list[Factor]:
    """The factors that share axes with ``f``: the one over the very same axes if there is one."""
    met = [g for g in others if g is not None and set(g.axes) & set(f.axes)]
    same = [g for g in met if g.axes == f.axes]
    return same[:1] or met


def _inner(f: Factor, g: Factor, shape: Shape) -> bool:
    """Whether ``g`` labels only inner axes of the joint factor ``f`` and is repeated along the others."""
    outer = set(f.axes) - set(g.axes)
    return bool(outer) and set(g.axes) < set(f.axes) and max(f.axes) in g.axes and all(shape[a] == 1 for a in outer)


# --- moving data: the same functions serve labels and values, any array that broadcasts to the tensor ---


def regroup(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Cut a reshape into the smallest runs of old axes that become runs of new axes.

    >>> regroup((2, 7, 64), (2, 7, 4, 16))
    [([0], [0]), ([1], [1]), ([2], [2, 3])]
    """
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right, a, b = [], [], 1, 1
        while True:
            if i < len(old) and (a <= b or j >= len(new)):
                a *= old[i]
                left.append(i)
                i += 1
            elif j < len(new):
                b *= new[j]
                right.append(j)
                j += 1
            if (a == b and left and right) or (i >= len(old) and j >= len(new)):
                break
        runs.append((left, right))
    return runs


def reshape(array: Any, old: Shape, new: Shape) -> Any:
    """Reshape an array that broadcasts to ``old`` into one that broadcasts to ``new``; expands only what it must."""
    if 0 in old:  # nothing in it: any array that broadcasts will do
        return array.reshape(-1)[:1].reshape((1,) * len(new)) if 0 not in array.shape else array.reshape(new)
    sizes: list[int] = []
    expanded: list[int] = []
    for left, right in regroup(old, new):
        constant = all(array.shape[i] == 1 for i in left)
        expanded += [1 if constant else old[i] for i in left]
        sizes += [1 if constant else new[j] for j in right]
    if tuple(array.shape) != tuple(expanded):
        array = np.broadcast_to(array, expanded) if isinstance(array, np.ndarray) else array.expand(expanded)
    return array.reshape(tuple(sizes))


def reshape_factor(factor: Factor, old: Shape, new: Shape) -> Factor:
    ids = factor.ids
    if ids.shape[0] == 1:
        return Factor(reshape(ids[0], old, new)[None], factor.route)
    return Factor(np.stack([reshape(row, old, new) for row in ids]), factor.route)


def concatenate(arrays: Sequence[Any], sizes: Sequence[int], axis: int, fill: Any) -> Any:
    """Concatenate label arrays along ``axis``; a missing array (``None``) stands for ``fill``."""
    present = [a for a in arrays if a is not None]
    ndim = present[0].ndim
    common = [max(a.shape[i] for a in present) for i in range(ndim)]
    rows = []
    for array, size in zip(arrays, sizes, strict=True):
        shape = tuple(size if i == axis else n for i, n in enumerate(common))
        rows.append(np.full(shape, fill) if array is None else np.broadcast_to(array, shape))
    return np.concatenate(rows, axis)


def take(factor: Factor, axis: int, index: Any) -> Factor:
    """Labels of some indices along an axis; an axis along which they do not change is left alone."""
    return factor.map(lambda ids: ids.take(index, axis + 1)) if factor.depends(axis) else factor


def fixed_like(shape: Shape) -> Ids:
    return np.full(shape, FIXED, dtype=np.int64)


def numel(shape: Shape) -> int:
    return math.prod(shape)
