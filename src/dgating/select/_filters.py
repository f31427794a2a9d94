"""The output channels of convolutions, one group a filter."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

from dgating.gating import Groups, Member, Part
from dgating.select._axes import outputs
from dgating.select._layers import Rules, layers
from dgating.select._target import resolve


def filters(model: nn.Module, include: Rules = _ConvNd, exclude: Rules = (), name: str | None = None) -> Groups:
    r"""One group for every convolutional filter: all weights of one output channel, without the bias.

    These are the paper's groups. A filter that feeds a batch norm is scale invariant: its norm alone says little
    about its importance, and gating the filter together with the norm's scale and shift (:func:`tie`) selects better.

    Args:
        model: a model, or one convolution (1d, 2d, 3d, grouped, transposed).
        include: layers to take, by default every convolution; see :func:`layers`.
        exclude: layers to leave out.
        name: key in the diagnostics; by default ``"filters"``, for a single layer the path of its weight.

    Returns:
        :class:`Groups`, one part a layer.

    Raises:
        ValueError: nothing matches (near names are listed).
        TypeError: a layer that is not a convolution is included.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3))
        >>> len(dg.filters(net)), len(dg.filters(net, exclude="0"))
        (48, 32)

    Reference: arXiv 2509.23898, convolutional filters (Fig. 6).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"filters: expected a model or a convolution, received {type(model).__name__}.")
    if isinstance(model, _ConvNd):
        if include is not _ConvNd or exclude != ():
            raise ValueError("filters: include and exclude choose layers of a model, but a single layer was given.")
        return Groups((_part(model, None),), name)
    chosen = layers(model, include, exclude)
    # a pattern may match activations and containers, too: what has no weights of its own is left out
    chosen = {path: m for path, m in chosen.items() if m._parameters} or chosen
    return Groups(tuple(_part(m, path) for path, m in chosen.items()), name or "filters")


def _part(layer: nn.Module, path: str | None) -> Part:
    if not isinstance(layer, _ConvNd):
        raise TypeError(
            f"filters: expected convolutions, received {type(layer).__name__} at {path!r}. Use neurons or by_dim."
        )
    resolve(layer, "weight")
    partition = outputs(layer)
    assert partition is not None
    return Part((Member(layer, "weight", partition),), None if path is None else f"{path}.weight")
