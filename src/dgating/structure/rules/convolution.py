"""Convolutions: plain, grouped, depthwise and transposed, in one to three dimensions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dgating.structure._call import Call
from dgating.structure._capture import module_of
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor, single
from dgating.structure._info import Info
from dgating.structure._labels import Ids
from dgating.structure._uses import Blocks, Fold, MatrixUse
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule
from dgating.structure.rules.product import affine, shift_of


@rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
      "_convolution")  # fmt: skip
def convolution(e: Engine, call: Call) -> Info:
    """A convolution is a product with weights at every position; grouped ones are one product a block of channels.

    A constant channel stays constant only where no zero padding surrounds it.
    """
    x, w, bias = call["input"], call["weight"], call.get("bias")
    if not w.static:
        for info in call.tensors:
            e.fix(info, f"its weight in {call.where} is computed from the input")
        return Info(call.out)
    flipped = "transpose" in call.name or bool(call.get("transposed"))
    channel = x.ndim - (w.ndim - 2) - 1
    g = call["groups"]
    reason = f"it meets {call.where}"
    w.factors = e.seal(w.factors, range(2, w.ndim), reason)
    alone = [f for f in w.factors if f.axes == (0,)]  # beside labels of axis 1 that differ from block to block
    first = e.along(Info(w.shape, alone or w.factors), 0, reason).reshape(g, -1)
    rows, per = w.shape[0], w.shape[1]
    inputs = e.along(x, channel, reason).reshape(g, -1)
    if per > 1:
        inner = _inner(e, w, g, rows // g, per, reason)  # (g, per): labels of axis 1, block by block
    else:  # the weight has no index for it: the channel of the input, or a new one of the output
        inner = e.labels.fresh((g, 1)) if flipped and g > 1 else np.zeros((g, 1), dtype=np.int64) if flipped else inputs
    w_in, w_out = (first, inner) if flipped else (inner, first)
    if not inputs.any():
        e.labels.fix(w_in, "it reads an axis that is fixed")
    e.labels.union(inputs, w_in)
    e.role(w, 0, "in" if flipped else "out")
    e.role(w, 1, "out" if flipped else "in")
    outputs = w_out.reshape(-1)
    if bias is not None:
        e.labels.union(e.along(bias, 0, reason), outputs)
        e.role(bias, 0, "out")
    if g > 1:
        if inputs.shape[1] == 1:
            e.labels.union(inputs, w_out)
            e.role(w, 0, "out")
        else:
            e.blocks.append(Blocks(inputs, w_out))
    n = outputs.size
    known = x.value_along(channel).view(g, -1)
    padded = flipped or _padded(call)
    weight = _matrix(w, g, flipped)
    fold = None if padded else _fold(call, w, bias)
    why = f"{call.where} (a constant under zero padding)" if padded else call.where
    usable = _values.zero_only(known) if padded else known
    usable = torch.full_like(known, _values.NAN) if usable is None else usable
    e.note_matrix(MatrixUse(call.node, inputs, w_out, weight, usable, weight, fold, why))
    shift = shift_of(bias)
    summed = weight.double().sum(-1) if not padded and bool((known.nan_to_num() != 0).any()) else None
    value = _known(e, weight, summed, known, shift, n, padded) if e.values else None
    factors = e.seal([f for f in x.factors if not f.depends(channel)], range(channel + 1, x.ndim), reason)
    factors.append(single(e.labels.find(outputs), channel, x.ndim))
    shape = tuple(n if a == channel else 1 for a in range(x.ndim))
    return Info(call.out, factors, None if value is None else value.reshape(shape))


def _inner(e: Engine, w: Info, g: int, rows: int, per: int, reason: str) -> Ids:
    """Labels of axis 1 of the weight: every block of a grouped convolution has its own, laid out on first use."""
    found = w.on(1)
    if (
        not found
        and w.weight is not None
        and w.weight.kind != "constant"
        and not any(key == (w.weight.name, 1) for key in e.roles)
    ):
        ids = e.labels.fresh((g, per))
        wide = np.repeat(ids, rows, axis=0) if g > 1 else ids
        w.factors.append(Factor(wide.reshape(1, wide.shape[0], per, *(1,) * (w.ndim - 2))))
        return ids
    if len(found) == 1 and found[0].axes == (0, 1):
        ids = np.broadcast_to(found[0].ids.reshape(-1, per), (g * rows, per)).reshape(g, rows, per)
        e.labels.union(ids[:, :1], ids)
        return e.labels.find(ids[:, 0])
    return np.broadcast_to(e.along(w, 1, reason), (g, per))


def _matrix(w: Info, g: int, flipped: bool) -> Tensor:
    """The weight as ``(g, outputs, inputs, positions)``."""
    assert w.value is not None
    flat = w.value.reshape(g, w.shape[0] // g, w.shape[1], -1)
    return flat.transpose(1, 2) if flipped else flat


def _known(
    e: Engine, weight: Tensor, summed: Tensor | None, known: Tensor, shift: Tensor | float, n: int, padded: bool
) -> Tensor | None:
    if summed is not None:
        return affine(e, summed, known, shift, n, constant=True) if not _cancels(weight, summed) else None
    return affine(e, weight.ne(0).any(-1), known, shift, n, constant=not padded)


def _cancels(weight: Tensor, summed: Tensor) -> bool:
    """Whether some kernel sums to zero without being zero: then the sum does not tell which weights are zero."""
    return bool(((summed == 0) & weight.ne(0).any(-1)).any())


def _padded(call: Call) -> bool:
    padding = call["padding"]
    if isinstance(padding, str):
        return padding != "valid"
    return any(n != 0 for n in (padding if isinstance(padding, list | tuple) else [padding]))


def _fold(call: Call, w: Info, bias: Info | None) -> Fold | None:
    if w.weight is None:
        return None
    path, kind = module_of(call.node)
    if bias is not None:
        return None if bias.weight is None else Fold(w.weight, bias.weight, path)
    return Fold(w.weight, None, path) if kind.startswith("torch.nn.modules.conv.Conv") else None
