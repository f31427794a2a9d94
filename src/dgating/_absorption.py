r"""``AbsorptionMonitor``: watch the gradients of a running training and certify groups that can only go to zero.

The certificate is a theorem about (S)GD, with or without momentum, given a bound ``G`` on the data gradient of the
group from now on (``docs/concepts/absorption.md``). ``G`` itself is estimated: the largest norm seen in the last
window, times a safety factor. Nothing here waits for the device: the running maxima live where the gradients live.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dgating._certificate import margin, momentum_shift
from dgating._gate import gate_product
from dgating._kkt import kkt_violators, revive_
from dgating._optim import Lam, check_decay, check_number, check_optimizer, lam_by_groups
from dgating._penalty import FLOAT32_EPS, weight_decay_of
from dgating._units import Unit, full, units, wide

_Places: TypeAlias = "dict[int, tuple[dict[str, Any], float]]"


class _Tracker:
    """Running bounds of one unit: the largest data-gradient norm of this and the last window, and norms for D = 2."""

    names = ("current", "seen", "previous", "norm", "last_norm", "peak", "ever")

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        norm = unit.norms()
        self.current = torch.zeros_like(norm)
        self.seen = torch.zeros_like(norm, dtype=torch.bool)
        self.previous = torch.full_like(norm, math.inf)  # nothing is known of a group that was never observed
        self.norm, self.last_norm, self.peak = norm, norm.clone(), norm.clone()
        self.ever = torch.zeros_like(norm, dtype=torch.bool)

    def observe(self, kappa_in_loss: float, grad_scale: float | Tensor) -> bool:
        """Take in the gradients of a step; whether there were any."""
        if all(site.omega.grad is None for site in self.unit.sites):
            return False
        grads = []
        for site in self.unit.sites:
            grad = torch.zeros_like(site.omega) if site.omega.grad is None else site.omega.grad
            grad = wide(full(grad))
            if kappa_in_loss:
                grad = grad - (kappa_in_loss * grad_scale) * wide(full(site.omega.detach()))
            grads.append(grad)
        gates = gate_product(self.unit.gates()).abs()
        # omega's gradient is the product of the gates times that of W; below this product its digits are gone
        norms = self.unit.norms_of(grads) / (gates * grad_scale)
        usable = torch.isfinite(norms) & (gates > 1e-30)  # an overflowing step (AMP) is skipped by the scaler, and here
        self.current = torch.where(usable, torch.maximum(self.current, norms), self.current)
        self.seen = self.seen | usable
        return True

    def rotate(self) -> None:
        # a group that could not be observed in a whole window keeps its old bound
        self.previous = torch.where(self.seen, self.current, self.previous)
        self.current, self.seen = torch.zeros_like(self.current), torch.zeros_like(self.seen)
        self.last_norm, self.norm = self.norm, self.unit.norms()
        self.peak = torch.maximum(self.peak, self.norm)

    @property
    def bound(self) -> Tensor:
        return torch.maximum(self.current, self.previous)

    @property
    def frozen(self) -> bool:
        """A factor that is not trained does not decay."""
        return not all(p.requires_grad for p in self.unit.factors)


class AbsorptionMonitor:
    r"""Certify dead groups while training goes on.

    A group is certified when

    .. math:: G_j \cdot \prod_{\text{the } D-2 \text{ largest}} b_{j,d} < 2\lambda/D ,

    where :math:`b_{j,d}` are the sizes of its factors (:math:`\|\omega_j\|`, :math:`|\gamma_{j,d}|`, enlarged by the
    momentum buffer if there is one) and :math:`G_j` bounds :math:`\|\nabla_{W_j} L_0\|` from now on. Its factors then
    shrink in this and every later step, geometrically to zero, whatever their present size.

    ``D = 2`` is different: there the condition says nothing about size. Groups are *screened* (small and still
    shrinking, or :math:`G_j < \lambda`), and after :func:`zero_` the optimality condition has to be checked with
    :meth:`recheck`, which revives violators.

    Args:
        model: a gated model.
        lam: the strength λ that the training uses, or one per ``Groups.name``.
        optimizer: the optimizer of the factors. It is checked (a decoupled decay or a decay other than ``2 lam / D``
            is an error) and its momentum enters the certificate. Without it plain SGD is assumed.
        penalty_in_loss: whether :func:`penalty` is part of the loss that is differentiated.
        window: number of steps over which ``G`` is the running maximum: an epoch is a good choice. Nothing is certified
            before one window has passed.
        safety: factor on the observed maximum.
        screen: for D = 2, the share of its largest norm below which a shrinking group is screened.

    Raises:
        ValueError: the model is not gated, ``lam`` does not fit, or the optimizer does not minimise the gated
            objective.

    Example:
        >>> import torch, dgating as dg
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(256, 6); y = x[:, :1]                        # five of six features are noise
        >>> net = torch.nn.Linear(6, 1)
        >>> _ = dg.gate_(net, dg.features(net, name="inputs"), depth=3)
        >>> opt = torch.optim.SGD(dg.param_groups(net, lam=0.1), lr=0.1)
        >>> monitor = dg.AbsorptionMonitor(net, lam=0.1, optimizer=opt, window=10)
        >>> for _ in range(200):
        ...     opt.zero_grad(); torch.nn.functional.mse_loss(net(x), y).backward()
        ...     monitor.update(); opt.step()
        >>> monitor.absorbed()
        {'inputs': tensor([False,  True,  True,  True,  True,  True])}
    """

    def __init__(
        self,
        model: nn.Module,
        lam: Lam,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        penalty_in_loss: bool = False,
        window: int = 100,
        safety: float = 4.0,
        screen: float = 1e-2,
    ) -> None:
        found = units(model)
        self.lam = lam_by_groups(lam, found)
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(f"window: expected a number of steps >= 1, received {window!r}.")
        check_number("safety", safety)
        check_number("screen", screen)
        if not safety >= 1:
            raise ValueError(f"safety: expected a factor >= 1, received {safety!r}.")
        if not 0 < screen < 1:
            raise ValueError(f"screen: expected a share in (0, 1), received {screen!r}.")
        if optimizer is not None:
            check_optimizer(model, optimizer, lam, penalty_in_loss)
        self.model, self.optimizer, self.penalty_in_loss = model, optimizer, penalty_in_loss
        self.window, self.safety, self.screen = window, safety, screen
        self.steps = 0
        self._top_lr: list[float] = []  # of each of the optimizer's parameter groups
        with torch.no_grad():
            self._trackers = [_Tracker(unit) for unit in found]
        self.history: list[dict[str, Any]] = []

    @property
    def coverage(self) -> str:
        """``"theorem"`` when the certificate is proved for this optimizer, else what is missing.

        Groups of depth 2 are always screened, never certified, whatever this says of deeper groups beside them.
        """
        if all(t.unit.depth == 2 for t in self._trackers):
            return "screened (D = 2): confirm with recheck after zero_"
        if self.optimizer is None:
            return "theorem for plain SGD (no optimizer was given: momentum is not accounted for)"
        if not isinstance(self.optimizer, torch.optim.SGD):
            return f"measured evidence only: the theorem does not cover {type(self.optimizer).__name__}"
        if any(g.get("dampening") or g.get("maximize") for g in self.optimizer.param_groups):
            return "measured evidence only: the theorem does not cover dampening or maximize"
        if any(g.get("base_momentum") != g.get("max_momentum") for g in self.optimizer.param_groups):
            return "measured evidence only: the theorem does not cover a schedule of the momentum"
        places = self._places()
        for t in self._trackers:
            rates = {float(places[id(site.omega)][0]["lr"]) for site in t.unit.sites}
            if len(rates) > 1:
                return (
                    f"measured evidence only: tensors of {t.unit.groups!r} that share gates have different step sizes"
                )
        if any(self._shift(t.unit, p, places) is None for t in self._trackers for p in t.unit.factors):
            return "measured evidence only: lr, momentum and lam oscillate (sqrt(lr * 2 lam / D) + sqrt(momentum) > 1)"
        return "theorem"

    @torch.no_grad()
    def update(self, grad_scale: float | Tensor = 1.0) -> None:
        """Observe the gradients of this step: after ``backward``, before ``optimizer.step``.

        With gradient accumulation call it once, before the step, on the accumulated gradient. With an AMP
        ``GradScaler`` call it after ``scaler.unscale_(optimizer)``, or pass ``grad_scale=scaler.get_scale()``. With
        clipping call it before the clipping.

        Args:
            grad_scale: factor by which the gradients are too large.

        Raises:
            RuntimeError: there are no gradients, or the model is not gated any more.
        """
        observed = False
        for t in self._trackers:
            kappa = weight_decay_of(self.lam[t.unit.groups], t.unit.depth) if self.penalty_in_loss else 0.0
            observed |= t.observe(kappa, grad_scale)
        if not observed:
            raise RuntimeError(
                "monitor.update: no gated weight has a gradient. Call it after backward, before zero_grad and the step."
            )
        self._note_learning_rates()
        self.steps += 1
        if self.steps % self.window == 0:
            for t in self._trackers:
                t.rotate()
            self._record()

    @torch.no_grad()
    def absorbed(self) -> dict[str, Tensor]:
        """Certified groups (screened ones for D = 2), by ``Groups.name``: masks for :func:`zero_`.

        Groups that are exactly zero count. Before one window of updates nothing else does.
        """

        def note(t: _Tracker, dead: Tensor) -> Tensor:
            t.ever |= dead
            return dead

        return self._collect(note)

    @torch.no_grad()
    def revoked(self) -> dict[str, Tensor]:
        """Groups certified by an earlier call of :meth:`absorbed` that are not any more: the bound ``G`` was exceeded.

        A certificate is as good as its bound. If many appear, enlarge ``window`` or ``safety``.
        """
        return self._collect(lambda t, dead: t.ever & ~dead)

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        """The ratio of both sides of the condition, by ``Groups.name``: below one is certified, far below is safe."""
        places = self._places()
        out: dict[str, list[Tensor]] = {}
        for t in self._trackers:
            out.setdefault(t.unit.groups, []).append(self._margin(t, t.unit.factor_norms(), places))
        return {name: torch.cat(parts) for name, parts in out.items()}

    def recheck(self, closure: Callable[[], Any], size: float = 0.1) -> dict[str, Tensor]:
        r"""For D = 2: check the optimality condition of every zero group, :math:`\|\nabla_{W_j} L_0\| \le \lambda`,
        and revive violators.

        Args:
            closure: computes the mean data loss over the data and calls ``backward`` (several calls accumulate). No
                optimizer step. Call ``model.eval()`` first, or batch norm takes part.
            size: factor size of a revived group; it restarts at norm ``size**2`` along the negative gradient.

        Returns:
            Masks of the revived groups, for the D = 2 groups of the model.
        """
        violators, directions = kkt_violators(self.model, self.lam, closure)
        revive_(self.model, violators, directions, size)
        with torch.no_grad():
            for t in self._trackers:
                if t.unit.groups in violators:
                    t.norm = t.last_norm = t.unit.norms()
        return violators

    def state_dict(self) -> dict[str, Any]:
        """Step count and running bounds, to resume an interrupted run."""
        return {
            "steps": self.steps,
            "trackers": [{name: getattr(t, name) for name in _Tracker.names} for t in self._trackers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`. Raises ``ValueError`` when it is of another model."""
        if not {"steps", "trackers"} <= state.keys():
            raise ValueError(f"state: expected the state_dict of a monitor, received keys {sorted(state)}.")
        have = [tuple(t.current.shape) for t in self._trackers]
        got = [tuple(s["current"].shape) for s in state["trackers"]]
        if have != got:
            raise ValueError(f"state: expected running bounds of shapes {have}, received {got}: another model.")
        self.steps = int(state["steps"])
        for t, saved in zip(self._trackers, state["trackers"], strict=True):
            for name in _Tracker.names:
                setattr(t, name, saved[name].to(t.current.device).clone())

    def _collect(self, f: Callable[[_Tracker, Tensor], Tensor]) -> dict[str, Tensor]:
        places = self._places()
        out: dict[str, list[Tensor]] = {}
        for t in self._trackers:
            out.setdefault(t.unit.groups, []).append(f(t, self._dead(t, places)))
        return {name: torch.cat(parts) for name, parts in out.items()}

    def _dead(self, t: _Tracker, places: _Places) -> Tensor:
        factors = t.unit.factor_norms()
        zero = factors.amax(0) == 0
        if self.steps < self.window or t.frozen:
            return zero
        dead = zero | (self._margin(t, factors, places) < 1)
        if t.unit.depth == 2:
            norm = factors.prod(0)
            dead = dead | ((norm < self.screen * t.peak) & (norm < t.last_norm))
        return dead

    def _margin(self, t: _Tracker, factors: Tensor, places: _Places) -> Tensor:
        return margin(self._sizes(t.unit, factors, places), self.safety * t.bound, self.lam[t.unit.groups])

    def _sizes(self, unit: Unit, factors: Tensor, places: _Places) -> Tensor:
        """``(D, J)`` sizes of the factors, enlarged by where the momentum points (see ``momentum_shift``)."""
        if not any("momentum_buffer" in self._state(p) for p in unit.factors):
            return factors
        shifted = [self._shifted(unit, p, places) for p in unit.factors]
        ahead = torch.cat([unit.norms_of(shifted[:-1]).unsqueeze(0), shifted[-1].abs()])
        return torch.maximum(factors, ahead)

    def _shifted(self, unit: Unit, p: nn.Parameter, places: _Places) -> Tensor:
        velocity = self._state(p).get("momentum_buffer")
        value = wide(full(p.detach()))
        shift = self._shift(unit, p, places)
        return value if velocity is None or not shift else value - shift * wide(full(velocity))

    def _state(self, p: nn.Parameter) -> dict[str, Any]:
        return self.optimizer.state.get(p, {}) if isinstance(self.optimizer, torch.optim.SGD) else {}

    def _shift(self, unit: Unit, p: nn.Parameter, places: _Places) -> float | None:
        group, top = places[id(p)]
        kappa = weight_decay_of(self.lam[unit.groups], unit.depth)
        return momentum_shift(top, group.get("momentum", 0.0), kappa, bool(group.get("nesterov")))

    def _places(self) -> _Places:
        """By parameter: its group in the optimizer, and the largest step size the certificate has to reckon with."""
        if self.optimizer is None:
            return {}
        check_decay(self.optimizer, [t.unit for t in self._trackers], self.lam, self.penalty_in_loss)
        self._note_learning_rates()
        out: _Places = {}
        for group, seen in zip(self.optimizer.param_groups, self._top_lr, strict=True):
            top = max(seen, float(group["lr"]), float(group.get("initial_lr", 0.0)), float(group.get("max_lr", 0.0)))
            out.update({id(p): (group, top) for p in group["params"]})
        return out

    def _note_learning_rates(self) -> None:
        """Remember the largest step size of each parameter group: the shift must hold for every later one."""
        if self.optimizer is None:
            return
        groups = self.optimizer.param_groups
        self._top_lr += [0.0] * (len(groups) - len(self._top_lr))
        for i, group in enumerate(groups):
            if not isinstance(group["lr"], Tensor):  # a tensor may live on the device: do not wait for it in every step
                self._top_lr[i] = max(self._top_lr[i], group["lr"])

    def _record(self) -> None:
        groups: dict[str, dict[str, Any]] = {}
        for name, masks in self.absorbed().items():
            groups[name] = {"groups": masks.numel(), "absorbed": masks.sum()}
        for t in self._trackers:
            row = groups[t.unit.groups]
            row["below_threshold"] = row.get("below_threshold", 0) + (t.norm <= FLOAT32_EPS).sum()
        self.history.append({"step": self.steps, "groups": groups})


def certified_groups(model: nn.Module, monitor: AbsorptionMonitor | None) -> dict[str, Tensor]:
    """The masks of a monitor of this very model (wrapped or not), or none."""
    if monitor is None:
        return {}
    if {id(u.gamma) for u in units(model)} != {id(t.unit.gamma) for t in monitor._trackers}:
        raise ValueError("monitor: expected one made for this model, received the monitor of another one.")
    return monitor.absorbed()
