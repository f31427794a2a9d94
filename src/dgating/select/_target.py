"""Resolve what the user pointed at: a parameter, or a module and the (dotted) name of its tensor."""

from __future__ import annotations

import difflib

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from dgating._checks import check_text
from dgating.gating import check_tensor, gate_of


def resolve(target: nn.Module | nn.Parameter, name: str) -> tuple[nn.Module | nn.Parameter, str, tuple[int, ...]]:
    """Owner, attribute name and shape of the tensor to group; checked, so that mistakes show where they are made."""
    check_text("name", name)
    if isinstance(target, nn.Parameter):
        check_tensor(target, "parameter")
        return target, "", tuple(target.shape)
    if not isinstance(target, nn.Module):
        raise TypeError(
            f"expected a module that owns the tensor (or an nn.Parameter), received {type(target).__name__}."
        )
    owner, path = target, name.rpartition(".")
    if path[0]:
        try:
            owner = target.get_submodule(path[0])
        except AttributeError:
            owner = None
    p = None if owner is None else owner._parameters.get(path[2])
    if owner is not None and parametrize.is_parametrized(owner, path[2]):
        gated = gate_of(owner, path[2]) is not None
        raise ValueError(
            f"name: {name!r} of {parametrize.type_before_parametrizations(owner).__name__} "
            + ("is gated already. collapse_ it first." if gated else "has a parametrisation. Remove it first.")
        )
    if owner is None or p is None:
        have = [n for n, _ in target.named_parameters()]
        near = difflib.get_close_matches(name, have, n=3, cutoff=0.3) or have[:3]
        raise ValueError(
            f"name: {type(target).__name__} has no parameter {name!r}. Near names: {near} (of {len(have)})."
        )
    check_tensor(p, name)
    return owner, path[2], tuple(p.shape)


def check_initialised(layer: object) -> None:
    """Refuse a layer that has not seen its input yet: its shapes are not known."""
    for name, p in layer._parameters.items() if isinstance(layer, nn.Module) else ():
        if p is not None and is_lazy(p):
            check_tensor(p, f"{type(layer).__name__}.{name}")
