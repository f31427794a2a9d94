"""One ensemble on one split: dense, or gated by trees at one strength."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import dgating as dg
from dgating.maths import FLOAT32_EPS
from experiments import data
from experiments.common.compacted import zeroed
from experiments.common.experiment import Cell, Place
from experiments.common.training import Recipe, train
from experiments.common.watch import settled
from experiments.fig08_trees.node import Ensemble


@dataclass(frozen=True)
class Configuration:
    """Section 9.6. Of the paper: trees, D = 2, epochs, batch, lr, momentum, four splits. The rest is open there.

    ``share`` of the rows is the test part of a split; ``scale`` multiplies the sum over trees; a tree whose responses
    have a norm up to ``threshold`` is dead; ``claim`` is the strength that the paper names. ``deep`` are depths D
    beyond the paper, at ``deep_lams``. The test error and the trees left are looked at every ``every`` epochs.
    ``others`` are pairs of trees and scale, tried dense and at ``claim`` on the first split, to show what they decide.
    """

    dataset: str = "wine_white"
    splits: tuple[int, ...] = (0, 1, 2, 3)
    share: float = 0.2
    trees: int = 500
    tree_depth: int = 6
    tree_dim: int = 1
    scale: float = 0.2
    epochs: int = 400
    batch: int = 1024
    lr: float = 0.4
    momentum: float = 0.9
    claim: float = 3e-3
    lams: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    deep: tuple[int, ...] = (3, 4)
    deep_lams: tuple[float, ...] = (3e-3, 1e-3)
    others: tuple[tuple[int, float], ...] = ((500, 0.002), (500, 0.045), (500, 1.0))
    threshold: float = 1e-3
    every: int = 10
    version: int = 1

    def recipe(self) -> Recipe:
        """Of all runs."""
        return Recipe(self.epochs, self.batch, self.lr, self.momentum, nesterov=True)


def cells(c: Configuration) -> list[Cell]:
    """Split, method (``linear``, ``dense`` or a D), λ, trees and scale; what the paper claims comes first."""
    lams = sorted(c.lams, key=lambda lam: abs(math.log(lam / c.claim)))
    kinds = [("linear", 0.0), ("dense", 0.0), *(("D = 2", lam) for lam in lams)]
    deep = [(f"D = {depth}", lam) for lam in c.deep_lams for depth in c.deep]
    plan = [(split, *kind, c.trees, c.scale) for kind in kinds for split in c.splits]
    plan += [(c.splits[0], *kind, *other) for other in c.others for kind in (("dense", 0.0), ("D = 2", c.claim))]
    plan += [(split, *kind, c.trees, c.scale) for kind in deep for split in c.splits]
    return [dict(zip(("split", "method", "lam", "trees", "scale"), values, strict=True)) for values in plan]


@dataclass(frozen=True)
class Split:
    """Rows by quantile transform, target standardised, both by the training rows; ``unit``: of the target."""

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor
    unit: float

    def rmse(self, model: nn.Module) -> float:
        """Of the test rows, in the target's own unit."""
        return _rmse(model, self.X_test, self.y_test) * self.unit

    def rmse_train(self, model: nn.Module) -> float:
        """Of the training rows."""
        return _rmse(model, self.X, self.y) * self.unit


@torch.no_grad()
def _rmse(model: nn.Module, X: Tensor, y: Tensor) -> float:
    errors = [(model(rows) - target).square().sum() for rows, target in zip(X.split(1024), y.split(1024), strict=True)]
    return math.sqrt(float(torch.stack(errors).sum()) / len(y))


def split(c: Configuration, seed: int, place: Place) -> Split:
    """A random split, its columns made normal by ranks."""
    from sklearn.preprocessing import QuantileTransformer

    whole = data.load(c.dataset, place.data)
    assert isinstance(whole, data.Dataset)
    found = data.split(whole, c.share, seed)
    normal = QuantileTransformer(n_quantiles=min(1000, len(found.X)), output_distribution="normal", random_state=0)
    normal.fit(found.X)
    mean, unit = found.y.mean(), found.y.std()
    X, X_test = (torch.tensor(normal.transform(part), dtype=torch.float32) for part in (found.X, found.X_test))
    y, y_test = (torch.tensor((part - mean) / unit, dtype=torch.float32)[:, None] for part in (found.y, found.y_test))
    X, y, X_test, y_test = (part.to(place.device) for part in (X, y, X_test, y_test))
    return Split(X, y, X_test, y_test, float(unit))


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """Test error, trees left, the smaller model."""
    c = replace(c, trees=cell["trees"], scale=cell["scale"])
    rows = split(c, cell["split"], place)
    if cell["method"] == "linear":
        return _linear(rows)
    generator = place.generator(cell["split"])
    model = Ensemble(rows.X.shape[1], c.trees, c.tree_depth, c.tree_dim, scale=c.scale, generator=generator)
    model.initialise(rows.X.cpu(), generator=generator)
    depth = 1 if cell["method"] == "dense" else int(cell["method"].removeprefix("D = "))
    if depth > 1:
        dg.gate_(model, dg.by_dim(model, 0, name="response"), depth=depth)
    model.to(place.device)
    watch = _Watch(c, model, rows, cell["lam"])
    train(
        model, rows.X, rows.y, nn.functional.mse_loss, c.recipe(), generator=generator, lam=cell["lam"],
        before_step=watch.before_step, on_epoch=watch.on_epoch,
    )  # fmt: skip
    if watch.diverged:
        return {"diverged": True, **watch.curve()}
    found = {"rmse": rows.rmse(model), "rmse_train": rows.rmse_train(model), **watch.curve()}
    if depth == 1:
        return found | {"parameters": sum(p.numel() for p in model.parameters())}
    return found | watch.supports() | {"compact": compacted(c, model, rows)} | watch.certificate(depth)


def _linear(rows: Split) -> dict[str, Any]:
    """Least squares on the same rows, for comparison."""
    ones = torch.ones(len(rows.X), 1, device=rows.X.device)
    solution = torch.linalg.lstsq(torch.cat([rows.X, ones], 1).double().cpu(), rows.y.double().cpu()).solution
    model = nn.Linear(rows.X.shape[1], 1)
    with torch.no_grad():
        model.weight.copy_(solution[:-1].T)
        model.bias.copy_(solution[-1])
    model.to(rows.X.device)
    return {"rmse": rows.rmse(model), "rmse_train": rows.rmse_train(model)}


class _Watch:
    """Looks at test error, trees and monitor while a model trains; seconds are those since it was made."""

    def __init__(self, c: Configuration, model: Ensemble, rows: Split, lam: float) -> None:
        self.c, self.model, self.rows, self.lam = c, model, rows, lam
        self.monitor: dg.AbsorptionMonitor | None = None
        self.start = time.perf_counter()
        self.epochs: list[int] = []
        self.seconds: list[float] = []
        self.rmse: list[float] = []
        self.dead: list[Tensor] = []
        self.below_epsilon: list[int] = []
        self.known: list[Tensor] = []
        self.diverged = False

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if dg.is_gated(self.model):
            epoch = math.ceil(len(self.rows.y) / self.c.batch)
            self.monitor = self.monitor or dg.AbsorptionMonitor(
                self.model, self.lam, optimizer, window=epoch, evidence=True
            )
            self.monitor.update()

    def on_epoch(self, epoch: int) -> bool:
        """A look, at some epochs; whether to give up."""
        if epoch % self.c.every and epoch != self.c.epochs:
            return False
        rmse = self.rows.rmse(self.model)
        self.diverged = not rmse < 1e6 * self.rows.unit  # nan, too
        if self.diverged:
            return True
        self.epochs.append(epoch)
        self.seconds.append(round(time.perf_counter() - self.start, 2))
        self.rmse.append(rmse)
        if self.monitor is not None:
            norms = _only(dg.group_norms(self.model)).cpu()
            self.dead.append(norms <= self.c.threshold)
            self.below_epsilon.append(int((norms <= FLOAT32_EPS).sum()))
            self.known.append(_only(self.monitor.absorbed()).cpu())
        return False

    def curve(self) -> dict[str, Any]:
        """What was seen at the looks."""
        out: dict[str, Any] = {"epochs": self.epochs, "rmse_curve": [round(value, 5) for value in self.rmse]}
        if self.monitor is not None:
            out["left_curve"] = [int((~dead).sum()) for dead in self.dead]
            out["not_known_curve"] = [int((~known).sum()) for known in self.known]
        return out

    def supports(self) -> dict[str, Any]:
        """Trees left; when the threshold has shown for good which, and when the monitor has known all dead ones."""
        gone = self.dead[-1]
        # the monitor knows when every tree that is dead at the end is known, from there on
        knew = [bool(known[gone].all()) for known in self.known]
        first, sooner = settled(self.dead), settled(knew)
        return {
            "left": int((~gone).sum()),
            "left_epsilon": self.c.trees - self.below_epsilon[-1],
            "norms": sorted((round(float(v), 6) for v in _only(dg.group_norms(self.model)) if v > 1e-6), reverse=True),
            "support": self._when(first) if gone.any() else None,
            "known": self._when(sooner) if gone.any() and knew[-1] else None,
            "seconds": self.seconds[-1],
        }

    def _when(self, look: int) -> dict[str, Any]:
        return {"epoch": self.epochs[look], "seconds": self.seconds[look]}

    def certificate(self, depth: int) -> dict[str, Any]:
        """What the monitor says at the end, and what is left of the model when its trees are zero.

        The last thing to ask: it changes the model.
        """
        assert self.monitor is not None
        known = self.monitor.absorbed()
        dead = _only(known).cpu()
        dg.zero_(self.model, known)
        out: dict[str, Any] = {
            "coverage": self.monitor.coverage,
            "left": int((~dead).sum()),
            "known_above_threshold": int((dead & ~self.dead[-1]).sum()),
            "rmse": self.rows.rmse(self.model),
        }
        if depth == 2:
            out["violators"] = int(_only(self.monitor.recheck(self._closure)).sum())
        return {"monitor": out}

    def _closure(self) -> None:
        for X, y in zip(self.rows.X.split(1024), self.rows.y.split(1024), strict=True):
            ((self.model(X) - y).square().sum() / len(self.rows.y)).backward()


def _only(by_name: dict[str, Tensor]) -> Tensor:
    (value,) = by_name.values()
    return value


def compacted(c: Configuration, model: nn.Module, rows: Split) -> dict[str, Any]:
    """The ensemble without its dead trees: parameters, FLOPs, test error, difference of its outputs.

    Dead trees become exact zeros in a copy, and ``dgating.compact`` finds from the graph alone that a tree without
    responses can leave with its features, thresholds and temperatures. (An ensemble keeps one tree, dead or not.)
    """
    full = zeroed(model, c.threshold)
    small = dg.compact(full, (rows.X_test,))
    profile = dg.profile(small, rows.X_test, reference=full, repeats=5, warmup=1)
    assert profile.reference is not None
    with torch.no_grad():
        difference = float((small(rows.X_test) - full(rows.X_test)).abs().max())
    return {
        "trees": len(small.response),  # type: ignore[arg-type]
        "parameters": [profile.reference.parameters, profile.parameters],
        "flops": [profile.reference.flops, profile.flops],
        "speedup": round(profile.latency_speedup or math.nan, 2),
        "difference": difference,
        "rmse": rows.rmse(small),
    }
