r"""An ensemble of neural oblivious decision trees (NODE), one layer, all trees in one batch of tensor operations.

An oblivious tree asks the same question at every node of a level: split :math:`d` compares one feature with one
threshold, so that a tree of depth :math:`m` is a table of :math:`2^m` leaf responses, indexed by :math:`m` bits. NODE
makes both choices differentiable and still sparse: features are chosen by entmax-1.5, bits are set by its two-class
case, entmoid-1.5.

Reference: Popov, Morozov, Babenko, *Neural Oblivious Decision Ensembles for Deep Learning on Tabular Data*, ICLR 2020
(arXiv 1909.06312); entmax: Peters, Niculae, Martins, *Sparse Sequence-to-Sequence Models*, ACL 2019.

Letters in shapes: n rows, p features, t trees, m splits of a tree, c channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class _Entmax(torch.autograd.Function):
    """Own backward: the threshold comes out of a sort, whose gradient is neither needed nor safe at a tie."""

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        half = logits / 2
        half = half - half.amax(-1, keepdim=True)  # shifts change nothing, and the squares below stay small
        ordered = half.sort(-1, descending=True).values
        count = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
        mean = ordered.cumsum(-1) / count
        spread = ordered.square().cumsum(-1) - count * mean.square()
        # the root of sum over the k largest of (z - tau)^2 = 1 that lies below them
        tau = mean - ((1 - spread) / count).clamp_min(0).sqrt()
        support = (tau <= ordered).sum(-1, keepdim=True)
        return (half - tau.gather(-1, (support - 1).clamp_min(0))).clamp_min(0).square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (root,) = (saved.sqrt() for saved in ctx.saved_tensors)
        return root * (grad - (grad * root).sum(-1, keepdim=True) / root.sum(-1, keepdim=True))


def entmax(logits: Tensor) -> Tensor:
    r"""Entmax-1.5 over the last axis: :math:`\max(z_i/2 - \tau, 0)^2`, where :math:`\tau` makes the sum one.

    Exact, by a sort; weights far below the largest are exactly zero.

    >>> entmax(torch.tensor([2.0, 0.0, 0.0])), entmax(torch.tensor([0.0, 0.0]))
    (tensor([1., 0., 0.]), tensor([0.5000, 0.5000]))
    """
    return _Entmax.apply(logits)  # type: ignore[return-value]


class _Entmoid(torch.autograd.Function):
    """Own backward: it keeps the input alone, and its quotient needs half the operations of the chain rule."""

    @staticmethod
    def forward(logits: Tensor) -> Tensor:
        a = (logits / 2).clamp(-1, 1)
        return (1 + a * (2 - a.square()).sqrt()) / 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (logits,) = ctx.saved_tensors
        square = (logits / 2).clamp_(-1, 1).square_()
        slope = 1 - square
        return slope.div_(square.neg_().add_(2).sqrt_()).mul_(0.5).mul_(grad)


def entmoid(logits: Tensor) -> Tensor:
    r"""The first of the two weights of entmax-1.5 of :math:`(x, 0)`: exactly zero below -2, exactly one above 2.

    For two classes the threshold has a closed form: with :math:`a = x/2` cut to [-1, 1] the weight is
    :math:`(1 + a\sqrt{2 - a^2})/2`, with slope :math:`(1 - a^2)/(2\sqrt{2 - a^2})`, which is zero at the cut.

    >>> entmoid(torch.tensor([-3.0, 0.0, 2.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return _Entmoid.apply(logits)  # type: ignore[return-value]


class Ensemble(nn.Module):
    r"""A sum of oblivious trees: rows ``(n, p)`` to ``(n, outputs)``.

    Tree :math:`t` sends a row to leaf :math:`\ell` with weight :math:`\prod_d b_d` or :math:`1 - b_d` (by bit
    :math:`d` of :math:`\ell`), :math:`b_d = \mathrm{entmoid}((x^\top \mathrm{entmax}(F_{td}) - \theta_{td}) /
    e^{s_{td}})`, and puts out the weighted mean of its leaf responses. The ensemble puts out ``scale`` times the sum
    over trees of the first ``outputs`` channels.

    Responses start standard normal, feature logits uniform on [0, 1); thresholds and temperatures start at 0 and wait
    for :meth:`initialise`.

    Args:
        features: p.
        trees: t.
        depth: m >= 2, the number of splits of a tree.
        tree_dim: c, channels of a response.
        outputs: how many of the channels are put out.
        scale: of the sum over trees, by default 1/t: the mean, as published. It is a constant: a tree that leaves
            later does not change the weight of the others.
        generator: of the random start.
    """

    def __init__(
        self,
        features: int,
        trees: int,
        depth: int = 6,
        tree_dim: int = 1,
        outputs: int = 1,
        scale: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(features, trees, outputs) < 1 or depth < 2 or tree_dim < outputs:
            raise ValueError(
                "Ensemble: expected features, trees and outputs >= 1, depth >= 2 and tree_dim >= outputs, received "
                f"{features}, {trees}, {outputs}, {depth} and {tree_dim}."
            )
        self.depth, self.outputs = depth, outputs
        self.scale = 1 / trees if scale is None else scale
        self.logits = nn.Parameter(torch.rand(trees, depth, features, generator=generator))
        self.thresholds = nn.Parameter(torch.zeros(trees, depth))
        self.log_temperatures = nn.Parameter(torch.zeros(trees, depth))
        self.response = nn.Parameter(torch.randn(trees, tree_dim, 2**depth, generator=generator))

    def values(self, rows: Tensor) -> Tensor:
        """What each split looks at, ``(t, m, n)``: a sparse weighted mean of the features."""
        return entmax(self.logits) @ rows.T

    def forward(self, rows: Tensor) -> Tensor:
        """``(n, p)`` to ``(n, outputs)``."""
        distance = self.values(rows) - self.thresholds.unsqueeze(-1)
        bits = entmoid(distance * (-self.log_temperatures).exp().unsqueeze(-1)).unbind(1)  # m times (t, n)
        # The weights of all 2^m leaves of a row would be the largest tensor by far. So the first half of the bits
        # becomes 2^(m/2) weights, a matrix product leaves one number for each setting of the other bits, and each of
        # these halves them by going from its 0 to its 1.
        half = self.depth // 2
        low = leaves(bits[:half])
        table = self.response[:, : self.outputs].unflatten(-1, (-1, low.shape[1])).flatten(1, 2)
        left = (table @ low).unflatten(1, (self.outputs, -1)).unbind(2)  # 2^(m/2) times (t, c, n)
        for bit in reversed(bits[half:]):
            zeros, ones = left[: len(left) // 2], left[len(left) // 2 :]
            left = [zero + (one - zero) * bit.unsqueeze(1) for zero, one in zip(zeros, ones, strict=True)]
        return self.scale * left[0].sum(0).T

    @torch.no_grad()
    def initialise(
        self, rows: Tensor, beta: float = 1.0, cutoff: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        r"""Thresholds and temperatures from data, as published.

        A threshold is a quantile of what its split looks at, drawn from Beta(``beta``, ``beta``). The temperature is
        the ``cutoff`` quantile of the distances to the threshold: a ``cutoff`` below one saturates that share of rows
        less (entmoid saturates at twice the temperature), one above one divides the largest distance by it.

        Args:
            rows: at least a thousand, so that quantiles mean something.
            beta: one draws thresholds as the data lie, more draws them towards the median.
            cutoff: see above.
            generator: of the quantiles.
        """
        values = self.values(rows)
        # torch draws beta variates from its global generator only
        draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        share = torch.as_tensor(draw.beta(beta, beta, self.thresholds.shape), dtype=values.dtype, device=values.device)
        ordered = values.sort(-1).values
        place = (share * (values.shape[-1] - 1)).unsqueeze(-1)
        below, above = ordered.gather(-1, place.floor().long()), ordered.gather(-1, place.ceil().long())
        self.thresholds.copy_(torch.lerp(below, above, place.frac()).squeeze(-1))
        distance = (values - self.thresholds.unsqueeze(-1)).abs()
        widest = distance.quantile(min(1.0, cutoff), -1) / max(1.0, cutoff)
        self.log_temperatures.copy_((widest + 1e-6).log())


def leaves(bits: Sequence[Tensor]) -> Tensor:
    """Weights of all settings of k bits ``(t, n)`` as ``(t, 2^k, n)``; the first bit is the least significant."""
    weights = [1 - bits[0], bits[0]]
    for bit in bits[1:]:
        ones = [weight * bit for weight in weights]
        weights = [weight - one for weight, one in zip(weights, ones, strict=True)] + ones
    return torch.stack(weights, 1)
