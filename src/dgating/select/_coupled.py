"""Every removable unit of a network, as a group over all the slices that produce it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from dgating.gating import Groups
from dgating.select._units import discover, groups_of


def coupled(model: nn.Module, example_inputs: Any, *, kwargs: Mapping[str, Any] | None = None) -> list[Groups]:
    r"""Every unit that :func:`compact` could remove, as one group over all its producing slices.

    A channel behind a batch norm is its filter with the norm's scale and shift; channels that meet in a residual sum
    are one unit over all the convolutions that write to it; a head is its query, key and value rows; a table that
    embeds and projects belongs to the unit with its columns. So what is gated is what can be removed: a unit whose
    group is zero contributes nothing, and :func:`compact` takes it out where the shapes allow.

    They do not allow a single unit to leave alone where a tensor has to stay rectangular: from a grouped convolution,
    from key-value groups whose query heads are units of their own and from stacked experts the same number leaves
    every block, group or expert; units that one weight lays out over two axes (heads x width) leave as whole rows or as
    many from every row. One unit of every axis stays. ``plan_compaction`` says which zero units stay, and why.

    Args:
        model: an ordinary model.
        example_inputs: a tuple of positional or a dict of keyword arguments.
        kwargs: further keyword arguments.

    Returns:
        One :class:`Groups` for every kind of unit, ready for :func:`gate_`. Units with a frozen or tied weight are
        left out.

    Raises:
        CompactionError: ``torch.export`` cannot read the model.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        ...                           torch.nn.Flatten(), torch.nn.Linear(8 * 36, 10))
        >>> print(dg.coupled(net, (torch.randn(2, 1, 8, 8),))[0])
        Groups 'Conv2d.weight': 8 groups of 12 weights
          0.weight (8, 1, 3, 3): dim 0, 8 x 9 weights
          & Conv2d.bias (8,): dim 0, 8 x 1 weights
          & BatchNorm2d.weight (8,): dim 0, 8 x 1 weights
          & BatchNorm2d.bias (8,): dim 0, 8 x 1 weights
    """
    found = discover(model, example_inputs, kwargs)
    chosen = [f for f in found.families if found.trainable(f)]
    return groups_of(model, found, [(f, [(s, None) for s in f.producers]) for f in chosen])
