r"""``AbsorptionMonitor``: watch the gradients of a running training and certify groups that can only go to zero.

The certificate is a theorem about (S)GD, with or without momentum, given a bound ``G`` on the data gradient of the
group from now on (``docs/concepts/absorption.md``). ``G`` itself is estimated: the largest norm seen, times a safety
factor. Nothing here waits for the device. The parts, each readable alone:

- ``_certificate.py``: the mathematics
- ``_gradients.py``: the gradients of a backward pass
- ``_bounds.py``: what was seen of them, and the certificates given with it
- ``_settings.py``, ``_strengths.py``: what the optimizer and λ are, and have been
- ``_condition.py``: whether the theorem covers a unit, and its side of the condition
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dgating.gating import Unit, bare, check_holds, units
from dgating.maths import FLOAT32_EPS
from dgating.training._bounds import SHORTEST, Bounds, Trend
from dgating.training._condition import Condition
from dgating.training._gradients import Gradients, beside
from dgating.training._monitor_state import check_options, check_recheck, check_state, copied
from dgating.training._objective import check_optimizer, check_trained
from dgating.training._optimizer_settings import Place, SettingsRecord
from dgating.training._reader import GradientReader
from dgating.training._regrowth import kkt_violators, revive_
from dgating.training._strengths import Penalty, Source, Strengths

FORMAT = "dgating/monitor/2"


class AbsorptionMonitor:
    r"""Certify dead groups while training goes on.

    A group is certified when

    .. math:: G_j \cdot \prod_{\text{the } D-2 \text{ largest}} b_{j,d} < 2\lambda/D ,

    where :math:`b_{j,d}` are the sizes of its factors (:math:`\|\omega_j\|`, :math:`|\gamma_{j,d}|`, enlarged by the
    momentum buffer if there is one) and :math:`G_j` bounds :math:`\|\nabla_{W_j} L_0\|` from now on. No factor then
    leaves a box that shrinks geometrically to zero, whatever its present size.

    :math:`G_j` is the largest norm in the last one to two windows of *observations*, times ``safety``. A step in which
    the gradient of a group is exactly zero is no observation of this group: a feature that is rare in the data is
    judged by the rows that have it. A certificate holds until a gradient exceeds the largest bound that it allows. **A
    change of the data ends every bound**: make a new monitor, and give back what was zeroed too early.

    The gradients are read by hooks when a backward pass ends, so that clipping, unscaling and ``zero_grad`` cannot
    come too early.

    ``D = 2`` is different: there the condition says nothing about size. Groups are *screened* (small and still
    shrinking, or :math:`G_j < \lambda`), and after :func:`zero_` the optimality condition has to be checked with
    :meth:`recheck`, which revives violators.

    Args:
        model: a gated model.
        lam: the strength λ that the training uses, or one per ``Groups.name``. It is checked against the optimizer,
            whose decay is read in every step from then on, so that λ may follow a schedule. ``None`` takes it from the
            optimizer. With the penalty elsewhere a function without arguments may return the λ of the step.
        optimizer: the optimizer of the factors. It is checked (a decoupled decay or a decay other than ``2 lam / D``
            is an error) and its momentum enters the certificate. Without it plain SGD is assumed.
        penalty_in_loss: whether :func:`penalty` is part of the loss that is differentiated.
        penalty_in_grad: whether :func:`add_penalty_grad_` adds the penalty to the gradients.
        window: number of observations of a group over which ``G`` is a running maximum. ``len(loader)`` is a good
            choice: nothing is certified before every row was seen. By default windows grow: each is half as long as all
            before it, and has at least 500 observations, which may be less than an epoch.
        safety: factor on the observed maximum.
        screen: for D = 2, the share of its largest norm below which a shrinking group is screened.
        max_lr: the largest step size that a schedule will reach. Needed where the optimizer does not tell
            (``CyclicLR``); ``initial_lr`` and ``max_lr`` of its parameter groups are read.
        evidence: certify also under optimizers that the theorem does not cover (Adam with coupled decay), where
            measurements alone speak for it.

    Raises:
        ValueError: the model is not gated, ``lam`` is zero or does not fit, or the optimizer does not minimise the
            gated objective.

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
        lam: Source = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        penalty_in_loss: bool = False,
        penalty_in_grad: bool = False,
        window: int | None = None,
        safety: float = 4.0,
        screen: float = 1e-2,
        max_lr: float = 0.0,
        evidence: bool = False,
    ) -> None:
        self._units = units(model)
        check_trained(self._units)
        check_options(window, safety, screen, max_lr, penalty_in_loss and penalty_in_grad)
        self.model, self.optimizer = model, None if optimizer is None else bare(optimizer)
        self.window, self.safety, self.screen, self.max_lr = window, safety, screen, max_lr
        self.evidence = evidence
        self._penalty: Penalty = "decay"
        if penalty_in_loss or penalty_in_grad:
            self._penalty = "loss" if penalty_in_loss else "gradient"
        if self.optimizer is not None:
            check_holds(self.optimizer, [p for unit in self._units for p in unit.factors])
        self._settings = None if self.optimizer is None else SettingsRecord(self.optimizer, max_lr)
        self._strengths = Strengths(lam, self._units, self._places(), self._penalty)
        if self.optimizer is not None:
            elsewhere = self._penalty != "decay"
            check_optimizer(model, self.optimizer, self._strengths.given, elsewhere)
        self.steps = 0
        self.history: list[dict[str, Any]] = []
        self._next_record = SHORTEST if window is None else window
        with torch.no_grad():
            norms = self._all(Unit.norms)
            self._bounds = Bounds(len(norms), norms.device, norms.dtype, window)
            self._trend = Trend(norms)
            self._reader = GradientReader(
                Gradients(model, self._units),
                self.optimizer,
                self._kappas if penalty_in_loss else None,
                penalty_in_grad,
                self._bounds.observe,
            )

    @property
    def lam(self) -> dict[str, float]:
        """The strength λ in force, by ``Groups.name``."""
        return dict(self._strengths.look(self._places()))

    @property
    def penalty_in_loss(self) -> bool:
        """Whether the penalty is part of the loss."""
        return self._penalty == "loss"

    @property
    def coverage(self) -> str:
        """``"theorem"`` when the certificate is proved for this training, else what is missing.

        Groups of depth 2 are always screened, never certified, whatever this says of deeper groups beside them.
        """
        deep = [c for c in self._conditions() if c.unit.depth > 2]
        if not deep:
            return "screened (D = 2): confirm with recheck after zero_"
        found = next((o for o in (c.obstacle() for c in deep) if o is not None), None)
        if found is not None:
            return found.sentence
        if self._reader.unpenalised:
            return "not covered: penalty_in_grad=True, but add_penalty_grad_ was not called between backward and a step"
        if bool(self._reader.distorted):
            return (
                "not covered: gradients that hold the penalty were changed before a step (clipped by value, or "
                "unscaled from a loss scale below one after update)"
            )
        if self._reader.idle is not None:
            return f"not covered: some factors of {self._reader.idle.groups!r} have no gradient, and are not trained"
        factors = [(c.unit, p) for c in deep for p in c.unit.factors]
        if self._reader.foreign:
            return "not covered: the gated weights are trained by another optimizer than the one that was given"
        broken = next((u for u, p in factors if not bool(p.isfinite().all())), None)
        if broken is not None:
            return f"not covered: training has diverged, {broken.groups!r} has factors that are nan or infinite"
        if self.optimizer is None:
            return "theorem for plain SGD (no optimizer was given: momentum is not accounted for)"
        return "theorem"

    def update(self, grad_scale: float | Tensor | None = None) -> None:
        """Close a step, anywhere between its last ``backward`` and the first ``backward`` of the next.

        The gradients were read when ``backward`` ended. With accumulation call it once a step: the gradient that
        counts is that of the last ``backward``, or what it has become when the optimizer steps, if that is larger. A
        ``GradScaler`` is noticed when it has unscaled the gradients before this call, nothing was clipped in between,
        and its scale is a power of two, as it is by default; otherwise pass ``grad_scale``, or nothing is certified.

        Args:
            grad_scale: factor by which the gradients in ``backward`` were too large: ``scaler.get_scale()``.

        Raises:
            RuntimeError: there was no backward pass since the last call, or the model is not gated any more.
        """
        self._strengths.note()
        self._reader.update(grad_scale)
        if self._settings is not None:
            self._settings.note()
        self.steps += 1
        if self.steps >= self._next_record:
            self._record()

    def absorbed(self) -> dict[str, Tensor]:
        """Certified groups (screened ones for D = 2), by ``Groups.name``: masks for :func:`zero_`.

        Groups that are exactly zero and stay there count. Where the theorem does not hold (see :attr:`coverage`)
        nothing else does, unless ``evidence`` was asked for.
        """
        return self._by_name(self._dead())

    def revoked(self) -> dict[str, Tensor]:
        """Groups that had a certificate and have none any more.

        Their bound ``G`` was exceeded, or λ has fallen, or the step size has risen. A certificate is as good as its
        bound. If many appear, enlarge ``window`` or ``safety``.
        """
        dead = self._dead()
        return self._by_name(self._bounds.ever & ~dead)

    def exceeded(self) -> dict[str, Tensor]:
        """Groups with a gradient that was larger, at some time, than the certificate they had then allows.

        Most are certified again, with a larger bound. How many appear here says how good the estimate of ``G`` is.
        """
        return self._by_name(self._bounds.exceeded.clone())

    def observations(self) -> dict[str, Tensor]:
        """Number of steps in which each group had a gradient other than zero.

        Nothing is known of a group with none (an input that is constant, a unit that never fires): it is never
        certified.
        """
        return self._by_name(self._bounds.total + self._bounds.count)

    @torch.no_grad()
    def margins(self) -> dict[str, Tensor]:
        """The ratio of both sides of the condition, by ``Groups.name``: below one is certified, far below is safe."""
        margin = self._bounds.in_force(self.safety) * self._ratios(self._conditions())
        return self._by_name(margin.nan_to_num(nan=math.inf, posinf=math.inf))

    def recheck(self, closure: Callable[[], Any], size: float = 0.1) -> dict[str, Tensor]:
        r"""For D = 2: check the optimality condition of every zero group, :math:`\|\nabla_{W_j} L_0\| \le \lambda`,
        and revive violators.

        The monitor forgets what it knew of a revived group.

        Args:
            closure: computes the mean data loss over the data and calls ``backward`` (several calls accumulate). No
                optimizer step. Call ``model.eval()`` first, or batch norm takes part.
            size: factor size of a revived group, above zero; it restarts at norm ``size**2`` along the negative
                gradient.

        Returns:
            Masks of the revived groups, for the D = 2 groups of the model.

        Raises:
            TypeError: ``closure`` is no function.
            ValueError: no groups of depth 2, or ``size`` is not a finite number above zero.
            RuntimeError: ``closure`` left no gradient: it has to call ``backward``.
        """
        check_recheck(closure, size)
        self._reader.paused = True
        try:
            violators, directions = kkt_violators(self.model, self.lam, closure)
        finally:
            self._reader.paused = False
        revive_(self.model, violators, directions, size)
        with torch.no_grad():
            none = self._by_name(torch.zeros_like(self._bounds.exceeded))
            masks = [violators.get(name, mask) for name, mask in none.items()]
            revived = torch.cat([mask.to(self._bounds.current.device) for mask in masks])
            self._bounds.forget(revived)
            self._trend.restart(self._all(Unit.norms), revived)
        return violators

    def state_dict(self) -> dict[str, Any]:
        """All that decides, to resume an interrupted run: settings, bounds, certificates, history."""
        state = {
            "format": FORMAT,
            "settings": {
                "window": self.window,
                "safety": self.safety,
                "screen": self.screen,
                "max_lr": self.max_lr,
                "evidence": self.evidence,
                "penalty": self._penalty,
                "optimizer": None if self.optimizer is None else type(self.optimizer).__name__,
                "lam": self._strengths.constant,
            },
            "steps": self.steps,
            "next_record": self._next_record,
            "until_check": self._bounds.until_check,
            "bounds": {name: getattr(self._bounds, name) for name in Bounds.names},
            "trend": {name: getattr(self._trend, name) for name in Trend.names},
            "distorted": self._reader.distorted,
            "top_lam": self._strengths.top,
            "optimizer": [] if self._settings is None else self._settings.rows,
            "history": self.history,
        }
        return copied(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: it is of another model, of a monitor with other settings, or damaged. Nothing has changed then.
        """
        check_state(state, self.state_dict(), self._bounds.stride)
        state = copied(dict(state))
        device = self._bounds.current.device
        for part, names in ((self._bounds, "bounds"), (self._trend, "trend")):
            for name, value in state[names].items():
                setattr(part, name, value.to(device))
        self.steps, self._next_record = state["steps"], state["next_record"]
        self._bounds.until_check = state["until_check"]
        self._reader.distorted = state["distorted"].to(device)
        self._reader.forget()
        self._strengths.top = state["top_lam"]
        if self._settings is not None:
            self._settings.rows = state["optimizer"]
        self.history = state["history"]

    @torch.no_grad()
    def _dead(self) -> Tensor:
        """``(J,)`` groups that are certified, screened, or zero for good. New certificates are given on the way."""
        conditions = self._conditions()
        dead = self._bounds.grant(self._ratios(conditions), self.safety)
        fading = self._trend.fading(self._all(Unit.norms), self.screen)
        shallow = beside([_same(u.depth == 2, u, fading.device) for u in self._units])
        still = beside([c.at_rest() for c in conditions])
        return dead | (fading & shallow) | still

    def _ratios(self, conditions: list[Condition]) -> Tensor:
        """``(J,)`` margin of every group for a bound of one; infinite where the theorem does not hold."""
        ratios = beside([c.ratio(self.evidence) for c in conditions])
        reader = self._reader
        broken = reader.foreign or reader.unpenalised or reader.idle is not None
        return ratios.masked_fill(reader.distorted | broken, math.inf)

    def _conditions(self) -> list[Condition]:
        self._reader.gradients.check_factors()
        places = self._places()
        self._strengths.look(places)
        out = []
        for unit in self._units:
            mine = [places[id(p)] for p in unit.factors] if places else []
            kappa, top = self._strengths.kappa(unit), self._strengths.top_kappa(unit, places)
            out.append(Condition(unit, kappa, top, self.optimizer, mine))
        return out

    def _places(self) -> dict[int, Place]:
        return {} if self._settings is None else self._settings.places()

    def _kappas(self) -> list[float]:
        self._strengths.note()  # the step may close before `update`
        return [self._strengths.kappa(unit) for unit in self._units]

    @torch.no_grad()
    def _record(self) -> None:
        """A row of the history; for D = 2 the end of a window of norms."""
        norms = self._all(Unit.norms)
        self._trend.follow(norms)
        below = self._by_name(norms <= FLOAT32_EPS)
        groups = {
            name: {
                "groups": mask.numel(),
                "absorbed": mask.sum(),
                "below_threshold": below[name].sum(),
            }
            for name, mask in self.absorbed().items()
        }
        self.history.append({"step": self.steps, "groups": groups})
        growing = max(SHORTEST, self.steps // 2)
        self._next_record = self.steps + (growing if self.window is None else self.window)

    def _all(self, f: Callable[[Unit], Tensor]) -> Tensor:
        return beside([f(unit) for unit in self._units])

    def _by_name(self, rows: Tensor) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        each = rows.split([unit.n_groups for unit in self._units])
        for unit, part in zip(self._units, each, strict=True):
            parts.setdefault(unit.groups, []).append(part.to(unit.gamma.device))
        return {name: torch.cat(found) for name, found in parts.items()}


def _same(value: bool, unit: Unit, device: torch.device) -> Tensor:
    """One truth for all groups of a unit."""
    return torch.full((unit.n_groups,), value, device=device)


def certified_groups(model: nn.Module, monitor: AbsorptionMonitor | None) -> dict[str, Tensor]:
    """The masks of a monitor of this very model (wrapped or not), or none."""
    if monitor is None:
        return {}
    if {id(u.gamma) for u in units(model)} != {id(u.gamma) for u in monitor._units}:
        raise ValueError("monitor: expected one made for this model, received the monitor of another one.")
    return monitor.absorbed()
