"""Rows that were routed to experts: their labels and values differ from expert to expert."""

from __future__ import annotations

import dataclasses

import torch

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import unroute
from dgating.structure._info import Info, as_outputs, shape_of
from dgating.structure.rules import _values


def routed(x: Info) -> bool:
    """Whether anything is told apart by the expert of a row: then it has the virtual axis in front."""
    return any(f.ids.shape[0] > 1 for f in x.factors) or (x.value is not None and x.value.ndim > x.ndim)


def in_place(call: Call, x: Info) -> bool:
    """Whether the first axis of a result still is that of ``x``: as long, and with nothing broadcast in front of it."""
    outs = [shape_of(out) for out in as_outputs(call.node)]  # none of what only looks at it
    alone = len(call.tensors) == 1
    return all(out[:1] == x.shape[:1] and (alone or len(out) == x.ndim) for out in outs)


def for_every_row(e: Engine, x: Info) -> Info:
    """What holds for the rows of every expert: labels are merged, of the values those stay that are alike."""
    factors = [g for f in x.factors if (g := unroute(e.labels, f)) is not None]
    value = x.value
    if value is not None and value.ndim > x.ndim:
        value = _values.worth(torch.where((value == value[:1]).all(0), value[0].double(), _values.NAN))
    return dataclasses.replace(x, factors=factors, value=value) if routed(x) else x
