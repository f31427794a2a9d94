"""What an optimizer does, found by letting its class do it to a small tensor of ours.

Names say little: a subclass may decay weights in another way than its parent, a wrapper as what it wraps. So an
optimizer of the same class and settings is made for a tensor that nobody else has. The user's optimizer and the random
numbers stay as they are.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dgating.gating._gated_tensors import full
from dgating.gating._optimizer_state import REST_DECAY, ROLE

Decay = Literal["coupled", "decoupled", "ignored", "hidden", "unknown"]

LR, DECAY, STEPS = 0.125, 0.5, 3  # of the trial; what the user has set may be too small to be seen
TINY = 1e-9
AGREE = 1e-3  # a share of what the decay moves; the other ways of decaying differ by about as much as that
NOT_SETTINGS = {"params", "lr", "weight_decay", ROLE, REST_DECAY}
WAYS = {"fused", "capturable", "foreach", "differentiable"}  # to compute the same

_known: WeakKeyDictionary[type, dict[object, Decay]] = WeakKeyDictionary()


def decay_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> Decay:
    r"""How an optimizer decays a parameter like ``p`` in one of its groups.

    Three steps with weight decay κ and gradients :math:`g_t` are compared with three without decay. The decay is
    *coupled* if these get to the same place with gradients :math:`g_t + \kappa p_t`, *ignored* if they do so with
    :math:`g_t`, and *decoupled* otherwise. It is *hidden* when ``weight_decay`` is ignored and weights without a
    gradient shrink nevertheless, and *unknown* when the class cannot be made for another tensor or does not move it.
    """
    found = _known.setdefault(type(optimizer), {})
    key = (_key(group), _key(_own_settings(optimizer)), min(p.ndim, 3), p.device.type)
    if key not in found:
        if len(found) > 64:  # settings that change in every step
            found.clear()
        found[key] = _decay(optimizer, group, p)
    return found[key]


def _key(settings: Mapping[str, Any]) -> object:
    """What may decide how weights are decayed. Of a number that is not whole only whether it is zero: rates change."""

    def plain(value: object) -> object:
        return bool(value) if isinstance(value, float) else value

    kinds = (bool, int, float, str, type(None))
    return frozenset((k, plain(v)) for k, v in settings.items() if isinstance(v, kinds) and k not in NOT_SETTINGS)


def _decay(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> Decay:
    for start in _small_tensors(p):
        try:
            return _compare(partial(_walk, optimizer, group), start)
        except Exception:  # classes refuse tensors in many ways: small ones, those of a processor, other precisions
            continue
    return "unknown" if "weight_decay" in optimizer.defaults else "ignored"


def _compare(walk: Callable[..., Tensor], start: Tensor) -> Decay:
    decayed, coupled, without = (walk(*decay, start) for decay in [(DECAY, 0.0), (0.0, DECAY), (0.0, 0.0)])
    moved = float((coupled - without).abs().max())
    if not moved > TINY:
        return "unknown"
    if float((decayed - coupled).abs().max()) <= AGREE * moved:
        return "coupled"
    if float((decayed - without).abs().max()) > AGREE * moved:
        return "decoupled"
    at_rest, doubled = (walk(0.0, 0.0, x, gradient=0.0) for x in (start, 2 * start))
    return "hidden" if float((doubled - at_rest - start).abs().max()) > TINY else "ignored"


def _small_tensors(p: Tensor) -> Iterator[Tensor]:
    """Tensors to try, the most precise first, with as many axes as ``p`` where it has few."""
    for device, dtype, side in [
        (torch.device("cpu"), torch.float64, 4),
        (torch.device("cpu"), torch.float32, 4),
        (p.device, torch.float32, 64),
    ]:
        shape = {0: (), 1: (side * side,)}.get(p.ndim, (side, side) + (1,) * (p.ndim - 2))
        numbers = torch.arange(math.prod(shape), dtype=dtype, device=device)
        yield (0.5 * torch.cos(1.3 * numbers + 0.2)).view(shape)


def _walk(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    weight_decay: float,
    in_gradient: float,
    start: Tensor,
    gradient: float = 0.3,
) -> Tensor:
    """Where three steps lead, with a decay of the optimizer's own and one in the gradient."""
    sign = -1.0 if group.get("maximize") else 1.0
    numbers = torch.arange(start.numel(), dtype=start.dtype, device=start.device).view(start.shape)
    with torch.inference_mode(False), torch.no_grad(), _undisturbed(start.device):
        p = nn.Parameter(start.clone())
        twin = trial(optimizer, group, p, weight_decay=weight_decay)
        for t in range(STEPS):

            def closure(t: int = t) -> Tensor:
                p.grad = gradient * torch.sin(0.7 * numbers + t + 0.4) + sign * in_gradient * p
                return p.new_ones(())

            closure()
            _step(twin, closure)
        return p.detach()


def trial(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: nn.Parameter, **changes: float
) -> torch.optim.Optimizer:
    """An optimizer of the same class and settings that holds ``p`` alone, with a step size that can be seen."""
    settings = {k: _number(v) for k, v in group.items() if k != "params"}
    settings |= {k: False for k in WAYS if settings.get(k)}
    if settings.get("lr") is not None:
        settings["lr"] = LR
    settings |= changes
    own = _own_settings(optimizer)
    accepted = _accepted(type(optimizer))
    arguments: dict[str, Any] = {k: v for k, v in (own | settings).items() if k in accepted}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            twin = type(optimizer)([{"params": [p], **settings}], **arguments)
        except Exception:  # it may take a list of parameters only
            twin = type(optimizer)([p], **arguments)
            twin.param_groups[0].update(settings)
    for name, value in own.items():
        if isinstance(value, bool | str):
            setattr(twin, name, value)
    return twin


def _own_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Attributes that hold an argument of the constructor or a switch; not counters."""
    accepted = _accepted(type(optimizer))
    return {
        k: v
        for k, v in vars(optimizer).items()
        if isinstance(v, bool | str) or (k in accepted and isinstance(v, int | float | tuple | None))
    }


def _accepted(cls: type) -> set[str]:
    """Names of the arguments of a constructor, and of those that it passes ``**kwargs`` on to."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())
        names |= {x.name for x in parameters[2:] if x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)}
        if not any(x.kind == x.VAR_KEYWORD for x in parameters):
            break
    return names - {"params", "defaults"}


def _number(value: object) -> object:
    """A tensor of one number (a step size, on whatever device) as that number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return tuple(_number(v) for v in value) if type(value) is tuple else value


def _step(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> None:
    step = type(optimizer).step
    if getattr(step, "hooked", False):  # hooks that the user has put on all optimizers are not for this one
        step = inspect.unwrap(step, stop=lambda f: not getattr(f, "hooked", False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if len(inspect.signature(step).parameters) > 1:
            step(optimizer, closure)  # type: ignore[call-overload]
        else:
            step(optimizer)  # type: ignore[call-arg]


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """The same random numbers in each trial, and those of the user as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)
        yield


def moves_zeros(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: nn.Parameter, where: Tensor) -> bool:
    """Whether a step without a gradient would move entries of ``p`` that are zero, because of their state."""
    kept = optimizer.state.get(p, {})
    try:
        with torch.inference_mode(False), torch.no_grad():
            q = nn.Parameter(torch.zeros_like(p))
            q.grad = torch.zeros_like(p)
            twin = trial(optimizer, group, q)
            twin.state[q] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kept.items()}
            _step(twin, lambda: q.new_zeros(()))
            return bool(full((q != 0) & where).any())
    except Exception:
        return True  # it cannot be tried, and there is state that points somewhere
