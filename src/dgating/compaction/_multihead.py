"""``nn.MultiheadAttention`` with fewer heads than its width: the same module, its projections may be narrower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, scaled_dot_product_attention

from dgating.compaction._rules import ModuleChange, register_module_rule
from dgating.structure import CompactionError


class CompactMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention after heads were removed.

    torch's own class ties the width of a head to ``embed_dim / num_heads``; here ``head_dim`` stands on its own.
    Parameters, names and the call are those of :class:`torch.nn.MultiheadAttention`.
    """

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As :class:`torch.nn.MultiheadAttention`; ``bias_k`` and ``add_zero_attn`` are not available."""
        single = query.ndim == 2
        batch_first = self.batch_first and not single
        if single:
            query, key, value = (t.unsqueeze(1) for t in (query, key, value))
        if not batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        width = self.num_heads * self.head_dim
        weights: Any = (
            self.in_proj_weight.split(width)
            if self.in_proj_weight is not None
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split(width)
        q, k, v = (
            linear(x, w, b).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        mask = self._mask(query, key, attn_mask, key_padding_mask)
        p = self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-1, -2) / self.head_dim**0.5
            scores = scores if mask is None else scores + mask
            attention = scores.softmax(-1)
            out = dropout(attention, p, self.training) @ v
            shown: Tensor | None = attention.mean(1) if average_attn_weights else attention
        else:
            out = scaled_dot_product_attention(q, k, v, mask, p)
            shown = None
        out = self.out_proj(out.transpose(1, 2).flatten(-2))
        if not batch_first:
            out = out.transpose(0, 1)
        if single:
            out, shown = out.squeeze(1), None if shown is None else shown.squeeze(0)
        return out, shown

    def _mask(self, query: Tensor, key: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """One additive mask that broadcasts to ``(batch, heads, queries, keys)``."""
        parts = []
        if attn_mask is not None:
            extra = _additive(attn_mask, query.dtype)
            # a three-dimensional mask has one row of masks a batch entry and head; the removed heads must share theirs
            if extra.ndim == 3:
                extra = extra.view(query.shape[0], -1, *extra.shape[-2:])
                extra = extra[:, :1] if extra.shape[1] != self.num_heads else extra
            parts.append(extra)
        if padding is not None:
            parts.append(_additive(padding, query.dtype).view(-1, 1, 1, key.shape[1]))
        return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


@register_module_rule(nn.MultiheadAttention)
def _multihead(module: nn.Module, change: ModuleChange) -> None:
    assert isinstance(module, nn.MultiheadAttention)
    heads = module.out_proj.weight.shape[1] // module.head_dim
    if heads == module.num_heads:
        return
    if module.bias_k is not None or module.add_zero_attn:
        raise CompactionError("MultiheadAttention with bias_k or add_zero_attn: its heads cannot leave a module.")
    module.num_heads = heads
    module.out_proj.in_features = module.out_proj.weight.shape[1]
    module._qkv_same_embed_dim = False  # torch's fused kernels assume that the heads fill the width
    module.__class__ = CompactMultiheadAttention
