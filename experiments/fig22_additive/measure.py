"""One method at one strength: all folds trained at once, then the columns that are left and the error they give."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dgating as dg
from experiments.common.compacted import sizes
from experiments.common.experiment import Cell, Place
from experiments.common.training import Recipe, strengths, train
from experiments.common.watch import Watch, settled
from experiments.fig22_additive.network import (
    AdditiveNetworks,
    by_column,
    recalibrated,
    separated,
    without_dead_columns,
)
from experiments.fig22_additive.simulation import Folds, simulate

THRESHOLD = 1e-3  # the paper's: below it a shape function counts as zero
PLAIN = ", no batch norm"
DIRECT = ("SNAM", "L1", "L2")


@dataclass(frozen=True)
class Configuration:
    """Section 9.10. Open there and ours: the five functions, the noise, the number of strengths, the order of layers.

    A method is a depth, ``SNAM`` (λ Σ ‖W_j‖ in the loss), ``L1`` or ``L2`` (λ times the sum of absolute values or of
    squares of the same weights). ``plain`` repeats methods without batch norm, beyond the paper.
    """

    seeds: tuple[int, ...] = (0,)
    rows: int = 1000
    columns: int = 20
    noise: float = 1.0
    folds: int = 5
    depths: tuple[int, ...] = (2, 3, 4)
    direct: tuple[str, ...] = DIRECT
    plain: tuple[str, ...] = ("D = 3", "SNAM")
    hidden: tuple[int, ...] = (100, 100, 64)
    epochs: int = 1000
    batch: int = 32
    lr: float = 1e-3
    lams: int = 10
    lam_low: float = 1e-2
    lam_high: float = 10.0
    version: int = 1

    @property
    def grid(self) -> list[float]:
        """Strengths, rising."""
        return strengths(self.lam_low, self.lam_high, self.lams)

    @property
    def methods(self) -> list[str]:
        """In the order of the tables."""
        return [*(f"D = {d}" for d in self.depths), *self.direct, *(m + PLAIN for m in self.plain)]


def cells(c: Configuration) -> list[Cell]:
    """A table, a method and a strength; the folds of a cell are trained together."""
    return [{"seed": s, "method": m, "lam": lam} for s in c.seeds for lam in c.grid for m in c.methods]


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """For every fold: norms, columns left, errors, when the support was reached; sizes of the model of fold 0."""
    lam, method = cell["lam"], cell["method"].removesuffix(PLAIN)
    folds = simulate(cell["seed"], c.rows, c.columns, c.noise, c.folds, place.device)
    torch.manual_seed(cell["seed"])
    net = AdditiveNetworks(c.folds, c.columns, c.hidden, norm=method == cell["method"])
    if method not in DIRECT:
        dg.gate_(net, by_column(net), depth=int(method.removeprefix("D = ")))
    net.to(place.device)
    epoch = math.ceil(len(folds.y) / c.batch)
    watch = Watch(net, lam, every=epoch, window=epoch, threshold=THRESHOLD) if dg.is_gated(net) else None
    left: list[Tensor] = []

    def on_epoch(_: int) -> None:
        left.append((net.norms_of_columns() > THRESHOLD).cpu())

    train(
        net, folds.X, folds.y, squared_error, Recipe(c.epochs, c.batch, c.lr, optimizer="adam", schedule="constant"),
        generator=place.generator(cell["seed"]), lam=lam, penalty=penalty(method, lam), on_epoch=on_epoch,
        before_step=watch.before_step if watch else None, on_step=watch.on_step if watch else None,
    )  # fmt: skip
    certified = [known.reshape(c.folds, c.columns) for known in watch.certified] if watch else []
    found = errors(net, folds)
    found["folds"] = [
        {
            "norms": [float(f"{v:.3g}") for v in norms.tolist()],
            "left": alive.nonzero()[:, 0].tolist(),
            **_times([at[i] for at in left], [known[i] for known in certified]),
        }
        for i, (norms, alive) in enumerate(zip(net.norms_of_columns(), left[-1], strict=True))
    ]
    found["sizes"] = _sizes(net, folds)
    return found


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean over rows, summed over the folds, which share no parameter: each sees the gradient of its own mean."""
    return (outputs - y).square().mean(0).sum()


def penalty(method: str, lam: float) -> Callable[[nn.Module], Tensor] | None:
    """The term in the loss of the methods that are not gated."""
    if method not in DIRECT:
        return None

    def term(net: nn.Module) -> Tensor:
        assert isinstance(net, AdditiveNetworks)
        weight = net.entrance.weight.flatten(1)
        if method == "SNAM":
            return lam * weight.norm(dim=1).sum()
        return lam * (weight.abs() if method == "L1" else weight.square()).sum()

    return term


@torch.no_grad()
def zeroed(net: AdditiveNetworks) -> AdditiveNetworks:
    """An ungated copy in which every column at or below the threshold has weights of zero and the function zero.

    A function whose first weights are zero is a constant. The weights of its last layer become zero, too: the constant
    comes out of batch norms that divide a variance of zero by their epsilon, so that it is mostly rounding.
    """
    full, dead = copy.deepcopy(net), (net.norms_of_columns() <= THRESHOLD).flatten()
    if dg.is_gated(full):
        dg.zero_(full, {"columns": dead})
        dg.collapse_(full)
    for p in (full.entrance.weight, full.last.weight, full.last.bias):
        p[dead] = 0
    return full


@torch.no_grad()
def errors(net: AdditiveNetworks, folds: Folds) -> dict[str, Any]:
    """Mean squared errors of the held-out part of every fold, and how large the functions below the threshold are.

    ``error``: functions below the threshold are zero, statistics of batch norm and intercept are taken anew from all
    training rows. ``train``: the same on the training rows. ``kept``: the same with the weights below the threshold as
    they are. ``running``: as they are, with the running statistics and the intercept that the training left: with
    small weights in front of a batch norm these lag behind, since a step of Adam is then a large relative change.
    ``dead_size`` and ``alive_size``: of the functions below and above the threshold, the largest and the median
    standard deviation over the held-out rows, before anything is set to zero.
    """
    live = copy.deepcopy(net)
    if dg.is_gated(live):
        dg.collapse_(live)
    live.eval()
    kept, exact = recalibrated(live, folds.X, folds.y), recalibrated(zeroed(net), folds.X, folds.y)
    size = kept.shapes(folds.X_test).std(2)
    dead = net.norms_of_columns() <= THRESHOLD

    def mse(model: AdditiveNetworks, X: Tensor, y: Tensor) -> list[float]:
        return [float(f"{v:.6g}") for v in (model(X) - y).square().mean(0).tolist()]

    return {
        "error": mse(exact, folds.X_test, folds.y_test),
        "train": mse(exact, folds.X, folds.y),
        "kept": mse(kept, folds.X_test, folds.y_test),
        "running": mse(live, folds.X_test, folds.y_test),
        "dead_size": float(f"{size[dead].max():.4g}") if dead.any() else None,
        "alive_size": float(f"{size[~dead].median():.4g}") if (~dead).any() else None,
    }


def _times(left: list[Tensor], certified: list[Tensor]) -> dict[str, Any]:
    """Epochs from which the threshold shows the last support, and from which the certificate holds of all it leaves
    out; groups that were certified at some epoch and are above the threshold, or not certified, at the last."""
    last = left[-1]
    out: dict[str, Any] = {"support_epoch": settled(left) + 1}
    if certified:
        known = [bool(at[~last].all()) for at in certified]
        first = settled(known) if (~last).any() and known[-1] else None
        ever = torch.stack(certified).any(0)
        out |= {
            "certified": int(certified[-1].sum()),
            "certified_epoch": None if first is None else first + 1,
            "certified_above": int((ever & last).sum()),
            "revoked": int((ever & ~certified[-1]).sum()),
        }
    return out


def _sizes(net: AdditiveNetworks, folds: Folds) -> dict[str, Any]:
    """Of the model of fold 0: as it is, compact, and reading only the columns that are left."""
    full = separated(recalibrated(zeroed(net), folds.X, folds.y), 0)
    X = folds.X_test[:, 0]
    models = {"full": full, "compact": dg.compact(full, (X[:64],)), "without": without_dead_columns(full)}
    return sizes(models, X)
