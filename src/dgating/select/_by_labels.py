"""Any integer partition of one tensor."""

from __future__ import annotations

from torch import Tensor, nn

from dgating.gating import Groups, Member, Part, partition_by_labels
from dgating.select._target import resolve


def by_labels(
    module: nn.Module | nn.Parameter, labels: Tensor, name: str = "weight", group_name: str | None = None
) -> Groups:
    """Groups given by an integer label for every entry (or row, or column) of a tensor; ``-1`` leaves entries ungated.

    Ungated entries feel no penalty: gating stores them as a parameter of their own.

    Args:
        module: the module that owns the tensor, or the parameter itself.
        labels: integers that broadcast to the tensor: ``labels[:, None]`` for one label a row, ``labels`` for one a
            column. ``0..J-1`` must all occur.
        name: attribute of the tensor, dotted from ``module`` if need be.
        group_name: key in the diagnostics; by default the tensor's path in the model.

    Returns:
        :class:`Groups` with ``labels.max() + 1`` groups.

    Raises:
        TypeError: labels that are not integers.
        ValueError: labels that do not broadcast, skip a number, are below -1, or gate nothing; no such tensor.

    Example:
        >>> import torch, dgating as dg
        >>> one_hot = torch.tensor([0, 0, 0, 1, 2, -1])      # columns 0-2 are one category, column 5 is kept
        >>> groups = dg.by_labels(torch.nn.Linear(6, 2), one_hot)
        >>> len(groups), groups.sizes.tolist()
        (3, [6, 2, 2])
    """
    owner, attribute, shape = resolve(module, name)
    return Groups((Part((Member(owner, attribute, partition_by_labels(shape, labels)),)),), group_name)
