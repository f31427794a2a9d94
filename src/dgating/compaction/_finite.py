"""A model that has diverged is not compacted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dgating.structure import CompactionError

SHOWN = 3


@torch.no_grad()
def check_finite(model: nn.Module) -> None:
    """Raise when a parameter holds nan or infinity, or a buffer nan.

    Nothing that such a model computes can be compared. Buffers may hold infinity: masks of attention do.
    """
    wrong = [name for name, p in model.named_parameters() if _there(p) and not bool(p.isfinite().all())]
    wrong += [name for name, b in model.named_buffers() if _there(b) and bool(b.isnan().any())]
    if wrong:
        names = ", ".join(repr(name) for name in wrong[:SHOWN])
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CompactionError(
            f"expected finite weights, received nan or infinity in {names}{more}: the training has diverged. "
            "Go back to a checkpoint before that, and train with a smaller step size."
        )


def _there(x: Tensor) -> bool:
    """Numbers that can be looked at; others are refused elsewhere, or cannot be wrong."""
    return not is_lazy(x) and not x.is_meta and (x.is_floating_point() or x.is_complex()) and not x.is_quantized
