r"""The strength λ at which every group of a gated model is zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dgating._checks import check_callable, check_seed, check_whole
from dgating.gating import Unit, units
from dgating.maths import largest_lam
from dgating.paths._data import as_data
from dgating.paths._objective import Loss, default_loss, mean_loss


def lam_max(
    model: nn.Module, data: Any, loss: Loss | None = None, *, steps: int = 200, probes: int = 8, seed: int = 0
) -> float:
    r"""The strength from which on a gated model has no group left.

    With every group at zero, let :math:`g_j` be the data gradient of the weights of group ``j``. For ``D = 2`` zero is
    a minimum for all groups exactly when

    .. math:: \lambda \ge \lambda_{\max} = \max_j \|g_j\|_2 ,

    which is the value for a convex loss. For ``D >= 3`` zero is a local minimum for every λ, and what matters is from
    which λ on nothing else is one. Along :math:`-g_j`, with the curvature :math:`h_j` of the loss, a group of norm
    ``r`` is stationary where :math:`\tfrac{2}{D}\lambda r^{2/D-1} = \|g_j\| - h_j r`; the largest λ for which some
    ``r`` solves this is the **estimate** here,

    .. math:: \lambda_j = \tfrac D2\, r_j^{1-2/D} (\|g_j\| - h_j r_j), \qquad
              r_j = \frac{\|g_j\|}{h_j} \cdot \frac{1-2/D}{2-2/D} .

    The ungated parameters are fitted first with all groups at zero (the null model: intercepts).

    Args:
        model: a gated model; it is not changed.
        data: as in :func:`path`.
        loss: as in :func:`path`.
        steps: L-BFGS iterations for the null model.
        probes: products with the Hessian to estimate the curvatures with (``D >= 3``).
        seed: of those probes.

    Returns:
        ``lam_max > 0``.

    Raises:
        ValueError: the model is not gated, or no group has a gradient.

    Example:
        >>> import torch, dgating as dg
        >>> x = torch.eye(4); y = torch.tensor([[4.0], [0.0], [0.0], [0.0]])
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> _ = dg.gate_(net, dg.features(net), depth=2)
        >>> dg.lam_max(net, (x, y))
        1.0
    """
    check_whole("steps", steps, 1)
    check_whole("probes", probes, 1)
    check_seed(seed)
    check_callable("loss", loss, "a function of output and target")
    rows = as_data(data).rows()
    found = units(model)
    loss = loss or default_loss(rows.target)
    weights = {id(s.omega): s for u in found for s in u.sites}
    factors = {id(p) for u in found for p in u.factors}
    free = [p for p in model.parameters() if id(p) not in factors and p.requires_grad]
    saved = [(p, p.detach().clone(), p.grad) for p in model.parameters()]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for u in found:
                u.gamma.fill_(1.0)  # so that the gradient of the primary weights is that of the weights
                for s in u.sites:
                    s.omega.zero_()
        if free:
            fit(free, lambda: mean_loss(loss, model(*rows.inputs), rows), steps)
        omegas = [s.omega for s in weights.values()]
        value = mean_loss(loss, model(*rows.inputs), rows)
        deep = any(u.depth > 2 for u in found)
        grads = torch.autograd.grad(value, omegas, create_graph=deep, allow_unused=True)
        by_site = {id(p): torch.zeros_like(p) if g is None else g for p, g in zip(omegas, grads, strict=True)}
        best = 0.0
        for u in found:
            mine = [by_site[id(s.omega)] for s in u.sites]
            norms = u.norms_of([g.detach() for g in mine]).double()
            if u.depth == 2:
                best = max(best, float(norms.max()))
                continue
            curvature = _curvature(u, mine, norms, probes, generator).double()
            best = max(best, float(largest_lam(norms, curvature, u.depth).max()))
    finally:
        with torch.no_grad():
            for p, old, grad in saved:
                p.copy_(old)
                p.grad = grad
    if not best > 0:
        raise ValueError(
            "lam_max: expected a loss that depends on the gated weights, its gradient is zero where they all are (as "
            "under a ReLU layer with zero biases). For path, leave lams=None: it raises lam until no group is left."
        )
    return best


def _curvature(u: Unit, grads: list[Tensor], norms: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """``(J,)`` curvatures along the gradient of each group, by products of the Hessian with random signs of them."""
    if not any(g.requires_grad for g in grads):
        return torch.zeros_like(norms)  # a loss that is linear in the weights

    def spread(values: Tensor) -> list[Tensor]:
        return [s.gate.layout.expand(values, s.gate.labels).to(s.omega) for s in u.sites]

    omegas = [s.omega for s in u.sites]
    direction = [g.detach() / n for g, n in zip(grads, spread(norms.clamp(min=1e-30)), strict=True)]
    total = torch.zeros_like(norms)
    for _ in range(probes):
        sign = (torch.randint(0, 2, norms.shape, generator=generator) * 2 - 1).to(norms)
        probe = [v * s for v, s in zip(direction, spread(sign), strict=True)]
        product = torch.autograd.grad(grads, omegas, probe, retain_graph=True)
        for site, hv, p in zip(u.sites, product, probe, strict=True):
            total += site.gate.group_sums((hv * p).to(norms))
    return (total / probes).clamp(min=0)


def fit(parameters: list[nn.Parameter], value: Callable[[], Tensor], steps: int) -> None:
    """L-BFGS."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        out = value()
        out.backward()
        return out

    optimizer.step(closure)


__all__ = ["lam_max"]
