r"""Norms of the data gradient of every group, from the gradients of the factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgating.gating import Unit, full, gate_of, gate_product, wide

REFRESH = 16  # steps after which the norms of the primary weights are measured again


class Gradients:
    r"""The gradients of all groups of a model, side by side.

    :math:`\nabla_{\omega_j} L_0 = (\prod_d \gamma_{j,d}) \nabla_{W_j} L_0`, so that the norms of the latter cost one
    pass over the gradients of the primary weights, and no backward pass of their own.

    The theorem asks for :math:`\|\nabla_{f_i} L_0\| \le G \prod_{k \ne i} \|f_k\|` for **every** factor :math:`f_i`.
    Where all gradients come through the weights, those of the primary weights say enough, since :math:`\gamma_{j,d}
    \nabla_{\gamma_{j,d}} L_0 = \langle \omega_j, \nabla_{\omega_j} L_0 \rangle`. They need not: gates may be trained on
    other data, a term of the loss may hold the factors themselves, a hook may change one gradient and not the other. So
    the gates are measured, too: the largest :math:`\|f_i\| \|\nabla_{f_i} L_0\| / \prod_k \|f_k\|` counts.
    """

    def __init__(self, model: nn.Module, units: Sequence[Unit]) -> None:
        self.model, self.units = model, units
        # kept, because finding a parameter of a parametrised module takes longer than reading its gradient
        self.omegas = [[site.omega for site in unit.sites] for unit in units]
        self.gates = [unit.gamma for unit in units]
        # the smallest norm that is measured: squares of less are rounded to zero or have lost digits
        self.floors = beside([1e3 * u.smallest_norm(u.gates().dtype) for u in units])
        self._sizes: Tensor | None = None  # norms of the primary weights, and for how many steps they are good
        self._fresh = 0

    def check_factors(self) -> None:
        """Raise unless the model is gated by the parameters that are read here."""
        known = zip(self.units, self.omegas, self.gates, strict=True)
        if not all(_held(unit, omegas, gamma) for unit, omegas, gamma in known):
            raise RuntimeError(
                "monitor: expected the parameters that it was made for, received others (gated again, or loaded with "
                "assign=True). Make a new monitor, and a new optimizer."
            )

    def check_backward(self) -> None:
        """Raise unless there was a backward pass, be it one that did not reach the gated weights."""
        if all(p.grad is None for p in self.model.parameters()):
            raise RuntimeError(
                "monitor.update: no gated weight has a gradient, nor any other. Call it after backward, once a step."
            )

    @property
    def present(self) -> bool:
        """Whether any factor has a gradient."""
        return any(p.grad is not None for omegas in (self.gates, *self.omegas) for p in omegas)

    def halves(self) -> list[tuple[bool, bool]]:
        """For each unit whether its primary weights, and whether its gates, have a gradient."""
        both = zip(self.omegas, self.gates, strict=True)
        return [(any(p.grad is not None for p in omegas), gamma.grad is not None) for omegas, gamma in both]

    def marks(self) -> list[tuple[int, int]]:
        """What changes when a gradient is replaced or written to: identity and version of each."""
        grads = [p.grad for omegas in (*self.omegas, self.gates) for p in omegas]
        return [(id(g), -1 if g is None else g._version) for g in grads]

    def gate_norm(self) -> Tensor:
        """The norm of the gradients of all gates: a single number that shows how all gradients were scaled.

        Where no gate has a gradient, that of the primary weights.
        """
        grads = [wide(full(p.grad)) for p in self.gates if p.grad is not None] or self._of_weights()
        device = grads[0].device
        return torch.linalg.vector_norm(torch.stack([x.to(device) for x in torch._foreach_norm(grads)]))  # type: ignore[reportPrivateImportUsage]

    def signature(self) -> Tensor:
        """The gradients of the gates and the norm of each other one: scaling keeps the direction of this vector."""
        return beside([*self._of_gates(), *self._of_weights()])

    def norms(self, kappas: Sequence[float] | None = None, scale: float | Tensor = 1.0) -> Tensor:
        r"""``(J,)`` :math:`\|\nabla_{W_j} L_0\|`; zero where it is not finite or too small to measure.

        Args:
            kappas: for each unit the :math:`2\lambda/D` of a penalty in the loss, which is taken out.
            scale: factor by which the gradients are too large.
        """
        kappas = kappas or [0.0] * len(self.units)
        each = list(zip(self.units, self.omegas, kappas, strict=True))
        raw = beside([_squares(unit, omegas, k, scale) for unit, omegas, k in each]).sqrt()
        # all gates in one tensor: the number of small operations must not grow with the number of layers
        gates = _columns([wide(full(g.detach())) for g in self.gates], 1.0)
        pulls = _columns([_gate_gradient(g, k, scale) for g, k in zip(self.gates, kappas, strict=True)], 0.0)
        product = gate_product(gates).abs() * scale
        norms = torch.stack([raw, (gates * pulls).abs().amax(0) / self._weights()]) / product
        # a smaller product of the gates has lost digits; an overflow (AMP) is skipped by the scaler, and here
        seen = (product > 1e-30 * scale) & torch.isfinite(norms)
        seen[0] &= raw > self.floors
        return norms.where(seen, 0.0).amax(0)

    def _weights(self) -> Tensor:
        """``(J,)`` norms of the primary weights, at most a few steps old: they need a pass over all weights."""
        if self._sizes is None or self._fresh == 0:
            self._sizes, self._fresh = beside([u.omega_norms() for u in self.units]), REFRESH
        self._fresh -= 1
        return self._sizes

    def _of_weights(self) -> list[Tensor]:
        grads = [p.grad for omegas in self.omegas for p in omegas if p.grad is not None]
        return [wide(torch.linalg.vector_norm(full(grad)).view(1)) for grad in grads]

    def _of_gates(self) -> list[Tensor]:
        return [wide(full(p.grad)).flatten() for p in self.gates if p.grad is not None]


def _held(unit: Unit, omegas: Sequence[nn.Parameter], gamma: nn.Parameter) -> bool:
    """Whether the modules of a unit hold these very factors."""
    sites = zip(unit.sites, omegas, strict=True)
    return all(s.omega is p and gate_of(s.module, s.tensor) is s.gate and s.gate.gamma is gamma for s, p in sites)


def _squares(unit: Unit, omegas: Sequence[nn.Parameter], kappa: float, scale: float | Tensor) -> Tensor:
    """``(J,)`` squared norms of the gradients of the primary weights."""
    grads = []
    for omega in omegas:
        grad = torch.zeros_like(omega) if omega.grad is None else omega.grad
        if kappa:
            grad = wide(full(grad)) - (kappa * scale) * wide(full(omega.detach()))
        grads.append(grad)
    return unit.square_sums(grads)


def _gate_gradient(gamma: nn.Parameter, kappa: float, scale: float | Tensor) -> Tensor:
    """``(D-1, J)`` the gradient of gates."""
    if gamma.grad is None:
        return wide(full(torch.zeros_like(gamma)))
    grad = wide(full(gamma.grad))
    return grad - (kappa * scale) * wide(full(gamma.detach())) if kappa else grad


def _columns(parts: Sequence[Tensor], fill: float) -> Tensor:
    """Matrices side by side; those with fewer rows are filled up."""
    height = max(len(x) for x in parts)
    padded = [nn.functional.pad(x, (0, 0, 0, height - len(x)), value=fill) if len(x) < height else x for x in parts]
    return torch.cat([x.to(parts[0].device) for x in padded], 1)


def beside(parts: Sequence[Tensor]) -> Tensor:
    """One after the other, on the device of the first."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([x.to(parts[0].device) for x in parts])
