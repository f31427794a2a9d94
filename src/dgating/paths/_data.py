"""Training data as tensors in memory: one conversion, no Python a row afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs (one tensor an argument of the model), targets and, if given, a weight of every row."""

    inputs: tuple[Tensor, ...]
    target: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, index: Tensor) -> Data:
        weight = None if self.weight is None else self.weight[index]
        return Data(tuple(x[index] for x in self.inputs), self.target[index], weight)

    def to(self, device: torch.device | str) -> Data:
        weight = None if self.weight is None else self.weight.to(device)
        return Data(tuple(x.to(device) for x in self.inputs), self.target.to(device), weight)

    def columns(self, keep: Tensor) -> Data:
        """The first input with these columns alone."""
        return replace(self, inputs=(self.inputs[0].index_select(1, keep), *self.inputs[1:]))

    def batches(self, size: int) -> Iterator[Data]:
        """All rows once, in order; the last batch may be smaller."""
        for index in torch.arange(len(self), device=self.target.device).split(size):
            yield self.rows(index)


def as_data(data: Any, name: str = "data") -> Data:
    """Tensors out of ``(X, y)`` or ``(X, y, weight)`` (``X`` may be a tuple), a ``Dataset`` or a ``DataLoader``.

    Raises:
        TypeError: something else.
        ValueError: no rows, numbers of rows that differ, or values that are not finite.
    """
    if isinstance(data, Data):
        return data
    if isinstance(data, DataLoader):
        return as_data(_stacked(list(data), torch.cat), name)
    if isinstance(data, Dataset):
        return as_data(_stacked([data[i] for i in range(len(data))], torch.stack), name)  # type: ignore[arg-type]
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise TypeError(
            f"{name}: expected (X, y), (X, y, weight), a Dataset or a DataLoader, received {type(data).__name__}."
        )
    x, y, *weight = data
    inputs = tuple(_tensor(t, f"{name}: X") for t in (x if isinstance(x, tuple | list) else (x,)))
    made = Data(inputs, _tensor(y, f"{name}: y"), _tensor(weight[0], f"{name}: weight") if weight else None)
    if len(made) == 0:
        raise ValueError(f"{name}: expected rows, received none.")
    lengths = [len(t) for t in (*made.inputs, *([] if made.weight is None else [made.weight]))]
    if any(n != len(made) for n in lengths):
        raise ValueError(f"{name}: expected {len(made)} rows everywhere, as in y, received {lengths}.")
    return made


def _stacked(items: list[Any], join: Any) -> tuple[Any, ...]:
    if not items:
        raise ValueError("data: expected rows, received none.")
    return tuple(join([torch.as_tensor(item[i]) for item in items]) for i in range(len(items[0])))


def _tensor(values: Any, what: str) -> Tensor:
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{what}: expected numbers, received an array of {array.dtype}. Encode categories first.")
        values = torch.as_tensor(array)
    if values.is_floating_point():
        values = values.to(torch.get_default_dtype())
        if not bool(values.isfinite().all()):
            raise ValueError(f"{what}: expected finite numbers, received nan or infinity. Impute or drop those rows.")
    return values


def split(data: Data, share: float, generator: torch.Generator) -> tuple[Data, Data]:
    """Training and validation rows; class labels are spread evenly."""
    n = len(data)
    held = max(1, round(share * n))
    order = torch.randperm(n, generator=generator)
    if not data.target.is_floating_point() and data.target.ndim == 1:
        order = order[torch.argsort(data.target.cpu()[order], stable=True)]  # class by class, then evenly spaced
        order = order[(torch.arange(held) * (n / held) + n / held / 2).long()]
    mask = torch.zeros(n, dtype=torch.bool)
    mask[order[:held]] = True
    mask = mask.to(data.target.device)
    return data.rows((~mask).nonzero()[:, 0]), data.rows(mask.nonzero()[:, 0])
