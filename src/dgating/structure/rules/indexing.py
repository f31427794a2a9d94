"""Embeddings, gathers and writes by index: an axis that is indexed stays whole."""

from __future__ import annotations

import numpy as np
import torch
from torch.fx import Node

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor
from dgating.structure._info import Info
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule
from dgating.structure.rules.movement import move


@rule("embedding")
def embedding(e: Engine, call: Call) -> Info:
    """Rows of a table: its rows are addressed from outside, its columns are labels."""
    table: Info = call["weight"]
    e.role(table, 0, "index")
    e.fix(call["indices"], f"{call.where} uses it as an index")
    factors = e.seal(table.factors, [0], f"{call.where} addresses its axis by index")
    out = call.out
    moved = [Factor(f.ids.reshape(1, *(1,) * (len(out) - 1), -1)) for f in factors]
    value = None
    if table.value is not None and e.values:
        column = table.value_along(1)
        value = _values.worth(column.reshape(*(1,) * (len(out) - 1), -1))
    return Info(out, moved, value)


LONGEST_LIST = 64  # a written-out list of positions, such as ``x[..., [-1], :]``


@rule("index")
def index(e: Engine, call: Call) -> Info:
    """Advanced indexing: the indexed axes are replaced by those of the index, the others move along."""
    x: Info = call["self"]
    given = [(a, i) for a, i in enumerate(call["indices"]) if i is not None]
    if len(given) == 1 and given[0][1].ndim == 1:
        axis, rows = given[0]
        if rows.indices is not None and rows.indices.numel() <= LONGEST_LIST:
            order = [int(i) % x.shape[axis] for i in rows.indices]
            return move(x, call.out, lambda t: t if t.shape[axis] == 1 else t.index_select(axis, torch.tensor(order)))
        if axis == 0 and x.static and x.ndim in (2, 3):
            return _routed(e, call, x, rows)
    indices = [*call["indices"], *(None for _ in range(x.ndim - len(call["indices"])))]
    used = [a for a, i in enumerate(indices) if i is not None]
    factors = e.seal(x.factors, used, f"{call.where} addresses its axis by index")
    for info in call.tensors[1:]:
        e.fix(info, f"{call.where} uses it as an index")
    free = [a for a in range(x.ndim) if a not in used]
    width = len(call.out) - len(free)
    adjacent = used == list(range(used[0], used[0] + len(used)))
    front = used[0] if adjacent else 0
    order = [a for a in free if a < front] if adjacent else []
    rest = [a for a in free if a not in order]

    def order_of(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple([shape[a] for a in order] + [1] * width + [shape[a] for a in rest])

    moved = [Factor(f.ids.reshape(f.ids.shape[0], *order_of(f.ids.shape[1:])), f.route) for f in factors]
    value = x.value
    if value is not None and not any(value.shape[a] > 1 for a in used):
        value = value.reshape(order_of(tuple(value.shape)))
    else:
        value = None
    return Info(call.out, moved, value)


def _routed(e: Engine, call: Call, x: Info, rows: Info) -> Info:
    """Rows of a table by expert: labels and values differ from expert to expert (see ``grouped_mm``)."""
    for f in x.on(0):
        if f.axes == (0,):
            e.labels.fix(f.ids, f"{call.where} addresses its axis by index")
    e.fix(rows, f"{call.where} uses it as an index")
    route = route_of(call.node.args[1][0])  # type: ignore[index, arg-type]
    free = [f for f in x.factors if f.axes != (0,)]
    if x.ndim == 3:  # a matrix a row: the product that reads it looks at the whole stack
        return Info(call.out, [Factor(np.swapaxes(f.ids, 0, 1), route) for f in free], picked=(x, route))
    n, width = x.shape
    factors = [Factor(np.broadcast_to(f.ids.reshape(-1, width), (n, width)).reshape(n, 1, width), route) for f in free]
    value = None if x.value is None else x.value.reshape(n, 1, width)
    return Info(call.out, factors, value)


def route_of(node: Node | None) -> Node | None:
    """The node that tells the rows of experts apart: offsets are traced back to the sorted experts they count."""
    while node is not None and getattr(getattr(node.target, "_schema", None), "name", "") in (
        "aten::_to_copy", "aten::cumsum", "aten::histc", "aten::bincount", "aten::clone", "aten::alias",
        "aten::clamp",
    ):  # fmt: skip
        node = node.all_input_nodes[0]
    return node


@rule("index_select")
def index_select(e: Engine, call: Call) -> Info:
    """Rows chosen by an index."""
    x: Info = call["self"]
    axis = call["dim"] % x.ndim
    factors = e.seal(x.factors, [axis], f"{call.where} addresses its axis by index")
    e.fix(call["index"], f"{call.where} uses it as an index")
    value = x.value if x.value is not None and x.value.shape[axis] == 1 else None
    return Info(call.out, factors, value)


@rule("gather", "take_along_dim")
def gather(e: Engine, call: Call) -> Info:
    """Entries chosen along one axis; along the others, input and index go side by side."""
    x: Info = call["self"]
    index: Info = call["index"] if "index" in call.args else call["indices"]
    if call["dim"] is None or x.ndim != index.ndim:
        for info in call.tensors:
            e.fix(info, f"{call.where} addresses it by index")
        return Info(call.out)
    axis = call["dim"] % x.ndim
    reason = f"{call.where} addresses its axis by index"
    uneven = [a for a in range(x.ndim) if a == axis or x.shape[a] != index.shape[a]]
    sides = [Info(index.shape, e.seal(info.factors, uneven, reason)) for info in (x, index)]
    return Info(call.out, e.elementwise(call, sides, index.shape))


@rule("one_hot", "bincount", "histc", "searchsorted", "bucketize", "nonzero", "diff")
def counted(e: Engine, call: Call) -> Info:
    """Counts and positions."""
    for info in call.tensors:
        e.fix(info, f"{call.where} counts its entries")
    return Info(call.out)


@rule("tril", "triu")
def triangle(e: Engine, call: Call) -> Info:
    """The positions along the last two axes have a meaning."""
    x: Info = call["self"]
    reason = f"{call.where} uses its positions"
    return Info(x.shape, e.seal(x.factors, [x.ndim - 2, x.ndim - 1], reason), _values.zero_only(x.value))
