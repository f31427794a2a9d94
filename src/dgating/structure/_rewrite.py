"""Sizes written into a graph, and what they become in the compact model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._info import Info
from dgating.structure._sizes import kept_along, new_shape
from dgating.structure._solve import Solution


@dataclass(frozen=True)
class Change:
    """One literal argument of one node: ``old`` becomes ``new``. ``op`` replaces the operation where it has to."""

    node: Node
    argument: str
    old: Any
    new: Any
    op: str | None = None


Rewrite = Callable[[Call, Solution], "list[Change]"]
REWRITES: dict[str, Rewrite] = {}


def _rewrites(*names: str) -> Callable[[Rewrite], Rewrite]:
    def register(f: Rewrite) -> Rewrite:
        REWRITES.update({f"aten::{n}": f for n in names})
        return f

    return register


def changes(engine: Engine, solution: Solution) -> list[Change]:
    """Every literal size that the compact model needs changed, in graph order."""
    found: list[Change] = []
    for node in engine.captured.program.graph.nodes:
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            continue
        rewrite = REWRITES.get(node.target._schema.name)
        if rewrite is not None:
            found += rewrite(Call(engine.resolve, node), solution)
    return found


def _out(call: Call, i: int | None = None) -> Info:
    info = call.resolve(call.node)
    return info if i is None else info[i]


def _raw(call: Call, name: str) -> Any:
    """An argument as it stands in the graph, where sizes may be nodes."""
    schema = call.node.target._schema  # type: ignore[union-attr]
    for i, a in enumerate(schema.arguments):
        if a.name == name:
            return call.node.args[i] if i < len(call.node.args) else call.node.kwargs.get(name, a.default_value)
    return None


def _list_change(call: Call, name: str, new: list[Any]) -> list[Change]:
    old = list(_raw(call, name))
    merged = [n if isinstance(o, int) and o != -1 else o for o, n in zip(old, new, strict=True)]
    return [Change(call.node, name, old, merged)] if merged != old else []


def _inferred_change(call: Call, name: str, new: list[Any], first: int) -> list[Change]:
    """A ``-1`` counts as the number that it stands for, which attributes may hold, unless that is a free size."""
    shape = call.node.meta["val"].shape[first:]
    old = [n if o == -1 and isinstance(n, int) else o for o, n in zip(_raw(call, name), shape, strict=False)]
    merged = [n if isinstance(o, int) and o != -1 else o for o, n in zip(old, new, strict=True)]
    return [Change(call.node, name, old, merged)] if merged != old else []


@_rewrites("view", "reshape", "_unsafe_view", "_reshape_copy")
def _view(call: Call, s: Solution) -> list[Change]:
    name = "size" if "size" in call.args else "shape"
    if name not in call.args:
        return []
    return _inferred_change(call, name, list(new_shape(s, _out(call))), 0)


@_rewrites("unflatten")
def _unflatten(call: Call, s: Solution) -> list[Change]:
    axis = call["dim"] % call["self"].ndim
    return _inferred_change(call, "sizes", list(new_shape(s, _out(call))[axis : axis + len(call["sizes"])]), axis)


@_rewrites("expand", "broadcast_to", "full", "zeros", "ones", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def _expand(call: Call, s: Solution) -> list[Change]:
    return _list_change(call, "size", list(new_shape(s, _out(call))))


@_rewrites("repeat", "tile")
def _repeat(call: Call, s: Solution) -> list[Change]:
    out, x = new_shape(s, _out(call)), new_shape(s, call[call.first])
    x = (1,) * (len(out) - len(x)) + x
    name = "repeats" if "repeats" in call.args else "dims"
    return _list_change(call, name, [a // max(b, 1) for a, b in zip(out, x, strict=True)][-len(call[name]) :])


@_rewrites("repeat_interleave")
def _repeat_interleave(call: Call, s: Solution) -> list[Change]:
    axis, old = call.get("dim"), call.get("repeats")
    if not isinstance(old, int) or axis is None:
        return []
    new = new_shape(s, _out(call))[axis] // max(new_shape(s, call["self"])[axis], 1)
    return [Change(call.node, "repeats", old, new)] if new != old else []


@_rewrites("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes",
           "tensor_split")  # fmt: skip
def _split(call: Call, s: Solution) -> list[Change]:
    axis = call["dim"] % call["self"].ndim
    outs = [_out(call, i) for i in range(len(call.outs))]
    new = [new_shape(s, o)[axis] for o in outs]
    if new == [o.shape[axis] for o in outs]:
        return []
    if "chunk" in call.name:
        old: Any = call["chunks"]
        total = sum(new)
        step = -(-total // old)
        same = [min(step, total - i) for i in range(0, total, step)] == new
        return [] if same else [Change(call.node, "chunks", old, new, "split_with_sizes")]
    name = next(n for n in ("split_size", "split_sizes", "sections", "indices") if n in call.args)
    old = _raw(call, name)
    if name == "split_size":
        even = all(n == new[0] for n in new[:-1]) and new[-1] <= new[0]
        return [Change(call.node, name, old, new[0] if even else new, None if even else "split_with_sizes")]
    if name in ("sections", "indices"):
        return [Change(call.node, name, old, new, "split_with_sizes")]
    return _list_change(call, name, new)


@_rewrites("slice", "slice_scatter")
def _slice(call: Call, s: Solution) -> list[Change]:
    x: Info = call["self"]
    axis = call["dim"] % x.ndim
    kept = kept_along(s, x, axis)
    if kept.all():
        return []
    n = x.shape[axis]
    before = np.concatenate([[0], np.cumsum(kept)])
    found = []
    for name in ("start", "end"):
        old = _raw(call, name)
        if isinstance(old, int) and -n <= old < n and old != 0:
            new = int(before[old]) if old >= 0 else int(before[old % n]) - int(before[-1])
            if new != old and not (old < 0 and new == 0):
                found.append(Change(call.node, name, old, new))
            elif old < 0 and new == 0:
                found.append(Change(call.node, name, old, int(before[-1])))
        elif isinstance(old, int) and old == n:
            found.append(Change(call.node, name, old, int(before[-1])))
    return found


@_rewrites("narrow")
def _narrow(call: Call, s: Solution) -> list[Change]:
    x: Info = call["self"]
    kept = kept_along(s, x, call["dim"])
    start, length = call["start"], call["length"]
    new = {"start": int(kept[:start].sum()), "length": int(kept[start : start + length].sum())}
    return [Change(call.node, k, call[k], v) for k, v in new.items() if v != call[k]]


@_rewrites("select", "select_scatter")
def _select(call: Call, s: Solution) -> list[Change]:
    x: Info = call["self"]
    kept, old = kept_along(s, x, call["dim"]), call["index"]
    new = int(kept[: old % len(kept)].sum()) - (int(kept.sum()) if old < 0 else 0)
    return [Change(call.node, "index", old, new)] if new != old else []


@_rewrites("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv(call: Call, s: Solution) -> list[Change]:
    x, w, old = call["input"], call["weight"], call["groups"]
    if old == 1:
        return []
    channel = x.ndim - (w.ndim - 2) - 1
    channels, shape = new_shape(s, x)[channel], new_shape(s, w)
    flipped = "transpose" in call.name or bool(call.get("transposed"))
    # a group reads ``per`` channels: axis 1 of the weight, or a share of axis 0 when transposed
    per = x.shape[channel] // old if flipped else shape[1]
    new = new_shape(s, _out(call))[channel] // shape[1] if flipped else channels // per
    return [Change(call.node, "groups", old, new)] if new != old else []


@_rewrites("group_norm", "native_group_norm")
def _group_norm(call: Call, s: Solution) -> list[Change]:
    x: Info = call["input"]
    name = "num_groups" if "num_groups" in call.args else "group"
    old, c = call[name], new_shape(s, x)[1]
    found = []
    if c != x.shape[1]:
        found.append(Change(call.node, name, old, c // (x.shape[1] // old)))
        if name == "group":
            found.append(Change(call.node, "C", x.shape[1], c))
    return found


@_rewrites("index")
def _index(call: Call, s: Solution) -> list[Change]:
    given = [(a, i) for a, i in enumerate(call["indices"]) if i is not None]
    if len(given) != 1 or given[0][1].indices is None or given[0][1].ndim != 1:
        return []
    axis, rows = given[0]
    x: Info = call["self"]
    kept = kept_along(s, x, axis)
    if kept.all():
        return []
    before = np.cumsum(kept) - 1
    order = [int(i) % len(kept) for i in rows.indices]
    return [Change(call.node, "indices", order, [int(before[i]) for i in order if kept[i]], f"select:{axis}")]
