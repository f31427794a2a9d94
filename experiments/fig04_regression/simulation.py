"""The simulation of Fig. 4: 200 columns in 40 groups of five, seven of them with a signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Simulation:
    """Training and test rows, float32 as in the training of networks, and the true support of the groups."""

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor
    labels: Tensor
    informative: int

    @property
    def truth(self) -> Tensor:
        """Which groups have a signal."""
        return torch.arange(int(self.labels.max()) + 1) < self.informative


def simulate(seed: int, rows: int, test_rows: int, groups: int, size: int, informative: int) -> Simulation:
    """Columns, weights of the informative groups and noise are independent N(0, 1)."""
    rng = np.random.default_rng(seed)
    X, w = rng.standard_normal((rows + test_rows, groups * size)), np.zeros(groups * size)
    w[: informative * size] = rng.standard_normal(informative * size)
    y = X @ w + rng.standard_normal(rows + test_rows)
    X32, y32 = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    labels = torch.arange(groups * size) // size
    return Simulation(X32[:rows], y32[:rows], X32[rows:], y32[rows:], labels, informative)
