"""What a path minimises and what it is judged by: defaults from the targets, or functions of the user."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dgating.paths._data import Data

Loss = Callable[[Tensor, Tensor], Tensor]
Score = Callable[[Tensor, Tensor], "float | Tensor"]


def default_loss(target: Tensor) -> Loss:
    """Cross entropy for class labels, half the mean squared error for numbers; one loss a row, their mean is used."""
    if target.is_floating_point():
        return half_squared_error
    if bool((target < 0).any()):  # cross_entropy leaves out rows of the class -100 without a word
        raise ValueError(f"y: expected classes 0 .. k - 1, received a smallest one of {int(target.min())}.")
    return cross_entropy


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """``(n,)`` cross entropies of ``(n, classes)`` logits."""
    return F.cross_entropy(output, target.long(), reduction="none")


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """``(n,)`` halves of the squared errors, summed over outputs: the convention of the group lasso."""
    return 0.5 * (output.reshape(target.shape) - target).square().reshape(len(target), -1).sum(1)


def default_score(target: Tensor) -> Score:
    """Accuracy for class labels, R² for numbers: larger is better."""
    return r2 if target.is_floating_point() else accuracy


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """``(n,)`` ones where the largest logit is that of the class: their mean is the share of such rows."""
    return (output.argmax(1) == target).double()


def r2(output: Tensor, target: Tensor) -> Tensor:
    """``(n,)`` numbers whose mean is the share of the variance that is explained."""
    total = (target - target.mean(0)).double().square().sum()
    errors = (output.reshape(target.shape) - target).double().square().reshape(len(target), -1).sum(1)
    # a constant target has no variance to explain: one if it is met, else zero, as in scikit-learn
    return torch.where(total > 0, 1 - errors * len(target) / total, (errors == 0).double())


def log_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """``(n,)`` logarithms of the chance that the logits give the class; minus the log loss."""
    return -cross_entropy(output, target).double()


def judged(score: Score, output: Tensor, target: Tensor) -> tuple[float, float]:
    """The score, and its standard error where there is one number a row."""
    value = score(output, target)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return float(value), math.nan
    rows = value.double()
    return float(rows.mean()), float(rows.std(unbiased=False)) / math.sqrt(len(rows))


def mean_loss(loss: Loss, output: Tensor, data: Data) -> Tensor:
    """The (weighted) mean of a loss a row; a loss that is one number already is taken as it is."""
    values = loss(output, data.target)
    if values.ndim == 0 or data.weight is None:
        return values.mean()
    return (values * data.weight).sum() / data.weight.sum()


@torch.no_grad()
def outputs(model: nn.Module, data: Data, batch_size: int = 4096) -> Tensor:
    """The model's outputs on all rows, in evaluation mode."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(*batch.inputs) for batch in data.batches(batch_size)])
    finally:
        model.train(training)
