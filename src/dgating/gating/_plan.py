"""Check a gating before anything is touched: resolve every group to a module of the model, refuse what cannot work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from dgating._checks import check_eager
from dgating.gating._gate import Gate
from dgating.gating._gated_tensors import find_units, gate_of
from dgating.gating._groups import Groups, Member, Part


@dataclass(frozen=True)
class PlannedSite:
    """One tensor to gate."""

    module: nn.Module
    name: str
    path: str
    member: Member


@dataclass(frozen=True)
class PlannedPart:
    """One gate tensor to make and the tensors that will share it."""

    label: str
    sites: tuple[PlannedSite, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class PlannedGroups:
    groups: Groups
    name: str
    parts: tuple[PlannedPart, ...]


def plan_gating(model: nn.Module, groups: Groups | Iterable[Groups]) -> list[PlannedGroups]:
    """Everything that can fail in :func:`~dgating.gate_`, without side effects."""
    check_eager(model)
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "gate_: expected to be called outside torch.inference_mode(), in which the gates would be made as tensors "
            "that can never be trained. Gate before you enter it (torch.no_grad() does no harm)."
        )
    if not isinstance(groups, Groups | Iterable):
        raise TypeError(f"groups: expected Groups or a list of them, received {type(groups).__name__}.")
    todo = [groups] if isinstance(groups, Groups) else list(groups)
    if not todo:
        raise ValueError("groups: expected at least one Groups, received an empty list.")
    for g in todo:
        if not isinstance(g, Groups):
            raise TypeError(
                f"groups: expected Groups (from dg.features, dg.filters, dg.by_dim, ...), received {type(g).__name__}."
            )
    owners = _Owners(model)
    names = {unit.groups for unit in find_units(model)}
    taken: dict[tuple[int, str], str] = {}
    planned = []
    for g in todo:
        parts = tuple(_plan_part(part, owners, taken) for part in g.parts)
        name = g.given_name or parts[0].sites[0].path
        if name in names:
            raise ValueError(f"groups: the name {name!r} is used twice in this model. Pass another one: name='...'.")
        names.add(name)
        planned.append(PlannedGroups(g, name, parts))
    return planned


class _Owners:
    """Where each parameter of a model lives, and which are tied."""

    def __init__(self, model: nn.Module) -> None:
        self.path: dict[nn.Module, str] = {}
        self.homes: dict[int, list[tuple[nn.Module, str]]] = {}
        for path, module in model.named_modules():
            self.path[module] = path
            for name, p in module._parameters.items():
                if p is not None:
                    self.homes.setdefault(id(p), []).append((module, name))

    def find(self, member: Member) -> tuple[nn.Module, str]:
        if isinstance(member.owner, nn.Parameter):
            homes = self.homes.get(id(member.owner))
            if not homes:
                raise ValueError(
                    f"groups: a parameter of shape {tuple(member.owner.shape)} is not a parameter of this model "
                    "(it may be a copy, or gated already)."
                )
            return homes[0]
        if member.owner not in self.path:
            raise ValueError(
                f"groups: {member.title()} is not part of this model. Make the groups from the model you gate "
                "(a deepcopy has other modules)."
            )
        return member.owner, member.name

    def title(self, module: nn.Module, name: str) -> str:
        path = self.path[module]
        return f"{path}.{name}" if path else name


def _plan_part(part: Part, owners: _Owners, taken: dict[tuple[int, str], str]) -> PlannedPart:
    planned = []
    for member in part.members:
        module, name = owners.find(member)
        path = owners.title(module, name)
        p = _check_parameter(module, name, path, owners, member)
        key = (id(module), name)
        if key in taken:
            raise ValueError(
                f"groups: the parameter {path!r} is in two groups. A weight belongs to one group only; for several "
                "kinds of slices of one tensor use by_labels with one label a slice."
            )
        taken[key] = path
        planned.append((PlannedSite(module, name, path, member), p))
    devices = {p.device for _, p in planned}
    if len(devices) > 1:
        paths = ", ".join(f"{s.path} on {p.device}" for s, p in planned)
        raise ValueError(f"groups: expected the tensors of one group on one device, received {paths}.")
    dtype = planned[0][1].dtype
    for _, p in planned[1:]:
        dtype = torch.promote_types(dtype, p.dtype)
    sites = tuple(s for s, _ in planned)
    return PlannedPart(part.label or sites[0].path, sites, dtype, planned[0][1].device)


def _check_parameter(module: nn.Module, name: str, path: str, owners: _Owners, member: Member) -> nn.Parameter:
    if isinstance(module, Gate | parametrize.ParametrizationList) or ".parametrizations." in f".{path}":
        raise ValueError(
            f"groups: {path!r} is a factor of a tensor that is parametrised (gated already?). Gate plain weights: "
            "collapse_ first, or leave it out."
        )
    if gate_of(module, name) is not None:
        raise ValueError(f"groups: {path!r} is gated already. collapse_ it first, or leave it out.")
    if parametrize.is_parametrized(module, name):
        raise ValueError(
            f"groups: {path!r} already has a parametrisation. Remove it first "
            f"(torch.nn.utils.parametrize.remove_parametrizations), then gate the plain weight."
        )
    p = module._parameters.get(name)
    if p is None:
        have = [n for n, q in module._parameters.items() if q is not None]
        raise ValueError(f"groups: {path!r} is not a parameter of {type(module).__name__}; it has {have}.")
    check_tensor(p, path)
    if tuple(p.shape) != member.partition.shape:
        raise ValueError(
            f"groups: made for a tensor of shape {member.partition.shape}, but {path!r} is {tuple(p.shape)} now. "
            "Make the groups again."
        )
    if getattr(module, "sparse", False) is True:
        raise ValueError(
            f"groups: {path!r} makes sparse gradients, which gates cannot take. Build {type(module).__name__} with "
            "sparse=False."
        )
    homes = owners.homes[id(p)]
    if len(homes) > 1:
        others = [title for title in (owners.title(*home) for home in homes) if title != path]
        raise ValueError(
            f"groups: {path!r} is tied (the same parameter is also {others}). Gating one use would untie it. "
            "Untie the weights first, or gate another layer."
        )
    return p


def check_tensor(p: object, path: str) -> None:
    """Raise unless ``p`` is a trainable, floating, materialised, unsharded parameter."""
    if not isinstance(p, nn.Parameter):
        raise TypeError(f"{path!r}: expected a torch.nn.Parameter, received {type(p).__name__}.")
    if is_lazy(p):
        raise ValueError(
            f"{path!r}: expected an initialised parameter, received a lazy one. Run one forward pass first."
        )
    if not p.is_floating_point():
        raise TypeError(f"{path!r}: expected a real floating-point parameter, received {p.dtype}.")
    if p.is_meta:
        raise ValueError(f"{path!r}: expected weights, received a tensor on 'meta'. Materialise the model first.")
    if hasattr(p, "full_tensor"):
        raise ValueError(f"{path!r}: expected a whole tensor, received a shard (DTensor). Gate before fully_shard.")
    if p.is_inference():
        raise ValueError(
            f"{path!r}: expected a parameter that can be trained, received one made in torch.inference_mode(). "
            "Build the model outside it, or replace the parameter by nn.Parameter(p.clone())."
        )
    if not p.requires_grad:
        raise ValueError(
            f"{path!r}: expected a trainable parameter, received a frozen one. Both factors must feel the penalty: "
            "call requires_grad_(True) or leave it out."
        )
