"""Rules of operations that put tensors side by side, or write one into a part of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor, combine, lift, seal, simplify
from dgating.structure._info import Info
from dgating.structure._labels import FIXED
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule
from dgating.structure.rules.movement import move


@rule("cat", "concat", "concatenate")
def cat(e: Engine, call: Call) -> Info:
    """Tensors one after the other along an axis."""
    axis = (call["dim"] if "dim" in call.args else 0) % len(call.out)
    parts: list[Info] = [p for p in call["tensors"] if p.ndim > axis and p.shape[axis] > 0]
    return _cat(e, call, parts, axis)


@rule("stack")
def stack(e: Engine, call: Call) -> Info:
    """Tensors side by side along a new axis."""
    axis = call["dim"] % len(call.out)
    parts = []
    for p in call["tensors"]:
        shape = (*p.shape[:axis], 1, *p.shape[axis:])
        parts.append(move(p, shape, lambda t, a=axis: t.unsqueeze(a)))
    return _cat(e, call, parts, axis)


def _cat(e: Engine, call: Call, parts: list[Info], axis: int) -> Info:
    out = call.out
    reason = f"it meets {call.where}"
    rows = [list(p.factors) for p in parts]
    # Every part gives at most one factor to the joined axis: what depends on it, and what shares other axes with that.
    shared = {axis} | {a for fs in rows for f in fs if f.depends(axis) for a in f.axes}
    joined: list[Factor | None] = []
    for i, fs in enumerate(rows):
        mine = [f for f in fs if f.depends(axis)] or [f for f in fs if set(f.axes) & shared]
        rows[i] = [f for f in fs if f not in mine]
        if len(mine) > 1 or (mine and mine[0].ids.shape[0] > 1):
            for f in mine:
                e.labels.fix(f.ids, reason)
            mine = []
        joined.append(mine[0] if mine else None)
    whole = set(shared) - {axis}
    for a in whole:  # an axis that one part keeps whole is whole in all of them
        if any(p.shape[a] > 1 and (f is None or not f.depends(a)) for p, f in zip(parts, joined, strict=True)):
            joined = [None if f is None else seal(e.labels, f, [a], reason) for f in joined]
    flat = [tuple(1 if i == axis else n for i, n in enumerate(p.shape)) for p in parts]
    factors = combine(
        e.labels, list(zip(flat, rows, strict=True)), tuple(1 if i == axis else n for i, n in enumerate(out)), reason
    )
    if any(f is not None for f in joined):
        axes = {a for f in joined if f is not None for a in f.axes} | {axis}
        ids = []
        for p, f in zip(parts, joined, strict=True):
            shape = (1, *(p.shape[a] if a in axes else 1 for a in range(p.ndim)))
            ids.append(np.broadcast_to(np.full((), FIXED) if f is None else f.ids, shape))
        factors.append(Factor(np.concatenate(ids, axis + 1)))
    return Info(out, factors, _cat_value(parts, axis))


def _cat_value(parts: Sequence[Info], axis: int) -> Tensor | None:
    known = [p.value for p in parts if p.value is not None]
    if not known:
        return None
    common = [max(v.shape[a] for v in known) for a in range(known[0].ndim)]
    rows = []
    for p in parts:
        shape = [p.shape[a] if a == axis else n for a, n in enumerate(common)]
        rows.append(
            torch.full(shape, _values.NAN, dtype=torch.float64) if p.value is None else p.value.double().expand(shape)
        )
    return _values.worth(torch.cat(rows, axis))


@rule("slice_scatter", "select_scatter")
def write(e: Engine, call: Call) -> Info:
    """``src`` in the place of a part of ``self``, the rest beside it as in a ``cat``: the same indices leave both."""
    x: Info = call["self"]
    src: Info = call["src"]
    axis = call["dim"] % x.ndim
    n = x.shape[axis]
    if call.name == "aten::select_scatter":
        place = range(n)[call["index"] :][:1]
        src = move(src, (*src.shape[:axis], 1, *src.shape[axis:]), lambda t: t.unsqueeze(axis))
    else:
        place = range(n)[slice(call["start"], call["end"], call["step"])]
    if not len(place):
        return Info(x.shape, list(x.factors), x.value)
    if place.step > 1:
        reason = f"{call.where} uses its positions"
        x, src = (Info(i.shape, e.seal(i.factors, [axis], reason), i.value) for i in (x, src))
    part = Info(src.shape, _part(e, x, axis, place))
    _overwrite(e, call, part, src)
    return Info(x.shape, list(x.factors), _written(x, src, axis, place))


@rule("copy")
def copy(e: Engine, call: Call) -> Info:
    """``src`` in the place of all of ``self``."""
    x: Info = call["self"]
    src = _lifted(call["src"], x.ndim)
    value = src.value if call.node.meta["val"].is_floating_point() else None
    if value is not None:  # what a cast to fewer digits leaves of it
        value = value.to(call.node.meta["val"].dtype).double()
    return Info(x.shape, _overwrite(e, call, x, src), value)


def _part(e: Engine, x: Info, axis: int, place: range) -> list[Factor]:
    """Labels of the entries that are written to. A single index keeps its place."""
    found = (f.map(lambda ids: ids.take(list(place), axis + 1)) if f.depends(axis) else f for f in x.factors)
    return [g for f in found if (g := simplify(e.labels, f)) is not None]


def _overwrite(e: Engine, call: Call, old: Info, new: Info) -> list[Factor]:
    """Nothing of ``old`` is left, but it has to keep the shape of ``new``."""
    reason = f"it meets {call.where}"
    sides = [Info(i.shape, _outermost(e, i, other, reason)) for i, other in ((old, new), (new, old))]
    return e.elementwise(call, sides, old.shape)


def _outermost(e: Engine, x: Info, other: Info, reason: str) -> list[Factor]:
    """The factors of ``x``; of several that meet a joint one, all but the outermost are fixed.

    A tensor made from its sizes has a factor an axis, what is written into it (heads x width) may have a joint one:
    then whole rows can leave.
    """
    for f in other.factors:
        met = [g for g in x.factors if set(g.axes) & set(f.axes)]
        if len(f.axes) > 1 and f.axes not in [g.axes for g in met]:
            for g in sorted(met, key=lambda g: g.axes)[1:]:
                e.labels.fix(g.ids, reason)
    return [g for f in x.factors if (g := simplify(e.labels, f)) is not None]


def _lifted(x: Info, ndim: int) -> Info:
    """``x`` with axes of size one put in front, as broadcasting does."""
    missing = ndim - x.ndim
    return Info((1,) * missing + x.shape, [lift(f, ndim) for f in x.factors], x.value)


def _written(x: Info, src: Info, axis: int, place: range) -> Tensor | None:
    old, new = (_full(i) for i in (x, src))
    size = torch.broadcast_shapes(*((*v.shape[:axis], 1, *v.shape[axis + 1 :]) for v in (old, new)))
    old, new = (v.expand(*size[:axis], i.shape[axis], *size[axis + 1 :]) for v, i in ((old, x), (new, src)))
    return _values.worth(old.index_copy(axis, torch.tensor(list(place), dtype=torch.long), new))


def _full(x: Info) -> Tensor:
    """Known values with all axes of the tensor."""
    if x.value is None:
        return torch.full((1,) * x.ndim, _values.NAN, dtype=torch.float64)
    return x.value.double()
