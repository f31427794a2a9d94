"""The simulation of Fig. 22: twenty columns, five of them with a non-linear effect, and the folds of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Ours (the paper does not give its five functions): different shapes, each brought to mean 0 and variance 1 below.
FUNCTIONS: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("sin 2x", lambda x: np.sin(2 * x)),
    ("x²", lambda x: x**2),
    ("tanh 2x", lambda x: np.tanh(2 * x)),
    ("cos 2x", lambda x: np.cos(2 * x)),
    ("x exp(-x²/2)", lambda x: x * np.exp(-(x**2) / 2)),
)


def effect(k: int, x: np.ndarray) -> np.ndarray:
    """The k-th function, of mean 0 and variance 1 for x ~ N(0, 1) (moments by Gauss-Hermite quadrature)."""
    at, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    function = FUNCTIONS[k][1]
    values = function(at)
    mean = weights @ values
    return (function(x) - mean) / np.sqrt(weights @ (values - mean) ** 2)


@dataclass(frozen=True)
class Folds:
    """Rows of all folds side by side: X is (rows, folds, columns), y is (rows, folds)."""

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor


def simulate(seed: int, rows: int, columns: int, noise: float, folds: int, device: str = "cpu") -> Folds:
    """y = Σ_k f_k(x_k) + noise ε over the first five columns; columns and ε are independent N(0, 1)."""
    if rows % folds:
        raise ValueError(f"rows: expected a multiple of the {folds} folds, received {rows}.")
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, columns))
    y = sum((effect(k, X[:, k]) for k in range(len(FUNCTIONS))), noise * rng.standard_normal(rows))
    parts = np.array_split(rng.permutation(rows), folds)
    others = [np.concatenate([part for j, part in enumerate(parts) if j != fold]) for fold in range(folds)]

    def taken(values: np.ndarray, which: list[np.ndarray]) -> Tensor:
        return torch.tensor(np.stack([values[at] for at in which], 1), dtype=torch.float32, device=device)

    return Folds(taken(X, others), taken(y, others), taken(X, parts), taken(y, parts))
