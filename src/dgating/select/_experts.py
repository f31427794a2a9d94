"""The experts of mixture-of-experts layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dgating.gating import Groups, Member, Part, evaluating, partition_by_dim, partition_by_labels
from dgating.select._units import discover
from dgating.structure import call_kwargs, split_inputs


def experts(model: nn.Module, example_inputs: Any, *, kwargs: Mapping[str, Any] | None = None) -> list[Groups]:
    r"""One group for every expert: all its weights.

    Experts are the matrices of stacked three-dimensional weights, or the members of a ``ModuleList`` that are all
    called on the same input.

    Args:
        model: an ordinary model.
        example_inputs: a tuple of positional or a dict of keyword arguments.
        kwargs: further keyword arguments.

    Returns:
        One :class:`Groups` for every layer of experts. When an expert of a ``ModuleList`` is zero, :func:`compact`
        leaves one hidden unit of it. An expert in a stack keeps its place (its router still addresses it, and the
        stack has one width): there only hidden units that are dead in every expert, or as many in each, leave.

    Raises:
        ValueError: the model has no experts.
        CompactionError: ``torch.export`` cannot read the model.

    Example:
        >>> import torch, dgating as dg
        >>> class Mixture(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.router = torch.nn.Linear(4, 3)
        ...         self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 2) for _ in range(3))
        ...     def forward(self, x):
        ...         share = self.router(x).softmax(-1)
        ...         return sum(share[:, i : i + 1] * e(x) for i, e in enumerate(self.experts))
        >>> groups = dg.experts(Mixture(), (torch.randn(5, 4),))
        >>> [len(g) for g in groups], groups[0].sizes.tolist()
        ([3], [10, 10, 10])
    """
    found = discover(model, example_inputs, kwargs)
    layers: dict[str, list[str]] = {}
    for names in found.engine.experts:
        for name in names:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    groups = [_stacked(model, path) for path in layers]
    args, named = split_inputs(example_inputs, kwargs)
    named = call_kwargs(model, named)
    groups += [_listed(model, path) for path in _lists(model, args, named)]
    if not groups:
        raise ValueError(
            "experts: expected a model with experts (stacked weights, or a ModuleList whose members are all called on "
            "the same input), found none. Group the weights yourself: tie and whole, or by_dim on a stack."
        )
    return groups


def _stacked(model: nn.Module, path: str) -> Groups:
    module = model.get_submodule(path)
    stacks = {n: p for n, p in module._parameters.items() if p is not None and p.ndim >= 2}
    count = max(p.shape[0] for p in stacks.values() if p.ndim == 3)
    mine = [Member(module, n, partition_by_dim(tuple(p.shape), 0)) for n, p in stacks.items() if p.shape[0] == count]
    return Groups((Part(tuple(mine), path),))


def _lists(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Module lists whose members all get the very same tensor."""
    lists = {path: m for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1 and _alike(m)}
    seen: dict[str, list[int]] = {path: [] for path in lists}
    keep: list[Any] = []  # so that no two tensors get one id
    handles = []
    for path, members in lists.items():
        for member in members:

            def hook(_m: nn.Module, inputs: Any, path: str = path) -> None:
                keep.append(inputs)
                seen[path].append(id(inputs[0]) if inputs else -1)

            handles.append(member.register_forward_pre_hook(hook))
    try:
        with evaluating(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return [p for p, ids in seen.items() if len(ids) == len(lists[p]) and len(set(ids)) == 1 and ids[0] != -1]


def _alike(members: nn.ModuleList) -> bool:
    shapes = [[tuple(p.shape) for p in m.parameters()] for m in members]
    return all(s == shapes[0] and s for s in shapes)


def _listed(model: nn.Module, path: str) -> Groups:
    members = model.get_submodule(path)
    assert isinstance(members, nn.ModuleList)
    parts = []
    for i, expert in enumerate(members):
        mine = [
            Member(m, n, partition_by_labels(tuple(p.shape), torch.zeros((1,) * p.ndim, dtype=torch.long)))
            for m in expert.modules()
            for n, p in m._parameters.items()
            if p is not None
        ]
        parts.append(Part(tuple(mine), f"{path}.{i}"))
    return Groups(tuple(parts), path)
