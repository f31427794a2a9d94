"""``Walk``: a model on its way from dense to empty, one strength after the other."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dgating._checks import check_below_one, check_number, check_positive, check_whole
from dgating.paths._data import Data
from dgating.paths._grid import fit
from dgating.paths._objective import Loss, Score, judged, mean_loss, outputs
from dgating.paths._result import PathPoint
from dgating.paths._shrink import Shrinking
from dgating.paths._train import Batches, Trainer

CHECKS = 5  # how often a strength looks whether it may stop early
# batches of 256 rows; smaller ones where a pass would take fewer steps, larger ones where it would take more
ROWS_A_STEP, LEAST_ROWS = 256, 32
FEW_STEPS, MANY_STEPS = 32, 256


@dataclass(frozen=True)
class Options:
    """How to train, see :func:`path`."""

    steps: int = 50
    dense_steps: int = 200
    relax_steps: int = 0
    patience: int | None = None
    batch_size: int | None = None
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    zero_below: float = 1e-3
    compact: bool = True
    states: bool = True

    def __post_init__(self) -> None:
        for name, low in {"steps": 1, "dense_steps": 0, "relax_steps": 0}.items():
            check_whole(name, getattr(self, name), low)
        for name in ("patience", "batch_size"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        check_positive("lr", self.lr)
        check_below_one("momentum", self.momentum, zero=True)
        check_number("weight_decay", self.weight_decay)
        check_below_one("zero_below", self.zero_below, zero=False)

    def rows_a_step(self, n: int) -> int:
        """The batch size for ``n`` rows."""
        small, large = max(n // FEW_STEPS, LEAST_ROWS), math.ceil(n / MANY_STEPS)
        return self.batch_size or max(min(small, ROWS_A_STEP), large)

    @property
    def reach(self) -> float:
        r""":math:`2 \tau` of the steps at one strength: a group without signal falls by ``exp(-lam * reach)``."""
        return 2 * self.lr * self.steps / (1 - self.momentum)


class Walk:
    """Trains a gated model along strengths that rise. What has died is cut out after every strength.

    Attributes:
        small: the model and its data as small as they are now.
        alive: how many groups are left.
    """

    def __init__(
        self, model: nn.Module, train: Data, held: Data | None, loss: Loss, judge: Score, depth: int, options: Options,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.held, self.loss, self.judge, self.depth, self.options = held, loss, judge, depth, options
        self.small = Shrinking(model, train, options.compact)
        self.batches = Batches(len(train), options.rows_a_step(len(train)), generator, train.target.device)
        self.trainer = self._trainer(self.small.model)
        self.began = time.perf_counter()
        self.threshold = math.nan
        self.alive = sum(self.small.counts.values())
        self._flops: int | None = None  # until something is cut out

    def copy(self) -> Walk:
        """Another walk that goes on from here alike, for a way back."""
        made = copy.copy(self)
        made.small = self.small.copy()
        made.batches = self.batches.copy()
        made.trainer = made._trainer(made.small.model)
        made.trainer.optimizer.load_state_dict(self.trainer.optimizer.state_dict())
        return made

    def dense(self) -> None:
        """The steps without penalty.

        Raises:
            FloatingPointError: the loss became infinite or nan.
        """
        self.trainer.set_lam(0.0)
        if not math.isfinite(self.trainer.run(self.small.data, self.batches, self.options.dense_steps)):
            raise FloatingPointError(
                f"path: the loss is not finite before the first lam. Lower lr (now {self.options.lr})."
            )
        self.threshold = self.options.zero_below * max(float(n.max()) for n in self.small.norms().values())

    def first_lam(self) -> float:
        """A strength that is small for certain.

        The penalty is at most a twentieth of the loss of the best constant, and a group without signal loses at most
        two fifths of its norm.
        """
        rows = self.small.data.rows(next(self.batches.copy()))
        with torch.no_grad():
            out = self.small.model(*rows.inputs)
        constant = nn.Parameter(torch.zeros_like(out[:1]))
        fit([constant], lambda: mean_loss(self.loss, constant.expand_as(out), rows), 50)
        value = float(mean_loss(self.loss, constant.detach().expand_as(out), rows))
        norms = self.small.norms().values()
        penalty = sum(float(n.double().pow(2 / self.depth).sum()) for n in norms)
        gentle = 0.5 / self.options.reach
        return max(min(0.05 * value / max(penalty, 1e-30), gentle), 1e-6 * gentle)  # a constant target has no loss

    def step(self, lam: float) -> PathPoint | None:
        """Train at a strength, cut out what died; ``None`` where the loss became infinite or nan."""
        self.trainer.set_lam(lam)
        value, taken = self._train()
        if not math.isfinite(value):
            return None
        self.drop({name: n <= self.threshold for name, n in self.small.norms().items()})
        return self.point(lam, value, taken)

    def drop(self, dead: dict[str, torch.Tensor]) -> None:
        """Make groups zero for good."""
        if self.small.drop(dead):
            self.trainer, self._flops = self._trainer(self.small.model), None
        self.alive = sum(int((n > 0).sum()) for n in self.small.norms().values())

    def point(self, lam: float, value: float, steps: int) -> PathPoint:
        """Where the walk stands; with ``relax_steps`` the score and the state are those after them."""
        norms = self.small.norms()
        penalty = sum(float(n.double().pow(2 / self.depth).sum()) for n in norms.values())
        model, small = self.small.model, self.small
        if self.options.relax_steps:
            model = copy.deepcopy(model)  # gated: its zeros stay zero
            relaxed = self._trainer(model)
            relaxed.set_lam(0.0)
            relaxed.run(small.data, self.batches.copy(), self.options.relax_steps, cosine=True)
        score = error = math.nan
        if self.held is not None:
            score, error = judged(self.judge, outputs(model, small.seen(self.held)), self.held.target)
        return PathPoint(
            lam=lam,
            loss=value,
            objective=value + lam * penalty,
            score=score,
            standard_error=error,
            kept={name: n > 0 for name, n in norms.items()},
            norms=norms,
            parameters=small.n_parameters(),
            flops=self.flops(),
            steps=steps,
            seconds=time.perf_counter() - self.began,
            state=small.full_state(model) if self.options.states else {},
        )

    @torch.no_grad()
    def flops(self) -> int:
        """Of one row, two for a multiply-add."""
        if self._flops is None:
            training = self.small.model.training
            self.small.model.eval()
            try:
                with FlopCounterMode(display=False) as counter:
                    self.small.model(*self.small.data.rows(slice(1)).inputs)
            finally:
                self.small.model.train(training)
            self._flops = counter.get_total_flops()
        return self._flops

    def _train(self) -> tuple[float, int]:
        """Mean loss of the last steps, and how many there were."""
        steps, patience = self.options.steps, self.options.patience
        if patience is None:
            return self.trainer.run(self.small.data, self.batches, steps), steps
        size = math.ceil(steps / CHECKS)
        best, idle, alive, value, done = math.inf, 0, None, math.inf, 0
        while done < steps and idle < patience:
            taken = min(size, steps - done)
            value = self.trainer.run(self.small.data, self.batches, taken)
            done += taken
            if not math.isfinite(value):
                break
            now = sum(int((n > self.threshold).sum()) for n in self.small.norms().values())
            idle = idle + 1 if now == alive and value > best * (1 - 1e-3) else 0
            best, alive = min(best, value), now
        return value, done

    def _trainer(self, model: nn.Module) -> Trainer:
        o = self.options
        return Trainer(model, self.loss, lr=float(o.lr), momentum=o.momentum, weight_decay=o.weight_decay)
