"""Pooling, resampling and padding: channels pass, spatial axes stay whole."""

from __future__ import annotations

import re

import torch

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor
from dgating.structure._info import Info
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule


@rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
      "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
      "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool1d_with_indices",
      "max_pool2d_with_indices", "max_pool3d_with_indices", "upsample_nearest1d", "upsample_nearest2d",
      "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
      "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
      "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")  # fmt: skip
def pool(e: Engine, call: Call) -> Info | list[Info]:
    """Windows over the last axes. A constant stays one, unless an average counts padding zeros."""
    x: Info = call[call.first]
    match = re.search(r"([123])d", call.name)
    spatial = int(match.group(1)) if match else 2
    axes = list(range(x.ndim - spatial, x.ndim))
    factors = e.seal(x.factors, axes, f"{call.where} runs over its axis")
    value = x.value
    if value is not None and any(value.shape[a] > 1 for a in axes):
        value = None
    if call.get("count_include_pad") and any(_list(call["padding"])):
        value = _values.zero_only(value)
    if call.get("divisor_override") is not None:
        value = _values.zero_only(value)
    if isinstance(call.node.meta["val"], list | tuple):
        return [Info(shape, list(factors), value if i == 0 else None) for i, shape in enumerate(call.outs)]
    return Info(call.out, factors, value)


@rule("constant_pad_nd", "pad", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
      "replication_pad2d", "replication_pad3d", "_pad_circular", "_pad_enum")  # fmt: skip
def pad(e: Engine, call: Call) -> Info:
    """Padded axes stay whole; a border of another value ends a constant, a border of zeros keeps zero."""
    x: Info = call[call.first]
    widths = call["pad"] if "pad" in call.args else call["padding"]
    touched = {x.ndim - 1 - i // 2 for i, n in enumerate(widths) if n}
    factors: list[Factor] = []
    for f in x.factors:
        factors += e.seal([f], touched, f"{call.where} pads its axis")
    constant = "constant" in call.name or (call.name == "aten::pad" and call.get("mode", "constant") == "constant")
    value = x.value
    if value is not None and any(value.shape[a] > 1 for a in touched):
        value = None
    if value is not None and constant and touched:
        fill = float(call.get("value") or 0.0)
        value = _values.worth(torch.where(value == fill, value.double(), _values.NAN))
    return Info(call.out, factors, value)


def _list(x: object) -> list[int]:
    return list(x) if isinstance(x, list | tuple) else [x]  # type: ignore[list-item]
