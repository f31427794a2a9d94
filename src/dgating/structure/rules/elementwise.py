"""Elementwise operations: labels that meet are merged; constants map to constants."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._info import Info
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule


@rule("relu", "hardswish", "_prelu_kernel", "log_sigmoid", "rrelu", "__and__", "__or__", "__xor__",
      by_row=True)  # fmt: skip
def pointwise(e: Engine, call: Call) -> Info:
    """Any function applied entry by entry."""
    operands = call.tensors
    return Info(call.out, e.elementwise(call, operands), _value(call, operands))


@rule("mul", "multiply", by_row=True)
def mul(e: Engine, call: Call) -> Info:
    """A product: zero as soon as one side is zero, so a gated unit dies with its gate or its value."""
    operands = call.tensors
    a, b = call["self"], call["other"]
    values = [_as_value(call, x) for x in (a, b)]
    return Info(call.out, e.elementwise(call, operands), _values.multiply(*values))


@rule("where", by_row=True)
def where(e: Engine, call: Call) -> Info:
    """A choice: known where both sides hold the same constant."""
    value = None
    if "self" in call.args and "other" in call.args:
        a, b = (_as_value(call, call[k]) for k in ("self", "other"))
        if a is not None and b is not None:
            value = _values.worth(torch.where(a == b, a.double(), _values.NAN))
    return Info(call.out, e.elementwise(call, call.tensors), value)


@rule("masked_fill", by_row=True)
def masked_fill(e: Engine, call: Call) -> Info:
    """Known where the entry already holds the value that is filled in."""
    a, b = _as_value(call, call["self"]), _as_value(call, call["value"])
    value = None if a is None or b is None else _values.worth(torch.where(a == b, a.double(), _values.NAN))
    return Info(call.out, e.elementwise(call, call.tensors), value)


@rule("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", by_row=True)
def random(e: Engine, call: Call) -> Info | list[Info]:
    """Nothing in eval mode. A forward that insists on it keeps zeros at most."""
    x: Info = call[call.first]
    value = x.value
    if call.get("train") or call.get("training"):
        value = None if "alpha" in call.name else _values.zero_only(value)
    if isinstance(call.node.meta["val"], list | tuple):
        return [Info(shape, list(x.factors), value if i == 0 else None) for i, shape in enumerate(call.outs)]
    return Info(x.shape, list(x.factors), value)


@rule("alias", "detach", "clone", "contiguous", "lift_fresh_copy", "_to_copy", "to",
      "detach_", "lift_fresh", "positive", "type_as", by_row=True)  # fmt: skip
def identity(e: Engine, call: Call) -> Info:
    """The same numbers."""
    x: Info = call[call.first]
    value = x.value if _floating(call.node.meta["val"]) else None
    if value is not None and not x.static:  # what a cast to fewer digits leaves of it
        value = value.to(call.node.meta["val"].dtype).double()
    return Info(x.shape, list(x.factors), value, indices=x.indices)


@rule("glu", by_row=True)
def glu(e: Engine, call: Call) -> Info:
    """``a * sigmoid(b)`` of the two halves along an axis."""
    x: Info = call["self"]
    axis = call["dim"] % x.ndim
    half = x.shape[axis] // 2
    sides = []
    for start in (0, half):
        index = list(range(start, start + half))
        factors = [f.map(lambda ids, i=index: ids.take(i, axis + 1)) if f.depends(axis) else f for f in x.factors]
        value = x.value
        if value is not None and value.shape[axis - x.ndim] > 1:
            value = value.narrow(axis - x.ndim, start, half)
        sides.append(Info(call.out, factors, value))
    value = _values.multiply(sides[0].value, _values.evaluate(torch.sigmoid, [sides[1].value]))
    return Info(call.out, e.elementwise(call, sides), value)


def _floating(val: Any) -> bool:
    return isinstance(val, Tensor) and val.is_floating_point()


def _as_value(call: Call, x: Any) -> Tensor | None:
    if isinstance(x, Info):
        return x.value
    return torch.tensor([float(x)], dtype=torch.float64) if isinstance(x, int | float) else None


def _value(call: Call, operands: list[Info]) -> Tensor | None:
    """Run the operation itself on the known values."""
    if not operands or not _floating(call.node.meta["val"]) or call.get("training"):
        return None
    names = [k for k, v in call.args.items() if isinstance(v, Info)]
    if len(names) != len(operands):
        return None
    # Arguments before ``*`` are passed by position: the schema's names are not always accepted by the operator.
    target = call.node.target

    def run(*tensors: Tensor) -> Any:
        given = dict(zip(names, tensors, strict=True))
        schema = target._schema.arguments  # type: ignore[union-attr]
        args = [given.get(a.name, call.args[a.name]) for a in schema if not a.kwarg_only]
        kwargs = {a.name: given.get(a.name, call.args[a.name]) for a in schema if a.kwarg_only}
        return target(*args, **kwargs)  # type: ignore[operator]

    try:
        return _values.evaluate(run, [i.value for i in operands])
    except (RuntimeError, TypeError):  # an operator that does not run in float64: nothing is known then
        return None
