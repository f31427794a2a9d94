"""What is known of one tensor of the graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from dgating.structure._capture import Weight
from dgating.structure._factors import Factor, Shape


@dataclass(eq=False)
class Info:
    """What is known of one tensor.

    ``value`` broadcasts to the tensor and has all its axes: a number where every entry is known to be that constant,
    NaN where it varies; ``None`` when nothing is known. ``static``: it follows from weights alone, then ``value`` is
    the tensor itself. ``indices`` holds the content of an integer constant. ``picked``: every row is the matrix of its
    expert, out of this stack, by this route. ``partial``: a part of a weight whose other entries may be read at
    another size of the inputs, so that only what holds for all of them is known.
    """

    shape: Shape
    factors: list[Factor] = field(default_factory=list)
    value: Tensor | None = None
    static: bool = False
    weight: Weight | None = None
    node: Node | None = None
    indices: Tensor | None = None
    picked: tuple[Info, Any] | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        if self.value is not None and self.value.ndim < self.ndim:  # that of a vector that met a matrix
            self.value = self.value.reshape((1,) * (self.ndim - self.value.ndim) + tuple(self.value.shape))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def value_along(self, axis: int) -> Tensor:
        """``(size,)`` known values along one axis: NaN where they change along any other axis."""
        n = self.shape[axis]
        if self.value is None:
            return torch.full((n,), float("nan"), dtype=torch.float64)
        # values of routed rows have the virtual axis in front
        position = axis % self.ndim + self.value.ndim - self.ndim
        flat = self.value.movedim(position, -1).reshape(-1, self.value.shape[position])
        same = (flat == flat[:1]).all(0)
        return torch.where(same, flat[0].double(), float("nan")).expand(n)

    def on(self, axis: int) -> list[Factor]:
        """The factors that change along an axis."""
        return [f for f in self.factors if f.depends(axis % self.ndim)]


def hint(value: Any) -> Any:
    """A symbolic size as the number it has on the example."""
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        known = value.node.hint
        return known if known is not None else value
    return value


def shape_of(value: Any) -> Shape:
    return tuple(int(hint(n)) for n in value.shape)


def as_outputs(node: Node) -> list[Tensor]:
    """The example values that a node puts out."""
    val = node.meta.get("val")
    values = list(val) if isinstance(val, list | tuple) else [val]
    return [v for v in values if isinstance(v, Tensor)]


def as_list(info: Any) -> list[Info]:
    if isinstance(info, Info):
        return [info]
    return [i for i in info if isinstance(i, Info)] if listlike(info) else []


def listlike(value: Any) -> bool:
    return isinstance(value, list | tuple)
