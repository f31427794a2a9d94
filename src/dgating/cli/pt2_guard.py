"""The arguments that some kernels of torch do not check, checked in the first run of a program from a file.

A layer of torch checks that its parts fit, then calls a kernel that trusts it. A file can name the kernel itself, or
hold weights of other sizes than the layer would have made. These are the kernels behind allowed operators that were
found to read or write beyond a tensor then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dgating.structure import Watching

Arguments = dict[str, Any]


class Guard(Watching):
    """Refuses a kernel whose arguments do not fit each other, before it runs."""

    def before(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise ``ValueError`` where a kernel would leave its tensors."""
        schema = getattr(operation, "_schema", None)
        check = None if schema is None else CHECKS.get(schema.name.removeprefix("aten::"))
        if schema is None or check is None:
            return
        given = {a.name: a.default_value for a in schema.arguments}
        given |= dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        if not check(given):
            raise ValueError(f"the arguments of {schema.name} do not fit each other")


def _batch_norm(a: Arguments) -> bool:
    """One number a channel in each of weight, bias, mean and variance."""
    x = a["input"]
    parts = [a.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    return x.dim() >= 2 and all(p is None or p.numel() == x.shape[1] for p in parts)


def _group_norm(a: Arguments) -> bool:
    """``N x C x HxW`` are the sizes of the input."""
    x, n, c, inner = a["input"], a["N"], a["C"], a["HxW"]
    return x.dim() >= 2 and (n, c) == tuple(x.shape[:2]) and inner == math.prod(x.shape[2:])


def _rms_norm(a: Arguments) -> bool:
    """One weight for each number that is normalized."""
    return a["weight"] is None or a["weight"].numel() == math.prod(a["normalized_shape"])


def _recurrent(a: Arguments) -> bool:
    """Weights of the four gates of an LSTM, and states, for an input of time x batch x features."""
    x, hidden = a["input"], a["hidden_size"]
    rows = 4 * hidden
    expected = [(rows, x.shape[-1]), (rows, hidden), (rows,), (rows,)][: 4 if a["has_biases"] else 2]
    shapes = [tuple(a[f"weight{i}"].shape) for i in range(len(expected))]
    states = all(a[name].numel() == x.shape[1] * hidden for name in ("hx_", "cx_"))
    return x.dim() == 3 and shapes == expected and states and not a["batch_sizes"]


def _weight_norm(a: Arguments) -> bool:
    """One norm for each slice."""
    v, dim = a["v"], a["dim"]
    return -v.dim() <= dim < v.dim() and a["g"].numel() == v.shape[dim]


def _attention(a: Arguments) -> bool:
    """Queries, keys and values of one batch, as many keys as values, whole shares of the heads."""
    q, k, v = a["query"], a["key"], a["value"]
    if not all(t.dim() == 4 for t in (q, k, v)) or k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        return False
    mask, shape = a.get("attn_mask", a.get("attn_bias")), (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    heads = k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0
    fits = mask is None or (mask.dim() in (2, 4) and all(_spreads(mask.shape, shape)))
    return heads and fits and q.shape[3] == k.shape[3] == v.shape[3]


def _spreads(sizes: torch.Size, over: tuple[int, ...]) -> list[bool]:
    return [n in (1, to) for n, to in zip(reversed(sizes), reversed(over), strict=False)]


def _bag(a: Arguments) -> bool:
    """Offsets in order, within the indices."""
    indices, offsets, scales = a["indices"], a["offsets"], a["per_sample_weights"]
    ordered = bool((offsets[1:] >= offsets[:-1]).all()) and bool((offsets >= 0).all())
    return ordered and bool((offsets <= len(indices)).all()) and (scales is None or scales.shape == indices.shape)


def _resize(a: Arguments) -> bool:
    """Scales that lead from the size of the input to that of the output."""
    sizes, to = a["self"].shape[2:], a["output_size"]
    names = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}.get(len(to), ())
    scales = [a.get(name) for name in names]
    return len(sizes) == len(to) == len(scales) and all(
        s is None or (0 < s < 2**31 and abs(n * s - m) <= 1) for n, m, s in zip(sizes, to, scales, strict=True)
    )


def _each(check: Callable[[Arguments], bool], names: str) -> dict[str, Callable[[Arguments], bool]]:
    return dict.fromkeys(names.split(), check)


CHECKS: dict[str, Callable[[Arguments], bool]] = {
    **_each(
        _batch_norm,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update "
        "_batch_norm_no_update cudnn_batch_norm",
    ),
    **_each(_group_norm, "native_group_norm"),
    **_each(_rms_norm, "_fused_rms_norm"),
    **_each(_recurrent, "mkldnn_rnn_layer"),
    **_each(_weight_norm, "_weight_norm_interface"),
    **_each(_attention, "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable"),
    **_each(_bag, "_embedding_bag _embedding_bag_forward_only"),
    **_each(
        _resize,
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
        "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
    ),
}
