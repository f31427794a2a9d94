r"""D = 2: check the group-lasso optimality condition of groups that were set to zero, and bring wrong ones back.

For ``D = 2`` zero is a local minimum of a group only where :math:`\|\nabla_{W_j} L_0\|_2 \le \lambda`. At zero both
factors have zero gradient, so the gradient of the effective weight is read with the gates of the zero groups set to
one: the function does not change (``omega`` is zero), and the gradient of ``omega`` is then that of ``W``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dgating.gating import plan_masks, units, wide
from dgating.training._objective import Lam, lam_by_groups


def kkt_violators(
    model: nn.Module, lam: Lam, closure: Callable[[], Any]
) -> tuple[dict[str, Tensor], list[list[Tensor]]]:
    """Zero groups of depth 2 whose data gradient exceeds λ.

    Args:
        model: a gated model; groups of another depth are left out.
        lam: the strength λ, or one per ``Groups.name``.
        closure: computes the mean data loss over the data and calls ``backward``.

    Returns:
        Masks by ``Groups.name``, and for every depth-2 unit the data gradient of each of its tensors.
        Gates, gradients and weights are as before the call.

    Raises:
        ValueError: no groups of depth 2.

    Reference: strong rules, Tibshirani et al. 2012; arXiv 2509.23898 section 4 for D = 2.
    """
    found = units(model)
    strength = lam_by_groups(lam, found)
    shallow = [u for u in found if u.depth == 2]
    if not shallow:
        raise ValueError("recheck: expected groups of depth 2, found none: for D >= 3 zero is always a local minimum.")
    saved_grads = [(p, p.grad) for p in model.parameters()]
    saved_gates = [u.gamma.detach().clone() for u in shallow]
    dead = [u.factor_norms().amax(0) == 0 for u in shallow]
    try:
        with torch.no_grad():
            for u, mask in zip(shallow, dead, strict=True):
                u.gamma.masked_fill_(mask.unsqueeze(0), 1.0)
        for p, _ in saved_grads:
            p.grad = None
        closure()
        if all(p.grad is None for p, _ in saved_grads):
            raise RuntimeError("recheck: expected closure to call backward, it has left no gradient.")
        masks: dict[str, list[Tensor]] = {}
        directions = []
        with torch.no_grad():
            for u, mask in zip(shallow, dead, strict=True):
                grads = [torch.zeros_like(s.omega) if s.omega.grad is None else s.omega.grad for s in u.sites]
                masks.setdefault(u.groups, []).append(mask & (u.norms_of(grads) > strength[u.groups]))
                directions.append(grads)
    finally:
        with torch.no_grad():
            for u, gates in zip(shallow, saved_gates, strict=True):
                u.gamma.copy_(gates)
        for p, grad in saved_grads:
            p.grad = grad
    return {name: torch.cat(parts) for name, parts in masks.items()}, directions


@torch.no_grad()
def revive_(model: nn.Module, masks: dict[str, Tensor], directions: list[list[Tensor]], size: float) -> None:
    """Restart groups at balanced factors of the given size, along the negative gradient."""
    for (unit, mask), grads in zip(plan_masks(model, masks), directions, strict=True):
        norms = unit.norms_of(grads)
        step = torch.where(mask, -size / torch.where(mask, norms, torch.ones_like(norms)), torch.zeros_like(norms))
        for site, grad in zip(unit.sites, grads, strict=True):
            spread = site.gate.layout.expand(step, site.gate.labels)
            site.omega.add_((wide(grad) * spread).to(site.omega.dtype))
        unit.gamma.masked_fill_(mask.unsqueeze(0), size)
