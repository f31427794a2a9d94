"""The optimizer's state of factors, as state of the weight they are collapsed into.

SGD: the momentum buffer is a velocity, and that of ``W = omega * prod(gamma)`` follows from those of the factors by the
product rule. Adam and kin, Adagrad: moments of gradients, and ``d omega = prod(gamma) dW``. Every other optimizer
starts afresh on the collapsed weight: its state has no such rule, and a wrong one kicks the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dgating.gating._gate import gate_product
from dgating.gating._gated_tensors import Site, Unit

# Moments are divided by the gate product to this power. Below FLOOR the product is replaced by it: the ratio of the
# moments, which is Adam's step, stays the same, and nothing overflows for groups that are almost dead.
MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "sum": 2}
CARRIED = (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adagrad)
FLOOR = 1e-4


def migrated_state(found: list[Unit], optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, dict[str, Any]]:
    """New state by ``omega``; empty where the collapsed weight starts afresh."""
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    out: dict[nn.Parameter, dict[str, Any]] = {}
    for unit in found:
        for site in unit.sites:
            if isinstance(optimizer, torch.optim.SGD):
                rates = [float(group_of[id(p)]["lr"]) for p in (site.omega, unit.gamma)]
                gate_rate = rates[1] / rates[0] if rates[0] else 1.0
                out[site.omega] = _velocity(site, optimizer, gate_rate)
            elif isinstance(optimizer, CARRIED):
                out[site.omega] = _moments(site, optimizer)
            else:
                out[site.omega] = {}
    return out


@torch.no_grad()
def _velocity(site: Site, optimizer: torch.optim.Optimizer, gate_rate: float) -> dict[str, Any]:
    gate, omega, gamma = site.gate, site.omega, site.gate.gamma
    buffers = [optimizer.state.get(p, {}).get("momentum_buffer") for p in (omega, gamma)]
    rest = None if site.rest is None else optimizer.state.get(site.rest, {}).get("momentum_buffer")
    if all(b is None for b in (*buffers, rest)):
        return {}
    of_omega, of_gamma = (torch.zeros_like(p) if b is None else b for p, b in zip((omega, gamma), buffers, strict=True))
    of_scale = torch.stack([v * _others(gamma, d) for d, v in enumerate(of_gamma)]).sum(0)
    of_scale = of_scale * gate_rate  # in units of omega's step size
    velocity = gate.scale(omega.dtype) * of_omega + omega * gate.layout.expand(of_scale.to(omega.dtype), gate.labels)
    if site.rest is not None:
        velocity = gate.merge(velocity, torch.zeros_like(site.rest) if rest is None else rest)
    return {"momentum_buffer": velocity}


def _others(gamma: Tensor, d: int) -> Tensor:
    """The product of all gates but number ``d``."""
    left = torch.cat([gamma[:d], gamma[d + 1 :]])
    return gate_product(left) if len(left) else torch.ones_like(gamma[0])


@torch.no_grad()
def _moments(site: Site, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    old = optimizer.state.get(site.omega, {})
    rest = {} if site.rest is None else optimizer.state.get(site.rest, {})
    scale = site.gate.scale(torch.float32 if site.omega.dtype.itemsize < 4 else site.omega.dtype)
    scale = torch.where(scale < 0, -1.0, 1.0) * scale.abs().clamp_min(FLOOR)
    new: dict[str, Any] = {}
    for key, value in old.items():
        power = MOMENTS.get(key)
        if power is None:
            new[key] = value  # the step count
            continue
        moment = (value / scale**power).to(value.dtype)
        if site.rest is not None:
            moment = site.gate.merge(moment, rest.get(key, torch.zeros_like(site.rest)))
        # zeroed entries have no history: with a step count that is not new, a zero second moment would kick them
        new[key] = torch.where(moment == 0, moment.max(), moment) if power == 2 else moment
    return new
