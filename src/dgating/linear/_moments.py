r"""Fewer rows with the same moments: all that a squared loss sees of a tall table, in bounded memory.

The squared loss of a linear model depends on the rows through the weighted mean and second moments of columns and
targets alone. ``p + k + 1`` rows can have the same ones, so a table of any length becomes a small square one, read
once, a block at a time, and every solver, duality gap and objective stays what it was, up to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dgating.linear._checks import Array, tensor

TALL = 4  # rows per column from which on the detour by the moments (eigenvectors of a p x p matrix) is cheap
BLOCK = 1 << 20  # numbers of X at a time, 8 MiB in float64


def is_tall(n: int, p: int, k: int) -> bool:
    """Whether a table of ``n`` rows, ``p`` columns and ``k`` targets is worth condensing."""
    return n > TALL * (p + k + 1)


def condense(X: Array, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    r"""``p + k + 1`` rows of equal weight with the means and second moments of the rows given.

    Args:
        X: ``(n, p)`` columns, of any real type, for example a ``numpy.memmap``.
        y: ``(n, k)`` targets, float64.
        share: ``(n, 1)`` weight of each row, sum one.

    Returns:
        Columns ``(p + k + 1, p)`` and targets ``(p + k + 1, k)``, float64.

    Note:
        As with the normal equations, directions in which the columns (scaled to unit variance) have less than about
        1e-16 of the variance of the largest are lost.
    """
    p = X.shape[1]
    mean, spread = _moments(X, y, share)
    sizes = spread.diagonal().clamp_min(0).sqrt()
    sizes = torch.where(sizes > 0, sizes, 1.0)
    values, vectors = torch.linalg.eigh(spread / sizes / sizes.unsqueeze(1))
    root = values.clamp_min(0).sqrt().unsqueeze(1) * vectors.T * sizes  # root.T @ root == spread
    m = len(root) + 1
    rows = torch.cat([torch.zeros_like(root[:1]), root])
    mirror = torch.full((m,), -(m**-0.5), dtype=rows.dtype, device=rows.device)
    mirror[0] += 1.0  # the reflection that turns the first unit vector into equal entries: the rest has mean zero
    rows -= torch.outer(mirror, mirror @ rows) * (2 / mirror.square().sum())
    rows = m**0.5 * rows + mean
    return rows[:, :p].contiguous(), rows[:, p:].contiguous()


def _moments(X: Array, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and centred second moments of the columns and targets side by side.

    Blocks are merged by their means (Chan, Golub and LeVeque 1983): a large mean does not swallow a small variance.
    """
    (n, p), k = X.shape, y.shape[1]
    total, mean, spread = y.new_zeros(()), y.new_zeros(p + k), y.new_zeros(p + k, p + k)
    rows = max(1, BLOCK // (p + k))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        block, weight = X[start:stop], share[start:stop]
        columns = tensor(block if isinstance(block, Tensor) else np.asarray(block), f"X[{start}:{stop}]", y)
        both = torch.cat([columns, y[start:stop]], 1)
        mass = weight.sum()
        own = (weight * both).sum(0) / mass.clamp_min(1e-300)
        both -= own
        away = own - mean
        both *= weight.sqrt()
        spread.addmm_(both.T, both)
        joint = (total + mass).clamp_min(1e-300)
        spread.addr_(away, away * (total * mass / joint))
        mean = mean + away * (mass / joint)
        total = total + mass
    return mean, spread
