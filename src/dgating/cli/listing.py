"""Tables of what is in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from dgating._text import plain

Say = Callable[[Any], None]
Cell = str | list[str]  # a list has a line for each
ROWS = 40  # of a table; the rest is counted
TENSORS = ("tensor", "dtype", "shape", "zeros", "zero slices of axis 0, 1")


def table(title: str, *heads: str) -> Any:
    """An empty table, numbers to the right."""
    from rich.table import Table

    made = Table(title=plain(title), title_justify="left")
    for i, head in enumerate(heads):
        made.add_column(head, justify="left" if i == 0 else "right", overflow="fold")
    return made


def fill(made: Any, rows: list[tuple[Cell, ...]], total: int | None = None) -> Any:
    """The first rows, and how many there are more."""
    total = len(rows) if total is None else total
    for row in rows[:ROWS]:
        made.add_row(*(plain(cell) if isinstance(cell, str) else "\n".join(map(plain, cell)) for cell in row))
    if total > ROWS:
        made.caption = f"and {total - ROWS} more"
    return made


def tensor_row(name: str, tensor: Tensor) -> tuple[Cell, ...]:
    """Name, dtype, shape, share of zeros, and slices that are zero."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
        tensor = tensor.float()  # numbers of eight bits cannot be compared
    share = int((tensor == 0).sum()) / tensor.numel() if tensor.numel() else 0.0
    zeros = [f"{n} of {size}" if n else "-" for n, size in zip(zero_slices(tensor), tensor.shape, strict=True)]
    return name, kind, shape_text(tensor.shape), f"{share:.0%}", ", ".join(zeros[:2]) or "-"


def zero_slices(tensor: Tensor) -> list[int]:
    """How many slices of each axis are exactly zero; tensors without numbers have none."""
    if tensor.numel() == 0:
        return [0] * tensor.ndim
    alive = tensor != 0
    counts = []
    for axis in range(tensor.ndim):
        others = [a for a in range(tensor.ndim) if a != axis]
        counts.append(int((~(alive.any(dim=others) if others else alive)).sum()))
    return counts


def shape_text(shape: Iterable[object]) -> str:
    """As ``2x3``."""
    return "x".join(str(n) for n in shape) or "one number"


def numel(shape: Iterable[int]) -> int:
    """How many numbers a tensor of this shape has."""
    n = 1
    for size in shape:
        n *= size
    return n
