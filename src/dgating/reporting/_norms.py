"""Numbers about a gated model: norms, imbalance, misalignment, sparsity. All by ``Groups.name``, no gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgating._checks import check_number
from dgating.gating import Unit, by_groups, full, units
from dgating.maths import FLOAT32_EPS


def group_norms(model: nn.Module) -> dict[str, Tensor]:
    r"""Norms of the effective weights, :math:`\|W_j\|_2 = \|\omega_j\|_2 \prod_d |\gamma_{j,d}|`.

    Args:
        model: a gated model.

    Returns:
        ``Groups.name`` to a ``(J,)`` tensor.

    Raises:
        ValueError: the model is not gated.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(2, 2)
        >>> _ = torch.nn.init.eye_(net.weight)
        >>> dg.group_norms(dg.gate_(net, dg.features(net)))
        {'weight': tensor([1., 1.])}
    """
    return _per_group(model, Unit.norms)


def imbalance(model: nn.Module) -> dict[str, Tensor]:
    r"""Largest pairwise imbalance of a group, :math:`\max_d a_{j,d} - \min_d a_{j,d}` of the squared factor norms
    :math:`a_j = (\|\omega_j\|^2, \gamma_{j,1}^2, \dots)`.

    Zero at every stationary point; under gradient flow it decays as :math:`e^{-4\lambda t/D}`, whatever the loss.

    Args:
        model: a gated model.

    Returns:
        ``Groups.name`` to a ``(J,)`` tensor.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(1, 1)
        >>> _ = torch.nn.init.constant_(net.weight, 2.0)
        >>> dg.imbalance(dg.gate_(net, dg.features(net)))
        {'weight': tensor([3.])}

    Reference: arXiv 2509.23898, eq. (13) and Lemma 2.
    """

    def spread(unit: Unit) -> Tensor:
        squares = unit.factor_norms().square()
        return squares.amax(0) - squares.amin(0)

    return _per_group(model, spread)


def misalignment(model: nn.Module) -> Tensor:
    r"""How far the gated penalty lies above the one it stands for:
    :math:`M = \frac1D(\|\omega\|^2 + \|\Gamma\|_F^2) - \|W\|_{2,2/D}^{2/D} \ge 0`, zero when all factors are balanced.

    :math:`\lambda M` is the gap between the gated and the non-smooth objective.

    Args:
        model: a gated model.

    Returns:
        A scalar, summed over all groups.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(1, 1)
        >>> _ = torch.nn.init.constant_(net.weight, 4.0)
        >>> dg.misalignment(dg.gate_(net, dg.features(net), depth=2))       # (16 + 1) / 2 - 4
        tensor(4.5000)

    Reference: arXiv 2509.23898, eq. (15) and (16).
    """
    with torch.no_grad():
        total = [misalignment_of(unit.factor_norms()).sum() for unit in units(model)]
        return torch.stack([t.to(total[0].device) for t in total]).sum()


def misalignment_of(factor_norms: Tensor) -> Tensor:
    r"""``(J,)`` misalignment from the ``(D, J)`` factor norms: arithmetic minus geometric mean of their squares."""
    depth = factor_norms.shape[0]
    geometric = factor_norms.pow(2 / depth).prod(0)  # roots first: the product of small factors may underflow
    return (factor_norms.square().mean(0) - geometric).clamp_min(0)  # rounding may leave a tiny negative number


def sparsity(model: nn.Module, tol: float = FLOAT32_EPS) -> dict[str, float]:
    """Share of groups whose effective norm is at most ``tol``.

    Args:
        model: a gated model.
        tol: the norm that counts as zero. The default is the paper's, float32 epsilon; ``0`` counts exact zeros only.

    Returns:
        ``Groups.name`` to a number in [0, 1], or to nan when a norm is nan: of a model that has diverged there is
        nothing to be said.

    Raises:
        ValueError: ``tol`` is negative, or the model is not gated.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> _ = dg.gate_(net, dg.features(net))
        >>> dg.sparsity(dg.zero_(net, {"weight": torch.tensor([True, False, False, False])}))
        {'weight': 0.25}
    """
    check_number("tol", tol)
    return {name: _share(norms, float(tol)) for name, norms in group_norms(model).items()}


def _share(norms: Tensor, tol: float) -> float:
    below = (norms <= tol).double()
    return float(torch.where(norms.isnan(), torch.nan, below).mean())


@torch.no_grad()
def nonfinite_groups(unit: Unit) -> Tensor:
    """``(J,)``: a factor of the group is nan or infinite. (A norm may be infinite by rounding alone.)"""
    wrong = ~unit.gates().isfinite().all(0)
    for site in unit.sites:
        entries = site.gate.group_sums((~full(site.omega.detach()).isfinite()).float())
        wrong = wrong | (entries > 0).to(wrong.device)
    return wrong


def _per_group(model: nn.Module, f) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: torch.cat([f(u) for u in parts]) for name, parts in by_groups(units(model)).items()}
