"""Checks of what a monitor is given: its options, and a state of another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dgating._checks import check_number

MOST_STEPS = 1 << 52  # float64 counts them exactly


def check_options(window: object, safety: float, screen: float, max_lr: float, two_penalties: bool) -> None:
    """Raise unless the options of a monitor make sense."""
    whole = isinstance(window, int) and not isinstance(window, bool)
    if window is not None and not (whole and window >= 1):  # type: ignore[operator]
        raise ValueError(f"window: expected a number of observations >= 1, or None, received {window!r}.")
    for name, value in (("safety", safety), ("screen", screen), ("max_lr", max_lr)):
        check_number(name, value)
    if not safety >= 1:
        raise ValueError(f"safety: expected a factor >= 1, received {safety!r}.")
    if not 0 < screen < 1:
        raise ValueError(f"screen: expected a share in (0, 1), received {screen!r}.")
    if two_penalties:
        raise ValueError("penalty_in_loss, penalty_in_grad: expected one of them, received both.")


def check_recheck(closure: object, size: Any) -> None:
    """Raise unless the arguments of ``recheck`` make sense."""
    if not callable(closure):
        raise TypeError(f"closure: expected a function, received {type(closure).__name__}.")
    check_number("size", size)
    if size == 0:
        raise ValueError("size: expected a number > 0, received 0: a group of size zero stays dead.")


def check_state(state: object, like: Mapping[str, Any], stride: int) -> None:
    """Raise unless a state could have come from a monitor.

    Args:
        state: what was given.
        like: the present state of the monitor that is to continue from it.
        stride: steps between two looks whether windows have ended.
    """
    if not isinstance(state, Mapping) or state.get("format") != like["format"]:
        got = sorted(state) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state: expected the state_dict of a monitor ({like['format']}), received {got}.")
    if state.keys() != like.keys():
        raise ValueError(f"state: expected {sorted(like)}, received {sorted(state)}.")
    history = state["history"]
    if not isinstance(history, list) or not all(isinstance(row, Mapping) and "step" in row for row in history):
        raise ValueError(f"state: expected history to be a list of records, received {repr(history)[:80]}.")
    for part in ("bounds", "trend"):
        _check_names(part, state[part], like[part])
        for name, mine in like[part].items():
            _check_tensor(f"{part}.{name}", state[part][name], mine)
    _check_tensor("distorted", state["distorted"], like["distorted"])
    for part in ("settings", "top_lam"):
        _check_names(part, state[part], like[part])
    for name, mine in like["settings"].items():
        theirs = state["settings"][name]
        if theirs != mine:
            raise ValueError(
                f"state: it is of a monitor with {name} = {theirs!r}, this one has {mine!r}. Make "
                "the monitor as it was made in the run that is resumed."
            )
    _check_steps(state, stride)
    rows, have = state["optimizer"], like["optimizer"]
    if not isinstance(rows, Sequence) or len(rows) != len(have):
        raise ValueError(f"state: expected {len(have)} parameter groups, received {rows!r}.")
    for row, mine in zip(rows, have, strict=True):
        if not isinstance(row, Mapping) or row.keys() != mine.keys():
            raise ValueError(f"state: expected numbers {sorted(mine)} a parameter group, received {row!r}.")
        for name, value in row.items():
            check_number(name, value)


def _check_names(part: str, value: object, mine: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping) or value.keys() != mine.keys():
        got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"state: expected {part} with {sorted(mine)}, received {got}.")


def _check_tensor(name: str, value: object, mine: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype != mine.dtype:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"state: expected {name} of {mine.dtype}, received {got}.")
    if value.shape != mine.shape:
        raise ValueError(
            f"state: expected {name} of shape {tuple(mine.shape)}, received {tuple(value.shape)}: "
            "it is of another model."
        )
    if value.dtype != torch.bool and bool((value.isnan() | (value < 0)).any()):
        raise ValueError(f"state: expected numbers >= 0 in {name}, received others.")


def _check_steps(state: Mapping[str, Any], stride: int) -> None:
    for name in ("steps", "next_record", "until_check"):
        value = state[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"state: expected {name} >= 0, received {value!r}.")
    if not 1 <= state["until_check"] <= stride:
        raise ValueError(f"state: expected until_check in 1 .. {stride}, received {state['until_check']}.")
    for name in ("count", "total"):
        if bool((state["bounds"][name] > MOST_STEPS).any()):
            raise ValueError(f"state: expected at most {MOST_STEPS} observations in bounds.{name}, received more.")
    for name, lam in state["top_lam"].items():
        check_number(f"state: the strength of {name!r}", lam)


def copied(x: Any) -> Any:
    """Nested dicts and lists with the same leaves; tensors are cloned."""
    if isinstance(x, Mapping):
        return {key: copied(value) for key, value in x.items()}
    if isinstance(x, list):
        return [copied(value) for value in x]
    return x.clone() if isinstance(x, Tensor) else x
