"""The simulation of Fig. 20: a target that two modalities explain, α of it a picture of a digit, the rest a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.data import Dataset

# Ours (the paper does not give its six functions): smooth, of different shapes, each brought to variance one below.
FUNCTIONS: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("x", lambda x: x),
    ("sin πx", lambda x: np.sin(np.pi * x)),
    ("x²", lambda x: x**2),
    ("exp x", np.exp),
    ("tanh 3x", lambda x: np.tanh(3 * x)),
    ("cos πx", lambda x: np.cos(np.pi * x)),
)
DIGIT_MEAN, DIGIT_SD = 4.5, 8.25**0.5  # of a uniform digit


def moments(function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation of f(x) for x ~ U[-1, 1], by Gauss-Legendre quadrature (exact to rounding here)."""
    at, weights = np.polynomial.legendre.leggauss(64)
    values = function(at)
    mean = float(weights @ values) / 2
    return mean, float(np.sqrt(weights @ (values - mean) ** 2 / 2))


def tabular(x: np.ndarray) -> np.ndarray:
    """η_tab: the sum of the six functions of their columns, each of mean 0 and variance 1, divided by √6."""
    parts = []
    for column, (_, function) in zip(x.T, FUNCTIONS, strict=True):
        mean, sd = moments(function)
        parts.append((function(column) - mean) / sd)
    return np.sum(parts, 0) / np.sqrt(len(FUNCTIONS))


def pictorial(digit: np.ndarray) -> np.ndarray:
    """η_img: the digit, demeaned, of variance one."""
    return (digit - DIGIT_MEAN) / DIGIT_SD


@dataclass(frozen=True)
class Part:
    """Rows: pictures (n, 1, side, side), a table (n, 6) and the target (n,)."""

    images: Tensor
    table: Tensor
    y: Tensor

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """What the network takes."""
        return self.images, self.table


def simulate(
    found: Dataset, alpha: float, split: int, rows: tuple[int, int, int], noise: float, pool: int, device: str
) -> tuple[Part, Part, Part]:
    """Training, validation and test rows of one split: y = α η_img + (1 - α) η_tab + noise ε, ε ~ N(0, 1).

    Pictures of the test rows come from the official test part where there is one; no picture is drawn twice. The same
    split has the same pictures, tables and ε at every α.
    """
    rng = np.random.default_rng(split)
    fit, validate, test = rows
    if found.X_test is None or found.y_test is None:
        order = rng.permutation(len(found.y))
        pictures, digits = found.X, found.y
        cuts = [order[:fit], order[fit : fit + validate], order[fit + validate : fit + validate + test]]
    else:
        order, others = rng.permutation(len(found.y)), rng.permutation(len(found.y_test))
        pictures, digits = np.concatenate([found.X, found.X_test]), np.concatenate([found.y, found.y_test])
        cuts = [order[:fit], order[fit : fit + validate], len(found.y) + others[:test]]
    if any(len(cut) != wanted for cut, wanted in zip(cuts, rows, strict=True)):
        raise ValueError(f"rows: expected at most {len(digits)} in all, received {rows}.")
    top = float(found.X.max())

    def part(at: np.ndarray) -> Part:
        x = rng.uniform(-1, 1, (len(at), len(FUNCTIONS)))
        y = alpha * pictorial(digits[at]) + (1 - alpha) * tabular(x) + noise * rng.standard_normal(len(at))
        images = torch.tensor(pictures[at] / top, dtype=torch.float32).unsqueeze(1)
        if pool > 1:
            images = torch.nn.functional.avg_pool2d(images, pool)
        tensors = (images, torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))
        return Part(*(tensor.to(device) for tensor in tensors))

    train, validation, held = (part(cut) for cut in cuts)
    return train, validation, held
