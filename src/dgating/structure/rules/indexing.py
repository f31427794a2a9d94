"""Embeddings, gathers and writes by index: an axis that is indexed stays whole."""

from __future__ import annotations

from dgating.structure._engine import Call, Engine, Info
from dgating.structure._factors import Factor
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule


@rule("embedding")
def embedding(e: Engine, call: Call) -> Info:
    """Rows of a table: its rows are addressed from outside, its columns are labels."""
    table: Info = call["weight"]
    e.role(table, 0, "index")
    factors = e.seal(table.factors, [0], f"{call.where} addresses its axis by index")
    out = call.out
    moved = [Factor(f.ids.reshape(1, *(1,) * (len(out) - 1), -1)) for f in factors]
    value = None
    if table.value is not None:
        column = table.value_along(1)
        value = _values.worth(column.reshape(*(1,) * (len(out) - 1), -1))
    return Info(out, moved, value)


@rule("index", "_unsafe_index")
def index(e: Engine, call: Call) -> Info:
    """Advanced indexing: the indexed axes are replaced by those of the index, the others move along."""
    x: Info = call["self"]
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

    def move(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple([shape[a] for a in order] + [1] * width + [shape[a] for a in rest])

    moved = [Factor(f.ids.reshape(f.ids.shape[0], *move(f.ids.shape[1:])), f.route) for f in factors]
    value = x.value
    if value is not None and value.ndim == x.ndim and not any(value.shape[a] > 1 for a in used):
        value = value.reshape(move(tuple(value.shape)))
    else:
        value = None
    return Info(call.out, moved, value)


@rule("index_select")
def index_select(e: Engine, call: Call) -> Info:
    """Rows chosen by an index."""
    x: Info = call["self"]
    axis = call["dim"] % x.ndim
    factors = e.seal(x.factors, [axis], f"{call.where} addresses its axis by index")
    value = x.value if x.value is not None and x.value.ndim == x.ndim and x.value.shape[axis] == 1 else None
    return Info(call.out, factors, value)


@rule("gather", "take_along_dim")
def gather(e: Engine, call: Call) -> Info:
    """Entries chosen by an index of the same number of axes: every axis stays whole."""
    for info in call.tensors:
        e.fix(info, f"{call.where} addresses it by index")
    return Info(call.out)


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
