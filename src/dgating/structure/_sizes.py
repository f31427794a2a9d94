"""What a solution does to tensors: the indices that stay along every axis, and the slices of every weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgating.structure._factors import Shape, narrow
from dgating.structure._info import Info
from dgating.structure._solve import Mask, Solution, table


@dataclass(frozen=True, eq=False)
class Slice:
    """What stays of one axis of a tensor: ``keep`` holds its indices, or a row of indices for every index of ``row``.

    Slices are applied one after the other; a ``row`` axis is counted after the slices before it.
    """

    axis: int
    keep: Tensor
    row: int | None = None

    def apply(self, tensor: Tensor) -> Tensor:
        keep = self.keep.to(tensor.device)
        if self.row is None:
            return tensor.index_select(self.axis, keep)
        shape = [1] * tensor.ndim
        shape[self.row], shape[self.axis] = keep.shape
        index = keep if self.row < self.axis else keep.t()
        return tensor.take_along_dim(index.reshape(shape), self.axis)

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"axis": self.axis, "keep": self.keep.tolist()}
        return out if self.row is None else {**out, "row": self.row}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Slice:
        axis, row, keep = data["axis"], data.get("row"), torch.tensor(data["keep"])
        indices = keep.dtype == torch.long and keep.numel() > 0 and keep.ndim == (1 if row is None else 2)
        if not isinstance(axis, int) or not indices:
            raise ValueError(f"a slice of axis {axis!r} with {keep.dtype} indices of shape {tuple(keep.shape)}")
        return cls(axis, keep, row)


def apply(tensor: Tensor, slices: list[Slice]) -> Tensor:
    for s in slices:
        tensor = s.apply(tensor)
    return tensor


def cut(tensor: Tensor, slices: list[Slice]) -> Tensor:
    """A tensor of its own, in memory as the full one is: convolutions whose layouts differ reorder all their inputs."""
    new = apply(tensor.detach(), slices).contiguous(memory_format=memory_format(tensor))
    return new if slices else new.clone()


def memory_format(tensor: Tensor) -> torch.memory_format:
    """``channels_last`` for pictures or volumes that are stored so, else contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is None or tensor.is_contiguous() or not tensor.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def slices_of(solution: Solution, info: Info) -> list[Slice]:
    """The slices of a weight: axes on their own first, then those whose indices differ from row to row."""
    arrays = [narrow(solution.engine.labels.find(f.ids)) for f in info.factors]
    pure = [a for a in arrays if len(_wide(a)) == 1]
    out: list[Slice] = []
    rows_kept: dict[int, Mask] = {}
    for ids in pure:
        axis = _wide(ids)[0] - 1
        kept = solution.kept(ids).reshape(-1)
        rows_kept[axis] = rows_kept.get(axis, np.ones(len(kept), dtype=bool)) & kept
    for axis, kept in sorted(rows_kept.items()):
        if not kept.all():
            out.append(Slice(axis, torch.from_numpy(np.flatnonzero(kept))))
    for ids in arrays:
        wide = _wide(ids)
        kept = solution.kept(ids)
        if len(wide) < 2 or kept.all():
            continue
        others = [p for p in pure if p is not ids]
        rows, live, stays = table(ids, kept, wide, others, solution.dead)
        governed = {a for a in wide[:-1] if any(p.shape[a] > 1 for p in others)}
        for position, axis in enumerate(wide[:-1]):
            if axis not in governed:
                along = stays.any(tuple(i for i in range(stays.ndim) if i != position))
                if not along.all():
                    out.append(Slice(axis - 1, torch.from_numpy(np.flatnonzero(along))))
        if rows is None:
            if not live[0].all():
                out.append(Slice(wide[-1] - 1, torch.from_numpy(np.flatnonzero(live[0]))))
        else:
            assert len(wide) == 2, "indices that differ from row to row need one axis of rows"
            index = np.stack([np.flatnonzero(row) for row in live])
            out.append(Slice(wide[-1] - 1, torch.from_numpy(index), wide[0] - 1))
    return out


def _wide(ids: Any) -> list[int]:
    return [i for i, n in enumerate(ids.shape) if n > 1]


def kept_along(solution: Solution, info: Info, axis: int) -> Mask:
    """Which indices stay along an axis of a tensor. Where they differ from row to row, those of the first row."""
    axis %= info.ndim
    result = np.ones(info.shape[axis], dtype=bool)
    arrays = [narrow(solution.engine.labels.find(f.ids)) for f in info.factors]
    pure = [a for a in arrays if len(_wide(a)) == 1]
    for ids in arrays:
        if ids.shape[axis + 1] == 1:
            continue
        kept = solution.kept(ids)
        wide = _wide(ids)
        if len(wide) == 1:
            result &= kept.reshape(-1)
            continue
        _, live, stays = table(ids, kept, wide, [p for p in pure if p is not ids], solution.dead)
        position = wide.index(axis + 1)
        if position == len(wide) - 1:
            result &= live[0] if len(live) else result
        else:
            result &= stays.any(tuple(i for i in range(stays.ndim) if i != position))
    return result


def new_shape(solution: Solution, info: Info) -> Shape:
    """The shape of a tensor of the compact model."""
    if not info.factors:
        return info.shape
    return tuple(int(kept_along(solution, info, a).sum()) for a in range(info.ndim))
