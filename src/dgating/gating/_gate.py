"""The parametrisation: ``W = omega * prod(gamma)``, one scale a group, in one pass over the weight.

``Gate`` is registered with :mod:`torch.nn.utils.parametrize`, so the module's tensor becomes a property that is
computed from ``omega`` (the *original* of the parametrisation) and ``gamma``. Everything is plain autograd: the
``D - 1`` gates are tiny, they are multiplied together first and the product then meets the weight once.
``torch.prod`` is not used, because its backward asks the host whether a zero is among the factors (a device
synchronisation in every step) and divides by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgating.gating._partition import Layout, Partition, Split


def gate_product(gamma: Tensor) -> Tensor:
    """``(D-1, J)`` gates to their ``(J,)`` product. Gradients are products of the *other* gates, never quotients.

    >>> import torch
    >>> gate_product(torch.tensor([[2., 0.], [3., 5.]])).tolist()
    [6.0, 0.0]
    """
    factors = list(gamma.unbind(0))
    while len(factors) > 1:  # pairwise: the shallowest graph and the smallest rounding error
        factors = [a * b for a, b in zip(factors[::2], factors[1::2], strict=False)] + factors[len(factors) // 2 * 2 :]
    return factors[0]


@dataclass(frozen=True)
class Place:
    """Where a gate stands: name of the :class:`~dgating.Groups`, number and label of its part, how many share it."""

    groups: str
    part: int
    label: str
    members: int


class Gate(nn.Module):
    """Gates of one part, as seen by one of its tensors.

    All members of a part hold the *same* ``gamma`` parameter of shape ``(D-1, J)``. A partially labelled tensor is
    stored as two parameters, its gated entries (``omega``) and the rest, so that weight decay on ``omega`` touches
    gated weights only.
    """

    gamma: nn.Parameter
    labels: Tensor | None
    gated_index: Tensor
    rest_index: Tensor
    merge_index: Tensor | None

    def __init__(self, gamma: nn.Parameter, partition: Partition, place: Place, order: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.gamma = gamma
        self.order = order  # names of the module's parameters before gating, to restore on collapse
        self.partition = partition
        self.place = place
        self.split: Split | None = None
        inner = partition
        if partition.partial:
            self.split, inner = partition.split()
        self.layout: Layout
        self.layout, self._flat_labels = inner.layout()
        self._place_indices(gamma.device)

    def _place_indices(self, device: torch.device) -> None:
        """Index buffers on the device of the gates. They follow from the partition, so no state_dict holds them."""
        indices: dict[str, Tensor | None] = {"labels": self._flat_labels}
        if self.split is not None:
            indices |= {
                "gated_index": self.split.gated,
                "rest_index": self.split.rest,
                "merge_index": self.split.merge,
            }
        for name, index in indices.items():
            self.register_buffer(name, None if index is None else index.to(device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gate:
        super()._apply(fn, recurse)
        self._place_indices(self.gamma.device)  # after to_empty the buffers would hold garbage
        return self

    @property
    def depth(self) -> int:
        return self.gamma.shape[0] + 1

    def scale(self, dtype: torch.dtype) -> Tensor:
        """The gate products, spread so that they broadcast against ``omega``."""
        return self.layout.expand(gate_product(self.gamma).to(dtype), self.labels)

    def group_sums(self, entries: Tensor) -> Tensor:
        """``(J,)`` sums over the groups of a tensor shaped like ``omega``."""
        return self.layout.reduce(entries, self.labels)

    def forward(self, omega: Tensor, rest: Tensor | None = None) -> Tensor:
        scaled = omega * self.scale(omega.dtype)
        return scaled if rest is None else self.merge(scaled, rest)

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Factors of an assigned weight: the gates stay (other tensors may share them), ``omega = W / prod(gamma)``.

        Right after gating the gates are one and ``omega`` is ``W``, bit by bit.

        Raises:
            ValueError: another shape, or a non-zero weight for a group whose gates multiply to zero.
        """
        if tuple(weight.shape) != self.partition.shape:
            raise ValueError(
                f"assigning to the gated weight {self.place.label!r}: expected shape {self.partition.shape}, "
                f"received {tuple(weight.shape)}. collapse_ the model to change its shapes."
            )
        gated, rest = self.cut(weight)
        with torch.no_grad():
            scale = self.scale(gated.dtype)
            if bool(((scale == 0) & (gated != 0)).any()):
                raise ValueError(
                    f"assigning to the gated weight {self.place.label!r}: a group whose gates are zero cannot hold a "
                    "non-zero weight. Expected zeros there, received others. collapse_ the model first."
                )
            omega = gated / torch.where(scale == 0, torch.ones_like(scale), scale)
        return omega if rest is None else (omega, rest)

    def cut(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gated entries and the rest (``None`` when every entry is gated)."""
        if self.split is None:
            return weight, None
        if self.split.dim is None:
            flat = weight.reshape(-1)
            return flat.index_select(0, self.gated_index), flat.index_select(0, self.rest_index)
        return (
            weight.index_select(self.split.dim, self.gated_index),
            weight.index_select(self.split.dim, self.rest_index),
        )

    def merge(self, gated: Tensor, rest: Tensor) -> Tensor:
        """The inverse of :meth:`cut`."""
        assert self.split is not None
        dim = self.split.dim or 0
        whole = torch.cat([rest, gated] if self.split.rest_first else [gated, rest], dim)
        if self.merge_index is not None:
            whole = whole.index_select(dim, self.merge_index)
        return whole.view(self.split.shape)

    def extra_repr(self) -> str:
        return f"{self.place.label!r}, depth={self.depth}, groups={self.gamma.shape[1]}"
