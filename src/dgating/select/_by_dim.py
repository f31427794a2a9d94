"""Slices along one axis of one tensor."""

from __future__ import annotations

from torch import nn

from dgating.gating import Groups, Member, Part, partition_by_dim
from dgating.select._target import resolve


def by_dim(
    module: nn.Module | nn.Parameter, dim: int, block: int = 1, name: str = "weight", group_name: str | None = None
) -> Groups:
    r"""One group for every ``block`` consecutive indices along ``dim`` of a tensor.

    For the weight of a linear layer of shape ``(out, in)``: ``dim=0`` groups rows (neurons), ``dim=1`` columns (input
    features), ``dim=0, block=head_dim`` heads of a projection.

    Args:
        module: the module that owns the tensor, or the parameter itself.
        dim: axis, negative counts from the end.
        block: indices a group; divides the size of the axis.
        name: attribute of the tensor, dotted from ``module`` if need be (``"layers.0.weight"``).
        group_name: key in the diagnostics; by default the tensor's path in the model.

    Returns:
        :class:`Groups` with ``size(dim) / block`` groups.

    Raises:
        IndexError: no such axis.
        ValueError: no such tensor (near names are listed), or ``block`` does not divide the axis.
        TypeError: not a module, or not a real floating-point parameter.

    Example:
        >>> import torch, dgating as dg
        >>> len(dg.by_dim(torch.nn.Linear(8, 6), dim=0, block=3))
        2
    """
    owner, attribute, shape = resolve(module, name)
    return Groups((Part((Member(owner, attribute, partition_by_dim(shape, dim, block)),)),), group_name)
