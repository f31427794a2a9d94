"""Training data as tensors in memory: one conversion, no Python a row afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

BLOCK = 1 << 24  # numbers looked at together: a table is never doubled by a check
COPY = 1 << 28  # numbers that are copied at most to have fewer columns: 1 GiB of float32


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs (one tensor an argument of the model), targets and, if given, a weight of every row.

    Rows and columns may be chosen without copying the table, which may lie on disk: ``index`` are the rows of the
    inputs that belong to it, ``keep`` the columns of the first input; ``None`` for all. ``scaling`` are a centre and a
    factor for each of these columns, applied to the rows that are taken out.
    """

    inputs: tuple[Tensor, ...]
    target: Tensor
    weight: Tensor | None = None
    index: Tensor | None = None
    keep: Tensor | None = None
    scaling: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def width(self) -> int:
        """Columns of the first input; 0 where it has none."""
        if self.keep is not None:
            return len(self.keep)
        return self.inputs[0].shape[1] if self.inputs[0].ndim > 1 else 0

    def rows(self, chosen: Tensor | slice = slice(None)) -> Data:
        """These rows, copied."""
        index = chosen if self.index is None else self.index[chosen]
        inputs = tuple(x[index] for x in self.inputs)
        if self.keep is not None:
            inputs = (inputs[0].index_select(1, self.keep), *inputs[1:])
        if self.scaling is not None:
            inputs = ((inputs[0] - self.scaling[0]) * self.scaling[1], *inputs[1:])
        return Data(inputs, self.target[chosen], None if self.weight is None else self.weight[chosen])

    def view(self, chosen: Tensor) -> Data:
        """These rows, where they are."""
        index = chosen if self.index is None else self.index[chosen]
        weight = None if self.weight is None else self.weight[chosen]
        return replace(self, target=self.target[chosen], weight=weight, index=index)

    def narrow(self, chosen: Tensor) -> Data:
        """The first input with these columns alone, where it is."""
        keep = chosen if self.keep is None else self.keep[chosen]
        scaling = None if self.scaling is None else (self.scaling[0][chosen], self.scaling[1][chosen])
        return replace(self, keep=keep, scaling=scaling)

    def columns(self, chosen: Tensor) -> Data:
        """The same, copied once these columns are at most half of all and not more than ``COPY`` numbers."""
        made = self.narrow(chosen)
        few = 2 * made.width <= self.inputs[0].shape[1] and len(made) * made.width <= COPY
        return made.copied() if few else made

    def copied(self) -> Data:
        """A table of its own with these rows and columns, filled a block at a time."""
        x, n = self.inputs[0], len(self)
        first = torch.empty((n, self.width), dtype=x.dtype, device=x.device)
        for part in torch.arange(n, device=x.device).split(max(1, BLOCK // x.shape[1])):
            first[part] = self.rows(part).inputs[0]
        rest = self.inputs[1:] if self.index is None else tuple(t[self.index] for t in self.inputs[1:])
        return Data((first, *rest), self.target, self.weight)

    def to(self, device: torch.device | str) -> Data:
        def moved(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device)

        inputs = tuple(x.to(device) for x in self.inputs)
        scaling = None if self.scaling is None else (self.scaling[0].to(device), self.scaling[1].to(device))
        return Data(inputs, self.target.to(device), moved(self.weight), moved(self.index), moved(self.keep), scaling)

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
    w = made.weight
    if w is not None and (w.ndim != 1 or bool((w < 0).any()) or not bool((w > 0).any())):
        raise ValueError(
            f"{name}: weight: expected one number >= 0 a row, not all of them zero, received shape {tuple(w.shape)} "
            f"and a smallest one of {float(w.min())!r}."
        )
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
        values = shared(array)
    if values.is_complex():
        raise TypeError(f"{what}: expected real numbers, received {values.dtype}.")
    if values.ndim == 0:
        raise ValueError(f"{what}: expected one entry a row, received a single number.")
    if values.is_floating_point():
        values = values.to(torch.get_default_dtype())
        for part in values.split(max(1, BLOCK // max(1, values[:1].numel()))):
            if not bool(part.isfinite().all()):
                raise ValueError(
                    f"{what}: expected finite numbers, received nan or infinity. Impute or drop those rows."
                )
    return values


def shared(array: np.ndarray) -> Tensor:
    """A tensor that lies where the array does, also for one that may not be written to: nothing here writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(array)


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
    return data.view((~mask).nonzero()[:, 0]), data.view(mask.nonzero()[:, 0])
