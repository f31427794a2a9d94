r"""The condition of the absorption theorem, read off a gated model and its optimizer.

The theorem (``docs/concepts/absorption.md``) is about torch's SGD with a decay :math:`\kappa = 2\lambda/D` of every
factor, step sizes up to a largest one, and one constant momentum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dgating.gating import Unit, entry_state, full, wide
from dgating.maths import largest_product
from dgating.training._optimizer_settings import Place


class Obstacle(NamedTuple):
    """Why the theorem does not cover a unit. ``evidence``: measurements speak for the certificate."""

    sentence: str
    evidence: bool = False


class Condition:
    r"""One unit under an optimizer: whether the theorem covers it, and :math:`\prod b / \kappa`.

    Args:
        unit: the unit.
        kappa: its decay now, :math:`2\lambda/D`.
        top_kappa: its largest decay so far.
        optimizer: the optimizer; ``None`` for plain SGD of unknown step size.
        places: of each factor, the gates last; empty without an optimizer.
    """

    def __init__(
        self,
        unit: Unit,
        kappa: float,
        top_kappa: float,
        optimizer: torch.optim.Optimizer | None,
        places: Sequence[Place],
    ) -> None:
        self.unit, self.kappa, self.optimizer, self.places = unit, kappa, optimizer, places
        self.shifts = [place.shift(top_kappa) for place in places]

    @property
    def frozen(self) -> bool:
        """Whether a factor is not trained: it does not decay then."""
        return not all(p.requires_grad for p in self.unit.factors)

    def obstacle(self) -> Obstacle | None:
        """The first hypothesis that does not hold, or ``None``."""
        unit = self.unit
        if self.frozen:
            return Obstacle(f"not covered: {unit.groups!r} has frozen factors, which do not decay")
        if self.kappa == 0:
            return Obstacle(f"not covered: {unit.groups!r} has no decay (lam is zero)")
        if self.optimizer is None:
            return self._unknown_step()
        found = self._optimizer() or self._sites()
        if found is not None:
            return found
        if None in self.shifts:
            return Obstacle("not covered: lr, momentum and lam oscillate (sqrt(lr * 2 lam / D) + sqrt(momentum) > 1)")
        return self._coarse_step()

    def ratio(self, evidence: bool) -> Tensor:
        r"""``(J,)`` :math:`\prod_{D-2\text{ largest}} b / \kappa`, infinite where no certificate can be given.

        Args:
            evidence: give it also where only measurements speak for it.
        """
        found = self.obstacle()
        shallow = self.unit.depth == 2  # a screening is no theorem, it asks for decay alone
        excused = found is None or shallow or (found.evidence and evidence)
        if not excused or self.frozen or self.kappa == 0:
            return torch.full_like(self.unit.omega_norms(), math.inf)
        spare = 1.0
        if found is None and self.places:  # the decay that the margin leaves must be representable, too
            spare = 1 - coarsest(self.unit).eps / self.slowest_step()
        return largest_product(self.sizes()) / (self.kappa * spare)

    def sizes(self) -> Tensor:
        """``(D, J)`` sizes of the factors, enlarged by where the momentum points (``momentum_shift``)."""
        sizes = self.unit.factor_norms()
        if type(self.optimizer) is torch.optim.SGD:
            sizes = torch.maximum(sizes, self._sizes_ahead())
        floor = self.unit.smallest_norm(sizes.dtype).unsqueeze(0)
        return torch.cat([torch.maximum(sizes[:1], floor), sizes[1:]])

    def _sizes_ahead(self) -> Tensor:
        ahead = []
        assert self.optimizer is not None
        for p, shift in zip(self.unit.factors, self.shifts, strict=True):
            value = wide(full(p.detach()))
            velocity = self.optimizer.state.get(p, {}).get("momentum_buffer")
            if velocity is not None and shift:
                value = value - shift * wide(full(velocity))
            ahead.append(value)
        return torch.cat([self.unit.norms_of(ahead[:-1]).unsqueeze(0), ahead[-1].abs()])

    def at_rest(self) -> Tensor:
        """``(J,)`` groups whose factors are exactly zero and whose optimizer has nothing left that moves them."""
        factors = list(self.unit.factors)
        still = self.unit.zero_in(factors)
        if self.optimizer is None:
            return still
        kept = [entry_state(self.optimizer, p) for p in factors]
        for layer in range(max(map(len, kept))):
            pairs = zip(kept, factors, strict=True)
            entries = [k[layer] if layer < len(k) else torch.zeros_like(p) for k, p in pairs]
            still = still & self.unit.zero_in(entries)
        return still

    def slowest_step(self) -> float:
        r"""The share by which the slowest factor decays in a step, :math:`\bar\eta\kappa/(1-\mu)`."""
        return min(p.top_lr * self.kappa / (1 - p.momenta[1]) for p in self.places)

    def _optimizer(self) -> Obstacle | None:
        if type(self.optimizer) is not torch.optim.SGD:
            name = type(self.optimizer).__name__
            return Obstacle(f"measured evidence only: the theorem does not cover {name}", True)
        settings = [place.settings for place in self.places]
        if any(s.get("dampening") or s.get("maximize") for s in settings):
            return Obstacle("not covered: the theorem knows neither dampening nor maximize")
        cycled = any(s.get("base_momentum") != s.get("max_momentum") for s in settings)
        if cycled or any(low != high for low, high in (p.momenta for p in self.places)):
            return Obstacle("not covered: the theorem does not cover a schedule of the momentum")
        return None

    def _sites(self) -> Obstacle | None:
        """Tensors that share gates are one factor, which has one step size and one momentum."""
        name = self.unit.groups
        sites = [place.settings for place in self.places[:-1]]
        for key in ("lr", "momentum", "nesterov"):
            if len({float(s.get(key) or 0.0) for s in sites}) > 1:
                return Obstacle(f"not covered: tensors of {name!r} that share gates have different {key}")
        rates = [float(place.settings.get("lr") or 0.0) for place in self.places]
        if 0.0 in rates and any(rates):
            return Obstacle(f"not covered: some factors of {name!r} have a step size of zero, and are not trained")
        if len({float(p.settings.get("weight_decay") or 0.0) for p in self.places}) > 1:
            return Obstacle(f"not covered: the factors of {name!r} have different weight_decay")
        return None

    def _unknown_step(self) -> Obstacle | None:
        kind = coarsest(self.unit)
        if kind.eps < 1e-4:
            return None
        return Obstacle(
            f"not covered: without an optimizer nothing is known of the steps, which {kind.dtype} may round away"
        )

    def _coarse_step(self) -> Obstacle | None:
        """Factors whose decay is rounded away stay as they are."""
        kind, step = coarsest(self.unit), self.slowest_step()
        if step > kind.eps:
            return None
        return Obstacle(
            f"not covered: {kind.dtype} rounds a decay of {step:.1e} in a step away (its unit round-off "
            f"is {kind.eps:.1e}). Keep the parameters in float32, under autocast if need be"
        )


def coarsest(unit: Unit) -> torch.finfo:
    """The number format with the fewest digits among the factors."""
    return max((torch.finfo(p.dtype) for p in unit.factors), key=lambda kind: kind.eps)
