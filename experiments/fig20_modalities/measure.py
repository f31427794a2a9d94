"""One split of the late fusion at one α and one depth: a training at every strength, and what the chosen ones leave."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

import dgating as dg
from experiments import data
from experiments.common.compacted import sizes, zeroed
from experiments.common.experiment import Cell, Place
from experiments.common.training import Recipe, strengths, train
from experiments.common.watch import Watch
from experiments.fig20_modalities.choice import RULES, chosen
from experiments.fig20_modalities.network import MODALITIES, LateFusion, by_modality, without_dead_branches
from experiments.fig20_modalities.simulation import Part, simulate

THRESHOLD = 1e-5  # the paper's


@dataclass(frozen=True)
class Configuration:
    """Section 9.9. Open there and ours: target, functions, noise, validation rows, sizes, schedule, strengths.

    ``epochs`` is the length of a training. With ``warm_epochs`` every strength goes on from one network that was
    trained for so long at the smallest, with the step size ``warm_lr``; without, from the same fresh network, as we
    read the paper. Either way all strengths have trained equally long, so that rules which compare them compare
    strengths.

    ``pool`` is the side of the squares of pixels that are averaged before anything else.
    """

    dataset: str = "mnist"
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0)
    depths: tuple[int, ...] = (2, 3, 4)
    splits: tuple[int, ...] = tuple(range(10))
    rows: int = 2000
    validation_rows: int = 1000
    test_rows: int = 2000
    noise: float = 0.25
    pool: int = 1
    channels: tuple[int, int] = (32, 64)
    hidden: int = 64
    width: int = 16
    epochs: int = 300
    warm_epochs: int = 0
    warm_lr: float = 5e-3
    batch: int = 32
    lr: float = 5e-3
    momentum: float = 0.8
    schedule: str = "constant"
    lams: int = 12
    lam_low: float = 1e-3
    lam_high: float = 1.0
    version: int = 2

    @property
    def grid(self) -> list[float]:
        """Strengths, rising."""
        return strengths(self.lam_low, self.lam_high, self.lams)

    def recipe(self, epochs: int) -> Recipe:
        """SGD with momentum."""
        return Recipe(epochs, self.batch, self.lr, self.momentum, schedule=self.schedule)  # type: ignore[arg-type]


def cells(c: Configuration) -> list[Cell]:
    """A split, α and depth; split by split, so that a part of a run is a smaller run of all settings."""
    return [{"split": s, "alpha": a, "depth": d} for s in c.splits for a in c.alphas for d in c.depths]


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """A point for every strength; compact models at the two chosen ones."""
    found = data.load(c.dataset, place.data)
    assert isinstance(found, data.Dataset)
    rows = (c.rows, c.validation_rows, c.test_rows)
    parts = simulate(found, cell["alpha"], cell["split"], rows, c.noise, c.pool, place.device)
    start = _fresh(c, cell, parts[0], place)
    if c.warm_epochs:
        warm = replace(c, lr=c.warm_lr)
        _train(warm, start, parts, c.grid[0], c.warm_epochs, place.generator(1000 + cell["split"]))
    points: list[dict[str, Any]] = []
    models: list[LateFusion] = []
    for lam in c.grid:
        models.append(copy.deepcopy(start))
        points.append(_train(c, models[-1], parts, lam, c.epochs, place.generator(cell["split"])))
    out: dict[str, Any] = {"points": points}
    for rule in RULES:
        at = chosen(points, rule)
        out[rule] = None if at is None else {"at": at, **_sizes(models[at], parts[2])}
    return out


def _fresh(c: Configuration, cell: Cell, part: Part, place: Place) -> LateFusion:
    torch.manual_seed(cell["split"])
    net = LateFusion(part.images.shape[-1], c.channels, c.hidden, c.width)
    dg.gate_(net, by_modality(net), depth=cell["depth"])
    return net.to(place.device)


def _train(
    c: Configuration, net: LateFusion, parts: tuple[Part, Part, Part], lam: float, epochs: int,
    generator: torch.Generator,
) -> dict[str, Any]:  # fmt: skip
    fit = parts[0]
    epoch = math.ceil(len(fit.y) / c.batch)
    watch = Watch(net, lam, every=epoch, window=epoch, threshold=THRESHOLD)
    screen: list[dg.AbsorptionMonitor] = []  # of D = 2, which Watch leaves out

    def before_step(optimizer: torch.optim.Optimizer) -> None:
        watch.before_step(optimizer)
        if watch.monitor is None:
            if not screen:
                screen.append(dg.AbsorptionMonitor(net, lam, optimizer, window=epoch))
            screen[0].update()

    train(
        net, fit.inputs, fit.y, nn.functional.mse_loss, c.recipe(epochs), generator=generator, lam=lam,
        before_step=before_step, on_step=watch.on_step,
    )  # fmt: skip
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        return {"lam": lam, "diverged": True}
    norms = dg.group_norms(net)["modalities"]
    monitor = watch.monitor or screen[0]
    errors = [_squares(net, part) for part in parts]
    found = watch.found()
    point = {
        "lam": lam,
        "norms": [float(f"{value:.4g}") for value in norms.tolist()],
        "left": _named(norms > THRESHOLD),
        "rmse": [float(f"{error.mean() ** 0.5:.6g}") for error in errors],  # training, validation, test
        "rmse_error": float(f"{standard_error(errors[1]):.4g}"),
        "certified": _named(monitor.absorbed()["modalities"]) if watch.depth > 2 else None,
        "theorem": monitor.coverage == "theorem",
        "support_epoch": found["support_step"] // epoch,
        "certified_epoch": None if found["certified_for_good"] is None else found["certified_for_good"] // epoch,
        "certified_above": found["certified_above"],
    }
    if watch.depth == 2:
        point |= _screened(net, lam, monitor, fit)
    return point


def _squares(net: nn.Module, part: Part) -> np.ndarray:
    with torch.no_grad():
        return (net(*part.inputs) - part.y).square().double().cpu().numpy()


def standard_error(squares: np.ndarray) -> float:
    """Of the root of the mean of n squared errors, over their rows: sd(e²) / √n / (2 RMSE), the delta method."""
    return float(squares.std(ddof=1) / np.sqrt(len(squares)) / (2 * np.sqrt(squares.mean())))


def _screened(net: nn.Module, lam: float, monitor: dg.AbsorptionMonitor, fit: Part) -> dict[str, Any]:
    """D = 2: which groups the screening calls dead, and which of them the optimality condition wants back.

    On a copy, with the gradient of the loss over all rows: the training goes on as if nobody had looked.
    """
    dead = monitor.absorbed()["modalities"]
    trial = copy.deepcopy(net)
    dg.zero_(trial, {"modalities": dead})
    checker = dg.AbsorptionMonitor(trial, lam)
    back = checker.recheck(lambda: nn.functional.mse_loss(trial(*fit.inputs), fit.y).backward())
    return {"screened": _named(dead), "revived": _named(back["modalities"])}


def _named(mask: torch.Tensor) -> list[str]:
    return [name for name, there in zip(MODALITIES, mask.tolist(), strict=True) if there]


def _sizes(net: LateFusion, part: Part) -> dict[str, Any]:
    """Parameters and FLOPs (of one row) of the full model, the compact one, and the one without dead branches."""
    full = zeroed(net, THRESHOLD)
    example = tuple(x[:64] for x in part.inputs)
    models = {"full": full, "compact": dg.compact(full, example), "without": without_dead_branches(full)}
    return sizes(models, *part.inputs)
