"""The FLOPs of a call: torch's own counter, with the formulas that it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

if TYPE_CHECKING:
    pass


@contextmanager
def taken_apart() -> Iterator[None]:
    """Without the fused kernels whose FLOPs torch does not know: RNNs and transformer layers as matrix products."""
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    enabled = [library.enabled for library in libraries]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False  # not flags(): that also sets, and warns about, precisions
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for library, was in zip(libraries, enabled, strict=True):
            library.enabled = was


def _sdpa_flop(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _sdpa_backward_flop(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _mv_flop(matrix: torch.Size, vector: torch.Size, *_: object, **__: object) -> int:
    return 2 * matrix.numel()


def _addmv_flop(bias: torch.Size, matrix: torch.Size, *_: object, **__: object) -> int:
    return 2 * matrix.numel()


def _dot_flop(left: torch.Size, right: torch.Size, *_: object, **__: object) -> int:
    return 2 * left.numel()


# What torch 2.13 counts as nothing.
FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward_flop,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _sdpa_flop,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable_backward: _sdpa_backward_flop,
    torch.ops.aten.mv: _mv_flop,
    torch.ops.aten.addmv: _addmv_flop,
    torch.ops.aten.dot: _dot_flop,
    torch.ops.aten.vdot: _dot_flop,
}
