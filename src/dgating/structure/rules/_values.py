"""Known values: arrays that broadcast to the tensor, NaN where an entry varies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

NAN = float("nan")


def evaluate(f: Callable[..., Any], values: Sequence[Tensor | None]) -> Tensor | None:
    """Apply an elementwise function; the result varies wherever one of its inputs does."""
    if all(v is None for v in values):
        return None
    unknown: Tensor | None = None
    filled = []
    for v in values:
        one = torch.full((1,), NAN, dtype=torch.float64) if v is None else v
        if one.dtype != torch.float64:
            one = one.double()
        nan = one.isnan()
        unknown = nan if unknown is None else unknown | nan
        filled.append(torch.where(nan, 0.0, one))
    assert unknown is not None
    if bool(unknown.all()):
        return None
    result = f(*filled)
    if not isinstance(result, Tensor) or not result.is_floating_point():
        return None
    return worth(torch.where(unknown, torch.full_like(result, NAN), result))


def multiply(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """A product is zero where one side is, whatever the other does."""
    result = evaluate(torch.mul, [a, b])
    for side in (a, b):
        if side is not None:
            zero = side == 0
            if bool(zero.any()):
                if result is None:
                    result = torch.full((1,), NAN, dtype=torch.float64)
                result = torch.where(zero, torch.zeros((), dtype=torch.float64), result)
    return worth(result)


def worth(value: Tensor | None) -> Tensor | None:
    """``None`` instead of an array of nothing but NaN."""
    return None if value is None or bool(value.isnan().all()) else value


def zero_only(value: Tensor | None) -> Tensor | None:
    """Keep the zeros; every other constant counts as varying."""
    if value is None:
        return None
    return worth(torch.where(value == 0, torch.zeros((), dtype=torch.float64), NAN))
