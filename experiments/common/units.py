"""What can leave a network (channels, heads, neurons) as groups: prices, the smallest of them, what is left.

A method without gates of its own (pruning, a penalty on weights) is gated with D = 2 and fixed gates of one: then the
weights are ordinary ones, and a group that was set to zero stays there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

import dgating as dg
from dgating.gating import units


class Units:
    """Groups of one model, by kind.

    Args:
        net: an ordinary model; it is gated in place.
        kinds: for ``"heads"`` and the like one :class:`dgating.Groups` a layer.
        depth: D; ``None`` for fixed gates.
        more: parameters that leave with a group of a kind without belonging to it.
    """

    def __init__(
        self, net: nn.Module, kinds: Mapping[str, Sequence[dg.Groups]], depth: int | None,
        more: Mapping[str, int] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.net, self.depth = net, depth or 2
        for g in (g for of in kinds.values() for g in of):
            dg.gate_(net, g, depth=self.depth)  # from here on they bear the names of their weights
        self.names = {kind: [g.name for g in of] for kind, of in kinds.items()}
        self.price = {
            g.name: float(g.sizes.double().mean()) + more.get(kind, 0) for kind, of in kinds.items() for g in of
        }
        if depth is None:
            for unit in units(net):
                unit.gamma.requires_grad_(False)
        self.scale = {name: norms.square().mean().sqrt() for name, norms in dg.group_norms(net).items()}

    def below(self, threshold: float) -> dict[str, Tensor]:
        """Groups whose norm is not above a threshold."""
        return {name: norms <= threshold for name, norms in dg.group_norms(self.net).items()}

    def smallest(self, ratio: float, relative: bool = False, keep: int = 0) -> dict[str, Tensor]:
        """This share of the groups of each kind, over all layers: the smallest norms (or beside their layer's).

        ``keep``: so many of the largest stay in every layer, and then it can be a smaller share.
        """
        norms, masks = dg.group_norms(self.net), {}
        for names in self.names.values():
            values = torch.cat([norms[name] / (self.scale[name] if relative else 1.0) for name in names])
            free = torch.cat([norms[name].argsort(descending=True).argsort() >= keep for name in names])
            order = values.masked_fill(~free, torch.inf).argsort()
            mask = torch.zeros_like(free)
            mask[order[: min(round(ratio * len(values)), int(free.sum()))]] = True
            masks |= dict(zip(names, mask.split([len(norms[name]) for name in names]), strict=True))
        return masks

    def left(self) -> dict[str, list[int]]:
        """Groups of every layer that are not exactly zero."""
        norms = dg.group_norms(self.net)
        return {kind: [int((norms[name] > 0).sum()) for name in names] for kind, names in self.names.items()}

    def norms(self, kind: str) -> list[list[float]]:
        """Of the groups of a kind, layer by layer, three digits."""
        found = dg.group_norms(self.net)
        return [[float(f"{v:.3g}") for v in found[name].tolist()] for name in self.names[kind]]

    def penalty(self, lams: Mapping[str, float]) -> Tensor:
        """Σ λ ‖W_j‖ of the weights themselves, to descend directly. The gates have to be fixed."""
        terms = [lams[u.groups] * u.norms_of([site.omega for site in u.sites]).sum() for u in units(self.net)]
        return torch.stack(terms).sum()

    def without(self, masks: Mapping[str, Tensor]) -> nn.Module:
        """An ungated copy in evaluation mode, these groups exactly zero."""
        full = copy.deepcopy(self.net)
        dg.zero_(full, masks)
        dg.collapse_(full)
        return full.eval()
