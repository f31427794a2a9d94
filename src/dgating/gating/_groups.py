"""``Groups``: ``J`` groups of weights that may span several tensors, one set of gates a group.

A ``Groups`` is a row of *parts*. The members of one part (slices of one or more tensors) share one gate
tensor; parts stand side by side and share nothing. ``filters(model)`` has a part a layer, a residual channel
with its norm's scale and shift is one part with several members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dgating._checks import check_text
from dgating.gating._partition import Partition


@dataclass(frozen=True, eq=False)
class Member:
    """One tensor of a part and how it is cut. ``owner`` is a module (then ``name`` is its attribute) or,
    when the user handed in a bare parameter, that parameter: ``gate_`` then finds the module."""

    owner: nn.Module | nn.Parameter
    name: str
    partition: Partition

    @property
    def parameter(self) -> nn.Parameter:
        return self.owner if isinstance(self.owner, nn.Parameter) else getattr(self.owner, self.name)

    def title(self) -> str:
        if isinstance(self.owner, nn.Module):
            return f"{parametrize.type_before_parametrizations(self.owner).__name__}.{self.name}"
        return "Parameter"


@dataclass(frozen=True, eq=False)
class Part:
    """Members that share one gate tensor. ``label`` names the part in reports (by default its path)."""

    members: tuple[Member, ...]
    label: str | None = None

    @property
    def n_groups(self) -> int:
        return self.members[0].partition.n_groups

    @property
    def sizes(self) -> Tensor:
        return torch.stack([m.partition.sizes for m in self.members]).sum(0)


@dataclass(eq=False)
class Groups:
    """``J`` groups of weights, ready to be gated.

    Made by :func:`by_dim`, :func:`by_labels`, :func:`whole`, :func:`features`, :func:`neurons`, :func:`filters`,
    and combined by :func:`tie` (the same groups in several tensors) and :func:`concat` (side by side).

    ``len(groups)`` is ``J``, ``groups.sizes`` the number of weights of each group and ``print(groups)`` shows what
    it holds. ``groups.name`` is the key under which the diagnostics report these groups; unless one was given,
    :func:`gate_` sets it to the path of the first tensor in the model.

    Example:
        >>> import torch, dgating as dg
        >>> groups = dg.by_dim(torch.nn.Linear(4, 3), dim=1)
        >>> len(groups), groups.sizes.tolist()
        (4, [3, 3, 3, 3])
        >>> print(groups)
        Groups 'Linear.weight': 4 groups of 3 weights
          Linear.weight (3, 4): dim 1, 4 x 3 weights
    """

    parts: tuple[Part, ...]
    given_name: str | None = None
    _resolved: str | None = field(default=None, init=False)
    _paths: dict[Member, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        _check_name(self.given_name)
        if not self.parts:
            raise ValueError("Groups: expected at least one part, received none.")
        for part in self.parts:
            empty = (part.sizes == 0).nonzero()[:, 0]
            if empty.numel():
                raise ValueError(
                    f"Groups: expected every group to hold weights, but {empty.numel()} of {part.n_groups} are empty "
                    f"(first: {empty[:5].tolist()})."
                )

    @property
    def name(self) -> str:
        """Key of these groups in :func:`group_norms`, :func:`report` and the masks of :func:`zero_`."""
        return self.given_name or self._resolved or self.parts[0].members[0].title()

    @property
    def sizes(self) -> Tensor:
        """``(J,)`` number of weights of each group."""
        return torch.cat([part.sizes for part in self.parts])

    def __len__(self) -> int:
        return sum(part.n_groups for part in self.parts)

    def __repr__(self) -> str:
        sizes = self.sizes
        low, high = int(sizes.min()), int(sizes.max())
        each = f"{low}" if low == high else f"{low} to {high}"
        lines = [f"Groups {self.name!r}: {len(self)} groups of {each} weights"]
        for part in self.parts:
            for i, m in enumerate(part.members):
                mark = "  " if i == 0 else "  & "
                title = self._paths.get(m) or (m.title() if part.label is None or i else part.label)
                lines.append(f"{mark}{title} {m.partition.shape}: {m.partition.describe()}")
        if len(lines) > 13:  # a deep model: the first and the last parts tell enough
            lines = [*lines[:9], f"  ... {len(lines) - 12} more tensors", *lines[-3:]]
        return "\n".join(lines)


def tie(*groups: Groups, name: str | None = None) -> Groups:
    """The same ``J`` groups in several tensors: group ``j`` of each becomes one group with one set of gates.

    A channel is a filter with its norm's scale and shift; a head is slices of four projections. The effective
    norm of a tied group is taken over all its slices, so it is one block of the penalty and dies as one.

    Args:
        groups: two or more :class:`Groups` with the same number of groups.
        name: key in the diagnostics.

    Raises:
        ValueError: fewer than two, or different numbers of groups.

    Example:
        >>> import torch, dgating as dg
        >>> conv, norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
        >>> unit = dg.tie(dg.by_dim(conv, 0), dg.by_dim(norm, 0), dg.by_dim(norm, 0, name="bias"))
        >>> len(unit), unit.sizes[0].item()
        (8, 29)
    """
    if len(groups) < 2:
        raise ValueError(f"tie: expected two or more Groups, received {len(groups)}.")
    _check_groups(groups, "tie")
    _check_name(name)
    counts = [tuple(p.n_groups for p in g.parts) for g in groups]
    if len(set(counts)) != 1:
        raise ValueError(
            f"tie: expected the same number of groups in each argument, received {[len(g) for g in groups]} "
            f"(parts: {counts}). Use concat to put different groups side by side."
        )
    parts = tuple(
        Part(tuple(m for g in groups for m in g.parts[i].members), groups[0].parts[i].label)
        for i in range(len(groups[0].parts))
    )
    return Groups(parts, name or groups[0].given_name)


def concat(*groups: Groups, name: str | None = None) -> Groups:
    """Groups side by side under one name: ``J`` adds up, each keeps its own gates.

    Args:
        groups: one or more :class:`Groups` over different weights.
        name: key in the diagnostics.

    Raises:
        ValueError: no argument.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> len(dg.concat(dg.features(net[0]), dg.features(net[2]), name="inputs"))
        7
    """
    if not groups:
        raise ValueError("concat: expected at least one Groups, received none.")
    _check_groups(groups, "concat")
    _check_name(name)
    parts = tuple(
        replace(p, label=p.label or (g.given_name if len(g.parts) == 1 else None)) for g in groups for p in g.parts
    )
    return Groups(parts, name or groups[0].given_name)


def _check_name(name: object) -> None:
    if name is not None:
        check_text("name", name)


def _check_groups(groups: Sequence[object], caller: str) -> None:
    for g in groups:
        if not isinstance(g, Groups):
            raise TypeError(f"{caller}: expected Groups, received {type(g).__name__}.")
