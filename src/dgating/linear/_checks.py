"""Arrays of the user as finite float64 tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgating._checks import check_below_one, check_depth, check_whole

Array = Tensor | np.ndarray


def tensor(value: Any, name: str, like: Tensor) -> Tensor:
    """A finite dense float64 tensor on the device of ``like``."""
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, received {value.layout}; call to_dense() first.")
    made = value if isinstance(value, Tensor) else torch.tensor(np.asarray(value))
    if made.is_complex():
        raise TypeError(f"{name}: expected real numbers, received {made.dtype}.")
    made = made.detach().to(like)
    bad = int((~made.isfinite()).sum())
    if bad:
        raise ValueError(
            f"{name}: expected finite numbers, received {bad} of {made.numel()} that are not; "
            "fill in or drop them first."
        )
    return made


def vector(value: Any, name: str, like: Tensor, length: int | None = None, what: str = "") -> Tensor:
    """The same, of one dimension and, where given, this length."""
    made = tensor(value, name, like)
    if made.ndim != 1 or (length is not None and len(made) != length):
        expected = "one dimension" if length is None else f"shape ({length},), {what}"
        raise ValueError(f"{name}: expected {expected}, received shape {tuple(made.shape)}.")
    return made


def solver_options(lams: Any, tol: Any, max_iter: Any, depth: Any, shallowest: int) -> Tensor:
    """What both solvers are called with, checked before the data are looked at; the strengths on the CPU."""
    check_depth(depth, shallowest)
    check_below_one("tol", tol, zero=False)
    check_whole("max_iter", max_iter, 1)
    made = lams if isinstance(lams, Tensor) else torch.tensor(np.asarray(lams))
    if made.dtype == torch.bool:
        raise TypeError("lams: expected numbers, received truth values.")
    strengths = vector(made, "lams", torch.empty(0, dtype=torch.float64))
    if len(strengths) == 0 or float(strengths.min()) < 0:
        raise ValueError(f"lams: expected at least one number >= 0, received {strengths.tolist()[:5]}.")
    return strengths
