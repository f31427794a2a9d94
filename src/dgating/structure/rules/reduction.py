"""Reductions and what mixes the entries of an axis: single entries of that axis cannot leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor
from dgating.structure._info import Info
from dgating.structure._uses import DirectUse
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "_safe_softmax",
      "logcumsumexp")  # fmt: skip
def along_axis(e: Engine, call: Call) -> Info:
    """Same shape, but every entry depends on the whole axis."""
    x: Info = call[call.first]
    factors = e.seal(x.factors, [call["dim"] % max(x.ndim, 1)], f"{call.where} runs over its axis")
    return Info(x.shape, factors)


@rule("sort", "topk", "kthvalue", "mode", "cummax", "cummin")
def ranked(e: Engine, call: Call) -> list[Info]:
    """Values and positions along an axis."""
    x: Info = call[call.first]
    axis = call["dim"] % max(x.ndim, 1)
    factors = e.seal(x.factors, [axis], f"{call.where} runs over its axis")
    order = [a for a in range(x.ndim) if a != axis or len(call.outs[0]) == x.ndim]
    moved = [Factor(f.ids.reshape(f.ids.shape[0], *(f.ids.shape[a + 1] for a in order)), f.route) for f in factors]
    return [Info(shape, list(moved)) for shape in call.outs]


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "norm", "linalg_vector_norm", "prod", "all", "any",
      "argmax", "argmin", "max", "min", "median", "var_mean", "std_mean", "nansum", "count_nonzero",
      "aminmax")  # fmt: skip
def reduce(e: Engine, call: Call) -> Info | list[Info]:
    """An axis is reduced. A sum does not miss zeros, so they may leave; a mean, a maximum or a norm keeps them all."""
    x: Info = call[call.first]
    if len(call.tensors) > 1:  # elementwise maximum of two tensors
        return Info(call.out, e.elementwise(call, call.tensors))
    dim = call.get("dim")
    axes = list(range(x.ndim)) if dim is None or dim == [] else [d % max(x.ndim, 1) for d in _list(dim) if x.ndim]
    factors = list(x.factors)
    summed = call.name == "aten::sum"
    kept = []
    for f in factors:
        if summed and f.axes and set(f.axes) <= set(axes):
            zero = None if x.value is None else _zeros_like(x.value, f)
            e.uses.append(DirectUse(f.ids, None, zero, f"{call.where} adds it up"))
        else:
            kept += e.seal([f], axes, f"{call.where} runs over its axis")
    outs = call.outs if isinstance(call.node.meta["val"], list | tuple) else [call.out]
    keep = len(outs[0]) == x.ndim
    order = [a for a in range(x.ndim) if keep or a not in axes]
    moved = [Factor(f.ids.reshape(f.ids.shape[0], *(f.ids.shape[a + 1] for a in order)), f.route) for f in kept]
    value = _reduced(call.name, x, axes, order)
    infos = [Info(shape, list(moved), value if i == 0 else None) for i, shape in enumerate(outs)]
    return infos if isinstance(call.node.meta["val"], list | tuple) else infos[0]


def _list(dim: Any) -> list[int]:
    return [dim] if isinstance(dim, int) else list(dim)


def _zeros_like(value: Tensor, f: Factor) -> np.ndarray:
    """Where the labels of a factor sit on entries that are known to be zero."""
    zero = value == 0
    shape = f.ids.shape[1:]
    for axis in range(zero.ndim):
        if shape[axis] == 1 and zero.shape[axis] > 1:
            zero = zero.all(axis, keepdim=True)
    return np.broadcast_to(zero.numpy()[None], f.ids.shape)


SAME: dict[str, Callable[[Tensor, int], Tensor]] = {
    "aten::mean": lambda v, n: v,
    "aten::amax": lambda v, n: v,
    "aten::amin": lambda v, n: v,
    "aten::max": lambda v, n: v,
    "aten::min": lambda v, n: v,
    "aten::median": lambda v, n: v,
    "aten::sum": lambda v, n: v * n,
}


def _reduced(name: str, x: Info, axes: list[int], order: list[int]) -> Tensor | None:
    """A constant that does not change along the reduced axes stays a constant."""
    f = SAME.get(name)
    if f is None or x.value is None or x.value.ndim != x.ndim or any(x.value.shape[a] > 1 for a in axes):
        return None
    n = int(np.prod([x.shape[a] for a in axes]))
    return _values.worth(f(x.value.double(), n).reshape([x.value.shape[a] for a in order]))
