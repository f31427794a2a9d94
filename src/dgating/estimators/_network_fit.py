"""Networks of the estimators: building, scaling the data without a copy, one fold."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgating.gating import Groups
from dgating.paths import BLOCK, Data, RegularizationPath, as_data, budget_path, log_likelihood, padded, path, r2
from dgating.select import by_labels
from dgating.tasks import Result

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "logistic": nn.Sigmoid, "identity": nn.Identity
}  # fmt: skip
INPUTS = "inputs"  # name of the groups


@dataclass(frozen=True)
class Setup:
    """A network with gated inputs and how to train it; plain values, so that it travels to another process."""

    hidden: tuple[int, ...]
    activation: str
    n_outputs: int
    labels: np.ndarray = field(repr=False)
    depth: int
    seed: int
    options: dict[str, Any]

    def build(self) -> nn.Sequential:
        """The full network, one output for a class or a target."""
        return network((len(self.labels), *self.hidden, self.n_outputs), self.activation)

    def without(self, constant: Tensor) -> nn.Sequential:
        """The same, blind to columns that are constant: no gradient would ever tell that they do not matter."""
        made = self.build()
        with torch.no_grad():
            made[0].weight[:, constant] = 0  # type: ignore[index]
        return made

    def groups(self, model: nn.Module) -> Groups:
        """The columns of the first layer."""
        return by_labels(model[0], torch.as_tensor(self.labels), group_name=INPUTS)  # type: ignore[index]

    def path(self, made: Scaled, data: Data, lams: Any, **options: Any) -> RegularizationPath:
        """:func:`path` of this network on rows of a scaled table."""
        return path(
            lambda: self.without(made.constant),
            data,
            lams,
            groups=self.groups,
            depth=self.depth,
            seed=self.seed,
            **{**self.options, **options},
        )

    def budget_path(self, made: Scaled, n_groups: int, **options: Any) -> RegularizationPath:
        """:func:`budget_path` of this network on a scaled table, to exactly so many groups."""
        return budget_path(
            lambda: self.without(made.constant), made.data, n_groups=n_groups, groups=self.groups, depth=self.depth,
            seed=self.seed, **self.options, **options,
        )  # fmt: skip


def network(sizes: tuple[int, ...], activation: str) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        if i:
            layers.append(ACTIVATIONS[activation]())
        with warnings.catch_warnings():  # no column may be left
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors is a no-op")
            layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Scaled:
    """Rows to train on, and the scales that make them standard.

    Attributes:
        data: standardised when rows are taken out of it; the table itself is not copied.
        centre: ``(p,)`` what is taken off the columns, ``factor`` what they are multiplied with then.
        constant: ``(p,)`` which of them are the same in every row.
        target_centre: ``(k,)``, likewise for numeric targets.
    """

    data: Data
    centre: Tensor
    factor: Tensor
    constant: Tensor
    target_centre: np.ndarray
    target_scale: np.ndarray


def scaled(
    X: np.ndarray, y: np.ndarray, weight: np.ndarray, standardize: bool, train: np.ndarray | None = None
) -> Scaled:
    """Standardise by the weighted means and standard deviations of the columns, and of numeric targets.

    ``train`` are the rows that count for them, by default all; the data hold every row.
    """
    p = X.shape[1]
    counts = weight if train is None else weight * np.bincount(train, minlength=len(X))
    centre, spread = _moments(X, counts) if standardize else (np.zeros(p), np.ones(p))
    factor = 1 / np.where(spread > 0, spread, 1.0)
    if y.dtype.kind == "f":
        target_centre, target_scale = _moments(y.reshape(len(y), -1), counts)
        target_scale = np.where(target_scale > 0, target_scale, 1.0)
    else:
        target_centre, target_scale = np.zeros(1), np.ones(1)
    centre, factor = (torch.as_tensor(v).to(torch.get_default_dtype()) for v in (centre, factor))
    target = _target(y, target_centre, target_scale)
    rows = as_data((X, target) if (weight == 1).all() else (X, target, weight))
    data = Data(rows.inputs, rows.target, rows.weight, scaling=(centre, factor))
    return Scaled(data, centre, factor, torch.as_tensor(spread == 0), target_centre, target_scale)


def _target(y: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> Tensor:
    if y.dtype.kind != "f":
        return torch.as_tensor(y)
    return torch.as_tensor((y.reshape(len(y), -1) - centre) / scale).to(torch.get_default_dtype())


def _moments(X: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means and standard deviations in float64, a block of rows at a time."""
    rows = max(1, BLOCK // 8 // max(1, X.shape[1]))  # three float64 copies of a block
    blocks = [slice(start, start + rows) for start in range(0, len(X), rows)]
    total = weight.sum()
    mean = sum(weight[b] @ X[b].astype(np.float64, copy=False) for b in blocks) / total
    square = sum(weight[b] @ np.square(X[b] - mean) for b in blocks) / total
    # a constant column differs from its mean by rounding alone
    return mean, np.where(square > (1e-7 * np.abs(mean)) ** 2, np.sqrt(square), 0.0)


def fitness(output: Tensor, target: Tensor) -> Tensor:
    """``(n,)`` what strengths are chosen by: R² of numbers, minus the log loss of classes.

    The accuracy tells strengths apart in steps of a row, and where no row is wrong its standard error is zero.
    """
    return r2(output, target) if target.is_floating_point() else log_likelihood(output, target)


def fold(
    X: np.ndarray, y: np.ndarray, weight: np.ndarray, lams: list[float], train: np.ndarray, test: np.ndarray,
    setup: Setup, standardize: bool, judge: Callable[..., Any] | None,
) -> Result:  # fmt: skip
    """Scores and numbers of groups ``(L,)`` of a path without some rows.

    ``judge(outputs, test)`` scores the outputs ``(n, k)`` for the rows left out, in the units of the targets; ``None``
    is minus the log loss, or R².
    """
    made = scaled(X, y, weight, standardize, train)
    rows = made.data.view(torch.as_tensor(train))
    held = made.data.view(torch.as_tensor(test))

    def score(output: Tensor, target: Tensor) -> float | Tensor:
        if judge is not None:
            return float(judge(output.double().cpu().numpy() * made.target_scale + made.target_centre, test))
        return fitness(output, target)

    found = setup.path(made, rows, lams, validation=held, score=score, states=False)
    return padded(found, len(lams))
