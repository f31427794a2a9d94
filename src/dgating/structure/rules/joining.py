"""Rules of operations that put tensors side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor, combine, seal
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
