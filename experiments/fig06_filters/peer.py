"""Torch-Pruning (Fang et al., DepGraph, CVPR 2023) as its README says: sparse training, then global pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _pruner(net: nn.Module, example: Tensor, lam: float, ratio: float) -> Any:
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    return tp.pruner.GroupNormPruner(
        net, example, importance=tp.importance.GroupMagnitudeImportance(p=2), reg=lam, global_pruning=True,
        pruning_ratio=ratio, ignored_layers=[m for m in net.modules() if isinstance(m, nn.Linear)],
    )  # fmt: skip


def regularizer(net: nn.Module, example: Tensor, lam: float) -> Callable[[torch.optim.Optimizer], None]:
    """Adds its penalty to the gradients; to be called before each step."""
    pruner = _pruner(net, example, lam, 0.5)
    pruner.update_regularizer()
    return lambda optimizer: pruner.regularize(net)


def pruned(net: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    """A smaller copy."""
    small = copy.deepcopy(net)
    _pruner(small, example, 0.0, ratio).step()
    return small.eval()
