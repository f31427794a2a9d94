"""Strengths λ: a grid of them, and the largest at which a group is not zero."""

from __future__ import annotations

import math

from torch import Tensor

from dgating._checks import MOST_LAMS, check_number, check_whole


def lam_grid(lam_max: float, ratio: float = 1e-3, n: int = 50) -> list[float]:
    r"""``n`` strengths, log-spaced from ``ratio * lam_max`` up to ``lam_max``: from dense to sparse.

    Args:
        lam_max: the largest strength, for example of :func:`lam_max`.
        ratio: the smallest one as a share of it, in ``(0, 1]``.
        n: how many.

    Raises:
        ValueError: a strength or share that is not positive, or ``n < 1``.

    Example:
        >>> [round(lam, 4) for lam in lam_grid(1.0, ratio=0.01, n=3)]
        [0.01, 0.1, 1.0]
    """
    check_number("lam_max", lam_max)
    check_number("ratio", ratio)
    if not lam_max > 0:
        raise ValueError(f"lam_max: expected a positive number, received {lam_max!r}.")
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio: expected a share in (0, 1], received {ratio!r}.")
    check_whole("n", n, 1, MOST_LAMS)
    if n == 1:
        return [float(lam_max)]
    step = math.log(1 / ratio) / (n - 1)
    return [float(lam_max * math.exp(-step * (n - 1 - i))) for i in range(n - 1)] + [float(lam_max)]


def largest_lam(g: Tensor, h: Tensor, depth: int) -> Tensor:
    r"""The largest λ at which a group alone, along its gradient, has a norm other than zero.

    With the loss :math:`-g r + h r^2/2` of a norm :math:`r`, the penalised loss has a stationary point at
    :math:`\lambda = \frac D2 r^{1 - 2/D} (g - h r)`. The maximum over :math:`r` is at
    :math:`r = \frac{1 - 2/D}{2 - 2/D} \cdot \frac gh`.

    Args:
        g: ``(J,)`` norms of the gradients at zero.
        h: ``(J,)`` curvatures along them.
        depth: the depth D.
    """
    share = (1 - 2 / depth) / (2 - 2 / depth)
    h = h.clamp(min=1e-3 * float(h.max()) + 1e-12)  # a direction without curvature has no largest norm
    r = share * g / h
    return 0.5 * depth * r.pow(1 - 2 / depth) * (g - h * r)
