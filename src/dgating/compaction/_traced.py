"""What a graph was traced on: a call that it cannot answer is refused instead of answered wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from dgating.structure import Args


class FixedSize(ValueError):
    """A graph was called with another size than the one it holds."""


@dataclass(frozen=True)
class Traced:
    """A hook before the forward of a graph: fills in what is no tensor, and refuses sizes that the graph holds.

    ``sizes`` has an entry for every leaf of the inputs: for a tensor its sizes, an integer where the graph holds it and
    a name where it is free (equal names, equal sizes); for anything else ``None``. ``bounds``: what a free size may be.
    """

    keywords: tuple[str, ...]
    defaults: Mapping[str, Any]
    sizes: tuple[tuple[int | str, ...] | None, ...]
    values: tuple[Any, ...]
    bounds: Mapping[str, tuple[int, float]]

    @classmethod
    def of(cls, program: ExportedProgram) -> Traced:
        nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        args, kwargs = program.example_inputs or ((), {})
        leaves = pytree.tree_leaves((args, kwargs))
        names = [name for name in program.graph_signature.user_inputs if isinstance(name, str) and name in nodes]
        tensors = iter([nodes[name] for name in names if isinstance(nodes[name].meta.get("val"), Tensor)])
        sizes = tuple(_sizes(next(tensors)) if isinstance(x, Tensor) else None for x in leaves)
        bounds = {str(s): _range(r) for s, r in program.range_constraints.items()}
        defaults = {k: v for k, v in kwargs.items() if _plain(v)}
        return cls(tuple(kwargs), defaults, sizes, tuple(x if _plain(x) else None for x in leaves), bounds)

    def __call__(self, module: torch.nn.Module, args: Args, kwargs: dict[str, Any]) -> tuple[Args, dict[str, Any]]:
        kwargs = {**self.defaults, **kwargs}
        if set(kwargs) == set(self.keywords):  # in the order in which they were traced
            kwargs = {k: kwargs[k] for k in self.keywords}
        leaves = pytree.tree_leaves((args, kwargs))
        if len(leaves) == len(self.sizes):  # else the graph itself says what is missing
            seen: dict[str, int] = {}
            for i, (x, size, value) in enumerate(zip(leaves, self.sizes, self.values, strict=True)):
                if isinstance(x, Tensor) and size is not None:
                    self._check(i, tuple(x.shape), size, seen)
                elif size is None and _plain(x) and x != value:
                    raise FixedSize(f"input {i}: expected {value!r}, with which this graph was traced, received {x!r}.")
        return args, kwargs

    def _check(self, i: int, shape: tuple[int, ...], size: tuple[int | str, ...], seen: dict[str, int]) -> None:
        wrong = len(shape) != len(size)
        for n, known in zip(shape, size, strict=False):
            if isinstance(known, int):
                wrong |= n != known
            elif known in seen:
                wrong |= n != seen[known]
            else:
                low, high = self.bounds.get(known, (0, float("inf")))
                wrong |= not low <= n <= high
                seen[known] = n
        if wrong:
            expected = ", ".join(str(known) if isinstance(known, int) else "*" for known in size)
            raise FixedSize(
                f"input {i}: expected a tensor of shape [{expected}], received {list(shape)}: this graph holds the "
                "sizes that it was traced with (* is free). Compact on inputs of that shape, or use target='module'."
            )


def _sizes(node: Node) -> tuple[int | str, ...]:
    """Sizes as numbers, also where export began with a symbol and found that it has to be this number."""
    exprs = [n if isinstance(n, int) else n.node.expr for n in node.meta["val"].shape]
    return tuple(int(e) if isinstance(e, int) or e.is_Integer else str(e) for e in exprs)


def _range(r: Any) -> tuple[int, float]:
    """Bounds of a free size. Export never looks at 0 and 1, so that 2 as the lower one says nothing."""
    low, high = r.lower, r.upper
    return int(low) if low.is_Integer and low > 2 else 0, int(high) if high.is_Integer else float("inf")


def _plain(x: Any) -> bool:
    return x is None or isinstance(x, bool | int | float | str)


__all__ = ["FixedSize", "Traced"]
