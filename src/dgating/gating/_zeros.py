"""Groups that are exactly zero: where they are in each factor, and momentum that would move them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dgating.gating._gated_tensors import Unit, full, sharded_like
from dgating.gating._optimizer_state import entry_state
from dgating.gating._trial import moves_zeros


def masked_factors(unit: Unit, mask: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each factor of a unit with the ``(J,)`` mask of its groups, spread so that it broadcasts to the factor."""
    mask = mask.to(unit.gamma.device)
    for site in unit.sites:
        spread = site.gate.layout.expand(mask.to(site.omega.device), site.gate.labels)
        yield site.omega, sharded_like(spread, site.omega)
    yield unit.gamma, sharded_like(mask.unsqueeze(0), unit.gamma)


@torch.no_grad()
def zero_groups(unit: Unit) -> Tensor:
    """``(J,)``: every factor of the group is exactly zero."""
    return unit.zero_in(list(unit.factors))


@torch.no_grad()
def check_zeros(optimizer: torch.optim.Optimizer, found: list[Unit]) -> None:
    """Raise when groups that are exactly zero have state that would move them again."""
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for unit in found:
        zero = zero_groups(unit)
        for p, where in masked_factors(unit, zero):
            alive = any(bool(full((x != 0) & where).any()) for x in entry_state(optimizer, p))
            if alive and moves_zeros(optimizer, group_of[id(p)], p, where):
                raise ValueError(
                    f"optimizer: {int(zero.sum())} groups of {unit.groups!r} are exactly zero, but its state would "
                    "move them again (it was loaded from before zero_, or zero_ was called without the optimizer). "
                    "Zero them with it: dg.zero_(model, {name: norms == 0 for name, norms in "
                    "dg.group_norms(model).items()}, optimizer)."
                )
