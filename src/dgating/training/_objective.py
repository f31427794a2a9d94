"""The objective: coupled weight decay for any optimizer, the same penalty as a loss term, and which optimizer obeys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgating._checks import check_number
from dgating.gating import (
    REST_DECAY,
    ROLE,
    Decay,
    Unit,
    bare,
    check_holds,
    check_zeros,
    decay_of,
    full,
    units,
    wide,
)
from dgating.maths import effective_penalty_of, weight_decay_of
from dgating.training._penalty_hook import call_penalty_hooks, check_scale

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
    reliably reaches zero): make the groups with ``lam=0.0`` there, and call :func:`add_penalty_grad_` in every step.

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
        ValueError: the model is not gated, a factor is frozen, ``lam`` or ``weight_decay`` is negative or not finite,
            ``gate_lr`` is not positive.
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
    check_trained(found)
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
    ``param_groups(model, lam=0.0, weight_decay=...)`` does. With coupled decay :func:`param_groups` is the same for
    free. For AdamW and every other optimizer prefer :func:`add_penalty_grad_`, which is called once a step: a penalty
    in the loss of each of ``n`` micro-batches whose gradients are accumulated counts ``n`` times, and nothing says so.
    Under a ``GradScaler`` it takes digits from the data loss.

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


@torch.no_grad()
def add_penalty_grad_(model: nn.Module, lam: Lam, grad_scale: float | Tensor = 1.0) -> None:
    r"""Add the gradient of the penalty, :math:`\frac{2\lambda}{D}` times each factor, to the gradients in place.

    For AdamW and every optimizer without coupled decay: call it once a step, after the last ``backward`` and before
    the step, with ``weight_decay=0`` on the factors (``param_groups(model, lam=0.0, weight_decay=...)``). The factors
    then move as with coupled decay, however many micro-batches were accumulated. A factor without a gradient gets one.

    Clip before, to bound the data gradient alone, as with coupled decay; clip after, to bound the sum. Make an
    :class:`AbsorptionMonitor` with ``penalty_in_grad=True``.

    Args:
        model: a gated model.
        lam: the strength λ for a **mean** loss, or one per ``Groups.name``.
        grad_scale: factor by which the gradients are too large: ``scaler.get_scale()`` before ``scaler.unscale_``, one
            after it.

    Raises:
        ValueError: the model is not gated, a factor is frozen, ``lam`` is negative or not finite, or ``grad_scale`` is
            not a finite number above zero.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = dg.gate_(net, dg.features(net))
        >>> opt = torch.optim.AdamW(dg.param_groups(net, lam=0.0, weight_decay=0.01), lr=0.01)
        >>> net(torch.ones(4, 2)).square().mean().backward()
        >>> dg.add_penalty_grad_(net, lam=0.1)
        >>> opt.step()

    Reference: arXiv 2509.23898, eq. (5).
    """
    found = units(model)
    strength = lam_by_groups(lam, found)
    check_trained(found)
    check_scale(grad_scale)
    gates = [unit.gamma for unit in found]
    call_penalty_hooks(gates, grad_scale, added=False)
    of_decay: dict[tuple[float, torch.device, torch.dtype], list[nn.Parameter]] = {}
    for unit in found:
        decay = weight_decay_of(strength[unit.groups], unit.depth)
        for p in unit.factors:
            of_decay.setdefault((decay, p.device, p.dtype), []).append(p)
    for (decay, device, _), params in of_decay.items():
        if not decay:
            continue
        grads: list[Tensor] = []
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            grads.append(p.grad)
        if isinstance(grad_scale, Tensor):  # its value stays on the device
            torch._foreach_add_(grads, torch._foreach_mul(params, grad_scale.to(device) * decay))  # type: ignore[reportCallIssue]
        else:
            torch._foreach_add_(grads, params, alpha=decay * grad_scale)  # type: ignore[reportCallIssue]
    call_penalty_hooks(gates, grad_scale, added=True)


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


def check_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, lam: Lam, penalty_in_loss: bool = False
) -> None:
    r"""Refuse an optimizer that does not minimise the gated objective at this ``lam``.

    How it decays weights is not read from its name: an optimizer of the same class and settings makes three steps on a
    small tensor. Call this again after ``optimizer.load_state_dict``, which brings back momentum from before
    :func:`zero_`.

    Args:
        model: a gated model.
        optimizer: the optimizer of its factors.
        lam: the strength λ, or one per ``Groups.name``.
        penalty_in_loss: whether the penalty comes from :func:`add_penalty_grad_` or from :func:`penalty` in the loss
            (then the factors must have no decay of their own).

    Raises:
        ValueError: factors are missing, frozen or without a step size; the decay is decoupled (AdamW), ignored or
            cannot be tried out, or it is not ``2 * lam / D`` (zero with ``penalty_in_loss``); groups that are exactly
            zero would be moved by their momentum.

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
    optimizer = bare(optimizer)
    check_holds(optimizer, [p for unit in found for p in unit.factors])
    check_trained(found)
    check_decay(optimizer, found, strength, penalty_in_loss)
    _check_rates(optimizer, found)
    check_zeros(optimizer, found)


def check_trained(found: list[Unit]) -> None:
    """Raise when a factor is frozen: the others then feel another penalty, and no group goes to zero."""
    frozen = [name for unit in found for name, p in named_factors(unit) if not p.requires_grad]
    if frozen:
        raise ValueError(
            f"model: expected all factors of the gated groups to be trained, received frozen ones: {some(frozen)}. "
            "Call requires_grad_(True) on them, or collapse_ the model if its groups are not to be trained."
        )


def check_decay(
    optimizer: torch.optim.Optimizer, found: list[Unit], strength: Mapping[str, float], penalty_in_loss: bool
) -> None:
    """Raise unless the optimizer decays every factor by a coupled ``2 lam / D`` (by nothing: penalty in the loss)."""
    optimizer = bare(optimizer)
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    ways: dict[tuple[int, int, torch.device], Decay] = {}
    for unit in found:
        want = 0.0 if penalty_in_loss else weight_decay_of(strength[unit.groups], unit.depth)
        for p in unit.factors:
            group = group_of[id(p)]
            got = float(group.get("weight_decay", 0.0))
            alike = id(group), p.ndim, p.device
            if alike not in ways:
                ways[alike] = decay_of(optimizer, group, p)
            _check_way(optimizer, ways[alike], got, want)
            if not math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-12):
                reason = f"2 * lam / D with lam {strength[unit.groups]:g}, D {unit.depth}"
                raise ValueError(
                    f"optimizer: expected weight_decay {want:g} on the factors of {unit.groups!r} "
                    f"({'the penalty is in the loss' if penalty_in_loss else reason}), received {got:g}. "
                    "Build the optimizer from dg.param_groups(model, lam)."
                )


def _check_way(optimizer: torch.optim.Optimizer, way: Decay, got: float, want: float) -> None:
    """Raise unless weights are decayed in the coupled way, or not at all where that is wanted."""
    kind = type(optimizer).__name__
    faults: dict[Decay, str] = {
        "hidden": f"{kind} shrinks weights that have no gradient by a setting that is not called weight_decay",
    }
    if got:
        faults["decoupled"] = (
            f"{kind} decays weights apart from the gradient, which does not minimise the gated objective and gives "
            "no zeros"
        )
    if got or want:
        faults["unknown"] = (
            f"{kind} cannot be tried out on a small tensor, to see that it adds weight_decay * p to the gradient"
        )
    if want:
        faults["ignored"] = f"{kind} has no weight decay and would ignore the penalty"
    fault = faults.get(way)
    if fault is None:
        return
    raise ValueError(
        f"optimizer: {fault}. Set weight_decay=0 on the factors (dg.param_groups(model, lam=0.0)) and call "
        "dg.add_penalty_grad_(model, lam) between backward and step, or use SGD or Adam with "
        "dg.param_groups(model, lam)."
    )


def _check_rates(optimizer: torch.optim.Optimizer, found: list[Unit]) -> None:
    """Raise when some factors of a unit have step size zero for good and the others move: that is freezing them."""
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for unit in found:
        groups = [group_of[id(p)] for p in unit.factors]
        still = [g.get("lr", 1.0) == 0 and not g.get("initial_lr") for g in groups]  # a schedule may start at zero
        if any(still) and not all(still):
            names = [name for (name, _), s in zip(named_factors(unit), still, strict=True) if s]
            raise ValueError(
                f"optimizer: expected all factors of {unit.groups!r} to move, received lr 0 on {some(names)} and not "
                "on the others. Give all of them a step size (dg.param_groups(model, lam, gate_lr=...))."
            )


def named_factors(unit: Unit) -> Iterator[tuple[str, nn.Parameter]]:
    """Names under which ``named_parameters`` of the model lists the factors."""
    for site in unit.sites:
        inside = f"{site.path}.parametrizations.{site.tensor}".lstrip(".")
        yield f"{inside}.original{'' if site.rest is None else '0'}", site.omega
    first = unit.sites[0]
    yield f"{first.path}.parametrizations.{first.tensor}.0.gamma".lstrip("."), unit.gamma


def some(names: list[str], n: int = 3) -> str:
    """The first of many names."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")
