"""What an optimizer knows of the factors: hold them, forget them, hand them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ROLE = "dgating"  # key of the parameter-group dicts made by param_groups; values "omega", "gates", "rest"
REST_DECAY = "dgating_rest_weight_decay"  # the user's own decay, for the weights once they are collapsed


def check_holds(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter]) -> None:
    """Raise unless the optimizer updates every one of ``params`` and keeps state that can be edited entry by entry."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, received {type(optimizer).__name__}.")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: LBFGS keeps one flattened history of all parameters that cannot be edited by group. "
            "Call without the optimizer and build a new one afterwards."
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(id(p) not in held for p in params)
    if missing:
        raise ValueError(
            f"optimizer: expected it to hold all {len(params)} factors of the gated groups, {missing} are missing. "
            "Build it after gating: SGD(dg.param_groups(model, lam), ...)."
        )


def zero_state(optimizer: torch.optim.Optimizer, p: nn.Parameter, mask: Tensor) -> None:
    """Zero the masked entries of every state tensor shaped like ``p`` (momentum, Adam's moments)."""
    for value in optimizer.state.get(p, {}).values():
        if isinstance(value, Tensor) and value.shape == p.shape:
            value.masked_fill_(mask, 0)


def drop_factors(
    optimizer: torch.optim.Optimizer,
    moved: Mapping[nn.Parameter, nn.Parameter | None],
    state: Sequence[tuple[nn.Parameter, dict[str, object]]],
) -> None:
    """Take the factors out and put the collapsed weights in.

    Emptied parameter groups stay (learning-rate schedulers count them).
    """
    old = {id(p) for p in moved}
    fresh: list[nn.Parameter] = list(dict.fromkeys(p for p in moved.values() if p is not None))
    for p in moved:
        optimizer.state.pop(p, None)
    home = _home(optimizer.param_groups, old)
    for group in optimizer.param_groups:
        kept = [p for p in group["params"] if id(p) not in old]
        if group is home:
            kept += fresh
        group["params"] = kept
    for omega, values in state:
        if values:
            new = moved[omega]
            assert new is not None
            optimizer.state[new] = dict(values)


def _home(groups: list[dict[str, Any]], old: set[int]) -> dict[str, Any]:
    """The parameter group in which collapsed weights continue: the ungated one, or that of the first factor."""
    for group in groups:
        if group.get(ROLE) == "rest":
            return group
    home = next(g for g in groups if any(id(p) in old for p in g["params"]))
    if ROLE in home:  # every parameter was gated: this group now holds ordinary weights
        home["weight_decay"] = home.pop(REST_DECAY, 0.0)
        home[ROLE] = "rest"
    return home
