"""Operations that make tensors from nothing, and those that only look at shapes."""

from __future__ import annotations

import torch

from dgating.structure._call import Call
from dgating.structure._engine import Engine
from dgating.structure._factors import single
from dgating.structure._info import Info, as_list
from dgating.structure.rules._registry import rule


@rule("arange", "eye", "linspace", "logspace", "scalar_tensor", "rand", "randn", "randint", "tril_indices",
      "triu_indices", "randperm")  # fmt: skip
def create(e: Engine, call: Call) -> Info:
    """A fresh tensor whose positions have a meaning: none of its axes can change."""
    return Info(call.out)


LARGEST_FILL = 1_000_000  # labels of their own for the axes of a filled tensor


@rule("full", "zeros", "ones", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def fill(e: Engine, call: Call) -> Info:
    """A tensor filled with one number: it may be made smaller along any axis."""
    out = call.out
    factors = [
        single(e.labels.fresh((n,)), a, len(out)) for a, n in enumerate(out) if 1 < n <= LARGEST_FILL and e.loose
    ]
    known = {"aten::zeros": 0.0, "aten::new_zeros": 0.0, "aten::ones": 1.0, "aten::new_ones": 1.0}.get(call.name)
    if "full" in call.name and isinstance(call["fill_value"], int | float):
        known = float(call["fill_value"])
    value = None if known is None else torch.full((1,) * len(out), known, dtype=torch.float64)
    return Info(out, factors, value)


@rule("full_like", "zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", by_row=True)
def create_like(e: Engine, call: Call) -> Info:
    """A fresh tensor of another one's shape: it shrinks with it."""
    x: Info = call["self"]
    known = {"aten::zeros_like": 0.0, "aten::ones_like": 1.0}.get(call.name)
    if call.name == "aten::full_like" and isinstance(call["fill_value"], int | float):
        known = float(call["fill_value"])
    value = None if known is None else torch.full((1,) * x.ndim, known, dtype=torch.float64)
    return Info(x.shape, list(x.factors), value)


@rule("_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_size", "sym_stride", "sym_numel",
      "sym_storage_offset", "size", "sym_constrain_range", "sym_constrain_range_for_size", "_local_scalar_dense",
      "item", "is_nonzero", by_row=True)  # fmt: skip
def look(e: Engine, call: Call) -> None:
    """Reads a shape or checks something."""
    if call.name in ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero"):
        for info in as_list(call.tensors):
            e.fix(info, f"its value is read by {call.where}")
