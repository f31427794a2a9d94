"""Which units can leave: a unit stays while something that stays depends on it.

Everything free is assumed dead; then life spreads backwards from the outputs (and from whatever is fixed) through the
products that read a unit with a weight other than zero, until nothing changes. What is left dead contributes exactly
nothing, or a constant that moves into a bias. Shapes add conditions (a head leaves with its whole width, every block of
a grouped convolution keeps as many); where one is violated, units are revived and life spreads again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgating.structure._engine import Engine
from dgating.structure._factors import narrow
from dgating.structure._hidden import hidden, hidden_outputs
from dgating.structure._info import Info, as_list
from dgating.structure._labels import Ids
from dgating.structure._uses import Blocks, DirectUse, Expansion, MatrixUse

Mask = NDArray[np.bool_]


@dataclass(eq=False)
class Solution:
    """``dead[label]``: the label leaves. ``cause[label]``: why a free label stays."""

    engine: Engine
    dead: Mask
    cause: dict[int, str]

    def kept(self, ids: Ids) -> Mask:
        return ~self.dead[ids]


def solve(engine: Engine, fold_constants: bool, create_bias: bool = True) -> Solution:
    """The largest set of units that can leave. Without ``create_bias`` constants move into existing biases only."""
    return _Solver(engine, fold_constants, create_bias).run()


class _Solver:
    def __init__(self, engine: Engine, fold_constants: bool, create_bias: bool) -> None:
        self.e, self.create_bias = engine, create_bias
        self.root = engine.labels.find(np.arange(len(engine.labels)))
        self.fold = fold_constants
        self.cause: dict[int, str] = {}
        fixed = engine.labels.fixed(self.root)
        used = np.zeros(len(self.root), dtype=bool)
        for use in engine.uses:
            used[self.root[use.inputs if isinstance(use, MatrixUse) else use.sources]] = True
        self.live: Mask = fixed | ~used  # by root; a unit that nothing reads may be read on another input
        for r in np.unique(self.root[~fixed & ~used[self.root]]):
            self.cause[int(r)] = "nothing in the graph reads it"
        masks = hidden(engine)
        self.matrices = [_Matrix(self, u, masks.get(u.node)) for u in engine.uses if isinstance(u, MatrixUse)]
        by_use = {id(m.use): m for m in self.matrices}
        self.steps = [by_use[id(u)] if isinstance(u, MatrixUse) else u for u in reversed(engine.uses)]
        self.tensors = _distinct(engine, self.root)

    def run(self) -> Solution:
        while True:
            self.spread()
            if not self.revive():
                break
        return Solution(self.e, ~self.live[self.root], self.cause)

    def spread(self) -> None:
        changed = True
        while changed:
            changed = False
            for step in self.steps:
                ids, why = step.reach() if isinstance(step, _Matrix) else self._direct(step)
                changed |= self.bring(ids, why)

    def bring(self, ids: Ids, why: str) -> bool:
        """Make classes live; whether any was dead."""
        new = np.unique(ids[~self.live[ids]]) if ids.size else ids
        for r in new:
            self.cause[int(r)] = why
        self.live[new] = True
        return new.size > 0

    def _direct(self, use: DirectUse) -> tuple[Ids, str]:
        sources = self.root[use.sources]
        stays = np.ones(sources.shape, dtype=bool) if use.targets is None else self.live[self.root[use.targets]]
        if use.zero is not None:
            stays = stays & ~use.zero
        return sources[stays], use.why

    # --- conditions of shape ---

    def revive(self) -> bool:
        changed = False
        for arrays, sliced in self.tensors:
            for ids, why in irregular(arrays, ~self.live, sliced):
                changed |= self.bring(ids, why)
        for b in self.e.blocks:
            changed |= self._revive_blocks(b)
        for x in self.e.expansions:
            changed |= self._revive_expansion(x)
        for ids in self.e.boxes:
            changed |= self._revive_box(narrow(self.root[ids]))
        for ids in self.e.strides:
            rows = self.root[ids]
            partly = self.live[rows].any(-1, keepdims=True) & ~self.live[rows]
            changed |= self.bring(rows[partly], "positions along its axis have a meaning")
        return changed

    def _revive_box(self, ids: Ids) -> bool:
        """What was permuted has to stay a product of index sets: rows of their own would end up in another order."""
        live = self.live[ids]
        closure = np.ones(ids.shape, dtype=bool)
        for axis in range(ids.ndim):
            along = np.moveaxis(live, axis, 0).reshape(ids.shape[axis], -1).any(1)
            closure &= along.reshape([-1 if a == axis else 1 for a in range(ids.ndim)])
        return self.bring(ids[closure & ~live], "the tensor has to stay rectangular")

    def _revive_blocks(self, b: Blocks) -> bool:
        sides = [self.root[b.inputs], self.root[b.outputs]]
        stays = self.live[sides[0]].any(1) | self.live[sides[1]].any(1)
        changed = False
        for ids in sides:
            changed |= self.bring(
                _level(ids[stays], self.live[ids[stays]]), "every block of a grouped convolution keeps as many"
            )
        return changed

    def _revive_expansion(self, x: Expansion) -> bool:
        parents, children = self.root[x.parents], self.root[x.children]
        rows = np.moveaxis(children, x.axes, range(-len(x.axes), 0)).reshape(-1, _count(children, x.axes))
        stays = self.live[parents.reshape(-1)]
        rows = rows[stays]
        if not rows.size:
            return False
        ids = _level(rows, self.live[rows])
        return self.bring(ids, "every group keeps as many copies")


class _Matrix:
    """A product with weights, ready to tell which inputs are reached from live outputs."""

    def __init__(self, solver: _Solver, use: MatrixUse, mask: Tensor | None) -> None:
        self.solver, self.use = solver, use
        self.hidden = hidden_outputs(use, mask)
        self.inputs, self.outputs = solver.root[use.inputs], solver.root[use.outputs]
        constant = use.constant
        blocked = constant.isnan()
        if not (solver.fold and foldable(solver.e, use, solver.create_bias)):
            blocked = constant != 0
        self.blocked = blocked.numpy()
        self._nonzero: Tensor | None = None

    @property
    def nonzero(self) -> Tensor:
        if self._nonzero is None:
            w = self.use.weight.ne(0)
            w = w.any(-1) if w.ndim == 4 else w
            if self.hidden is not None:
                # a constant that leaves moves into the bias: where it may not, it is read after all
                stuck = torch.from_numpy(self.blocked) & ~self.use.constant.isnan()
                w = w & (~self.hidden.unsqueeze(-1) | stuck.unsqueeze(-2))
            self._nonzero = w
        return self._nonzero

    def reach(self) -> tuple[Ids, str]:
        live = self.solver.live
        open_ = ~live[self.inputs] & self.blocked
        if not open_.any():
            return self.inputs[open_], ""
        out = torch.from_numpy(live[self.outputs])
        if self.nonzero.shape[0] == 1:
            reached = self.nonzero[0][out[0]].any(0, keepdim=True)
        else:
            reached = (self.nonzero & out.unsqueeze(-1)).any(1)
        return self.inputs[open_ & reached.numpy()], f"{self.use.why} reads it"


def foldable(engine: Engine, use: MatrixUse, create_bias: bool) -> bool:
    """Whether a constant input of this product can move into a bias: the weight and the bias serve this call alone."""
    if use.fold is None or len(engine.matrices[id(use.fold.weight.tensor)]) > 1:
        return False
    bias = use.fold.bias
    if bias is None:
        return create_bias
    return len(engine.readers[id(bias.tensor)]) == 1


def _count(array: Any, axes: tuple[int, ...]) -> int:
    n = 1
    for a in axes:
        n *= array.shape[a]
    return n


def _level(rows: Ids, live: Mask) -> Ids:
    """What to revive so that every row keeps as many (at least one)."""
    counts = live.sum(1)
    target = max(int(counts.max(initial=0)), 1)
    missing = target - counts
    # the first dead entries of a row come back
    rank = np.cumsum(~live, axis=1)
    return rows[~live & (rank <= missing[:, None])]


def _alike(rows: Ids, live: Mask) -> Ids:
    """What to revive so that every row keeps the same entries (at least one)."""
    along: Mask = np.asarray(live.any(0))
    along[0] |= not along.any()
    return rows[~live & along]


def _distinct(engine: Engine, root: Ids) -> list[tuple[list[Ids], bool]]:
    """The label arrays of all tensors, and whether they are those of a weight; each combination once."""
    seen: set[bytes] = set()
    found: list[tuple[list[Ids], bool]] = []
    infos: list[Info] = []
    for info in engine.info.values():
        infos += as_list(info)
    for info in infos:
        arrays = [narrow(root[f.ids]) for f in info.factors]
        if not arrays:
            continue
        sliced = info.weight is not None
        key = b"".join([b"%d" % sliced, *(str(a.shape).encode() + a.tobytes() for a in arrays)])
        if key not in seen:
            seen.add(key)
            found.append((arrays, sliced))
    return found


def irregular(arrays: list[Ids], dead: Mask, sliced: bool = False) -> list[tuple[Ids, str]]:
    """What has to be revived so that a tensor with these labels stays a rectangle.

    Along one axis: at least one index stays. Over several axes: the entries that stay form a product of index sets, or
    (along the last of the axes) every row that stays keeps as many. The slice of a weight (``sliced``) has one axis of
    rows: over three axes every row keeps the same.
    """
    out: list[tuple[Ids, str]] = []
    pure = [a for a in arrays if sum(n > 1 for n in a.shape) == 1]
    for ids in arrays:
        kept = ~dead[ids]
        if kept.all():
            continue
        wide = [i for i, n in enumerate(ids.shape) if n > 1]
        if not kept.any():
            out.append((ids.reshape(-1)[:1], "one of them has to stay"))
            continue
        if len(wide) == 1:
            continue
        others = [p for p in pure if p is not ids]
        rows, live, _ = table(ids, kept, wide, others, dead)
        if rows is None:
            continue
        revived = _alike(rows, live) if sliced and len(wide) > 2 else _level(rows, live)
        if revived.size:
            out.append((revived, "the tensor has to stay rectangular"))
    return out


def table(ids: Ids, kept: Mask, wide: list[int], others: list[Ids], dead: Mask) -> tuple[Ids | None, Mask, Mask]:
    """A joint array as rows (all its axes but the last) by entries, without the rows that leave.

    ``None`` in the first place when the entries that stay form a product: then there is nothing to check.
    """
    flat, live = ids.reshape([ids.shape[i] for i in wide]), kept.reshape([ids.shape[i] for i in wide])
    row_shape = flat.shape[:-1]
    stays = np.ones(row_shape, dtype=bool)
    for position, axis in enumerate(wide[:-1]):
        for p in others:
            if p.shape[axis] > 1:
                mask = ~dead[p.reshape(-1)]
                stays &= mask.reshape([-1 if i == position else 1 for i in range(len(row_shape))])
    governed = any(p.shape[a] > 1 for p in others for a in wide[:-1])
    if not governed and wide[0] != 0:  # the first axis is virtual: experts never leave with their neurons
        any_row: Mask = np.asarray(live.any(-1))
        product = np.ones(row_shape, dtype=bool)
        for position in range(len(row_shape)):
            along = np.moveaxis(any_row, position, 0).reshape(row_shape[position], -1).any(1)
            product &= along.reshape([-1 if i == position else 1 for i in range(len(row_shape))])
        stays &= product
    rows, live_rows = flat[stays], live[stays]
    if live_rows.size and bool((live_rows == live_rows[:1]).all()) and bool(live_rows[0].any()):
        return None, live_rows, stays
    return rows, live_rows, stays
