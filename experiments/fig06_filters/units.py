"""What is gated or scored in a convolutional network, and how a channel becomes exactly zero."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import dgating as dg
from dgating._units import units
from experiments.common.convnets import channels

KINDS = ("filters", "coupled", "norms", "anchored")


def gate(net: nn.Module, example: Tensor, kind: str, depth: int) -> None:
    """Gate every channel.

    ``filters``: the weights of the filter, as in the paper. ``coupled``: every removable channel, filters with their
    norms' scales and shifts, over all convolutions that a residual sum ties together. ``norms``: scale and shift only.
    ``anchored``: as ``coupled``, and :func:`anchor_` after every step.
    """
    if kind == "filters":
        dg.gate_(net, dg.filters(net), depth=depth)
    elif kind == "norms":
        each = [dg.tie(dg.by_dim(n, 0, name="weight"), dg.by_dim(n, 0, name="bias")) for _, n in channels(net)]
        dg.gate_(net, dg.concat(*each, name="norms"), depth=depth)
    else:
        convolutions = {c for c, _ in channels(net)}
        found = dg.coupled(net, (example,))
        chosen = [g for g in found if any(m.owner in convolutions for part in g.parts for m in part.members)]
        dg.gate_(net, dg.concat(*chosen, name="channels"), depth=depth)


def root_mean_square(net: nn.Module) -> list[Tensor]:
    """Of the group norms of every part: the scale of a layer."""
    return [unit.norms().square().mean().sqrt() for unit in units(net)]


@torch.no_grad()
def anchor_(net: nn.Module, scales: Sequence[Tensor]) -> None:
    """Give every layer the scale it started with, by its gates.

    Behind a layer of channels comes another batch norm, so that the scale of the whole layer is free: shrinking it
    costs nothing, and a penalty would shrink all channels at once before it chooses between them.
    """
    for unit, scale in zip(units(net), scales, strict=True):
        now = unit.norms().square().mean().sqrt()
        unit.gamma.mul_((scale / now.clamp_min(1e-12)) ** (1 / (unit.depth - 1)))


def scores(net: nn.Module, method: str) -> Tensor:
    """One number a filter, in the order of :func:`channels`: norm of the filter, or size of its norm's scale."""
    with torch.no_grad():
        if method == "slimming":
            return torch.cat([norm.weight.abs() for _, norm in channels(net)])
        return torch.cat([conv.weight.flatten(1).norm(dim=1) for conv, _ in channels(net)])


@torch.no_grad()
def close_(net: nn.Module) -> int:
    """Make every dead channel exactly zero; the number of channels left.

    A channel is dead if its filter is zero, or its norm's scale and shift. With a zero filter alone, it would still be
    a constant, which zero padding keeps from being folded away.
    """
    left = 0
    for conv, norm in channels(net):
        dead = ~conv.weight.flatten(1).any(1) | ((norm.weight == 0) & (norm.bias == 0))
        for p in (conv.weight, norm.weight, norm.bias):
            p[dead] = 0
        left += int((~dead).sum())
    return left


@torch.no_grad()
def without(net: nn.Module, masks: dict[str, Tensor] | Tensor) -> nn.Module:
    """An ungated copy without channels: groups of a gated network by name, or filters in the order of ``channels``."""
    small = copy.deepcopy(net)
    if isinstance(masks, dict):
        dg.zero_(small, masks)
        dg.collapse_(small)
    else:
        start = 0
        for conv, _ in channels(small):
            conv.weight[masks[start : start + conv.out_channels]] = 0
            start += conv.out_channels
    close_(small)
    return small.eval()


def lowest(values: Tensor, sizes: Sequence[int], ratio: float) -> Tensor:
    """A mask of the given share of smallest values; the largest of every layer stays."""
    protected = torch.cat([part == part.max() for part in values.split(list(sizes))])
    order = values.masked_fill(protected, torch.inf).argsort()
    mask = torch.zeros_like(protected)
    mask[order[: min(round(ratio * len(values)), int((~protected).sum()))]] = True
    return mask
