"""An ordinary training loop: mini-batches from memory, SGD or Adam, a schedule. Gated models differ by one line.

``dgating.param_groups`` puts the penalty of a gated model into the optimizer as coupled weight decay; a baseline that
penalises weights directly passes ``penalty``, which is added to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import dgating as dg
from dgating.gating import find_units


@dataclass(frozen=True)
class Recipe:
    """How long, how fast. ``batch=0`` takes all rows in every step, ``gate_lr=None`` the same step size for gates."""

    epochs: int
    batch: int
    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    optimizer: Literal["sgd", "adam"] = "sgd"
    schedule: Literal["cosine", "constant"] = "cosine"
    bfloat16: bool = False  # forward passes by autocast
    gate_lr: float | None = None

    def steps(self, rows: int) -> int:
        """Steps of the whole training."""
        return self.epochs * (1 if self.batch == 0 else math.ceil(rows / self.batch))


def strengths(low: float, high: float, count: int, digits: int = 4) -> list[float]:
    """Rising values of λ, evenly spaced in log λ, rounded so that a stored one is the one that ran."""
    return [float(f"{lam:.{digits}g}") for lam in np.geomspace(low, high, count)]


def make_optimizer(model: nn.Module, recipe: Recipe, lam: float | Mapping[str, float] = 0.0) -> torch.optim.Optimizer:
    """The optimizer of a recipe; the penalty of a gated model as its weight decay."""
    # fixed gates measure norms for a penalty in the loss: they are not trained, and carry no decay
    trained_gates = all(unit.gamma.requires_grad for unit in find_units(model))
    parameters: Any = [p for p in model.parameters() if p.requires_grad]
    if dg.is_gated(model) and trained_gates:
        parameters = dg.param_groups(model, lam, gate_lr=recipe.gate_lr)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


def train(
    model: nn.Module,
    X: Tensor | tuple[Tensor, ...],
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
    *,
    generator: torch.Generator,
    lam: float | Mapping[str, float] = 0.0,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    before_step: Callable[[torch.optim.Optimizer], None] | None = None,
    on_step: Callable[[int, torch.optim.Optimizer], bool | None] | None = None,
    on_epoch: Callable[[int], bool | None] | None = None,
) -> torch.optim.Optimizer:
    """Train in place. ``loss`` is a mean over rows; a tuple ``X`` goes to the model as several arguments.

    ``transform(inputs)`` changes a batch of a single input (augmentation).
    ``before_step(optimizer)`` runs when the gradients are there (a monitor looks at them), ``on_step(step, optimizer)``
    after every step, ``on_epoch(epoch)`` after every epoch; ``True`` from one of the two ends the training.
    """
    optimizer = make_optimizer(model, recipe, lam)
    inputs = X if isinstance(X, tuple) else (X,)
    total, step = recipe.steps(len(y)), 0
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total) if recipe.schedule == "cosine" else None
    model.train()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(y), generator=generator).to(y.device) if recipe.batch else None
        for rows in order.split(recipe.batch) if order is not None else (slice(None),):
            batch = [part[rows] for part in inputs] if transform is None else [transform(inputs[0][rows])]
            with torch.autocast(y.device.type, torch.bfloat16, enabled=recipe.bfloat16):
                value = loss(model(*batch), y[rows])
            if penalty is not None:
                value = value + penalty(model)
            optimizer.zero_grad()
            value.backward()
            if before_step is not None:
                before_step(optimizer)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            step += 1
            if on_step is not None and on_step(step, optimizer):
                model.eval()
                return optimizer
        if on_epoch is not None and on_epoch(epoch + 1):
            break
    model.eval()
    return optimizer
