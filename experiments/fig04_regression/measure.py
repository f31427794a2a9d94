"""One method on one simulated table, at every strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dgating as dg
from experiments.common.experiment import Cell, Place
from experiments.common.training import Recipe, strengths, train
from experiments.common.watch import Watch
from experiments.fig04_regression.simulation import Simulation, simulate

THRESHOLD = 1e-6  # the paper's
DIVERGED = 1e6  # a coefficient of this size (the true ones are N(0, 1)) is no solution
WINDOW, EVERY = 50, 10  # of the certificate; steps between two looks at the support


@dataclass(frozen=True)
class Configuration:
    """The protocol of section 9.2; ``losses`` and the start of ω are open in the paper."""

    seeds: tuple[int, ...] = tuple(range(10))
    rows: int = 200
    test_rows: int = 2000
    groups: int = 40
    size: int = 5
    informative: int = 7
    steps: int = 1500
    lr: float = 0.05
    momentum: float = 0.9
    lams: int = 30
    lam_low: float = 1e-5
    lam_high: float = 15.0
    depths: tuple[int, ...] = (2, 3, 4)
    ablation: tuple[int, ...] = (5, 6, 8)
    losses: tuple[str, ...] = ("half", "mse")
    compact_at: float = 0.1
    version: int = 1

    @property
    def grid(self) -> list[float]:
        """Strengths, rising."""
        return strengths(self.lam_low, self.lam_high, self.lams, digits=6)


def cells(c: Configuration) -> list[Cell]:
    """Loss, seed and method: ``oracle``, ``FISTA``, ``direct`` or a depth."""
    methods = ["oracle", "FISTA", "direct", *(f"D = {depth}" for depth in (*c.depths, *c.ablation))]
    return [{"loss": loss, "seed": seed, "method": m} for loss in c.losses for seed in c.seeds for m in methods]


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """Test error, groups left and support at every strength."""
    data = simulate(cell["seed"], c.rows, c.test_rows, c.groups, c.size, c.informative)
    scale = 0.5 if cell["loss"] == "half" else 1.0
    if cell["method"] == "oracle":
        k = c.informative * c.size
        coef = torch.zeros(data.X.shape[1])
        coef[:k] = torch.linalg.lstsq(data.X[:, :k].double(), data.y[:, None].double()).solution[:, 0].float()
        return {"points": [_point(data, coef, None)]}
    if cell["method"] == "FISTA":
        return {"points": [_point(data, _fista(data, lam, scale), lam) for lam in c.grid]}
    fit: Callable[..., dict[str, Any]] = _direct if cell["method"] == "direct" else _gated
    return {"points": [fit(c, cell, data, lam, scale, place) for lam in c.grid]}


def _fista(data: Simulation, lam: float, scale: float) -> Tensor:
    """The group lasso; the solver's loss is ½·MSE."""
    return dg.proximal_gradient(data.X.double(), data.y.double(), data.labels, lam / (2 * scale)).coef.float()


def _linear(c: Configuration, cell: Cell, place: Place) -> nn.Linear:
    """The start of both trained methods: U(±1/√p), the default of ``nn.Linear`` (open in the paper)."""
    p = c.groups * c.size
    model = nn.Linear(p, 1, bias=False)
    with torch.no_grad():
        model.weight.uniform_(-1 / math.sqrt(p), 1 / math.sqrt(p), generator=place.generator(1000 + cell["seed"]))
    return model.to(place.device)


def _fit(c: Configuration, model: nn.Module, data: Simulation, scale: float, place: Place, **options: Any) -> None:
    recipe = Recipe(epochs=c.steps, batch=0, lr=c.lr, momentum=c.momentum)
    X, y = data.X.to(place.device), data.y[:, None].to(place.device)
    train(
        model, X, y, lambda out, target: scale * nn.functional.mse_loss(out, target), recipe,
        generator=place.generator(0), **options,
    )  # fmt: skip


def _direct(
    c: Configuration, cell: Cell, data: Simulation, lam: float, scale: float, place: Place
) -> dict[str, Any]:  # fmt: skip
    """Gradient descent on the penalty itself, λ Σ ||w_j||, not smooth at zero."""
    model = _linear(c, cell, place)
    _fit(
        c, model, data, scale, place,
        penalty=lambda m: lam * m.weight.view(c.groups, c.size).norm(dim=1).sum(),
    )  # fmt: skip
    return _point(data, model.weight.detach().cpu()[0], lam)


def _gated(c: Configuration, cell: Cell, data: Simulation, lam: float, scale: float, place: Place) -> dict[str, Any]:
    """D-Gating: the same descent on a gated model."""
    model, depth = _linear(c, cell, place), int(cell["method"].removeprefix("D = "))
    dg.gate_(model, dg.by_labels(model, data.labels[None, :].to(place.device), name="weight"), depth=depth)
    watch = Watch(model, lam, every=EVERY, window=WINDOW, threshold=THRESHOLD)
    _fit(c, model, data, scale, place, lam=lam, before_step=watch.before_step, on_step=watch.on_step)
    coef = model.weight.detach().cpu()[0]
    point = _point(data, coef, lam)
    if "diverged" in point:
        return point
    point.update(watch.found())
    point["misalignment"] = float(dg.misalignment(model))
    if depth == 2:
        optimum = _fista(data, lam, scale)
        size = float(optimum.norm())
        point["distance"] = float((coef - optimum).norm()) / size if size > 0 else None
    if lam == min(c.grid, key=lambda at: abs(math.log(at / c.compact_at))):
        point["compact"] = _compact(model, data, place)
    return point


def _point(data: Simulation, coef: Tensor, lam: float | None) -> dict[str, Any]:
    if not bool(torch.isfinite(coef).all()) or float(coef.abs().max()) > DIVERGED:
        return {"lam": lam, "diverged": True}
    norms = torch.zeros(len(data.truth)).index_add_(0, data.labels, coef.square()).sqrt()
    left = norms > THRESHOLD
    return {
        "lam": lam,
        "rmse": float((data.y_test - data.X_test @ coef).square().mean().sqrt()),
        "left": int(left.sum()),
        "false": int((left & ~data.truth).sum()),
        "missed": int((~left & data.truth).sum()),
    }


def _compact(model: nn.Linear, data: Simulation, place: Place) -> dict[str, Any]:
    """Exact zeros, then the smaller model: parameters before and after, largest difference of outputs."""
    dg.zero_(model, {name: norms <= THRESHOLD for name, norms in dg.group_norms(model).items()})
    dg.collapse_(model)
    kept = model.weight[0] != 0
    small = nn.Linear(int(kept.sum()), 1, bias=False).to(place.device)
    with torch.no_grad():
        small.weight.copy_(model.weight[:, kept])
        X = data.X_test.to(place.device)
        difference = float((model(X) - small(X[:, kept])).abs().max())
    return {"parameters": [model.weight.numel(), small.weight.numel()], "difference": difference}
