"""Which slices of a layer's weight belong to one input and to one output of the layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dgating.gating import (
    Groups,
    Member,
    Part,
    Partition,
    partition_by_dim,
    partition_by_labels,
    tie,
)


def is_transposed_linear(module: nn.Module) -> bool:
    """A linear layer that stores ``(in, out)``: ``Conv1D`` of transformers, known by its name and what it holds."""
    return type(module).__name__ == "Conv1D" and "nf" in module.__dict__ and getattr(module.weight, "ndim", 0) == 2


def outputs(module: nn.Module) -> Partition | None:
    """The partition of ``module.weight`` by output unit, or ``None`` for a kind that is not known."""
    if isinstance(module, _ConvTransposeNd):
        return _grouped(module.weight, module.groups, unit_axis=1)
    if isinstance(module, nn.Linear | _ConvNd):
        return partition_by_dim(tuple(module.weight.shape), 0)
    if is_transposed_linear(module):
        return partition_by_dim(tuple(module.weight.shape), 1)  # type: ignore[arg-type]
    return None


def inputs(module: nn.Module) -> Groups | None:
    """Groups of the weights that leave one input, or ``None`` for a kind that is not known."""
    if isinstance(module, nn.RNNBase):
        names = ["weight_ih_l0"] + (["weight_ih_l0_reverse"] if module.bidirectional else [])
        each = [_one(module, n, partition_by_dim(tuple(getattr(module, n).shape), 1)) for n in names]
        return each[0] if len(each) == 1 else tie(*each)
    if isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is None:
            return None  # separate widths for query, key and value: there is no one input
        return _one(module, "in_proj_weight", partition_by_dim(tuple(module.in_proj_weight.shape), 1))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return _one(module, "weight", partition_by_dim(tuple(module.weight.shape), 0))
    if isinstance(module, _ConvTransposeNd) or is_transposed_linear(module):
        return _one(module, "weight", partition_by_dim(tuple(module.weight.shape), 0))  # type: ignore[arg-type]
    if isinstance(module, _ConvNd):
        return _one(module, "weight", _grouped(module.weight, module.groups, unit_axis=1))
    if isinstance(module, nn.Linear):
        return _one(module, "weight", partition_by_dim(tuple(module.weight.shape), 1))
    return None


def _one(module: nn.Module, name: str, partition: Partition) -> Groups:
    return Groups((Part((Member(module, name, partition),)),))


def _grouped(weight: torch.Tensor, groups: int, unit_axis: int) -> Partition:
    """Units along ``unit_axis`` of a grouped convolution: block ``g`` of the other channel axis has its own units."""
    shape = tuple(weight.shape)
    if groups == 1:
        return partition_by_dim(shape, unit_axis)
    other, per = shape[1 - unit_axis], shape[unit_axis]
    block = torch.arange(other) // (other // groups)
    labels = block[:, None] * per + torch.arange(per)[None]
    return partition_by_labels(shape, labels.view(*labels.shape, *(1,) * (len(shape) - 2)))
