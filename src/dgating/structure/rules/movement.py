"""Operations that move data without changing it: labels and known values are moved in the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor, Shape, reshape
from dgating.structure._info import Info
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule


def move(x: Info, out: Shape, how: Callable[[Tensor], Tensor]) -> Info:
    """Apply a movement to every array that broadcasts to ``x``."""
    factors = []
    for f in x.factors:
        rows = [how(torch.from_numpy(np.ascontiguousarray(row))).numpy() for row in f.ids]
        factors.append(Factor(np.stack(rows), f.route))
    value = x.value
    if value is not None:
        by_expert = value.ndim > x.ndim  # one row of values an expert
        value = torch.stack([how(row) for row in value]) if by_expert else how(value)
        value = value if x.static else _values.worth(value)
    return Info(out, factors, value, x.static, partial=x.partial)


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", 
      "_reshape_copy", "reshape_as", "atleast_1d", "atleast_2d", "atleast_3d", "ravel", by_row=True)  # fmt: skip
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


@rule("slice", "narrow", by_row=True)
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
    if x.static and _unread(call.node, axis, n):
        x = Info(x.shape, x.factors, _same_along(x.value, axis), partial=True)
    step = 1 if call.name == "aten::narrow" else call["step"]
    if step > 1 and x.on(axis):
        x = _strided(e, call, x, axis, index, step)
    return move(x, call.out, lambda t: _take(t, axis, index))


def _unread(node: Node, axis: int, n: int) -> bool:
    """Whether some positions of a weight are read by no slice here: then they may be at another size of the inputs, as
    the rows of a position table are."""
    source, read = node.args[0], np.zeros(n, dtype=bool)
    assert isinstance(source, Node)
    for user in source.users:
        schema = getattr(user.target, "_schema", None)
        if schema is None or schema.name not in ("aten::slice", "aten::narrow"):
            continue
        names = [a.name for a in schema.arguments]
        given: dict[str, Any] = {**dict(zip(names, user.args, strict=False)), **user.kwargs}
        start, end, length = given.get("start"), given.get("end"), given.get("length")
        literal = all(b is None or isinstance(b, int) for b in (start, end, length))
        if literal and given.get("dim", 0) % source.meta["val"].ndim == axis:
            read[slice(start, start + length if length is not None else end, given.get("step"))] = True
    return not bool(read.all())


def _same_along(value: Tensor | None, axis: int) -> Tensor | None:
    """The known values that hold at every position of an axis."""
    if value is None or not value.is_floating_point():
        return None
    first = value.narrow(axis, 0, 1)
    return _values.worth(torch.where((value == first).all(axis, keepdim=True), first.double(), _values.NAN))


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


@rule("split", "split_with_sizes", "chunk", "unsafe_chunk", "unsafe_split", "tensor_split", "unsafe_split_with_sizes",
      by_row=True)  # fmt: skip
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
