"""Rules of operations that copy a tensor along an axis."""

from __future__ import annotations

import math

import numpy as np

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor, Shape, reshape, single
from dgating.structure._info import Info
from dgating.structure._uses import DirectUse, Expansion
from dgating.structure.rules._registry import rule
from dgating.structure.rules.movement import move

LARGEST_EXPANSION = 1_000_000  # labels of their own for the copies of an expand; beyond it, copies are not told apart


@rule("expand", "expand_as", "broadcast_to")
def expand(e: Engine, call: Call) -> Info:
    """An axis of size one is repeated: the copies are alike, so any of them may leave."""
    return expanded(e, call[call.first], call.out, call.where)


def expanded(e: Engine, x: Info, out: Shape, where: str) -> Info:
    """``x`` broadcast to ``out``; its copies get labels of their own that stay only with their original."""
    lead = len(out) - x.ndim
    shape = (1,) * lead + x.shape
    grown = tuple(a for a in range(len(out)) if shape[a] == 1 and out[a] > 1)
    lifted = move(x, shape, lambda t: t.reshape((1,) * lead + tuple(t.shape)))
    value, factors = lifted.value, lifted.factors
    if value is not None and x.static:
        value = value.expand(out)
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
