"""Gradients to which a penalty is added: hooks for those who want to see them before, and the check of their scale."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

# by gate tensor: bound methods, held weakly; a hook goes with the gates or with its owner
_HOOKS: Any = WeakIdKeyDictionary()


def register_penalty_hook(gates: Sequence[nn.Parameter], method: Callable[[float | Tensor, bool], None]) -> None:
    """Call a bound method before and after a penalty is added to the gradients of these gates.

    Its arguments: the factor by which the gradients are too large, and whether the penalty has been added.
    """
    for gate in gates:
        found = [call for call in _HOOKS.get(gate, ()) if call() is not None]
        _HOOKS[gate] = [*found, weakref.WeakMethod(method)]


def call_penalty_hooks(gates: Iterable[nn.Parameter], grad_scale: float | Tensor, added: bool) -> None:
    """Call every method that waits for one of the gates, once."""
    waiting = {call: call() for gate in gates for call in _HOOKS.get(gate, ())}
    for method in waiting.values():
        if method is not None:
            method(grad_scale, added)


def check_scale(grad_scale: Any) -> None:
    """Raise unless a loss scale is ``None``, a number above zero, or a tensor of one number."""
    if grad_scale is None:
        return
    if isinstance(grad_scale, Tensor):
        if grad_scale.numel() != 1:
            raise ValueError(f"grad_scale: expected one number, received a tensor of {grad_scale.numel()}.")
        return
    if isinstance(grad_scale, bool) or not isinstance(grad_scale, int | float):
        raise TypeError(f"grad_scale: expected a number or None, received {type(grad_scale).__name__}.")
    if not (math.isfinite(grad_scale) and grad_scale > 0):
        raise ValueError(f"grad_scale: expected a finite number > 0, received {grad_scale!r}.")
