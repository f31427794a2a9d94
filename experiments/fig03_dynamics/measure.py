"""One training of LeNet-300-100 with gated neurons, and how its imbalance decays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dgating as dg
from dgating.maths import FLOAT32_EPS
from experiments import data
from experiments.common.compacted import compacted
from experiments.common.experiment import Cell, Place
from experiments.common.networks import accuracy, lenet
from experiments.common.training import Recipe, train
from experiments.common.watch import Watch

THRESHOLD = FLOAT32_EPS


@dataclass(frozen=True)
class Configuration:
    """Open in the paper: strengths, step size, batch, length, and what a neuron's group is (here: its incoming row).

    A run lasts ``folds`` times the slowest time constant D / (4 λ); the rate is fitted on the first ``fitted`` of
    them, chosen before looking. ``larger_lrs``: the slowest decay (smallest λ, largest D) with larger steps, once.
    """

    dataset: str = "mnist"
    hidden: tuple[int, ...] = (300, 100)
    seeds: tuple[int, ...] = (0, 1, 2)
    depths: tuple[int, ...] = (2, 3, 4)
    lams: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    sgd_lr: float = 0.025
    larger_lrs: tuple[float, ...] = (0.05, 0.1)
    adam_lr: float = 1e-3
    adam_steps: int = 4000
    batch: int = 256
    folds: float = 4.0
    fitted: float = 3.0
    looks: int = 120
    version: int = 2


def cells(c: Configuration) -> list[Cell]:
    """Seed by seed, so that a part of a run has every setting; short trainings first."""
    lrs = {"sgd": c.sgd_lr, "adam": c.adam_lr}
    made: list[Cell] = [
        {"optimizer": optimizer, "lr": lrs[optimizer], "lam": lam, "depth": depth, "seed": seed}
        for seed in c.seeds for optimizer in ("sgd", "adam") for lam in reversed(c.lams) for depth in c.depths
    ]  # fmt: skip
    slowest = {"lam": min(c.lams), "depth": max(c.depths), "seed": c.seeds[0]}
    return made + [{"optimizer": "sgd", "lr": lr, **slowest} for lr in c.larger_lrs]


def rows(c: Configuration, place: Place) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels divided by their largest value, classes; training and test."""
    found = data.load(c.dataset, place.data)
    if found.X_test is None:
        found = data.split(found, 0.2, 0)
    top = float(found.X.max())

    def tensor(values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(np.asarray(values), dtype=dtype, device=place.device)

    images = [tensor(part, torch.float32).flatten(1) / top for part in (found.X, found.X_test)]
    return images[0], images[1], tensor(found.y, torch.long), tensor(found.y_test, torch.long)


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """The gaps L - L_w = λ M and R - R_w at every look, the fitted rate, and what is left of the network."""
    X, X_test, y, y_test = rows(c, place)
    lam, depth, lr, sgd = cell["lam"], cell["depth"], cell["lr"], cell["optimizer"] == "sgd"
    steps = math.ceil(c.folds * depth / (4 * lam * lr)) if sgd else c.adam_steps
    torch.manual_seed(cell["seed"])
    net = lenet(X.shape[1], int(y.max()) + 1, c.hidden)
    for i in range(len(c.hidden)):
        dg.gate_(net, dg.neurons(net[2 * i], name=f"layer {i + 1}"), depth=depth)
    net.to(place.device)

    every = max(1, steps // c.looks)
    epoch = math.ceil(len(y) / c.batch)
    watch = Watch(net, lam, every=every, window=min(epoch, max(1, steps // 4)), threshold=THRESHOLD)
    curve: list[tuple[int, float, float]] = []

    def look(step: int, _: torch.optim.Optimizer) -> bool:
        if step % every == 0 or step == steps:
            watch.look(step)
            curve.append(gaps(net, step))
        return step == steps

    curve.append(gaps(net, 0))
    recipe = Recipe(math.ceil(steps / epoch), c.batch, lr, optimizer=cell["optimizer"], schedule="constant")
    train(
        net, X, y, nn.functional.cross_entropy, recipe, generator=place.generator(cell["seed"]), lam=lam,
        before_step=watch.before_step, on_step=look,
    )  # fmt: skip
    window = [(step, m) for step, m, _ in curve if not sgd or step * lr * 4 * lam / depth <= c.fitted]
    return {
        "steps": steps, "curve": [[s, float(f"{m:.6g}"), float(f"{r:.6g}")] for s, m, r in curve],
        "fit": fit([s * lr for s, _ in window], [m for _, m in window]) if sgd else None,
        "accuracy": accuracy(net, X_test, y_test), **watch.found(), "compact": compacted(net, X_test, THRESHOLD),
    }  # fmt: skip


def gaps(net: nn.Module, step: int) -> tuple[int, float, float]:
    """Step, misalignment M (from factor norms) and R - R_w (from the two penalties): equal but for rounding."""
    return step, float(dg.misalignment(net)), float(dg.penalty(net, 1.0).detach() - dg.effective_penalty(net, 1.0))


def fit(times: list[float], values: list[float]) -> dict[str, float]:
    """Least squares of log values on times (steps times step size): rate, and how straight the line is."""
    t, log = np.array(times), np.log(np.array(values))
    slope, intercept = np.polyfit(t, log, 1)
    left = log - slope * t - intercept
    return {"rate": float(-slope), "r2": float(1 - left.var() / log.var())}
