"""``path``: train along rising strengths, from a dense model to an empty one."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from dgating._checks import check_callable, check_depth, check_device, check_lams, check_seed, check_whole
from dgating.gating import Groups, gate_, is_gated, units
from dgating.maths import lam_grid
from dgating.paths._data import Data, as_data, split
from dgating.paths._grid import lam_max
from dgating.paths._objective import Loss, Score, default_loss, default_score
from dgating.paths._result import PathPoint, RegularizationPath
from dgating.paths._walk import Options, Walk
from dgating.select import features

MOST_STRENGTHS = 1000
MakeGroups = Callable[[nn.Module], Groups | Iterable[Groups]]


def path(
    model_fn: nn.Module | Callable[[], nn.Module],
    data: Any,
    lams: Sequence[float] | int | None = None,
    *,
    groups: MakeGroups | None = None,
    depth: int = 3,
    loss: Loss | None = None,
    score: Score | None = None,
    validation: Any = 0.2,
    dense_steps: int = 200,
    steps: int = 50,
    relax_steps: int = 0,
    patience: int | None = None,
    batch_size: int | None = None,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    zero_below: float = 1e-3,
    min_groups: int = 0,
    compact: bool = True,
    states: bool = True,
    device: torch.device | str | None = None,
    seed: int = 0,
    callback: Callable[[PathPoint], object] | None = None,
) -> RegularizationPath:
    r"""Train one gated model along rising strengths λ, each from the end of the one before.

    At every λ the objective is :math:`L_0 + \lambda \sum_j \|W_j\|_2^{2/D}`. A group that has become small at the end
    of a strength is made exactly zero and cut out: later strengths train a smaller model (**progressive compaction**).
    For ``D >= 3`` zero is a local minimum for a group at every λ, so that it is a valid end; for ``D = 2`` groups that
    fall at one λ are not looked at again.

    Args:
        model_fn: builds the model, or a model (which is copied). An ungated one is gated.
        data: ``(X, y)`` or ``(X, y, weight)`` of tensors or arrays (``X`` a tuple for several inputs), a ``Dataset``
            or a ``DataLoader``; held in memory, on the device.
        lams: rising strengths; a number of them for a grid up to an estimate of the largest useful one
            (:func:`lam_max`). ``None``: from a small one up until no group is left, by 50 % at first, by 25 % once a
            group has lost half of its norm, by 10 % once one has fallen, by 5 % where more than a tenth of them did.
        groups: makes the groups of a fresh model; by default :func:`features` of its first linear layer.
        depth: ``D``.
        loss: ``f(output, target)``, one loss a row or their mean. By default the cross entropy for integer targets,
            half the squared error for others.
        score: ``f(output, target)``, larger is better; one number, or one a row whose mean is the score (then there is
            a standard error, too). By default accuracy or R².
        validation: a share of the rows, validation data like ``data``, or ``None``.
        dense_steps: steps without penalty before the first λ.
        steps: steps of SGD at each λ, at most.
        relax_steps: so many steps without penalty at the end of each λ on the groups that are left (a **relaxed fit**),
            for the score and the state of the point; the path goes on without them.
        patience: a λ looks five times whether it may end; it does when this many looks in a row found no group lost
            and the loss not better by one part in a thousand. ``None``: always take all steps.
        batch_size: rows a step; by default 256, but fewer where a pass would take less than 32 steps (down to 32 rows),
            more where it would take over 256.
        lr: constant step size.
        momentum: of SGD.
        weight_decay: of ungated parameters.
        zero_below: a group is zero when its norm is below this share of the largest norm after the dense steps.
        min_groups: stop once no more than this many groups are left.
        compact: cut dead groups out (else they stay as zeros).
        states: keep the weights of every point; without them a path of a large model takes little memory.
        device: where to train; by default where the model is.
        seed: of the shuffling, the split, and of ``torch`` while the model is built and trained.
        callback: called with every point.

    Returns:
        :class:`RegularizationPath`.

    Raises:
        ValueError: strengths that do not rise, data or options that do not fit.
        FloatingPointError: the loss became infinite or nan before the first λ. Later it ends the path, with a warning,
            at the last good point.

    Warns:
        RuntimeWarning: the given strengths and steps are too few for zeros (see :func:`time_budget`).

    Example:
        >>> import torch, dgating as dg
        >>> _ = torch.manual_seed(0)
        >>> X = torch.randn(400, 10); y = X[:, 0] - 2 * X[:, 1]          # eight of ten features are noise
        >>> net = torch.nn.Linear(10, 1)
        >>> found = dg.path(net, (X, y))
        >>> best = found.select("within", within=0.05)
        >>> best.kept["weight"].nonzero()[:, 0].tolist()
        [0, 1]

    Reference: arXiv 2509.23898; warm starts along a path, Friedman, Hastie, Tibshirani 2010; relaxed fits, Meinshausen
    2007.
    """
    options = Options(
        steps, dense_steps, relax_steps, patience, batch_size, lr, momentum, weight_decay, zero_below, compact, states
    )
    known = check_call(lams, groups, depth, loss, score, device, seed, callback)
    strengths = known if isinstance(known, list) else None
    check_whole("min_groups", min_groups, 0)
    with seeded(seed, device):
        walk, base, settings = begin(model_fn, data, groups, depth, loss, score, validation, options, device, seed)
        if isinstance(known, int):
            strengths = lam_grid(lam_max(walk.small.model, walk.small.data, walk.loss), n=known)
        if strengths is not None:
            _check_budget(strengths, options)
        walk.dense()
        points: list[PathPoint] = []
        for lam in rising(walk) if strengths is None else strengths:
            point = walk.step(lam)
            if point is None:
                warn_ended(lam, lr)
                break
            points.append(point)
            if callback is not None:
                callback(point)
            if walk.alive <= min_groups:
                break
    return RegularizationPath(tuple(points), walk.depth, settings, base)


def check_call(
    lams: Any, groups: Any, depth: Any, loss: Any, score: Any, device: Any, seed: Any, callback: Any
) -> int | list[float] | None:
    """What every walk is called with, checked before any work; the strengths as they are used."""
    check_depth(depth)
    check_seed(seed)
    check_callable("groups", groups, "a function that makes the groups of a model")
    check_callable("loss", loss, "a function of output and target")
    check_callable("score", score, "a function of output and target")
    check_callable("callback", callback, "a function of a point")
    check_device(device)
    return check_lams(lams)


def begin(
    model_fn: Any, data: Any, groups: MakeGroups | None, depth: int, loss: Loss | None, score: Score | None,
    validation: Any, options: Options, device: Any, seed: int,
) -> tuple[Walk, nn.Module | None, dict[str, Any]]:  # fmt: skip
    """A walk at its start, the ungated model for :meth:`RegularizationPath.restore`, and the settings to store."""
    base = copy.deepcopy(model_fn) if isinstance(model_fn, nn.Module) else model_fn()
    if not isinstance(base, nn.Module):
        raise TypeError(f"model_fn: expected a module or a function that builds one, received {type(base).__name__}.")
    generator = torch.Generator().manual_seed(seed)
    device = device or next((p.device for p in base.parameters()), "cpu")
    base.to(device)
    train, held = _split(as_data(data).to(device), validation, generator, device)
    model = copy.deepcopy(base)
    if not is_gated(model):
        gate_(model, groups(model) if groups is not None else features(_first_linear(model)), depth)
    else:
        depth = units(model)[0].depth
        base = None  # the states are those of the ungated model
    loss = loss or default_loss(train.target)
    judge = score or default_score(train.target)
    settings = {
        **asdict(options), "batch_size": options.rows_a_step(len(train)), "seed": seed,
        "score": _name(judge), "loss": _name(loss),
        "rows": len(train), "validation_rows": 0 if held is None else len(held),
    }  # fmt: skip
    return Walk(model, train, held, loss, judge, depth, options, generator), base, settings


@contextmanager
def seeded(seed: int, device: Any) -> Iterator[None]:
    """``torch`` draws from this seed inside (weights, dropout), and goes on outside as if nothing had happened."""
    kind = torch.device(device or "cpu").type
    with torch.random.fork_rng(devices=None if kind == "cuda" else [], device_type="cuda"):
        torch.manual_seed(seed)
        yield


def rising(walk: Walk) -> Iterator[float]:
    """Strengths up to where no group is left: large steps while nothing happens, small ones once groups fall."""
    lam, whole, dense = walk.first_lam(), walk.alive, walk.small.norms()
    for _ in range(MOST_STRENGTHS):
        before = walk.alive
        yield lam
        if walk.alive < whole:
            lam *= 1.05 if before - walk.alive > 0.1 * before else 1.1
        else:
            least = min(float((n / dense[name]).nan_to_num(1.0).min()) for name, n in walk.small.norms().items())
            lam *= 1.25 if least < 0.5 else 1.5


def warn_ended(lam: float, lr: float) -> None:
    """Say that a path ended early."""
    warnings.warn(
        f"path: the loss is not finite at lam = {lam:.3g}; the path ends before it. Lower lr (now {lr}), or "
        "let lam rise more slowly.",
        RuntimeWarning,
        stacklevel=3,
    )


def _check_budget(strengths: list[float], options: Options) -> None:
    """Warn where even a group without any signal would not reach zero."""
    needed = -math.log(options.zero_below)
    exponent = options.reach * sum(strengths)
    if 0 < exponent < needed:  # a strength of zero asks for the dense model
        warnings.warn(
            f"path: a group without signal falls to {math.exp(-exponent):.1e} of its norm over these {len(strengths)} "
            f"strengths, and counts as zero below {options.zero_below:g}: no group may ever leave. Take steps >= "
            f"{math.ceil(options.steps * needed / exponent)} (now {options.steps}), larger lams, or a larger lr.",
            RuntimeWarning,
            stacklevel=3,
        )


def _first_linear(model: nn.Module) -> nn.Linear:
    found = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
    if found is None:
        raise ValueError("groups: this model has no linear layer whose inputs could be selected. Pass groups=...")
    return found


def _split(data: Data, validation: Any, generator: torch.Generator, device: Any) -> tuple[Data, Data | None]:
    if validation is None:
        return data, None
    if isinstance(validation, float):
        if not 0 < validation < 1 or round(validation * len(data)) >= len(data) or len(data) < 2:
            raise ValueError(
                f"validation: expected a share in (0, 1) that leaves rows to train on, data or None, received "
                f"{validation!r} of {len(data)} rows."
            )
        return split(data, validation, generator)
    return data, as_data(validation, "validation").to(device)


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", type(function).__name__)


__all__ = ["path"]
