"""Groups out of the units that the structure engine finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgating._checks import check_eager
from dgating.gating import UNGATED, Groups, Member, Part, partition_by_labels
from dgating.structure import Discovery, Family, Site, analyse, call_kwargs, split_inputs


def discover(model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None, shared: bool = True) -> Discovery:
    """Analyse a model on example inputs."""
    check_eager(model)
    args, named = split_inputs(example_inputs, kwargs)
    return Discovery(model, analyse(model, args, call_kwargs(model, named)), shared)


def groups_of(
    model: nn.Module, found: Discovery, chosen: Iterable[tuple[Family, Iterable[tuple[Site, Any]]]]
) -> list[Groups]:
    """One :class:`Groups` a family; families with slices in one tensor are put into the same.

    ``chosen`` pairs a family with the sites to gate, each with the labels to restrict it to (``None``: all).
    """
    made: list[tuple[int, dict[str, Tensor]]] = []
    for family, sites in chosen:
        labels: dict[str, Tensor] = {}
        for site, only in sites:
            mine = found.labels_of(site, family.units, only)
            if bool((mine == UNGATED).all()):
                continue
            old = labels.get(site.name)
            labels[site.name] = mine if old is None else torch.where(old == UNGATED, mine, old)
        if labels:
            made.append((len(family.units), labels))
    return [_groups(model, n, labels) for n, labels in _joined(made)]


def _joined(made: list[tuple[int, dict[str, Tensor]]]) -> list[tuple[int, dict[str, Tensor]]]:
    """Families that share tensors, side by side under one count."""
    out: list[tuple[int, dict[str, Tensor]]] = []
    for n, labels in made:
        for i, (m, others) in enumerate(out):
            if labels.keys() & others.keys():
                merged = dict(others)
                for name, mine in labels.items():
                    shifted = torch.where(mine == UNGATED, mine, mine + m)
                    merged[name] = (
                        torch.where(merged[name] == UNGATED, shifted, merged[name]) if name in merged else shifted
                    )
                out[i] = (m + n, merged)
                break
        else:
            out.append((n, labels))
    return out if len(out) == len(made) else _joined(out)


def _groups(model: nn.Module, n: int, labels: dict[str, Tensor]) -> Groups:
    members = []
    for name, mine in labels.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        shape = tuple(getattr(module, attribute).shape)
        members.append(Member(module, attribute, partition_by_labels(shape, mine, n)))
    return Groups((Part(tuple(members), next(iter(labels))),))
