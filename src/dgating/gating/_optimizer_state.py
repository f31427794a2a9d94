"""What an optimizer knows of the factors: hold them, forget them, hand them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ROLE = "dgating"  # key of the parameter-group dicts made by param_groups; values "omega", "gates", "rest"
REST_DECAY = "dgating_rest_weight_decay"  # the user's own decay, for the weights once they are collapsed


def bare(optimizer: Any) -> Any:
    """The optimizer inside wrappers that only pass it on (``accelerate``'s and Lightning's); else itself.

    Such a wrapper has the very parameter groups and state of what its attribute ``optimizer`` holds. One with a state
    of its own (Lookahead) does more than the optimizer in it, and is the optimizer.
    """
    while True:
        inner = getattr(optimizer, "optimizer", None)
        if inner is optimizer or not isinstance(inner, torch.optim.Optimizer):
            return optimizer
        shared = all(getattr(optimizer, name, None) is getattr(inner, name) for name in ("param_groups", "state"))
        if not shared:
            return optimizer
        optimizer = inner


def check_editable(optimizer: torch.optim.Optimizer) -> None:
    """Raise unless the state of the optimizer can be edited entry by entry: one number for each weight."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, received {type(optimizer).__name__}.")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: LBFGS keeps one flattened history of all parameters that cannot be edited by group. "
            "Call without the optimizer and build a new one afterwards."
        )
    for p, kept in optimizer.state.items():
        codes = [key for key, x in kept.items() if isinstance(x, Tensor) and x.shape == p.shape and x.itemsize == 1]
        if codes and p.itemsize > 1:
            raise ValueError(
                f"optimizer: {type(optimizer).__name__} keeps {codes[0]!r} in codes of eight bits that mean nothing "
                "one by one, and expected is one number for each weight. Call without the optimizer and build a new "
                "one afterwards."
            )


def check_holds(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter]) -> None:
    """Raise unless the optimizer updates every one of ``params`` and keeps state that can be edited entry by entry."""
    check_editable(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(id(p) not in held for p in params)
    if missing:
        raise ValueError(
            f"optimizer: expected it to hold all {len(params)} factors of the gated groups, {missing} are missing. "
            "Build it after gating: SGD(dg.param_groups(model, lam), ...)."
        )


def entry_state(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> list[Tensor]:
    """The state tensors shaped like ``p``, one number an entry: momentum, Adam's moments."""
    kept = optimizer.state.get(p, {})
    return [x for key, x in kept.items() if key != "step" and isinstance(x, Tensor) and x.shape == p.shape]


def hand_over(
    optimizer: torch.optim.Optimizer,
    moved: Mapping[nn.Parameter, nn.Parameter | None],
    state: Mapping[nn.Parameter, dict[str, Any]],
    order: Mapping[int, int],
) -> None:
    """Take the factors out and put the collapsed weights in, with the given state, keyed by old parameter.

    Emptied parameter groups stay (learning-rate schedulers count them). ``order`` is the position of each parameter of
    the model, by id: optimizer checkpoints count by it.
    """
    old = {id(p) for p in moved}
    fresh: list[nn.Parameter] = list(dict.fromkeys(p for p in moved.values() if p is not None))
    home = _home(optimizer, old)
    for p in moved:
        optimizer.state.pop(p, None)
    for group in optimizer.param_groups:
        kept = [p for p in group["params"] if id(p) not in old]
        if group is home:
            kept = sorted(kept + fresh, key=lambda p: order.get(id(p), len(order)))
        group["params"] = kept
    for p, values in state.items():
        new = moved[p]
        assert new is not None
        if values:
            optimizer.state[new] = values


def _home(optimizer: torch.optim.Optimizer, old: set[int]) -> dict[str, Any]:
    """The parameter group in which collapsed weights continue: the ungated one, or that of the first factor."""
    for group in optimizer.param_groups:
        if group.get(ROLE) == "rest":
            return group
    home = next(g for g in optimizer.param_groups if any(id(p) in old for p in g["params"]))
    if ROLE not in home:
        return home
    settings = {**home, "params": [], "weight_decay": home.get(REST_DECAY, 0.0), ROLE: "rest"}
    settings.pop(REST_DECAY, None)
    if any(id(p) not in old for p in home["params"]):  # other factors go on there: open a group of our own
        optimizer.param_groups.append(settings)
        return settings
    home.pop(REST_DECAY, None)
    home.update(weight_decay=settings["weight_decay"], **{ROLE: "rest"})
    return home
