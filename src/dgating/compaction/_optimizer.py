"""The optimizer's state of a model's weights, sliced like the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dgating.compaction._plan import CompactionPlan
from dgating.gating import all_or_nothing, check_editable
from dgating.structure import Slice, cut


def check_sliceable(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise unless the optimizer trains this model and its state can be cut entry by entry."""
    check_editable(optimizer)
    mine = {id(p) for p in model.parameters()}
    if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer: expected one that holds parameters of this model, received one of another model. "
            "Pass the optimizer that trains the model, or none."
        )


def slice_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, plan: CompactionPlan) -> None:
    """Exchange the parameters of the full model for those of the compact one, in place, state included.

    State shaped like a parameter (momentum, moments; or reduced to size one along an axis) is sliced like it; anything
    else (step counts) is kept. A bias
    that compaction created joins the group of its weight, without state.
    """
    old = dict(model.named_parameters())
    every = dict(model.named_parameters(remove_duplicate=False))
    new = dict(small.named_parameters(remove_duplicate=False))
    pairs = {id(p): (new[name], plan.slices.get(name, [])) for name, p in old.items() if name in new}
    created = {
        id(every[w]): new[n]
        for n in plan.folded
        if n not in every and (w := n.removesuffix("bias") + "weight") in every
    }
    state: dict[Tensor, dict[str, Any]] = {}
    members: list[list[nn.Parameter]] = []
    for group in optimizer.param_groups:
        params = []
        for p in group["params"]:
            twin, slices = pairs.get(id(p), (p, []))
            params.append(twin)
            if p in optimizer.state:
                state[twin] = {k: _cut(v, p, slices) for k, v in optimizer.state[p].items()}
            if id(p) in created:
                params.append(created[id(p)])
        members.append(params)

    def change() -> None:
        for group, params in zip(optimizer.param_groups, members, strict=True):
            group["params"] = params
        optimizer.state.clear()
        optimizer.state.update(state)

    all_or_nothing(change, optimizer=optimizer)


def _cut(value: Any, p: Tensor, slices: list[Slice]) -> Any:
    """State shaped like the parameter, or like it with some axes reduced to size one (Adafactor), is sliced."""
    if not isinstance(value, Tensor) or value.ndim != p.ndim:
        return value
    if any(n not in (1, m) for n, m in zip(value.shape, p.shape, strict=True)):
        return value
    whole = [a for a, (n, m) in enumerate(zip(value.shape, p.shape, strict=True)) if n == m]
    mine = [s for s in slices if s.axis in whole and (s.row is None or s.row in whole)]
    return cut(value, mine) if mine else value
