"""Operations that move data without changing it: labels and known values are moved in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from dgating.structure._engine import Call, DirectUse, Engine, Expansion, Info
from dgating.structure._factors import Factor, Shape, combine, reshape, seal, single
from dgating.structure._labels import FIXED
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule

LARGEST_EXPANSION = 1_000_000  # labels of their own for the copies of an expand; beyond it, copies are not told apart


def move(x: Info, out: Shape, how: Callable[[Tensor], Tensor]) -> Info:
    """Apply a movement to every array that broadcasts to ``x``."""
    factors = []
    for f in x.factors:
        rows = [how(torch.from_numpy(np.ascontiguousarray(row))).numpy() for row in f.ids]
        factors.append(Factor(np.stack(rows), f.route))
    value = x.value
    if value is not None:
        if value.ndim > x.ndim:  # one row of values an expert
            value = torch.stack([how(row) for row in value])
        else:
            value = how(value.reshape((1,) * (x.ndim - value.ndim) + tuple(value.shape)))
        value = value if x.static else _values.worth(value)
    return Info(out, factors, value, x.static)


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", 
      "_reshape_copy", "reshape_as", "atleast_1d", "atleast_2d", "atleast_3d", "ravel")  # fmt: skip
def view(e: Engine, call: Call) -> Info:
    """The same entries in the same order: split axes give joint labels, merged axes repeat them."""
    x: Info = call[call.first]
    if "dtype" in call.args:  # other numbers from the same bits
        e.fix(x, f"{call.where} reads its bits")
        return Info(call.out)
    return move(x, call.out, lambda t: reshape(t, x.shape, call.out))


@rule("permute", "transpose", "t", "numpy_T", "mT", "movedim", "swapaxes", "swapdims", "moveaxis", "adjoint", "mH",
      "matrix_H")  # fmt: skip
def permute(e: Engine, call: Call) -> Info:
    """The axes in another order."""
    x: Info = call[call.first]
    order = list(range(x.ndim))
    if call.name == "aten::permute":
        order = [d % x.ndim for d in call["dims"]]
    elif call.name in ("aten::movedim", "aten::moveaxis"):
        source, target = (_list(call[k]) for k in ("source", "destination"))
        order = _movedim(x.ndim, source, target)
    else:
        a, b = (call.get(k) for k in _transposed(call))
        if call.name == "aten::numpy_T":
            order = order[::-1]
        elif x.ndim > 1:
            a, b = (-2, -1) if a is None or b is None else (a, b)
            a, b = a % x.ndim, b % x.ndim
            order[a], order[b] = order[b], order[a]
    for f in x.factors:
        e.boxes += [f.ids] if [a for a in order if a in f.axes] != list(f.axes) else []
    return move(x, call.out, lambda t: t.permute(order))


def _transposed(call: Call) -> tuple[str, str]:
    return ("axis0", "axis1") if call.name == "aten::swapaxes" else ("dim0", "dim1")


def _movedim(ndim: int, source: list[int], target: list[int]) -> list[int]:
    order = [-1] * ndim
    for s, t in zip(source, target, strict=True):
        order[t % ndim] = s % ndim
    rest = iter(a for a in range(ndim) if a not in [s % ndim for s in source])
    return [next(rest) if a < 0 else a for a in order]


@rule("slice", "narrow")
def slice_(e: Engine, call: Call) -> Info:
    """A range of an axis."""
    x: Info = call[call.first]
    axis = call["dim"] % x.ndim
    n = x.shape[axis]
    if call.name == "aten::narrow":
        index = range(call["start"], call["start"] + call["length"])
    else:
        index = range(n)[slice(call["start"], call["end"], call["step"])]
    if len(index) == n:
        return move(x, call.out, lambda t: t)
    step = 1 if call.name == "aten::narrow" else call["step"]
    if step > 1 and x.on(axis):
        x = _strided(e, call, x, axis, index, step)
    return move(x, call.out, lambda t: _take(t, axis, index))


def _strided(e: Engine, call: Call, x: Info, axis: int, index: range, step: int) -> Info:
    """Every ``step``-th position (interleaved halves): positions leave in whole strides, or not at all."""
    n = x.shape[axis]
    reason = f"{call.where} uses its positions"
    if n % step or len(index) != n // step or index[0] >= step:
        return Info(x.shape, e.seal(x.factors, [axis], reason), x.value)
    for f in x.on(axis):
        ids = np.moveaxis(f.ids, axis + 1, -1)
        e.strides.append(ids.reshape(*ids.shape[:-1], n // step, step))
    return x


@rule("select")
def select(e: Engine, call: Call) -> Info:
    """One index of an axis."""
    x: Info = call[call.first]
    axis, i = call["dim"] % x.ndim, call["index"]
    return move(x, call.out, lambda t: t.select(axis, i if t.shape[axis] > 1 else 0))


@rule("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split", "unsafe_split_with_sizes")
def split(e: Engine, call: Call) -> list[Info]:
    """Consecutive ranges of an axis."""
    x: Info = call[call.first]
    axis = call["dim"] % x.ndim
    out, start = [], 0
    for shape in call.outs:
        index = range(start, start + shape[axis])
        out.append(move(x, shape, lambda t, i=index: _take(t, axis, i)))
        start += shape[axis]
    return out


@rule("unbind")
def unbind(e: Engine, call: Call) -> list[Info]:
    """Every index of an axis on its own."""
    x: Info = call[call.first]
    axis = call["dim"] % x.ndim
    return [
        move(x, shape, lambda t, i=i: t.select(axis, i if t.shape[axis] > 1 else 0))
        for i, shape in enumerate(call.outs)
    ]


@rule("roll", "flip")
def roll(e: Engine, call: Call) -> Info:
    """Positions along an axis change places: such an axis stays whole."""
    x: Info = call[call.first]
    axes = [d % x.ndim for d in _list(call["dims"])] or list(range(x.ndim))
    value = x.value if x.value is None or not any(x.value.shape[a] > 1 for a in axes) else None
    return Info(x.shape, e.seal(x.factors, axes, f"{call.where} uses its positions"), value)


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
    if all(p.value is None for p in parts) or any(p.value is not None and p.value.ndim != p.ndim for p in parts):
        return None
    known = [p.value for p in parts if p.value is not None]
    ndim = known[0].ndim
    common = [max(v.shape[a] for v in known) for a in range(ndim)]
    rows = []
    for p in parts:
        shape = [p.shape[a] if a == axis else n for a, n in enumerate(common)]
        rows.append(
            torch.full(shape, _values.NAN, dtype=torch.float64) if p.value is None else p.value.double().expand(shape)
        )
    return _values.worth(torch.cat(rows, axis))


@rule("expand", "expand_as", "broadcast_to")
def expand(e: Engine, call: Call) -> Info:
    """An axis of size one is repeated: the copies are alike, so any of them may leave."""
    return expanded(e, call[call.first], call.out, call.where)


def expanded(e: Engine, x: Info, out: Shape, where: str) -> Info:
    """``x`` broadcast to ``out``; its copies get labels of their own that stay only with their original."""
    lead = len(out) - x.ndim
    shape = (1,) * lead + x.shape
    grown = tuple(a for a in range(len(out)) if shape[a] == 1 and out[a] > 1)
    value = x.value
    if value is not None and value.ndim == x.ndim:
        value = value.reshape((1,) * lead + tuple(value.shape))
        value = value.expand(out) if x.static else value
    factors = [Factor(f.ids.reshape(f.ids.shape[0], *(1,) * lead, *f.ids.shape[1:]), f.route) for f in x.factors]
    if len(factors) == 1 and grown and factors[0].ids.shape[0] == 1:
        parents = factors[0].ids
        size = tuple(out[a - 1] if a - 1 in grown else n for a, n in enumerate(parents.shape))
        if math.prod(size) <= LARGEST_EXPANSION:
            children = e.labels.fresh(size)
            e.expansions.append(Expansion(parents, children, tuple(a + 1 for a in grown)))
            e.uses.append(DirectUse(np.broadcast_to(parents, size), children, None, where))
            factors = [Factor(children)]
    elif not factors and not x.static and e.loose:
        factors = [single(e.labels.fresh((out[a],)), a, len(out)) for a in grown if out[a] <= LARGEST_EXPANSION]
    return Info(out, factors, value)


@rule("repeat", "tile", "repeat_interleave")
def repeat(e: Engine, call: Call) -> Info:
    """Copies of whole axes (``repeat``) or of single entries (``repeat_interleave``)."""
    x: Info = call[call.first]
    out = call.out
    if call.name == "aten::repeat_interleave":
        times = call.get("repeats")
        if not isinstance(times, int) or call.get("dim") is None:
            for info in call.tensors:
                e.fix(info, f"{call.where} repeats its entries unevenly")
            return Info(out)
        axis = call["dim"] % x.ndim
        between = move(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]), lambda t: t.unsqueeze(axis + 1))
        many = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
        grown = expanded(e, between, many, call.where)
        return move(grown, out, lambda t: reshape(t, many, out))
    lead = len(out) - x.ndim
    flat = (1,) * lead + x.shape
    copies = tuple(n // m for n, m in zip(out, flat, strict=True))
    inner = tuple(k for m in flat for k in (1, m))
    many = tuple(k for c, m in zip(copies, flat, strict=True) for k in (c, m))
    between = move(x, inner, lambda t: reshape(t, x.shape, inner))
    grown = expanded(e, between, many, call.where)
    e.boxes += [f.ids for f in grown.factors]
    return move(grown, out, lambda t: reshape(t, many, out))


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def shuffle(e: Engine, call: Call) -> Info:
    """Views and permutations under one name."""
    x: Info = call[call.first]
    lead, (c, h, w) = x.shape[:-3], x.shape[-3:]
    n = len(lead)
    if "channel" in call.name:
        g = call["groups"]
        shape, order = (*lead, g, c // g, h, w), [*range(n), n + 1, n, n + 2, n + 3]
    elif call.name == "aten::pixel_shuffle":
        r = call["upscale_factor"]
        shape, order = (*lead, c // r**2, r, r, h, w), [*range(n), n, n + 3, n + 1, n + 4, n + 2]
    else:
        r = call["downscale_factor"]
        shape, order = (*lead, c, h // r, r, w // r, r), [*range(n), n, n + 2, n + 4, n + 1, n + 3]
    moved = tuple(shape[a] for a in order)
    whole = [n + 1] if "channel" in call.name else [n + 2, n + 3] if call.name == "aten::pixel_shuffle" else []
    for f in x.factors:
        ids = np.stack([reshape(row, x.shape, shape) for row in f.ids])
        e.boxes.append(ids)
        if whole:  # the number of blocks (or the side of a cell) is an argument: every block keeps the same positions
            last = np.moveaxis(ids, whole, range(-len(whole), 0))
            e.strides.append(last.reshape(*last.shape[: -len(whole)], -1))

    def how(t: Tensor) -> Tensor:
        return reshape(reshape(t, x.shape, shape).permute(order), moved, call.out)

    return move(x, call.out, how)


def _take(t: Tensor, axis: int, index: range) -> Tensor:
    return t if t.shape[axis] == 1 else t.index_select(axis, torch.tensor(list(index), dtype=torch.long))


def _list(x: object) -> list[int]:
    return [x] if isinstance(x, int) else list(x)  # type: ignore[call-overload]
