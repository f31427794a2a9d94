"""``path``: train along rising strengths, from a dense model to an empty one."""

from __future__ import annotations

import copy
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from dgating._groups import Groups
from dgating._model import gate_, is_gated
from dgating._optim import check_number
from dgating._units import units
from dgating.paths._data import Data, as_data, split
from dgating.paths._grid import lam_grid, lam_max
from dgating.paths._objective import Loss, Score, default_loss, default_score, outputs
from dgating.paths._result import PathPoint, RegularizationPath
from dgating.paths._shrink import Shrinking
from dgating.paths._train import Trainer
from dgating.select.features import features

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
    dense_epochs: int = 20,
    epochs: int = 2,
    patience: int | None = None,
    batch_size: int = 256,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    zero_below: float = 1e-3,
    min_groups: int = 0,
    compact: bool = True,
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
            (:func:`lam_max`); ``None``: 50.
        groups: makes the groups of a fresh model; by default :func:`features` of its first linear layer.
        depth: ``D``.
        loss: ``f(output, target)``, one loss a row or their mean. By default the cross entropy for integer targets,
            half the squared error for others.
        score: ``f(output, target)``, larger is better. By default accuracy or R².
        validation: a share of the rows, validation data like ``data``, or ``None``.
        dense_epochs: epochs without penalty before the first λ.
        epochs: epochs at each λ, at most.
        patience: stop at a λ when this many epochs lost no group and did not improve the loss by one part in a
            thousand. ``None``: always take all epochs.
        batch_size: rows a step.
        lr: constant step size.
        momentum: of SGD.
        weight_decay: of ungated parameters.
        zero_below: a group is zero when its norm is below this share of the largest norm after the dense epochs.
        min_groups: stop once no more than this many groups are left.
        compact: cut dead groups out (else they stay as zeros).
        device: where to train; by default where the model is.
        seed: of the shuffling, the split, and of ``torch`` while ``model_fn`` builds the model.
        callback: called with every point.

    Returns:
        :class:`RegularizationPath`.

    Raises:
        ValueError: strengths that do not rise, data or options that do not fit.
        FloatingPointError: the loss became infinite or nan before the first λ. Later it ends the path, with a warning,
            at the last good point.

    Example:
        >>> import torch, dgating as dg
        >>> _ = torch.manual_seed(0)
        >>> X = torch.randn(400, 10); y = X[:, 0] - 2 * X[:, 1]          # eight of ten features are noise
        >>> net = torch.nn.Linear(10, 1)
        >>> found = dg.path(net, (X, y), lams=[0.01, 0.03, 0.1, 0.3], epochs=30)
        >>> best = found.select("within", within=0.05)
        >>> best.kept["weight"].nonzero()[:, 0].tolist()
        [0, 1]

    Reference: arXiv 2509.23898; warm starts along a path, Friedman, Hastie, Tibshirani 2010.
    """
    _check_options(dense_epochs, epochs, batch_size, lr, momentum, weight_decay, zero_below)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
    if lams is None or isinstance(lams, int):
        lams = lam_grid(lam_max(model, train, loss), n=50 if lams is None else lams)
    strengths = _check_lams(lams)
    small = Shrinking(model, train, compact)
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "batch_size": batch_size}
    trainer = Trainer(small.model, loss, **options, generator=generator)  # type: ignore[arg-type]
    start = time.perf_counter()
    trainer.set_lam(0.0)
    for _ in range(dense_epochs):
        if not math.isfinite(trainer.epoch(small.data)):
            raise FloatingPointError(f"path: the loss is not finite before the first lam. Lower lr (now {lr}).")
    threshold = zero_below * max(float(n.max()) for n in small.norms().values())
    points: list[PathPoint] = []
    for lam in strengths:
        trainer.set_lam(lam)
        value, taken = _one_strength(trainer, small, epochs, patience, threshold)
        if not math.isfinite(value):
            warnings.warn(
                f"path: the loss is not finite at lam = {lam:.3g}; the path ends before it. Lower lr (now {lr}), or "
                "let lam rise more slowly.",
                RuntimeWarning,
                stacklevel=2,
            )
            break
        norms = small.norms()
        dead = {name: n <= threshold for name, n in norms.items()}
        if small.drop(dead):
            trainer = Trainer(small.model, loss, **options, generator=generator)  # type: ignore[arg-type]
        point = _point(small, lam, value, depth, judge, loss, held, taken, time.perf_counter() - start)
        points.append(point)
        if callback is not None:
            callback(point)
        if point.n_groups <= min_groups:
            break
    settings = {
        "epochs": epochs, "dense_epochs": dense_epochs, **options, "zero_below": zero_below, "seed": seed,
        "patience": patience, "compact": compact, "score": judge.__name__, "loss": loss.__name__,
        "rows": len(train), "validation_rows": 0 if held is None else len(held),
    }  # fmt: skip
    return RegularizationPath(tuple(points), depth, settings, base)


def _one_strength(
    trainer: Trainer, small: Shrinking, epochs: int, patience: int | None, threshold: float
) -> tuple[float, int]:
    """Loss of the last epoch and number of epochs."""
    best, idle, alive, value = math.inf, 0, None, math.inf
    for epoch in range(epochs):
        value = trainer.epoch(small.data)
        if not math.isfinite(value):
            return value, epoch + 1
        if patience is None:
            continue
        now = sum(int((n > threshold).sum()) for n in small.norms().values())
        idle = idle + 1 if now == alive and value > best * (1 - 1e-3) else 0
        best, alive = min(best, value), now
        if idle >= patience:
            return value, epoch + 1
    return value, epochs


def _point(
    small: Shrinking, lam: float, value: float, depth: int, judge: Score, loss: Loss, held: Data | None, epochs: int,
    seconds: float,
) -> PathPoint:  # fmt: skip
    norms = small.norms()
    penalty = sum(float(n.double().pow(2 / depth).sum()) for n in norms.values())
    score = math.nan
    if held is not None:
        seen = held.columns(small.columns.to(held.target.device)) if len(small.columns) else held
        score = float(judge(outputs(small.model, seen), held.target))
    return PathPoint(
        lam=lam,
        loss=value,
        objective=value + lam * penalty,
        score=score,
        kept={name: n > 0 for name, n in norms.items()},
        norms=norms,
        parameters=small.n_parameters(),
        epochs=epochs,
        seconds=seconds,
        state=small.full_state(),
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
        if not 0 < validation < 1:
            raise ValueError(f"validation: expected a share in (0, 1), data or None, received {validation!r}.")
        return split(data, validation, generator)
    return data, as_data(validation, "validation").to(device)


def _check_lams(lams: Sequence[float]) -> list[float]:
    out = [float(lam) for lam in lams]
    for lam in out:
        check_number("lams", lam)
    if not out or any(b <= a for a, b in itertools.pairwise(out)):
        raise ValueError(f"lams: expected rising strengths, received {out[:5]}. Use sorted(lams).")
    return out


def _check_options(dense_epochs: int, epochs: int, batch_size: int, *numbers: float) -> None:
    for name, value, least in (("dense_epochs", dense_epochs, 0), ("epochs", epochs, 1), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected a whole number >= {least}, received {value!r}.")
    for name, number in zip(("lr", "momentum", "weight_decay", "zero_below"), numbers, strict=True):
        check_number(name, number)


__all__ = ["path"]
