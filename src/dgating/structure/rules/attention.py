"""Scaled dot-product attention."""

from __future__ import annotations

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import combine, reshape
from dgating.structure._info import Info
from dgating.structure._uses import Heads
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule
from dgating.structure.rules.movement import move
from dgating.structure.rules.repeating import expanded


@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
      "_scaled_dot_product_fused_attention_overrideable")  # fmt: skip
def attention(e: Engine, call: Call) -> Info | list[Info]:
    """Heads of query, key, value and output are one unit; its width, queries and keys stay whole.

    Grouped queries: a key-value head is copied for the queries that share it, and the copies have labels of their own.
    The output of a head is zero where its values are.
    """
    q, k, v = (call[n] for n in ("query", "key", "value"))
    reason = f"it meets {call.where}"
    if call.get("enable_gqa") and q.ndim >= 3:
        k, v = (_for_queries(e, call, t, q.shape[-3]) for t in (k, v))
    values = e.class_of(v.factors)
    operands = []
    for t, whole in ((q, [t - 1 for t in (q.ndim,)]), (k, [k.ndim - 2, k.ndim - 1]), (v, [v.ndim - 2, v.ndim - 1])):
        factors = e.seal(t.factors, whole, reason)
        rows = t.shape[-2] if t is q else 1
        operands.append(((*t.shape[:-2], rows, 1), factors))
    mask = call.get("attn_mask")
    if isinstance(mask, Info):
        operands.append((mask.shape, e.seal(mask.factors, [mask.ndim - 1], reason)))
    shape = call.outs[0] if isinstance(call.node.meta["val"], list | tuple) else call.out
    factors = combine(e.labels, operands, shape, reason)  # nothing has labels along the last axis any more
    for f in factors:
        e.heads.append(Heads(call.node, f.ids, values))
    value = None
    if v.value is not None and v.value.shape[-2] == 1:
        value = _values.zero_only(v.value)
    info = Info(shape, factors, value)
    if isinstance(call.node.meta["val"], list | tuple):
        return [info, *(Info(s) for s in call.outs[1:])]
    return info


def _for_queries(e: Engine, call: Call, t: Info, heads: int) -> Info:
    """Copies of a key or value head for every query head that uses it."""
    axis, n = t.ndim - 3, t.shape[-3]
    if n == heads:
        return t
    between = move(t, (*t.shape[: axis + 1], 1, *t.shape[axis + 1 :]), lambda x: x.unsqueeze(axis + 1))
    many = (*t.shape[: axis + 1], heads // n, *t.shape[axis + 1 :])
    out = (*t.shape[:axis], heads, *t.shape[axis + 1 :])
    return move(expanded(e, between, many, call.where), out, lambda x: reshape(x, many, out))
