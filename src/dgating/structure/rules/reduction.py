"""Reductions and what mixes the entries of an axis: single entries of that axis cannot leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
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
    for axis in range(zero.ndim):
        if not f.depends(axis):
            zero = zero.all(axis, keepdim=True)
    return np.broadcast_to(zero.numpy()[None], f.ids.shape)


KNOWN: dict[str, Callable[[Tensor, int], Tensor]] = {
    "aten::mean": lambda v, axis: v.mean(axis, keepdim=True),
    "aten::amax": lambda v, axis: v.amax(axis, keepdim=True),
    "aten::amin": lambda v, axis: v.amin(axis, keepdim=True),
    "aten::max": lambda v, axis: v.amax(axis, keepdim=True),
    "aten::min": lambda v, axis: v.amin(axis, keepdim=True),
    "aten::sum": lambda v, axis: v.sum(axis, keepdim=True),
}
SAME = {"aten::median"}  # of what is alike only: a median of medians is not the median


def _reduced(name: str, x: Info, axes: list[int], order: list[int]) -> Tensor | None:
    """Known values reduced like the tensor, one axis after the other; what meets an unknown one is unknown."""
    f = KNOWN.get(name)
    value = x.value
    if (f is None and name not in SAME) or value is None:
        return None
    value = value.double()
    for axis in axes:
        if value.shape[axis] > 1:
            if f is None:
                return None
            value = f(value, axis)
        elif name == "aten::sum" and x.shape[axis] > 1:  # as often as the axis is long, which inputs may decide
            value = torch.where(value == 0, 0.0, _values.NAN)
    return _values.worth(value.reshape([value.shape[a] for a in order]))
