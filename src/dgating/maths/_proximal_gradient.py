r"""Reference solver for group-sparse linear regression: proximal gradient on the dense Gram matrix.

FISTA with restarts for ``D = 2`` (convex), plain proximal gradient for ``D >= 3``. It is the oracle for gated
training, and the fastest way to a group lasso of moderate size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from dgating._checks import MOST_DEPTH, check_dense, check_real
from dgating.maths._penalty import check_finite, check_labels, group_prox


@dataclass(frozen=True)
class ProximalSolution:
    """Result of :func:`proximal_gradient`.

    Attributes:
        coef: ``(p,)`` coefficients.
        objective: value of the penalised objective there.
        iterations: proximal steps taken.
        converged: whether the last step was shorter than ``tol``.
    """

    coef: Tensor
    objective: float
    iterations: int
    converged: bool


def proximal_gradient(
    X: Tensor,
    y: Tensor,
    labels: Tensor,
    lam: float,
    depth: int = 2,
    *,
    init: Tensor | None = None,
    tol: float = 1e-12,
    max_iter: int = 100_000,
) -> ProximalSolution:
    r"""Minimise :math:`\frac{1}{2n} \|y - Xw\|_2^2 + \lambda \sum_j \|w_j\|_2^{2/D}`.

    No intercept, no weights :math:`\sqrt{p_j}`. The step is :math:`1/\lambda_{\max}(X^\top X/n)`. For ``depth >= 3``
    the problem is not convex: the result is a fixed point of the prox that depends on ``init``.

    Args:
        X: ``(n, p)`` features.
        y: ``(n,)`` targets.
        labels: ``(p,)`` integer group of each coefficient, ``-1`` unpenalised.
        lam: strength λ.
        depth: ``D >= 2``.
        init: start, zeros by default (for ``depth >= 3`` start from a dense solution).
        tol: stop when a step is shorter than this.
        max_iter: give up after so many steps.

    Returns:
        A :class:`ProximalSolution`.

    Raises:
        ValueError: shapes that do not fit, ``depth < 2``, ``lam`` negative or not finite.

    Example:
        >>> import torch, dgating as dg
        >>> X = torch.eye(4, dtype=torch.float64) * 2; y = torch.tensor([4., 3., .1, .1], dtype=torch.float64)
        >>> s = dg.proximal_gradient(X, y, torch.tensor([0, 0, 1, 1]), lam=0.5)
        >>> [round(v, 4) for v in s.coef.tolist()], s.converged
        ([1.6, 1.2, 0.0, 0.0], True)

    Reference: FISTA, Beck and Teboulle 2009; restarts, O'Donoghue and Candes 2015.
    """
    check_real("X", X)
    check_real("y", y)
    check_dense("labels", labels)
    if X.ndim != 2 or y.shape != X.shape[:1] or labels.shape != X.shape[1:]:
        raise ValueError(
            "expected X (n, p), y (n,), labels (p,), "
            f"received {tuple(X.shape)}, {tuple(y.shape)}, {tuple(labels.shape)}."
        )
    check_labels(labels, X.shape[1:])
    if not len(y) or X.dtype != y.dtype:
        raise ValueError(f"X, y: expected rows of one dtype, received {len(y)} rows of {X.dtype} and {y.dtype}.")
    if isinstance(depth, bool) or not isinstance(depth, Integral) or not 2 <= depth <= MOST_DEPTH:
        raise ValueError(f"depth: expected a whole number from 2 to {MOST_DEPTH}, received {str(depth)[:40]}.")
    check_finite("lam", lam)
    check_finite("tol", tol)
    if isinstance(max_iter, bool) or not isinstance(max_iter, Integral) or max_iter < 0:
        raise ValueError(f"max_iter: expected a whole number >= 0, received {max_iter!r}.")
    if init is not None and (check_real("init", init).shape, init.dtype) != (X.shape[1:], X.dtype):
        raise ValueError(
            f"init: expected {X.shape[1]} numbers of {X.dtype}, received {tuple(init.shape)} of {init.dtype}."
        )
    q = 2 / depth
    gram, moment = X.T @ X / len(y), X.T @ y / len(y)
    step = 1 / max(float(torch.linalg.eigvalsh(gram)[-1]), 1e-300)  # X may be zero
    w = torch.zeros_like(moment) if init is None else init.clone()
    z, t = w.clone(), 1.0
    done, length = 0, math.inf
    while done < max_iter and length >= tol:
        done += 1
        new = group_prox(z - step * (gram @ z - moment), labels, step * lam, q)
        change = new - w
        if depth == 2:
            if float((z - new) @ change) > 0:
                t = 1.0  # the momentum points uphill: restart
            grown = (1 + math.sqrt(1 + 4 * t * t)) / 2
            z, t = new + (t - 1) / grown * change, grown
        else:
            z = new
        w, length = new, float(change.norm())
    residual = y - X @ w
    gated = labels >= 0
    norms = w.new_zeros(int(labels.clamp_min(0).max()) + 1).index_add(0, labels[gated], w[gated].square()).sqrt()
    objective = float(residual @ residual) / (2 * len(y)) + lam * float(norms.pow(q).sum())
    return ProximalSolution(w, objective, done, length < tol)
