"""The plan of a compaction: what leaves, what stays and why, before anything is changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgating._checks import check_eager
from dgating.compaction._finite import check_finite
from dgating.structure import (
    Change,
    Engine,
    Info,
    MatrixUse,
    Slice,
    Solution,
    analyse,
    call_kwargs,
    changes,
    module_of,
    slices_of,
    solve,
    split_inputs,
)


@dataclass(frozen=True)
class Units:
    """Units of one kind: the same axes of the same weights hold a slice of each of them.

    Attributes:
        sites: ``(weight, axis)`` of every slice.
        total: how many units there are.
        removed: how many of them leave.
        kept_because: how many of the others stay for which reason.
    """

    sites: tuple[tuple[str, int], ...]
    total: int
    removed: int
    kept_because: dict[str, int]


@dataclass(frozen=True, eq=False)
class CompactionPlan:
    """What :func:`compact` would do: printable, and JSON by :meth:`to_json`.

    Attributes:
        units: the removable kinds of units, how many of each leave, and why the others stay.
        fixed: axes of which no index can leave, with the reason.
        slices: what stays of every weight that shrinks.
        folded: biases that take up the constants of removed units.
        unknown: operations without a rule that fixed what they touched, and the modules they are in.
        parameters: number of parameters before and after.
        sizes: sizes written into forward code that change: ``(module, operation, argument, old, new)``.
    """

    units: tuple[Units, ...]
    fixed: tuple[tuple[str, int, str], ...]
    slices: dict[str, list[Slice]]
    folded: dict[str, Tensor]
    unknown: dict[str, list[str]]
    parameters: tuple[int, int]
    sizes: tuple[tuple[str, str, str, Any, Any], ...]

    @property
    def removed(self) -> int:
        """How many units leave."""
        return sum(u.removed for u in self.units)

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(
            {
                "parameters": self.parameters,
                "units": [
                    {
                        "sites": [list(s) for s in u.sites],
                        "total": u.total,
                        "removed": u.removed,
                        "kept_because": u.kept_because,
                    }
                    for u in self.units
                ],
                "fixed": [list(f) for f in self.fixed],
                "slices": {name: [s.to_json() for s in ss] for name, ss in self.slices.items()},
                "folded": sorted(self.folded),
                "unknown": self.unknown,
            },
            indent=1,
        )

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [f"CompactionPlan: {self.removed} units leave, {before:,} -> {after:,} parameters"]
        for u in self.units:
            name = u.sites[0][0] + (f" (+{len(u.sites) - 1} slices)" if len(u.sites) > 1 else "")
            why = "; ".join(
                f"{n} kept: {reason}" for reason, n in sorted(u.kept_because.items(), key=lambda x: -x[1])[:2]
            )
            lines.append(f"  {name}: {u.removed} of {u.total} leave" + (f" ({why})" if why else ""))
        reasons: dict[str, int] = {}
        for _, _, reason in self.fixed:
            reasons[reason] = reasons.get(reason, 0) + 1
        for reason, n in sorted(reasons.items(), key=lambda x: -x[1])[:8]:
            lines.append(f"  {n} axes stay: {reason}")
        for op, where in self.unknown.items():
            lines.append(f"  no rule for {op}, in {', '.join(sorted(set(where))[:3]) or 'the model'}")
        return "\n".join(lines)


def plan_compaction(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    fold_constants: bool = True,
) -> CompactionPlan:
    """What :func:`compact` would remove, and why it keeps the rest; nothing is changed.

    Args:
        model: an ordinary model (collapse a gated one first), on any device.
        example_inputs: a tuple of positional or a dict of keyword arguments.
        kwargs: further keyword arguments.
        fold_constants: let a unit leave whose activation is a constant other than zero, by moving the constant into
            the biases that it feeds.

    Returns:
        :class:`CompactionPlan`.

    Raises:
        CompactionError: the model is gated, holds nan or infinite weights, or ``torch.export`` cannot read it.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[:3].zero_(), net[0].bias[:3].zero_()
        >>> print(dg.plan_compaction(net, (torch.randn(5, 4),)))
        CompactionPlan: 3 units leave, 58 -> 37 parameters
          0.weight (+2 slices): 3 of 8 leave (5 kept: linear in 2 reads it)
          2 axes stay: it is an output of the model
          1 axes stay: it reads an axis that is fixed
    """
    check_eager(model)
    check_finite(model)
    args, named = split_inputs(example_inputs, kwargs)
    engine = analyse(model, args, call_kwargs(model, named))
    return make_plan(model, engine, solve(engine, fold_constants))


def make_plan(model: nn.Module, engine: Engine, solution: Solution) -> CompactionPlan:
    weights = [i for i in engine.by_tensor.values() if i.weight is not None and i.weight.kind != "constant"]
    slices = {i.weight.name: s for i in weights if i.weight and (s := slices_of(solution, i))}
    before = sum(p.numel() for p in model.parameters())
    gone = 0
    for info in weights:
        assert info.weight is not None
        if info.weight.kind == "parameter" and info.weight.name in slices:
            size = _sliced_shape(info.shape, slices[info.weight.name])
            gone += int(np.prod(info.shape)) - int(np.prod(size))
    created = 0
    folded = _folds(engine, solution)
    known = dict(model.named_parameters(remove_duplicate=False))
    for name in folded:
        created += 0 if name in known else folded[name].numel()
    units, fixed = _describe(engine, solution, weights)
    sizes = tuple(_sizes(c) for c in changes(engine, solution))
    return CompactionPlan(units, fixed, slices, folded, engine.unknown, (before, before - gone + created), sizes)


def _sizes(c: Change) -> tuple[str, str, str, Any, Any]:
    path, _ = module_of(c.node)
    old, new = (_numbers(x) for x in (c.old, c.new))
    return clean(path), c.node.target._schema.name, c.argument, old, new  # type: ignore[union-attr]


def _numbers(size: Any) -> Any:
    """Sizes as numbers; what the graph computes from its inputs is ``None``."""
    if isinstance(size, list | tuple):
        return [_numbers(n) for n in size]
    return size if isinstance(size, int) else None


def clean(path: str) -> str:
    """The path of a module without the mark that export gives its second call."""
    return re.sub(r"@\d+", "", path)


def _sliced_shape(shape: tuple[int, ...], slices: list[Slice]) -> tuple[int, ...]:
    size = list(shape)
    for s in slices:
        size[s.axis] = s.keep.shape[-1]
    return tuple(size)


def _folds(engine: Engine, solution: Solution) -> dict[str, Tensor]:
    """What every bias takes up: weights times the constants of the inputs that leave."""
    out: dict[str, Tensor] = {}
    for use in engine.uses:
        if not isinstance(use, MatrixUse) or use.fold is None:
            continue
        gone = torch.from_numpy(solution.dead[engine.labels.find(use.inputs)])
        constant = torch.where(gone, use.constant.double().nan_to_num(0.0), 0.0)
        if not bool((constant != 0).any()):
            continue
        w = use.weight.double()
        w = w.sum(-1) if w.ndim == 4 else w
        delta = torch.einsum("gnk,gk->gn", w, constant).reshape(-1)
        kept = torch.from_numpy(solution.kept(engine.labels.find(use.outputs))).reshape(-1)
        name = use.fold.bias.name if use.fold.bias is not None else f"{clean(use.fold.module)}.bias".lstrip(".")
        out[name] = delta[kept]
    return out


def _describe(
    engine: Engine, solution: Solution, weights: list[Info]
) -> tuple[tuple[Units, ...], tuple[tuple[str, int, str], ...]]:
    """Families of units: those with slices in the same axes of the same weights."""
    sites: list[tuple[str, int]] = []
    signature = np.zeros(len(engine.labels), dtype=np.uint64)
    random = np.random.default_rng(0)
    members: list[np.ndarray] = []
    stuck: dict[tuple[str, int], np.ndarray] = {}  # units beside free ones that cannot leave
    fixed = [(name, axes[-1], reason) for (name, axes), reason in engine.plain.items()]
    for info in weights:
        assert info.weight is not None
        for f in info.factors:
            roots = np.unique(engine.labels.find(f.ids))
            free = roots[~engine.labels.fixed(roots)]
            axis = f.axes[-1]
            if not free.size:
                fixed.append((info.weight.name, axis, engine.labels.reason(int(roots[0]))))
                continue
            sites.append((info.weight.name, axis))
            stuck[info.weight.name, axis] = roots[engine.labels.fixed(roots)]
            members.append(free)
            signature[free] += random.integers(1, 2**63, dtype=np.uint64)
    families: dict[int, list[tuple[str, int]]] = {}
    for site, roots in zip(sites, members, strict=True):
        for key in np.unique(signature[roots]):
            families.setdefault(int(key), []).append(site)
    everyone = np.unique(np.concatenate(members)) if members else np.zeros(0, dtype=np.int64)
    found = []
    for key, where in families.items():
        roots = everyone[signature[everyone] == np.uint64(key)]
        dead = solution.dead[roots]
        because: dict[str, int] = {}
        for r in roots[~dead]:
            why = solution.cause.get(int(r), "it stays")
            because[why] = because.get(why, 0) + 1
        for r in stuck.get(where[0], ()):
            why = engine.labels.reason(int(r))
            because[why] = because.get(why, 0) + 1
        found.append(Units(tuple(where), len(roots), int(dead.sum()), because))
    return tuple(found), tuple(fixed)
