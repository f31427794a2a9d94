"""Group discovery: the units of an analysed model, with the slices of the weights that produce and consume them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dgating.structure._capture import Weight
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor
from dgating.structure._info import Info
from dgating.structure._labels import Ids


@dataclass(frozen=True, eq=False)
class Site:
    """One axis (or pair of axes) of a parameter that carries labels."""

    name: str
    info: Info
    factor: Factor
    roles: frozenset[str]  # "in": the axis is contracted; any other role: it is produced, tied weights may do both


@dataclass(frozen=True, eq=False)
class Family:
    """Units with slices at the same sites, in the order in which they first occur."""

    units: Ids
    sites: tuple[Site, ...]

    @property
    def producers(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if s.roles != {"in"})


class Discovery:
    """Classes of labels as units. A key-value head and the query heads that share it are one unit."""

    def __init__(self, model: nn.Module, engine: Engine, shared: bool = True) -> None:
        self.engine = engine
        if shared:
            for x in engine.expansions:
                engine.labels.union(np.broadcast_to(x.parents, x.children.shape), x.children)
        self.homes: dict[int, int] = {}
        for module in model.modules():
            for p in module._parameters.values():
                if p is not None:
                    self.homes[id(p)] = self.homes.get(id(p), 0) + 1
        self.readers = self._readers()
        self.sites = self._sites()
        self.families = self._families()
        found = [engine.labels.find(h.heads).reshape(-1) for h in engine.heads]
        self.head_units = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)

    def _sites(self) -> list[Site]:
        found = []
        for info in self.engine.by_tensor.values():
            if info.weight is None or info.weight.kind != "parameter":
                continue
            for f in info.factors:
                if f.ids.shape[0] == 1 and not self.engine.labels.fixed(f.ids).all():
                    found.append(Site(info.weight.name, info, f, self._roles(info.weight, f.axes[-1])))
        return found

    def _roles(self, weight: Weight, axis: int) -> frozenset[str]:
        """What the axis is to the operations that read the weight.

        The rules note the role in the last of them. Where others read it, too (a table that embeds and projects), it
        counts as produced as well: a group with a slice too many can still leave once it is zero, one that lacks a
        producing slice cannot.
        """
        noted = self.engine.roles.get((weight.name, axis), "out")
        return frozenset({noted, "out"} if len(self.readers[id(weight.tensor)]) > 1 else {noted})

    def _readers(self) -> dict[int, set[tuple[object, int]]]:
        """The kinds of operations that read each weight, with the place of the argument; not those after its shape."""
        found: dict[int, set[tuple[object, int]]] = defaultdict(set)
        for node, weight in self.engine.captured.weights.items():
            for user in node.users:
                if isinstance(user.meta.get("val"), Tensor | list | tuple):
                    place = user.args.index(node) if node in user.args else -1
                    found[id(weight.tensor)].add((user.target, place))
        return found

    def _families(self) -> list[Family]:
        engine = self.engine
        read = np.zeros(len(engine.labels), dtype=bool)
        for use in engine.uses:
            read[engine.labels.find(getattr(use, "inputs", getattr(use, "sources", None)))] = True  # type: ignore[arg-type]
        signature = np.zeros(len(engine.labels), dtype=np.uint64)
        random = np.random.default_rng(0)
        present = []
        for site in self.sites:
            roots, first = np.unique(engine.labels.find(site.factor.ids), return_index=True)
            roots = roots[np.argsort(first)]
            roots = roots[~engine.labels.fixed(roots) & read[roots]]
            signature[roots] += random.integers(1, 2**63, dtype=np.uint64)
            present.append(roots)
        order: dict[int, tuple[list[int], list[Site]]] = {}
        for site, roots in zip(self.sites, present, strict=True):
            keys = signature[roots]
            for key in dict.fromkeys(keys.tolist()):
                units, sites = order.setdefault(key, (roots[keys == key].tolist(), []))
                del units
                sites.append(site)
        return [Family(np.asarray(units), tuple(sites)) for units, sites in order.values()]

    def trainable(self, family: Family) -> bool:
        """Whether every producing slice can be gated: its weight is trained, and by itself."""
        return bool(family.producers) and all(self.gateable(s) for s in family.producers)

    def gateable(self, site: Site) -> bool:
        p = site.info.weight.tensor if site.info.weight else None
        return isinstance(p, nn.Parameter) and p.requires_grad and self.homes.get(id(p)) == 1

    def is_heads(self, family: Family) -> bool:
        return bool(np.isin(family.units, self.head_units).all())

    def labels_of(self, site: Site, units: Ids, only: Ids | None = None) -> Tensor:
        """Unit number of every entry of a weight, -1 elsewhere; ``only`` keeps entries with these labels."""
        roots = self.engine.labels.find(site.factor.ids)
        order = np.argsort(units)
        place = np.clip(np.searchsorted(units[order], roots), 0, len(units) - 1)
        number = np.where(units[order][place] == roots, order[place], -1)
        if only is not None:
            number = np.where(np.isin(self.raw(site), only), number, -1)
        return torch.from_numpy(np.ascontiguousarray(number[0]))

    def raw(self, site: Site) -> Ids:
        return site.factor.ids
