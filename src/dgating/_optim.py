"""The objective: coupled weight decay for any optimizer, the same penalty as a loss term, and which optimizer obeys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from dgating._optim_state import REST_DECAY, ROLE, check_holds
from dgating._penalty import effective_penalty_of, weight_decay_of
from dgating._units import Unit, full, units, wide

Lam = float | Mapping[str, float]


def param_groups(
    model: nn.Module,
    lam: Lam,
    weight_decay: float = 0.0,
    gate_lr: float | None = None,
    no_decay: Callable[[str, nn.Parameter], bool] | None = None,
) -> list[dict[str, Any]]:
    r"""Parameter groups that make any optimizer with *coupled* L2 minimise the gated objective.

    .. math:: L_0 + \frac{\lambda}{D} \sum_j \Big(\|\omega_j\|_2^2 + \sum_d \gamma_{j,d}^2\Big)

    has the gradient of ``weight_decay = 2 * lam / D`` on every factor, so the penalty costs nothing. SGD, Adam,
    RMSprop, Adagrad and every other optimizer that adds ``weight_decay * p`` to the gradient will do. **AdamW and other
    decoupled decays do not minimise this objective** (they stay at a box of the unpenalised loss and no group
    reliably reaches zero): use :func:`penalty` in the loss there.

    Args:
        model: a gated model.
        lam: the strength λ for a **mean** loss, the same for all groups or one per ``Groups.name``.
        weight_decay: your own decay of the ungated parameters.
        gate_lr: learning rate of the gates; by default that of the optimizer.
        no_decay: ``f(name, parameter) -> bool``: ungated parameters that get no decay (biases, norms).

    Returns:
        Dicts for a ``torch.optim`` optimizer: the primary weights (entry ``dgating: "omega"``), the gates
        (``"gates"``) and the ungated rest (``"rest"``). Frozen ungated parameters are left out.

    Raises:
        ValueError: the model is not gated, ``lam`` or ``weight_decay`` is negative or not finite, ``gate_lr`` is not
            positive.
        KeyError: ``lam`` names groups that the model does not have, or leaves some out.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> _ = dg.gate_(net, dg.features(net), depth=4)
        >>> [(g["dgating"], g["weight_decay"]) for g in dg.param_groups(net, lam=0.1)]
        [('omega', 0.05), ('gates', 0.05), ('rest', 0.0)]

    Reference: arXiv 2509.23898, eq. (5).
    """
    found = units(model)
    strength = lam_by_groups(lam, found)
    check_number("weight_decay", weight_decay)
    if gate_lr is not None:
        check_number("gate_lr", gate_lr)
    if gate_lr == 0:
        raise ValueError(f"gate_lr: expected a positive number or None, received {gate_lr!r}.")
    omegas: dict[float, list[nn.Parameter]] = {}
    gates: dict[float, list[nn.Parameter]] = {}
    for unit in found:
        decay = weight_decay_of(strength[unit.groups], unit.depth)
        omegas.setdefault(decay, []).extend(site.omega for site in unit.sites)
        gates.setdefault(decay, []).append(unit.gamma)
    factors = {id(p) for unit in found for p in unit.factors}
    rest: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if id(p) not in factors and p.requires_grad:
            (plain if no_decay is not None and no_decay(name, p) else rest).append(p)
    groups: list[dict[str, Any]] = [
        {"params": ps, "weight_decay": decay, ROLE: "omega", REST_DECAY: weight_decay} for decay, ps in omegas.items()
    ]
    extra = {} if gate_lr is None else {"lr": gate_lr}
    groups += [{"params": ps, "weight_decay": decay, ROLE: "gates", **extra} for decay, ps in gates.items()]
    if rest:
        groups.append({"params": rest, "weight_decay": weight_decay, ROLE: "rest"})
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0, ROLE: "rest, no decay"})
    return groups


def penalty(model: nn.Module, lam: Lam = 1.0) -> Tensor:
    r"""The gated penalty :math:`\frac{\lambda}{D} (\|\omega\|_2^2 + \|\Gamma\|_F^2)` as a differentiable loss term.

    Add it to the **mean** data loss and give the optimizer ``weight_decay=0`` on the factors, as
    ``param_groups(model, lam=0.0, weight_decay=...)`` does. It is the right
    choice for AdamW and every optimizer without coupled decay; with coupled decay :func:`param_groups` is the same
    for free.

    Args:
        model: a gated model.
        lam: the strength λ, or one per ``Groups.name``.

    Returns:
        A scalar in at least float32.

    Raises:
        ValueError: the model is not gated or ``lam`` is negative or not finite.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(net.weight)
        >>> _ = dg.gate_(net, dg.features(net), depth=2)
        >>> dg.penalty(net, lam=0.5).item()       # 0.5 / 2 * (1 + 1 + 1 + 1)
        1.0

    Reference: arXiv 2509.23898, eq. (5).
    """
    found = units(model)
    strength = lam_by_groups(lam, found)
    terms = [
        full(wide(p).square().sum()) * (strength[unit.groups] / unit.depth) for unit in found for p in unit.factors
    ]
    return torch.stack([t.to(terms[0].device) for t in terms]).sum()


def effective_penalty(model: nn.Module, lam: Lam = 1.0) -> Tensor:
    r"""The non-smooth penalty that gating stands for: :math:`\lambda \sum_j \|W_j\|_2^{2/D}` of the effective weights.

    ``penalty(model, lam) - effective_penalty(model, lam)`` is λ times the :func:`misalignment`; it is never negative,
    and zero when the factors of every group are balanced.

    Args:
        model: a gated model.
        lam: the strength λ, or one per ``Groups.name``.

    Returns:
        A detached scalar.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(net.weight, 4.0)
        >>> _ = dg.gate_(net, dg.features(net), depth=2)
        >>> dg.effective_penalty(net).item(), dg.penalty(net).item()
        (8.0, 17.0)

    Reference: arXiv 2509.23898, eq. (1) and (8).
    """
    found = units(model)
    strength = lam_by_groups(lam, found)
    with torch.no_grad():
        terms = [strength[u.groups] * effective_penalty_of(u.norms(), u.depth) for u in found]
        return torch.stack([t.to(terms[0].device) for t in terms]).sum()


def lam_by_groups(lam: Lam, found: list[Unit]) -> dict[str, float]:
    """One strength a ``Groups.name``, checked."""
    names = list(dict.fromkeys(u.groups for u in found))
    if isinstance(lam, Mapping):
        unknown, missing = sorted(set(lam) - set(names)), sorted(set(names) - set(lam))
        if unknown or missing:
            raise KeyError(f"lam: expected one value for each of {names}; unknown {unknown}, missing {missing}.")
        out = {name: lam[name] for name in names}
    else:
        out = dict.fromkeys(names, lam)
    for value in out.values():
        check_number("lam", value)
    return {name: float(value) for name, value in out.items()}


def check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, received {type(value).__name__}. Convert it with float().")
    if not math.isfinite(value) or float(value) < 0:
        raise ValueError(f"{name}: expected a finite number >= 0, received {value!r}.")


def decoupled(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """Whether a parameter group of this optimizer is decayed apart from its gradient (AdamW and kin)."""
    flag = group.get("decoupled_weight_decay")
    if flag is not None:
        return bool(flag)
    return any(cls.__name__ in {"AdamW", "Adafactor", "Muon", "Lion", "AdEMAMix"} for cls in type(optimizer).__mro__)


def check_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, lam: Lam, penalty_in_loss: bool = False
) -> None:
    r"""Refuse an optimizer that does not minimise the gated objective at this ``lam``.

    Args:
        model: a gated model.
        optimizer: the optimizer of its factors.
        lam: the strength λ, or one per ``Groups.name``.
        penalty_in_loss: whether :func:`penalty` is part of the loss (then the factors must have no decay of their own).

    Raises:
        ValueError: factors are missing, the decay is decoupled (AdamW), or it is not ``2 * lam / D`` (zero with
            the penalty in the loss).

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> _ = dg.gate_(net, dg.features(net))
        >>> dg.check_optimizer(net, torch.optim.AdamW(dg.param_groups(net, lam=0.1)), lam=0.1)
        Traceback (most recent call last):
        ...
        ValueError: optimizer: AdamW decays weights apart from the gradient, which does not minimise the gated
            objective ...
    """
    found = units(model)
    strength = lam_by_groups(lam, found)
    check_holds(optimizer, [p for unit in found for p in unit.factors])
    check_decay(optimizer, found, strength, penalty_in_loss)


def check_decay(
    optimizer: torch.optim.Optimizer, found: list[Unit], strength: Mapping[str, float], penalty_in_loss: bool
) -> None:
    """Raise unless the optimizer decays every factor by a coupled ``2 lam / D`` (by nothing: penalty in the loss)."""
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for unit in found:
        want = 0.0 if penalty_in_loss else weight_decay_of(strength[unit.groups], unit.depth)
        for p in unit.factors:
            group = group_of[id(p)]
            got = float(group.get("weight_decay", 0.0))
            if want and "weight_decay" not in optimizer.defaults:
                raise ValueError(
                    f"optimizer: {type(optimizer).__name__} has no weight decay and would ignore the penalty. Add "
                    "dg.penalty(model, lam) to the loss, or use SGD or Adam."
                )
            if got and decoupled(optimizer, group):
                raise ValueError(
                    f"optimizer: {type(optimizer).__name__} decays weights apart from the gradient, which does not "
                    "minimise the gated objective and gives no zeros. Use SGD or Adam with param_groups, or set "
                    "weight_decay=0 on the factors and add dg.penalty(model, lam) to the loss."
                )
            if not math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-12):
                reason = f"2 * lam / D with lam {strength[unit.groups]:g}, D {unit.depth}"
                raise ValueError(
                    f"optimizer: expected weight_decay {want:g} on the factors of {unit.groups!r} "
                    f"({'the penalty is in the loss' if penalty_in_loss else reason}), received {got:g}. "
                    "Build the optimizer from dg.param_groups(model, lam)."
                )
