"""Gate a model, ask whether it is gated, make groups exactly zero, and get the ordinary model back.

Every call plans first and mutates last: a refused call leaves model and optimizer as they were, and an interrupt
leaves them as before or as after the call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dgating._checks import check_depth
from dgating.gating._gate import Gate, Place
from dgating.gating._gated_tensors import Site, Unit, by_groups, find_units, gate_of, units
from dgating.gating._groups import Groups
from dgating.gating._migrate import migrated_state
from dgating.gating._optimizer_state import bare, check_holds, entry_state, hand_over
from dgating.gating._plan import PlannedGroups, PlannedPart, plan_gating
from dgating.gating._transaction import all_or_nothing, to_the_end
from dgating.gating._zeros import masked_factors

M = TypeVar("M", bound=nn.Module)


def gate_(model: M, groups: Groups | Iterable[Groups], depth: int = 3) -> M:
    r"""Gate groups of weights in place: :math:`W_j = \omega_j \prod_{d=1}^{D-1} \gamma_{j,d}`.

    The weights become the primary weights :math:`\omega` and every gate starts at one, so the function that the
    model computes does not change by one bit. Trained with L2 of strength :math:`\lambda/D` on all factors
    (:func:`param_groups` or :func:`penalty`), the minima are those of :math:`L_0 + \lambda \sum_j \|W_j\|_2^{2/D}`.

    Args:
        model: any module; gate before wrapping it in DDP, FSDP or ``torch.compile``.
        groups: one :class:`Groups` or several over different tensors.
        depth: ``D >= 2``. 2 is the group lasso; 3 and 4, the depths that the paper recommends, are not convex.

    Returns:
        The same model.

    Raises:
        ValueError: overlapping groups, tied, lazy, frozen, sharded or already gated parameters, ``depth < 2``, a
            name used twice. The model is unchanged then.
        TypeError: not a module, not groups, not a real floating-point parameter.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> before = net.weight.detach().clone()
        >>> _ = dg.gate_(net, dg.features(net), depth=3)
        >>> torch.equal(net.weight, before), [tuple(p.shape) for p in net.parameters()]
        (True, [(2,), (2, 4), (2, 4)])

    Reference: D-Gating, arXiv 2509.23898, Definition 1.
    """
    check_depth(depth)
    gate_planned([(g, depth) for g in plan_gating(model, groups)])
    return model


def gate_planned(planned: list[tuple[PlannedGroups, int]]) -> None:
    """Gate what :func:`plan_gating` found possible, all of it or nothing, each groups with its depth."""

    def change() -> None:
        for g, depth in planned:
            for number, part in enumerate(g.parts):
                _gate_part(part, Place(g.name, number, part.label, len(part.sites)), depth)
            g.groups._resolved = g.name
            g.groups._paths = {site.member: site.path for part in g.parts for site in part.sites}

    modules = [site.module for g, _ in planned for part in g.parts for site in part.sites]
    all_or_nothing(change, modules, others=[g.groups for g, _ in planned])


def _gate_part(part: PlannedPart, place: Place, depth: int) -> None:
    n = part.sites[0].member.partition.n_groups
    gamma = nn.Parameter(torch.ones(depth - 1, n, dtype=part.dtype, device=part.device))
    for site in part.sites:
        own_class(site.module)
        gate = Gate(gamma, site.member.partition, place, _order(site.module))
        gate.train(site.module.training)
        parametrize.register_parametrization(site.module, site.name, gate)


def is_gated(module: nn.Module, name: str | None = None) -> bool:
    """Whether a model holds gates, or whether one tensor of a module is gated.

    Args:
        module: a model or layer.
        name: a tensor of this very module; by default any tensor of it or of its submodules counts.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> dg.is_gated(net), dg.is_gated(dg.gate_(net, dg.features(net))), dg.is_gated(net, "bias")
        (False, True, False)
    """
    return bool(find_units(module)) if name is None else gate_of(module, name) is not None


def zero_(model: M, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None = None) -> M:
    """Make groups exactly zero, in place: all their factors, and their entries in the optimizer's state.

    With every factor zero the gradient is zero too, so the group stays at zero under any gradient method; momentum
    that still points elsewhere would move it again, hence the optimizer.

    Args:
        model: a gated model.
        masks: ``Groups.name`` to a boolean tensor of ``J`` entries (``monitor.absorbed()``, or
            ``{k: v < 1e-6 for k, v in group_norms(model).items()}``). Groups that are not named are left alone.
        optimizer: the optimizer that holds the factors.

    Returns:
        The same model.

    Raises:
        KeyError: a name that no groups of the model bear.
        TypeError: a mask that is not boolean.
        ValueError: a mask of the wrong length, a model without gates, or an optimizer that does not hold the factors.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(3, 2)
        >>> _ = dg.gate_(net, dg.features(net, name="inputs"))
        >>> _ = dg.zero_(net, {"inputs": torch.tensor([True, False, False])})
        >>> (dg.group_norms(net)["inputs"] == 0).tolist()
        [True, False, False]
    """
    chosen = plan_masks(model, masks)
    optimizer = bare(optimizer)
    if optimizer is not None:
        check_holds(optimizer, [p for unit, _ in chosen for p in unit.factors])
    todo: list[tuple[Tensor, Tensor]] = []
    for unit, mask in chosen:
        for p, where in masked_factors(unit, mask):
            kept = [] if optimizer is None else entry_state(optimizer, p)
            gradient = [] if p.grad is None else [p.grad]  # a step may follow
            todo += [(x, where) for x in (p, *gradient, *kept)]

    @torch.no_grad()
    def change() -> None:
        for x, where in todo:
            x.masked_fill_(where, 0)

    to_the_end(change)
    return model


def plan_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Unit, Tensor]]:
    """Pair every masked unit with its own slice of the mask, or say what is wrong."""
    known = by_groups(units(model))
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks: expected a dict of boolean tensors by group name, received {type(masks).__name__}.")
    chosen = []
    for name, mask in masks.items():
        if name not in known:
            raise KeyError(f"masks: no groups named {name!r} in this model; it has {sorted(known)}.")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"masks[{name!r}]: expected a boolean tensor (True = zero it), received {got}.")
        total = sum(unit.n_groups for unit in known[name])
        if tuple(mask.shape) != (total,):
            raise ValueError(f"masks[{name!r}]: expected shape ({total},), received {tuple(mask.shape)}.")
        start = 0
        for unit in known[name]:
            chosen.append((unit, mask[start : start + unit.n_groups]))
            start += unit.n_groups
    return chosen


def collapse_(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[nn.Parameter, nn.Parameter | None]:
    r"""Replace every gated tensor by its effective weight, in place: an ordinary model again.

    Module classes, parameter names, their order and shapes are the original ones, and exact zeros are kept. (Training
    on moves them again: nothing holds them any more.) It is safe on a ``deepcopy``: the model it was copied from
    stays gated.

    Args:
        model: a gated model.
        optimizer: if given, it is migrated: the factors leave it and the collapsed weights enter the group that
            :func:`param_groups` made for ungated parameters (or the place of ``omega``); emptied groups stay. SGD's
            momentum becomes the velocity of the weight by the product rule, Adam's moments follow from
            :math:`\nabla_{\omega_j} = \gamma_j^\odot \nabla_{W_j}`, and any other optimizer starts afresh there.

    Returns:
        The map from old to new parameters: each ``omega`` to the collapsed weight, the gates to ``None``. For a
        partially labelled tensor the parameter of its ungated entries maps to the collapsed weight, too.

    Raises:
        ValueError: the model is not gated, another parametrisation sits on a gated tensor, or the optimizer does not
            hold the factors.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> _ = dg.gate_(net, dg.features(net), depth=4)
        >>> _ = dg.collapse_(net)
        >>> type(net).__name__, [n for n, _ in net.named_parameters()]
        ('Linear', ['weight', 'bias'])
    """
    found = units(model)
    for unit in found:
        if hasattr(unit.gamma, "full_tensor"):
            raise ValueError(
                f"collapse_: {unit.label!r} is sharded (FSDP). Take the full state_dict, gate a fresh model with "
                "GateConfig, load it there and collapse that one."
            )
        for site in unit.sites:
            if len(site.module.parametrizations[site.tensor]) > 1:  # type: ignore[index]
                raise ValueError(
                    f"collapse_: {site.name!r} has another parametrisation on top of its gate. Remove that one first."
                )
    optimizer = bare(optimizer)
    if optimizer is not None:
        check_holds(optimizer, [p for unit in found for p in unit.factors])

    @torch.inference_mode(False)  # a weight made in inference mode could never be trained
    def change() -> dict[nn.Parameter, nn.Parameter | None]:
        state = {} if optimizer is None else migrated_state(found, optimizer)
        moved = _collapse_units(found)
        if optimizer is not None:
            hand_over(optimizer, moved, state, {id(p): i for i, p in enumerate(model.parameters())})
        return moved

    return all_or_nothing(change, [site.module for unit in found for site in unit.sites], optimizer)


def _collapse_units(found: list[Unit]) -> dict[nn.Parameter, nn.Parameter | None]:
    """The map from old to new parameters."""
    moved: dict[nn.Parameter, nn.Parameter | None] = {}
    for unit in found:
        if len(unit.sites) == unit.sites[0].gate.place.members:  # else tensors outside this module still use the gates
            moved[unit.gamma] = None
        for site in unit.sites:
            old, rest = site.omega, site.rest
            moved[old] = _collapse_site(site)
            if rest is not None:
                moved[rest] = moved[old]
    return moved


def _collapse_site(site: Site) -> nn.Parameter:
    """Turn the gated tensor into an ordinary parameter that holds the effective weight, at its old place."""
    module, tensor, trained = site.module, site.tensor, site.omega.requires_grad
    own_class(module)
    parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
    if tensor in module._buffers:  # torch makes a buffer of the two parts of a tensor that is frozen
        value = module._buffers.pop(tensor)
        assert value is not None
        module.register_parameter(tensor, nn.Parameter(value.detach(), trained))
    _restore_order(module, site.gate.order)
    weight = getattr(module, tensor)
    weight.grad = None  # it was the gradient of omega
    if hasattr(module, "_flat_weights"):  # recurrent layers keep a list of their weights
        module._init_flat_weights()  # type: ignore[operator]
    return weight


def _order(module: nn.Module) -> tuple[str, ...]:
    """Names of the module's parameters as they stood before any of them was gated."""
    if parametrize.is_parametrized(module):
        for tensor in module.parametrizations:  # type: ignore[union-attr]
            gate = gate_of(module, tensor)
            if gate is not None:
                return gate.order
    return tuple(module._parameters)


def _restore_order(module: nn.Module, order: tuple[str, ...]) -> None:
    """Registration order is what ``parameters()`` and optimizer checkpoints count by."""
    ranked = {name: module._parameters.pop(name) for name in order if name in module._parameters}
    later = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update(ranked | later)


def own_class(module: nn.Module) -> None:
    """Give a parametrised module a dynamic class of its own.

    ``deepcopy`` of a parametrised module shares its dynamic class with the original, and registering or removing a
    parametrisation edits that class: without this, collapsing a copy would break the original.
    """
    if parametrize.is_parametrized(module):
        cls = type(module)
        object.__setattr__(module, "__class__", type(cls.__name__, cls.__bases__, dict(cls.__dict__)))
