"""The model without its dead groups: how much smaller, and is it the same function?"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import dgating as dg

Model = TypeVar("Model", bound=nn.Module)


def compacted(model: nn.Module, example: Tensor, threshold: float) -> dict[str, Any]:
    """Parameters before and after ``dgating.compact``, and the largest difference of outputs.

    Groups whose norm is not above the threshold become exact zeros in a copy, which is collapsed and compacted; the
    full model of the comparison has the same zeros. The difference is that of the outputs on ``example``, relative to
    the largest of them. The model itself stays as it is.
    """
    full = zeroed(model, threshold)
    return _compared(full, dg.compact(full, example), example, example)


def without_inputs(model: nn.Module, X: Tensor, threshold: float) -> dict[str, Any]:
    """The same for columns of the data: the first linear layer on those that are left.

    What a model takes in is not for ``compact`` to change; who feeds it leaves the dead columns out.
    """
    full = zeroed(model, threshold)
    small = copy.deepcopy(full)
    name, first = next((n, m) for n, m in small.named_modules() if isinstance(m, nn.Linear))
    kept = (first.weight != 0).any(0)
    if not kept.any():
        kept[0] = True  # a layer without inputs is none: one column with weights of zero stays
    layer = nn.Linear(int(kept.sum()), first.out_features, first.bias is not None, device=X.device, dtype=X.dtype)
    with torch.no_grad():
        layer.weight.copy_(first.weight[:, kept])
        if first.bias is not None:
            layer.bias.copy_(first.bias)
    if name:
        small.set_submodule(name, layer)
    else:
        small = layer
    return _compared(full, small, X, X[:, kept])


@torch.no_grad()
def sizes(models: Mapping[str, nn.Module], *inputs: Tensor, rows: int = 64) -> dict[str, Any]:
    """Of models of one function: parameters, FLOPs of one row, largest difference from the outputs of the first."""
    few = tuple(x[:rows] for x in inputs)
    outputs = next(iter(models.values()))(*inputs)
    return {
        name: {
            "parameters": _count(model),
            "flops": dg.profile(model, few, repeats=1).flops // len(few[0]),
            "difference": float((model(*inputs) - outputs).abs().max()),
        }
        for name, model in models.items()
    }


def zeroed(model: Model, threshold: float) -> Model:
    """An ungated copy in which every group whose norm is not above the threshold is exactly zero."""
    full = copy.deepcopy(model).eval()
    dg.zero_(full, {name: norms <= threshold for name, norms in dg.group_norms(full).items()})
    dg.collapse_(full)
    return full


@torch.no_grad()
def _compared(full: nn.Module, small: nn.Module, X: Tensor, X_small: Tensor) -> dict[str, Any]:
    outputs = full(X)
    difference = (small(X_small) - outputs).abs().max() / outputs.abs().max().clamp_min(1e-30)
    return {"parameters": [_count(full), _count(small)], "difference": float(difference)}


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
