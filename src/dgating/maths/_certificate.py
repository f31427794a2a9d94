r"""Pure maths of the absorption certificate. The theorem and its proof: ``docs/concepts/absorption.md``.

With :math:`\kappa = 2\lambda/D`, factor sizes :math:`b_{1..D}` and a bound :math:`G` on every later
:math:`\|\nabla_{W_j} L_0\|`: if :math:`G` times the product of the :math:`D-2` largest sizes is below :math:`\kappa`,
the group converges to zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def largest_product(sizes: Tensor) -> Tensor:
    """``(D, J)`` factor sizes to the ``(J,)`` product of the ``D - 2`` largest; one for ``D = 2``.

    >>> import torch
    >>> largest_product(torch.tensor([[3.], [1.], [2.], [2.]])).tolist()
    [6.0]
    """
    depth = sizes.shape[0]
    return sizes.topk(depth - 2, dim=0).values.prod(0) if depth > 2 else torch.ones_like(sizes[0])


def margin(sizes: Tensor, bound: Tensor, lam: float) -> Tensor:
    r"""``(J,)`` ratio :math:`G \prod_{D-2\text{ largest}} b / \kappa`: a group is dead when it is below one."""
    kappa = 2 * lam / sizes.shape[0]
    if kappa == 0:
        return torch.full_like(bound, math.inf)
    return (bound * largest_product(sizes) / kappa).nan_to_num(
        nan=math.inf, posinf=math.inf
    )  # unknown bound times a zero factor


def momentum_shift(lr: float, momentum: float, kappa: float, nesterov: bool = False) -> float | None:
    r"""The constant ``c`` of the momentum theorem: sizes are then :math:`\max(\|\theta\|, \|\theta - c v\|)`.

    ``c`` is the smaller root of :math:`\kappa c^2 - (1 - \mu - \kappa\bar\eta) c + \mu\bar\eta = 0` for heavy ball
    and of :math:`\kappa c^2 - (1 - \mu - (1+\mu)\kappa\bar\eta) c + \mu^2\bar\eta = 0` for Nesterov momentum as torch
    writes it.

    Args:
        lr: the largest step size from now on.
        momentum: μ.
        kappa: :math:`2\lambda/D`.
        nesterov: which of the two.

    Returns:
        ``c``, zero without momentum, or ``None`` when the roots are complex or a step overshoots zero: decay and
        momentum oscillate then, and the theorem says nothing.

    >>> momentum_shift(0.1, 0.0, 0.01)
    0.0
    >>> round(momentum_shift(0.1, 0.9, 0.01), 4)
    1.0127
    >>> momentum_shift(1.0, 0.9, 0.1) is None
    True
    """
    if momentum == 0:
        return 0.0 if lr * kappa <= 1 else None
    a = kappa
    b = 1 - momentum - kappa * lr * ((1 + momentum) if nesterov else 1)
    c = momentum * lr * (momentum if nesterov else 1)
    discriminant = b * b - 4 * a * c
    if b <= 0 or discriminant < 0:
        return None
    return 2 * c / (b + math.sqrt(discriminant))  # the smaller root, in the form that is stable as kappa -> 0
