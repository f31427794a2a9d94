"""``budget_path``: let the strength rise until a budget is met, then close in on it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from dgating._checks import check_below_one, check_number, check_whole
from dgating.deploy import profile
from dgating.gating import collapse_, is_gated
from dgating.paths._objective import Loss, Score
from dgating.paths._path import MakeGroups, begin, check_call, rising, seeded, warn_ended
from dgating.paths._result import PathPoint, RegularizationPath
from dgating.paths._walk import Options, Walk

Cost = Callable[[Walk], float]


def budget_path(
    model_fn: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    n_groups: int | None = None,
    params: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    tol: float = 0.02,
    refine: int = 12,
    groups: MakeGroups | None = None,
    depth: int = 3,
    loss: Loss | None = None,
    score: Score | None = None,
    validation: Any = 0.2,
    device: torch.device | str | None = None,
    seed: int = 0,
    callback: Callable[[PathPoint], object] | None = None,
    **options: Any,
) -> RegularizationPath:
    r"""A path that ends at a budget: the λ is found by bracketing, on the way.

    λ rises as in :func:`path` until the model meets the budget. Then the walk goes back to its last state above it and
    tries the geometric mean of the two strengths, again and again. Where groups fall together and none of these comes
    close enough from below, as many groups as the budget allows are kept of the last state above it, those with the
    largest norms, and trained on without penalty for ``steps`` steps.

    Args:
        model_fn: as in :func:`path`, like all arguments that are not listed here.
        data: as there.
        n_groups: keep exactly so many groups. One of this and the next three is given.
        params: share of the dense model's parameters, in ``(0, 1)``.
        flops: share of its FLOPs for a row.
        latency: share of its measured time for a batch in evaluation mode, as the median of alternating calls.
        tol: close enough below a share, relative to it.
        refine: strengths to try at most between the two sides of the budget.
        groups: which groups.
        depth: ``D``.
        loss: of the data.
        score: of the points.
        validation: rows for the score.
        device: where to train.
        seed: of everything random.
        callback: called with every point, also with those that are tried and left again.
        options: ``dense_steps``, ``steps``, ``relax_steps``, ``patience``, ``batch_size``, ``lr``, ``momentum``,
            ``weight_decay``, ``zero_below``, ``compact``.

    Returns:
        A :class:`RegularizationPath` whose last point meets the budget.

    Raises:
        ValueError: not exactly one budget, one out of range, or one that no model on the path meets.

    Example:
        >>> import torch, dgating as dg
        >>> _ = torch.manual_seed(0)
        >>> X = torch.randn(400, 10); y = X[:, 0] - 2 * X[:, 1] + 0.5 * X[:, 2]
        >>> found = dg.budget_path(torch.nn.Linear(10, 1), (X, y), n_groups=2)
        >>> found[-1].kept["weight"].nonzero()[:, 0].tolist()
        [0, 1]
    """
    unknown = options.keys() - {f.name for f in fields(Options)}
    if unknown:
        raise TypeError(f"budget_path: unknown options {sorted(unknown)}; expected some of those listed in its help.")
    chosen = Options(**options)
    check_call(None, groups, depth, loss, score, device, seed, callback)
    check_below_one("tol", tol, zero=True)
    check_whole("refine", refine, 0)
    _check_budget(n_groups, params, flops, latency)
    with seeded(seed, device):
        walk, base, settings = begin(model_fn, data, groups, depth, loss, score, validation, chosen, device, seed)
        cost, target = _budget(walk, n_groups, params, flops, latency)
        walk.dense()
        points, above, met = _cross(walk, cost, target, chosen, callback)
        if met is None:
            raise ValueError(
                f"budget_path: no model on the path meets the budget; the smallest cost was {points[-1][1]:.3g} of "
                f"{target:.3g}. Gate more of the model, or ask for less."
                if points
                else "budget_path: the loss is not finite at the first strength. Lower lr."
            )
        enough = target * (1 - tol) if n_groups is None else target
        low = points[-1][0].lam if points else met[0].lam / 2
        above, met, tried = _close_in(above, low, met, cost, target, enough, refine, callback)
        points += tried
        if met[1] < enough:
            met = _cut(above, met, cost, target, enough, points[-1][0].lam if points else met[0].lam)
            if callback is not None:
                callback(met[0])
    return RegularizationPath((*(p for p, _ in points), met[0]), walk.depth, settings, base)


Costed = tuple[PathPoint, float]


def _cross(
    walk: Walk, cost: Cost, target: float, options: Options, callback: Callable[[PathPoint], object] | None
) -> tuple[list[Costed], Walk, Costed | None]:
    """Points above the budget, the walk after the last of them, and the first point that meets it."""
    points: list[Costed] = []
    above = walk.copy()
    for lam in rising(walk):
        point = walk.step(lam)
        if point is None:
            warn_ended(lam, options.lr)
            break
        if callback is not None:
            callback(point)
        value = cost(walk)
        if value <= target:
            return points, above, (point, value)
        points.append((point, value))
        if walk.alive == 0:
            break
        above = walk.copy()
    return points, above, None


def _close_in(
    above: Walk, low: float, met: Costed, cost: Cost, target: float, enough: float, refine: int,
    callback: Callable[[PathPoint], object] | None,
) -> tuple[Walk, Costed, list[Costed]]:  # fmt: skip
    """Try strengths between the last point above the budget and the first that meets it."""
    high, tried = met[0].lam, []
    for _ in range(refine):
        if met[1] >= enough or high / low < 1 + 1e-6:
            break
        middle = math.sqrt(low * high)
        trial = above.copy()
        point = trial.step(middle)
        if point is None:
            break
        if callback is not None:
            callback(point)
        value = cost(trial)
        if value > target:
            above, low = trial, middle
            tried.append((point, value))
        else:
            high = middle
            if value >= met[1]:
                met = (point, value)
    return above, met, tried


def _cut(walk: Walk, met: Costed, cost: Cost, target: float, enough: float, lam: float) -> Costed:
    """Keep as many of the groups with the largest norms as the budget allows, and train on without penalty."""
    norms = walk.small.norms()
    every = torch.cat(list(norms.values()))
    ranks = torch.empty_like(every, dtype=torch.long)
    ranks[every.argsort(descending=True, stable=True)] = torch.arange(len(every))
    by_name = dict(zip(norms, ranks.split([len(n) for n in norms.values()]), strict=True))
    best, value = None, met[1]
    few, many = met[0].n_groups, walk.alive
    while many - few > 1 and value < enough:
        middle = (few + many) // 2
        trial = walk.copy()
        trial.drop({name: rank >= middle for name, rank in by_name.items()})
        now = cost(trial)
        if now > target:
            many = middle
        else:
            few, best, value = middle, trial, now
    if best is None:
        return met
    best.trainer.set_lam(0.0)
    loss = best.trainer.run(best.small.data, best.batches, best.options.steps)
    return best.point(lam, loss, best.options.steps), value


def _budget(
    walk: Walk, n_groups: int | None, params: float | None, flops: float | None, latency: float | None
) -> tuple[Cost, float]:
    """What is measured at a point, and the most that it may be."""
    (name, value), total = _check_budget(n_groups, params, flops, latency), walk.alive
    if name == "n_groups":
        if not value < total:
            raise ValueError(f"n_groups: expected a whole number in 1 .. {total - 1}, received {value!r}.")
        return lambda walk: walk.alive, value
    if name == "params":
        parameters = walk.small.n_parameters()
        return lambda walk: walk.small.n_parameters() / parameters, value
    if name == "flops":
        flops = max(walk.flops(), 1)
        return lambda walk: walk.flops() / flops, value
    dense, data = _plain(walk.small.model), walk.small.data.rows(next(walk.batches.copy()))

    def share_of_time(walk: Walk) -> float:
        made = profile(_plain(walk.small.model), walk.small.seen(data).rows().inputs, _Of(dense, data.inputs))
        return 1 / made.latency_speedup  # type: ignore[operator]  (it has a reference)

    return share_of_time, value


def _check_budget(
    n_groups: int | None, params: float | None, flops: float | None, latency: float | None
) -> tuple[str, Any]:
    """Which budget is given, and how much it is; whether a model has more groups is not known yet."""
    given = {"n_groups": n_groups, "params": params, "flops": flops, "latency": latency}
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise ValueError(f"budget_path: expected one of {', '.join(given)}, received {len(named)} of them.")
    name, value = named.popitem()
    if name == "n_groups":
        return name, check_whole("n_groups", value, 1)
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a share in (0, 1) of the dense model, received {value!r}.")
    return name, value


class _Of(nn.Module):
    """A model on inputs of its own: the dense model takes more columns than the small one."""

    def __init__(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *_: torch.Tensor) -> Any:
        return self.model(*self.inputs)


def _plain(model: nn.Module) -> nn.Module:
    made = copy.deepcopy(model)
    if is_gated(made):
        collapse_(made)
    return made


__all__ = ["budget_path"]
