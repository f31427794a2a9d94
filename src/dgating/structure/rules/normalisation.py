"""Normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor, reshape_factor
from dgating.structure._info import Info
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(e: Engine, call: Call) -> Info | list[Info]:
    """Statistics over the last axes: no single entry of them can leave."""
    x: Info = call["input"]
    n = len(call["normalized_shape"])
    reason = f"{call.where} normalises over its axis"
    factors = e.seal(x.factors, range(x.ndim - n, x.ndim), reason)
    for name in ("weight", "bias"):
        e.fix(call.get(name), reason)
    if isinstance(call.node.meta["val"], list | tuple):
        return [Info(call.outs[0], factors), *(Info(shape) for shape in call.outs[1:])]
    return Info(call.out, factors)


@rule("batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "native_batch_norm",
      "instance_norm", "cudnn_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update")  # fmt: skip
def batch_norm(e: Engine, call: Call) -> Info | list[Info]:
    """One scale and shift a channel: filter, scale, shift and statistics are one unit. A constant stays a constant."""
    x: Info = call["input"]
    channel = 1
    spatial = [a for a in range(x.ndim) if a > channel]
    factors = e.seal(x.factors, spatial, f"{call.where} normalises over its axis")
    names = ("weight", "bias", "running_mean", "running_var")
    per_channel: dict[str, Info | None] = {k: call.get(k) for k in names}
    operands = [Info(x.shape, factors)]
    for info in per_channel.values():
        if info is not None:
            shape = tuple(n if a == channel else 1 for a, n in enumerate(x.shape))
            operands.append(Info(shape, [reshape_factor(f, info.shape, shape) for f in info.factors]))
            e.role(info, 0, "out")
    merged = e.elementwise(call, operands, x.shape)
    value = _batch_norm_value(e, call, x, per_channel, channel)
    if isinstance(call.node.meta["val"], list | tuple):
        return [Info(call.outs[0], merged, value), *(Info(shape) for shape in call.outs[1:])]
    return Info(call.out, merged, value)


def _given(info: Info | None, n: int, absent: float) -> Tensor:
    """A scale or shift per channel: a default where there is none, unknown where it is computed."""
    if info is None or info.value is None:
        return torch.full((n,), absent if info is None else _values.NAN, dtype=torch.float64)
    return info.value.double()


def _batch_norm_value(e: Engine, call: Call, x: Info, given: dict[str, Info | None], channel: int) -> Tensor | None:
    n = x.shape[channel]
    known = x.value_along(channel)
    scale, shift = (_given(i, n, absent) for i, absent in zip(given.values(), (1.0, 0.0), strict=False))
    mean, var = (None if i is None else _given(i, n, 0.0) for i in list(given.values())[2:])
    running = call.name == "aten::_native_batch_norm_legit_no_training" or not (
        call.get("training") or call.get("use_input_stats")
    )
    if running and mean is not None and var is not None:
        result = (known - mean) / torch.sqrt(var + call["eps"]) * scale + shift
    else:  # statistics of the batch: a constant channel is its own mean
        result = known * 0 + shift
    result = torch.where(scale == 0, shift, result)  # whatever comes in
    if e.training:  # there a constant channel is its own mean; where the two modes differ, nothing is known
        result = torch.where(result == shift, result, _values.NAN)
    return _values.worth(result.reshape(tuple(n if a == channel else 1 for a in range(x.ndim))))


@rule("group_norm", "native_group_norm")
def group_norm(e: Engine, call: Call) -> Info | list[Info]:
    """Statistics over blocks of channels: whole blocks may leave."""
    x: Info = call["input"]
    groups = call["num_groups"] if "num_groups" in call.args else call["group"]
    c = x.shape[1]
    reason = f"{call.where} normalises over its axis"
    factors: list[Factor] = e.seal(x.factors, range(2, x.ndim), reason)
    operands = [Info(x.shape, factors)]
    for name in ("weight", "bias"):
        info = call.get(name)
        if isinstance(info, Info):
            shape = (1, c, *(1,) * (x.ndim - 2))
            operands.append(Info(shape, [reshape_factor(f, info.shape, shape) for f in info.factors]))
            e.role(info, 0, "out")
    merged = e.elementwise(call, operands, x.shape)
    split = (x.shape[0], groups, c // groups, *x.shape[2:])
    blocks = e.seal([reshape_factor(f, x.shape, split) for f in merged], [2], reason)
    whole = [reshape_factor(f, split, x.shape) for f in blocks]
    value = _group_norm_value(call, x, groups)
    if isinstance(call.node.meta["val"], list | tuple):
        return [Info(call.outs[0], whole, value), *(Info(shape) for shape in call.outs[1:])]
    return Info(call.out, whole, value)


def _group_norm_value(call: Call, x: Info, groups: int) -> Tensor | None:
    c = x.shape[1]
    known = x.value_along(1).view(groups, -1)
    normal = (known - known.mean(1, keepdim=True)) / torch.sqrt(known.var(1, keepdim=True, correction=0) + call["eps"])
    result = normal.reshape(c)
    scale, shift = _given(call.get("weight"), c, 1.0), _given(call.get("bias"), c, 0.0)
    result = torch.where(scale == 0, torch.zeros((), dtype=torch.float64), result * scale)
    return _values.worth((result + shift).reshape(1, c, *(1,) * (x.ndim - 2)))
