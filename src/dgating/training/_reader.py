"""When gradients are read: by hooks, when a backward pass ends.

No place in a training loop can be wrong for them: hooks on the gates run in ``backward``, and the gradients are read
when it has ended, after DDP and FSDP have averaged them and before anybody clips, unscales or zeroes them. What is
changed later is read again when the optimizer steps. Where a penalty is added to the gradients, they are read just
before it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from dgating.gating import Unit
from dgating.training._gradients import REFRESH, Gradients
from dgating.training._penalty_hook import check_scale, register_penalty_hook

ROUNDING = 1e-5  # how far rounding takes the ratio of two norms from a power of two
ALIGNED = 1e-4  # one minus the cosine from which two gradients have different directions
FOREIGN = 3  # moves of the gates without a step, one after the other: zero_ or a loaded checkpoint is one such move


class GradientReader:
    """Give the norms of every step to a function, once a step, whenever the step is closed.

    Args:
        gradients: the gradients.
        optimizer: a step of it closes a step, too, if nobody else has.
        kappas: for a penalty in the loss, a function that returns :math:`2\\lambda/D` of each unit now.
        added_later: whether a penalty is added to the gradients after ``backward``.
        observe: takes the ``(J,)`` norms, and whether they belong to the step that was closed last.

    Attributes:
        paused: ignore what backward passes leave.
        closed: whether a step was closed since the last call of ``update``.
        distorted: whether gradients that hold a penalty ever changed their direction before a step, or grew after
            the penalty had been taken out of them.
        unpenalised: whether a step was made without a penalty, although one is added to the gradients.
    """

    def __init__(
        self,
        gradients: Gradients,
        optimizer: torch.optim.Optimizer | None,
        kappas: Callable[[], list[float]] | None,
        added_later: bool,
        observe: Callable[[Tensor, bool], None],
    ) -> None:
        self.gradients, self.optimizer = gradients, optimizer
        self.kappas, self.added_later, self.observe = kappas, added_later, observe
        self.paused = self.closed = False
        self.distorted = torch.zeros((), dtype=torch.bool, device=gradients.floors.device)
        self._norms: Tensor | None = None  # of the last backward pass, and what they were read from
        self._marks: list[tuple[int, int]] | None = None
        self._gate_norm: Tensor | None = None
        self._signature: Tensor | None = None
        self._left: list[tuple[int, int]] | None = None  # marks when `update` had closed the step
        self._left_norm: Tensor | None = None  # of the gates then, when nobody told the loss scale
        self._norm_now: Tensor | None = None  # of the gates, when it was last measured
        self.unpenalised = False
        self._penalties = 0
        self._versions = [p._version for p in gradients.gates]
        self._after: list[int] | None = None  # versions of the gates when the last step of the optimizer had ended
        self._moves = self._between = 0  # of the gates: since the last step of the optimizer, and steps with such
        self._idle = [(0, 0) for _ in gradients.units]  # last steps in which half of the factors had no gradient
        self._attach()

    def _attach(self) -> None:
        _after_backward(self.gradients.gates, self.backward_ended)
        if self.added_later:
            register_penalty_hook(self.gradients.gates, self.penalty)
        if self.optimizer is not None:
            self._handle = _around_step(self.optimizer, self.step_begins, self.step_ended)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has parameters and an optimizer of its own, which have no hooks yet."""
        self.__dict__.update(state)
        self._attach()

    @property
    def foreign(self) -> bool:
        """Whether something else than the optimizer that was given trains the gates."""
        return self.optimizer is not None and max(self._moves, self._between) >= FOREIGN

    @property
    def idle(self) -> Unit | None:
        """A unit of which some factors are trained and others are not: they had no gradient in the last steps."""
        waits = zip(self.gradients.units, self._idle, strict=True)
        return next((unit for unit, (weights, gates) in waits if max(weights, gates) >= FOREIGN), None)

    @torch.no_grad()
    def backward_ended(self) -> None:
        """Read the gradients, before anybody changes them."""
        if self.paused or not self.gradients.present:  # an optimizer may have stepped in this pass, and forgotten them
            return
        self._marks = self.gradients.marks()
        if self.added_later:
            return  # read when the penalty is added
        self._gate_norm = self.gradients.gate_norm()
        if self.kappas is None:
            self._norms = self.gradients.norms()
        else:  # a penalty can be taken out only when the scale of the loss is known
            self._signature = self.gradients.signature()

    @torch.no_grad()
    def penalty(self, grad_scale: float | Tensor, added: bool) -> None:
        """A penalty is about to be added to the gradients, which are final but for clipping; or it has been."""
        if self.paused or not self.gradients.present:
            return
        if added:
            self._penalties += 1
            if self._penalties % REFRESH == 1:  # now and then: it is a pass over all gradients
                self._signature = self.gradients.signature()
            return
        finite = self.gradients.gate_norm().isfinite()
        self.observe(self.gradients.norms(scale=grad_scale).where(finite, 0.0), False)
        self._marks, self.closed = None, True

    @torch.no_grad()
    def step_begins(self, grad_scale: Tensor | None) -> None:
        """The optimizer is about to use the gradients, and to divide them by a loss scale if it is fused."""
        moved = self._after is not None and self._after != self._now()
        self._between = self._between + 1 if moved else 0
        self._moves = 0
        self._versions = []  # whatever the next ones are, this step has made them
        self._note_halves()
        if self.added_later:
            self.unpenalised |= self._marks is not None
        elif self._marks is not None:
            self.close(grad_scale)
        elif self._left is not None and self.gradients.present:
            self._look_again(grad_scale)
        self._marks = self._left = self._left_norm = None
        if self._signature is not None and self.gradients.present:
            # clipping by norm scales penalty and data alike, which the theorem allows
            then, now = self._signature, self.gradients.signature()
            lengths = torch.linalg.vector_norm(then) * torch.linalg.vector_norm(now)
            self.distorted |= torch.dot(then, now) < (1 - ALIGNED) * lengths
        self._signature = None

    def step_ended(self) -> None:
        """The optimizer has moved the gates."""
        self._after = self._now()

    def _now(self) -> list[int]:
        return [p._version for p in self.gradients.gates]

    def _note_halves(self) -> None:
        for i, (weights, gates) in enumerate(self.gradients.halves()):
            without_weights, without_gates = self._idle[i]
            if weights == gates:
                self._idle[i] = (0, 0)
            elif gates:
                self._idle[i] = (without_weights + 1, 0)
            else:
                self._idle[i] = (0, without_gates + 1)

    @torch.no_grad()
    def update(self, grad_scale: float | Tensor | None) -> None:
        """The caller closes a step. Raises ``RuntimeError`` when there was none."""
        check_scale(grad_scale)
        self._watch_gates()
        self._be_last()
        if self.added_later:
            if self._marks is None and not self.closed:
                self.gradients.check_factors()
                self.gradients.check_backward()
        elif self._marks is not None:
            self.close(grad_scale)
            if self.optimizer is not None:
                self._left = self.gradients.marks()
                self._left_norm = self._norm_now if grad_scale is None else None
        elif not self.closed:
            self.gradients.check_factors()
            self.gradients.check_backward()
            # no backward pass has accumulated these gradients, or it was before there was a reader
            scale = 1.0 if grad_scale is None else grad_scale
            self.observe(self.gradients.norms(self._kappas(), scale), False)
        self.closed = False

    def _look_again(self, grad_scale: Tensor | None) -> None:
        """Whether gradients have grown since `update`: changed by hand, or unscaled from a loss scale below one."""
        if self.kappas is None and self._left != self.gradients.marks():
            self.observe(self.gradients.norms(), True)
        elif self._left_norm is not None:
            grown = self.gradients.gate_norm() / self._left_norm
            if grad_scale is not None:
                grown = grown / grad_scale
            larger = (grown > 1 + ROUNDING) & grown.isfinite()
            if self.kappas is None:
                assert self._norms is not None
                self.observe((self._norms * grown).where(larger, 0.0), True)
            else:  # the penalty was taken out for another scale
                self.distorted |= larger

    def _be_last(self) -> None:
        """Hooks that were registered after the monitor may change gradients, and run before it from now on."""
        if self.optimizer is not None:
            hooks = self._handle.hooks_dict_ref()
            if hooks is not None and next(reversed(hooks)) != self._handle.id:
                hooks.move_to_end(self._handle.id)

    def _watch_gates(self) -> None:
        versions = self._now()
        if self._versions and versions != self._versions:
            self._moves += 1
        self._versions = versions

    def close(self, grad_scale: float | Tensor | None) -> None:
        """Give away what the last backward pass has left."""
        untouched = self._marks == self.gradients.marks()
        self._marks, self.closed = None, True
        if self.kappas is not None:
            if not self.gradients.present:
                return  # gone, and the penalty in them cannot be taken out any more
            scale = self._scale_left(untouched) if grad_scale is None else grad_scale
            self._give(self.gradients.norms(self._kappas(), scale))
            return
        assert self._norms is not None
        if grad_scale is not None:
            self._give(self._norms / grad_scale)
        elif not self.gradients.present:
            self._give(self._norms)
        else:
            norms = self._norms / self._unscaled(untouched)
            self._give(norms, None if untouched else self.gradients.norms())

    def _give(self, norms: Tensor, now: Tensor | None = None) -> None:
        """The norms of a step. After an overflow anywhere the step is skipped, and the scale of the rest unknown.

        Unless somebody has put numbers in the place of what is not finite: the step is made then.

        Args:
            norms: read when ``backward`` ended.
            now: read now, where the gradients have been written to since and their norm was measured.
        """
        assert self._gate_norm is not None
        finite = self._gate_norm.isfinite()
        if now is None:
            self.observe(norms.where(finite, 0.0), False)
            return
        assert self._norm_now is not None
        cleaned = now.where(self._norm_now.isfinite(), 0.0)
        self.observe(torch.maximum(norms, now).where(finite, cleaned), False)

    def _unscaled(self, untouched: bool) -> Tensor:
        """The factor by which a loss scale was taken out of the gradients since the backward pass.

        A ``GradScaler`` multiplies by a power of two, so that no digit changes; clipping divides by some other number.
        Unscaling leaves no trace in the version of a gradient, anything else does: where there is none, gradients
        that have grown were unscaled from a scale below one.
        """
        factor = self._reduction()
        power = factor.log2()
        unscaled = (power - power.round()).abs() < ROUNDING
        return factor.where(unscaled | (factor < 1) if untouched else unscaled, 1.0)

    def _scale_left(self, untouched: bool) -> Tensor:
        """The factor by which the gradients, with the penalty in them, are too large now: below one after clipping."""
        unscaled = self._unscaled(untouched)
        assert self._gate_norm is not None
        assert self._norm_now is not None
        return unscaled / (self._gate_norm / self._norm_now)

    def _reduction(self) -> Tensor:
        assert self._gate_norm is not None
        self._norm_now = self.gradients.gate_norm()
        return self._gate_norm / self._norm_now

    def forget(self) -> None:
        """As if there had been no backward pass."""
        self._norms = self._gate_norm = self._signature = self._marks = self._left = self._left_norm = None
        self._after = None
        self.closed = False

    def _kappas(self) -> list[float] | None:
        return None if self.kappas is None else self.kappas()


def _after_backward(params: Sequence[nn.Parameter], method: Callable[[], None]) -> None:
    """Call a bound method once at the end of every backward pass that reaches one of the parameters.

    Its object is held weakly, and the hooks go with it.
    """
    call = weakref.WeakMethod(method)
    queued = -1  # the number of the backward pass that has a call in its queue already

    def last() -> None:
        if (found := call()) is not None:
            found()

    def arrived(_: Tensor) -> None:
        nonlocal queued
        number = torch._C._current_graph_task_id()
        if number == -1:  # a wrapper runs the hooks of its parameters outside of a backward pass
            last()
        elif number != queued:
            queued = number
            # queued twice: callbacks of DDP and FSDP, queued in this pass, change gradients before ours
            engine: Any = Variable._execution_engine
            engine.queue_callback(lambda: engine.queue_callback(last))

    for p in params:
        handle = p.register_post_accumulate_grad_hook(arrived)
        weakref.finalize(_owner(method), handle.remove)


def _around_step(
    optimizer: torch.optim.Optimizer, before: Callable[[Tensor | None], None], after: Callable[[], None]
) -> RemovableHandle:
    """Call bound methods before and after every step of an optimizer, for as long as their object lives.

    A ``GradScaler`` leaves its scale with a fused optimizer, which divides by it in the step.

    Returns:
        The handle of the hook before the step.
    """
    begin, end = weakref.WeakMethod(before), weakref.WeakMethod(after)

    def begins(stepping: torch.optim.Optimizer, *_: Any) -> None:
        if (found := begin()) is not None:
            found(getattr(stepping, "grad_scale", None))

    def ended(*_: Any) -> None:
        if (found := end()) is not None:
            found()

    handle = optimizer.register_step_pre_hook(begins)
    for each in (handle, optimizer.register_step_post_hook(ended)):
        weakref.finalize(_owner(before), each.remove)
    return handle


def _owner(method: Callable[..., None]) -> Any:
    return method.__self__  # type: ignore[attr-defined]
