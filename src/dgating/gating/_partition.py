"""One tensor cut into ``J`` groups: the index maths of gating, free of modules and parameters.

A partition is a tensor of integer labels that broadcasts to the shape of the weight: label ``j`` puts an
entry into group ``j``, ``-1`` leaves it ungated. An axis along which the labels do not change has size one,
so "group the columns of a 300 x 784 matrix" is 784 labels and not 235,200.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

UNGATED = -1


@dataclass(frozen=True)
class Layout:
    """How ``J`` numbers spread over a tensor, and how a tensor sums back to ``J`` numbers.

    ``broadcast`` is the shape of the labels (size one where they do not change). ``block`` is set when the
    labels are ``0,..,0,1,..,1,..``, each ``block`` times: then no index is needed. Otherwise ``expand`` and
    ``reduce`` take the flat labels.
    """

    broadcast: tuple[int, ...]
    n_groups: int
    block: int | None

    def expand(self, values: Tensor, labels: Tensor | None) -> Tensor:
        """``(J,)`` values to a tensor that broadcasts against the weight."""
        if self.block is None:
            assert labels is not None
            values = values.index_select(0, labels)
        elif self.block > 1:
            values = values.unsqueeze(1).expand(-1, self.block)
        return values.reshape(self.broadcast)

    def reduce(self, entries: Tensor, labels: Tensor | None) -> Tensor:
        """Sum of the entries of each group: the transpose of ``expand``."""
        per_label = entries.sum_to_size(self.broadcast).reshape(-1)
        if self.block is None:
            assert labels is not None
            return per_label.new_zeros(self.n_groups).index_add(0, labels, per_label)
        return per_label if self.block == 1 else per_label.view(self.n_groups, self.block).sum(1)


@dataclass(frozen=True)
class Split:
    """Where the gated and the ungated entries of a partially labelled tensor lie.

    Along ``dim`` when only one axis is labelled, else over the flattened tensor (``dim is None``). ``cat`` of both,
    rest first if ``rest_first``, then the permutation ``merge`` restore the order (``None``: it is right already).
    """

    dim: int | None
    shape: tuple[int, ...]
    gated: Tensor
    rest: Tensor
    rest_first: bool
    merge: Tensor | None


@dataclass(frozen=True, eq=False)
class Partition:
    """A tensor of ``shape`` cut into ``n_groups`` groups by integer ``labels`` (-1 = ungated).

    Args:
        shape: shape of the weight.
        labels: integer tensor of the same number of axes, each of size one or of the weight's size.
        n_groups: ``J``; every label is in ``[-1, J)``. A group may be absent from one tensor when another
            tensor of the same :class:`~dgating.Groups` holds it.
    """

    shape: tuple[int, ...]
    labels: Tensor
    n_groups: int

    @property
    def partial(self) -> bool:
        """Whether some entries are ungated."""
        return bool((self.labels == UNGATED).any())

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which the labels change."""
        return tuple(i for i, n in enumerate(self.labels.shape) if n > 1)

    @property
    def sizes(self) -> Tensor:
        """``(J,)`` number of weights of each group in this tensor."""
        flat = self.labels.reshape(-1)
        repeat = math.prod(self.shape) // max(flat.numel(), 1)
        return torch.bincount(flat[flat != UNGATED], minlength=self.n_groups) * repeat

    def layout(self) -> tuple[Layout, Tensor | None]:
        """The layout of a partition without ungated entries, and the flat labels if it needs them."""
        assert not self.partial
        flat = self.labels.reshape(-1)
        n, groups = flat.numel(), self.n_groups
        if n % groups == 0:
            block = n // groups
            if torch.equal(flat, torch.arange(n, device=flat.device) // block):
                return Layout(tuple(self.labels.shape), groups, block), None
        return Layout(tuple(self.labels.shape), groups, None), flat

    def split(self) -> tuple[Split, Partition]:
        """Separate gated from ungated entries; the second value partitions the gated part alone."""
        axes = self.axes
        if len(axes) == 1:
            dim, flat = axes[0], self.labels.reshape(-1)
        else:
            dim, flat = None, self.labels.expand(self.shape).reshape(-1)
        gated, rest = (flat != UNGATED).nonzero()[:, 0], (flat == UNGATED).nonzero()[:, 0]
        rest_first = int(rest[0]) < int(gated[0])
        order = torch.cat([rest, gated] if rest_first else [gated, rest])
        merge = None if bool((order[1:] > order[:-1]).all()) else torch.argsort(order)
        split = Split(dim, self.shape, gated, rest, rest_first, merge)
        labels = flat[gated]
        if dim is None:
            return split, Partition((gated.numel(),), labels, self.n_groups)
        inner = tuple(gated.numel() if i == dim else n for i, n in enumerate(self.shape))
        return split, Partition(inner, labels.view(along(dim, gated.numel(), len(inner))), self.n_groups)

    def describe(self) -> str:
        """One line for people: what the groups of this tensor are."""
        sizes = self.sizes
        sizes = sizes[sizes > 0]
        low, high = int(sizes.min()), int(sizes.max())
        each = f"{low}" if low == high else f"{low} to {high}"
        axes = self.axes
        if not axes:
            where = "whole"
        elif len(axes) == 1:
            where = f"dim {axes[0]}"
        else:
            where = f"labels over dims {', '.join(map(str, axes))}"
        ungated = math.prod(self.shape) - int(sizes.sum())
        return f"{where}, {sizes.numel()} x {each} weights" + (f", {ungated} ungated" if ungated else "")


def along(dim: int, n: int, ndim: int) -> tuple[int, ...]:
    """The shape ``(1, .., n, .., 1)``: ``n`` values along ``dim`` of an ``ndim``-dimensional tensor."""
    return tuple(n if i == dim else 1 for i in range(ndim))


def partition_by_dim(shape: tuple[int, ...], dim: int, block: int = 1) -> Partition:
    """Slices of ``block`` consecutive indices along ``dim`` form one group each.

    Raises:
        IndexError: ``dim`` is not an axis of the tensor.
        ValueError: ``block`` does not divide the size of that axis.
    """
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim: expected an integer axis, received {dim!r}.")
    if not -len(shape) <= dim < len(shape):
        raise IndexError(
            f"dim: expected an axis of a tensor of shape {shape} (-{len(shape)} to {len(shape) - 1}), received {dim}."
        )
    dim %= len(shape)
    n = shape[dim]
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block: expected a whole number >= 1, received {block!r}.")
    if n == 0 or n % block:
        raise ValueError(
            f"block: expected a divisor of {n}, the size of axis {dim} of a tensor of shape {shape}, "
            f"received {block}. For uneven groups give integer labels to by_labels."
        )
    labels = (torch.arange(n) // block).view(along(dim, n, len(shape)))
    return Partition(shape, labels, n // block)


def partition_by_labels(shape: tuple[int, ...], labels: Tensor, n_groups: int | None = None) -> Partition:
    """Groups given entry by entry: any integer partition of the tensor.

    Args:
        shape: shape of the weight.
        labels: integers that broadcast to ``shape``; ``-1`` marks ungated entries.
        n_groups: ``J``; by default the largest label plus one, and then each of ``0..J-1`` must occur.

    Raises:
        TypeError: the labels are not integers.
        ValueError: they do not broadcast to the weight, are below -1, leave a number out, or gate nothing.
    """
    try:
        labels = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(
            f"labels: expected integers of 64 bits as a tensor, received {type(labels).__name__}."
        ) from None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"labels: expected integers, received dtype {labels.dtype}. Use labels.long(), -1 for ungated entries."
        )
    labels = labels.long().clone()  # the caller may go on editing theirs
    if labels.ndim > len(shape) or any(
        a not in (1, b) for a, b in zip(reversed(labels.shape), reversed(shape), strict=False)
    ):
        raise ValueError(
            f"labels: expected a shape that broadcasts to the weight's {tuple(shape)}, received {tuple(labels.shape)}. "
            "For one label per row of a matrix use labels[:, None]; for one per column, labels."
        )
    labels = labels.view((1,) * (len(shape) - labels.ndim) + tuple(labels.shape))
    if labels.numel() == 0 or int(labels.max()) < 0:
        raise ValueError("labels: expected at least one label >= 0, received none: nothing would be gated.")
    if int(labels.min()) < UNGATED:
        raise ValueError(f"labels: expected values >= -1 (-1 = ungated), received {int(labels.min())}.")
    found = torch.unique(labels)
    found = found[found != UNGATED]
    if n_groups is None:
        n_groups = int(found[-1]) + 1
        if found.numel() != n_groups:
            low = torch.arange(min(n_groups, found.numel() + 5))  # a label may be as large as memory is not
            missing = low[~torch.isin(low, found)][:5].tolist()
            raise ValueError(
                f"labels: expected every number from 0 to {n_groups - 1} to occur, missing {missing} "
                f"({n_groups - found.numel()} in all). torch.unique(labels, return_inverse=True) renumbers them."
            )
    elif int(found[-1]) >= n_groups:
        raise ValueError(f"labels: expected values below n_groups = {n_groups}, received {int(found[-1])}.")
    return Partition(tuple(shape), labels, n_groups)
