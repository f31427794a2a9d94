r"""The three losses of linear models: value, residual, Hessian and Fenchel dual, each for weighted rows.

Axes: ``n`` rows, ``p`` columns, ``k`` outputs. Predictions ``eta`` are ``(n, k)``; ``share`` is ``(n, 1)``, >= 0, and
sums to one, so that every value is a (weighted) mean over rows. The conjugates turn a gradient into a lower bound of
the optimum: with :math:`r` the residual and :math:`0 \le s \le 1` they give :math:`-\sum_i a_i \ell_i^*(s r_i)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """What the solver asks of a loss. A new loss is one more class like those below."""

    @property
    def y(self) -> Tensor:
        """Targets, ``(n, k)``."""
        ...

    @property
    def share(self) -> Tensor:
        """Weight of each row, ``(n, 1)``, sum one."""
        ...

    @property
    def curvature(self) -> float:
        """Upper bound of the eigenvalues of the second derivative of one row's loss."""
        ...

    def value(self, eta: Tensor) -> Tensor:
        """Mean loss."""
        ...

    def residual(self, eta: Tensor) -> Tensor:
        """Derivative of each row's loss, ``(n, k)``; the gradient of the mean is ``X.T @ (share * residual)``."""
        ...

    def hessian(self, X: Tensor, eta: Tensor) -> Tensor:
        """Second derivative in the coefficients of the columns ``X``, ``(p * k, p * k)``, outputs fastest."""
        ...

    def dual(self, residual: Tensor, scale: Tensor) -> Tensor:
        """Value of the dual at ``scale * residual``."""
        ...

    def null(self) -> Tensor:
        """Intercept of the model without columns, ``(k,)``."""
        ...


@dataclass(frozen=True)
class Squared:
    r""":math:`\frac12 \sum_i a_i \|y_i - \eta_i\|_2^2`: half the mean over rows, the sum over outputs."""

    y: Tensor
    share: Tensor
    curvature: ClassVar[float] = 1.0

    def value(self, eta: Tensor) -> Tensor:
        return (self.share * (eta - self.y).square()).sum() / 2

    def residual(self, eta: Tensor) -> Tensor:
        return eta - self.y

    def hessian(self, X: Tensor, eta: Tensor) -> Tensor:
        return by_output(X.T @ (self.share * X), eta.shape[1])

    def dual(self, residual: Tensor, scale: Tensor) -> Tensor:
        scaled = scale * residual
        return -(self.share * scaled * (scaled / 2 + self.y)).sum()

    def null(self) -> Tensor:
        return (self.share * self.y).sum(0)


@dataclass(frozen=True)
class Logistic:
    r""":math:`\sum_i a_i [\log(1 + e^{\eta_i}) - y_i \eta_i]` for ``y`` of zeros and ones, ``k = 1``."""

    y: Tensor
    share: Tensor
    curvature: ClassVar[float] = 0.25

    def value(self, eta: Tensor) -> Tensor:
        return (self.share * (torch.logaddexp(eta, torch.zeros_like(eta)) - self.y * eta)).sum()

    def residual(self, eta: Tensor) -> Tensor:
        return eta.sigmoid() - self.y

    def hessian(self, X: Tensor, eta: Tensor) -> Tensor:
        return X.T @ (self.share * eta.sigmoid() * (-eta).sigmoid() * X)

    def dual(self, residual: Tensor, scale: Tensor) -> Tensor:
        chance = (self.y + scale * residual).clamp(0, 1)  # between the label and the prediction
        return (self.share * (torch.special.entr(chance) + torch.special.entr(1 - chance))).sum()

    def null(self) -> Tensor:
        return (self.share * self.y).sum(0).logit()


@dataclass(frozen=True)
class Multinomial:
    r""":math:`\sum_i a_i [\log \sum_c e^{\eta_{ic}} - \eta_{i, y_i}]` for ``y`` of one-hot rows."""

    y: Tensor
    share: Tensor
    curvature: ClassVar[float] = 0.5

    def value(self, eta: Tensor) -> Tensor:
        return (self.share * (eta.logsumexp(1, keepdim=True) - (self.y * eta).sum(1, keepdim=True))).sum()

    def residual(self, eta: Tensor) -> Tensor:
        return eta.softmax(1) - self.y

    def hessian(self, X: Tensor, eta: Tensor) -> Tensor:
        # a row contributes x x' (x) (diag(c) - c c') with c its class probabilities
        (n, p), k = X.shape, eta.shape[1]
        chance = eta.softmax(1)
        rows = (chance * self.share.sqrt()).unsqueeze(1) * X.unsqueeze(2)  # (n, p, k)
        whole = -(rows.view(n, p * k).T @ rows.view(n, p * k)).view(p, k, p, k)
        each = torch.arange(k, device=X.device)
        whole[:, each, :, each] += torch.einsum("ni,nc,nj->cij", X, chance * self.share, X)
        return whole.view(p * k, p * k)

    def dual(self, residual: Tensor, scale: Tensor) -> Tensor:
        return (self.share * torch.special.entr((self.y + scale * residual).clamp(0, 1))).sum()

    def null(self) -> Tensor:
        return (self.share * self.y).sum(0).log()


def by_output(gram: Tensor, k: int) -> Tensor:
    """The ``(p, p)`` matrix repeated for ``k`` outputs that do not mix: ``(p * k, p * k)``, outputs fastest."""
    if k == 1:
        return gram.clone()  # the caller adds to it
    return torch.kron(gram, torch.eye(k, dtype=gram.dtype, device=gram.device))


LOSSES = {"squared": Squared, "logistic": Logistic, "multinomial": Multinomial}
