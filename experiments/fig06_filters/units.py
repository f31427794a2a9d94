"""What is gated, penalised or pruned in a convolutional network, and how a channel becomes exactly zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import dgating as dg
from dgating.gating import units
from experiments.common.convnets import channels
from experiments.common.units import Units

KINDS = ("filters", "coupled", "norms", "scales")


def groups_of(net: nn.Module, example: Tensor, kind: str) -> list[dg.Groups]:
    """A group for every channel, a :class:`dgating.Groups` a layer.

    ``filters``: the weights of a filter, as in the paper. ``coupled``: all that makes a removable channel: filters with
    their norms' scales and shifts, over all convolutions that a residual sum ties together. ``norms``: of these, scales
    and shifts. ``scales``: of these, scales.
    """
    if kind == "filters":
        return [dg.by_dim(conv, 0) for conv, _ in channels(net)]
    convolutions = {conv for conv, _ in channels(net)}
    found = [g for g in dg.coupled(net, (example,)) if any(m.owner in convolutions for p in g.parts for m in p.members)]
    if kind == "coupled":
        return found
    names = ("weight", "bias") if kind == "norms" else ("weight",)
    return [_norms_of(g, names) for g in found]


def _norms_of(g: dg.Groups, names: Sequence[str]) -> dg.Groups:
    """The parameters of batch norms among those of a group."""
    parts = [
        dg.by_labels(m.owner, m.partition.labels, name=m.name)
        for part in g.parts for m in part.members if isinstance(m.owner, nn.BatchNorm2d) and m.name in names
    ]  # fmt: skip
    return dg.tie(*parts) if len(parts) > 1 else parts[0]


def gated(net: nn.Module, example: Tensor, kind: str, depth: int | None) -> Units:
    """The channels of a network, gated in place; ``None``: with fixed gates."""
    return Units(net, {"channels": groups_of(net, example, kind)}, depth)


def layer_scales(net: nn.Module) -> list[Tensor]:
    """Root mean square of the group norms of every layer."""
    return [unit.norms().square().mean().sqrt() for unit in units(net)]


@torch.no_grad()
def anchor_(net: nn.Module, scales: Sequence[Tensor]) -> None:
    """Give every layer the scale it started with, all D factors alike, so that their balance stays.

    Behind a layer of channels comes another batch norm, so that the scale of the whole layer is free: shrinking it
    costs nothing, and a penalty would shrink all channels at once before it chooses between them.
    """
    for unit, scale in zip(units(net), scales, strict=True):
        factor = (scale / unit.norms().square().mean().sqrt().clamp_min(1e-12)) ** (1 / unit.depth)
        for p in unit.factors:
            p.mul_(factor)


@torch.no_grad()
def close_(net: nn.Module) -> int:
    """Make every dead channel exactly zero, its norm's shift, too; the number of channels left.

    A channel is dead if its filter is zero, or its norm's scale. With its shift it would still be a constant, which
    zero padding keeps from being folded away.
    """
    left = 0
    for conv, norm in channels(net):
        dead = ~conv.weight.flatten(1).any(1) | (norm.weight == 0)
        for p in (conv.weight, norm.weight, norm.bias):
            p[dead] = 0
        left += int((~dead).sum())
    return left


def strengths_of(units: Units, example: Tensor, lam: float, power: float) -> dict[str, float]:
    """λ for every layer, in proportion to ``cost ** power`` of one of its channels; λ is the mean over channels.

    With power 0 all layers have the same λ, as in the paper. With 1 the penalty counts FLOPs.
    """
    if not power:
        return dict.fromkeys(units.price, lam)
    sizes = {name: len(norms) for name, norms in dg.group_norms(units.net).items()}
    rates = {name: cost**power for name, cost in flops_of_a_channel(units, example).items()}
    mean = sum(rates[name] * size for name, size in sizes.items()) / sum(sizes.values())
    return {name: lam * rate / mean for name, rate in rates.items()}


def flops_of_a_channel(units: Units, example: Tensor) -> dict[str, float]:
    """By layer, what the network costs less without one of its channels: of the layer itself and of those behind."""
    sizes = {name: len(norms) for name, norms in dg.group_norms(units.net).items()}
    whole, found = dg.profile(units.without({}), (example,), repeats=1).flops, {}
    for name in sizes:
        full = units.without({of: torch.arange(size) < (of == name) for of, size in sizes.items()})
        close_(full)
        found[name] = float(whole - dg.profile(dg.compact(full, (example,)), (example,), repeats=1).flops)
    return found
