"""Find what is gated in a model: one ``Unit`` a gate tensor, one ``Site`` a gated tensor.

Nothing is remembered outside the modules, so a copied, wrapped, sharded or re-loaded model is read as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dgating.gating._gate import Gate, gate_product


@dataclass(frozen=True)
class Site:
    """One gated tensor: ``module.tensor``, found at ``path`` in the model."""

    module: nn.Module
    path: str
    tensor: str
    gate: Gate

    @property
    def _originals(self) -> nn.Module:
        if not parametrize.is_parametrized(self.module, self.tensor):
            raise RuntimeError(
                f"{self.name!r} is not gated any more (collapsed?): make the monitor from a gated model."
            )
        return self.module.parametrizations[self.tensor]  # type: ignore[index]

    @property
    def omega(self) -> nn.Parameter:
        """The primary weights: only the gated entries when the tensor is partially labelled."""
        originals = self._originals
        return originals.original if self.gate.split is None else originals.original0  # type: ignore[return-value]

    @property
    def rest(self) -> nn.Parameter | None:
        """The ungated entries of a partially labelled tensor."""
        return None if self.gate.split is None else self._originals.original1  # type: ignore[return-value]

    @property
    def name(self) -> str:
        return f"{self.path}.{self.tensor}" if self.path else self.tensor

    @property
    def weight(self) -> Tensor:
        """The effective weight ``W``."""
        return getattr(self.module, self.tensor)


@dataclass(frozen=True)
class Unit:
    """One part of a :class:`~dgating.Groups`: a gate tensor and the tensors that share it."""

    groups: str
    part: int
    label: str
    sites: tuple[Site, ...]

    @property
    def gamma(self) -> nn.Parameter:
        return self.sites[0].gate.gamma

    @property
    def depth(self) -> int:
        return self.gamma.shape[0] + 1

    @property
    def n_groups(self) -> int:
        return self.gamma.shape[1]

    @property
    def factors(self) -> Iterator[nn.Parameter]:
        """Every penalised parameter of the unit: the primary weights of each site, then the gates."""
        for site in self.sites:
            yield site.omega
        yield self.gamma

    @property
    def sizes(self) -> Tensor:
        return torch.stack([s.gate.partition.sizes for s in self.sites]).sum(0)

    def omega_norms(self) -> Tensor:
        """``(J,)`` Euclidean norms of the primary weights, over all sites, in at least float32."""
        return self.norms_of([s.omega.detach() for s in self.sites])

    def norms_of(self, entries: Sequence[Tensor]) -> Tensor:
        """``(J,)`` Euclidean norms of tensors shaped like the primary weights (gradients, buffers)."""
        return self.square_sums(entries).sqrt()

    def square_sums(self, entries: Sequence[Tensor]) -> Tensor:
        """``(J,)`` squares of :meth:`norms_of`."""
        sites = zip(self.sites, entries, strict=True)
        parts = [site.gate.group_sums(wide(full(x)).square()) for site, x in sites]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    def zero_in(self, entries: Sequence[Tensor]) -> Tensor:
        """``(J,)`` groups with nothing but exact zeros in tensors shaped like the factors, gates last."""
        *primary, gates = entries
        found = (full(gates) == 0).all(0)
        for site, x in zip(self.sites, primary, strict=True):
            found = found & (site.gate.group_sums((full(x) != 0).float()) == 0)
        return found

    def smallest_norm(self, dtype: torch.dtype) -> Tensor:
        """``(J,)`` what :meth:`norms_of` may lose: entries whose squares are rounded to zero have no larger norm."""
        return (self.sizes.to(self.gamma.device) * torch.finfo(dtype).tiny).sqrt().to(dtype)

    def gates(self) -> Tensor:
        """``(D-1, J)`` gates, detached, in at least float32."""
        return wide(full(self.gamma.detach()))

    def factor_norms(self) -> Tensor:
        """``(D, J)`` sizes of the factors: ``||omega_j||`` first, then ``|gamma_jd|``."""
        return torch.cat([self.omega_norms().unsqueeze(0), self.gates().abs()])

    def norms(self) -> Tensor:
        """``(J,)`` norms of the effective weights, ``||omega_j|| prod_d |gamma_jd|``."""
        return self.omega_norms() * gate_product(self.gates()).abs()


def full(x: Tensor) -> Tensor:
    """A sharded (DTensor) parameter as an ordinary tensor; anything else unchanged."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x  # type: ignore[operator]


def sharded_like(mask: Tensor, p: Tensor) -> Tensor:
    """A mask that broadcasts to ``p``, cut into the shards of ``p`` if that is a DTensor."""
    if not hasattr(p, "full_tensor"):
        return mask
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(mask.expand(p.shape).contiguous(), p.device_mesh, p.placements)  # type: ignore[attr-defined]


def wide(x: Tensor) -> Tensor:
    """Half precision widened to float32: squares of small factors would vanish."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def gate_of(module: nn.Module, tensor: str) -> Gate | None:
    """The gate on ``module.tensor``, if there is one."""
    if not parametrize.is_parametrized(module, tensor):
        return None
    chain = module.parametrizations[tensor]  # type: ignore[index]
    return next((g for g in chain if isinstance(g, Gate)), None)


def sites(model: nn.Module) -> list[Site]:
    """Every gated tensor of the model, in registration order."""
    found = []
    for path, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for tensor in module.parametrizations:  # type: ignore[union-attr]
            gate = gate_of(module, tensor)
            if gate is not None:
                found.append(Site(module, path, tensor, gate))
    return found


def find_units(model: nn.Module) -> list[Unit]:
    """Every unit of the model, ordered by groups and part; empty when nothing is gated.

    Where two gates claim the same name and part, their names get the path of their module in front.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, received {type(model).__name__}.")
    by_gates: dict[int, list[Site]] = {}
    for site in sites(model):
        by_gates.setdefault(id(site.gate.gamma), []).append(site)
    by_name: dict[str, list[list[Site]]] = {}
    for shared in by_gates.values():
        by_name.setdefault(shared[0].gate.place.groups, []).append(shared)
    found = []
    for name, members in by_name.items():
        parts = [shared[0].gate.place.part for shared in members]
        if len(set(parts)) == len(parts):
            order = sorted(members, key=lambda shared: shared[0].gate.place.part)
            found += [Unit(name, s[0].gate.place.part, s[0].gate.place.label, tuple(s)) for s in order]
        else:
            # layers that were gated one by one, or copied after gating, bear the same name: tell them apart by path
            found += [Unit(f"{s[0].path}.{name}".lstrip("."), 0, s[0].name, tuple(s)) for s in members]
    return found


def units(model: nn.Module) -> list[Unit]:
    """Like :func:`find_units`, but a model without gates is an error."""
    found = find_units(model)
    if not found:
        raise ValueError(
            f"model: expected a gated model, received a {type(model).__name__} without gates. "
            "Gate it first: dg.gate_(model, groups)."
        )
    return found


def by_groups(found: list[Unit]) -> dict[str, list[Unit]]:
    """Units keyed by the name of their groups, parts in order."""
    out: dict[str, list[Unit]] = {}
    for unit in found:
        out.setdefault(unit.groups, []).append(unit)
    return out
