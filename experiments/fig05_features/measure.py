"""One method on one data set with one seed: test accuracy and features kept, at every strength."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dgating as dg
from dgating.maths import FLOAT32_EPS
from experiments import data
from experiments.common.baselines import hsic_lasso, lassonet_path
from experiments.common.compacted import without_inputs
from experiments.common.experiment import Cell, Place
from experiments.common.networks import accuracy, lenet
from experiments.common.training import Recipe, train
from experiments.common.watch import Watch

THRESHOLD = FLOAT32_EPS
DATASETS = ("isolet", "coil20", "har265", "mnist", "fashion_mnist", "madelon")
Split = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Configuration:
    """Section 9.3. Open there and ours: momentum, strengths, standardised columns, the use of HSIC-Lasso's columns.

    A depth has ``runs`` trainings for a seed; their strengths are sought, from ``lam_start``, so that the kept features
    spread over the range of ``ks``: what is a useful strength depends on the data set and on D.

    ``rows`` limits the training rows of the two large image sets. ``lassonet`` holds options of its constructor that
    differ from its defaults. ``deep`` are depths of Fig. 15, on ISOLET, for ``deep_seeds``.

    ``trials`` look into a data set where a baseline is ahead, with a variant of a method: ``"D = 3, 400 epochs"``, or
    ``"D = 3, refit"``: the columns that are left are given to a fresh network, as HSIC-Lasso's are.
    """

    datasets: tuple[str, ...] = DATASETS
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    depths: tuple[int, ...] = (2, 3, 4)
    deep: tuple[int, ...] = (6, 8, 12, 20)
    deep_seeds: tuple[int, ...] = (0, 1)
    hidden: tuple[int, ...] = (300, 100)
    epochs: int = 100
    batch: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    lam_start: float = 0.05
    runs: int = 8
    rows: int | None = 5000
    ks: tuple[int, ...] = (10, 25, 50, 100, 200)
    path: bool = True
    peers: tuple[str, ...] = ("LassoNet", "HSIC-Lasso")
    lassonet: dict[str, Any] = field(default_factory=lambda: {"path_multiplier": 1.05})
    trials: tuple[tuple[str, str], ...] = ()
    version: int = 2

    def recipe(self) -> Recipe:
        """Of all networks, those on HSIC-Lasso's columns included."""
        return Recipe(self.epochs, self.batch, self.lr, self.momentum)


def cells(c: Configuration) -> list[Cell]:
    """A data set, a method and a seed; HSIC-Lasso selects once for all seeds (it has none). LassoNet comes last."""
    made: list[Cell] = []
    for seed in c.seeds:
        for name in c.datasets:
            methods = [*(f"D = {d}" for d in c.depths), *(["dgating.path"] if c.path else [])]
            made += [{"dataset": name, "method": method, "seed": seed} for method in methods]
        if "isolet" in c.datasets and seed in c.deep_seeds:
            made += [{"dataset": "isolet", "method": f"D = {d}", "seed": seed} for d in c.deep]
    made += [{"dataset": name, "method": "HSIC-Lasso", "seed": None} for name in c.datasets if "HSIC-Lasso" in c.peers]
    made += [
        {"dataset": name, "method": "LassoNet", "seed": seed}
        for seed in c.seeds for name in c.datasets if "LassoNet" in c.peers
    ]  # fmt: skip
    for name, method in c.trials:
        seeds = (None,) if method.startswith("HSIC-Lasso") else c.seeds
        made += [{"dataset": name, "method": method, "seed": seed} for seed in seeds]
    return made


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """Points ``{"features": k, "accuracy": share}`` from dense to sparse."""
    rows = split(c, cell["dataset"], place)
    method, _, variant = cell["method"].partition(", ")
    if variant.endswith(" epochs"):
        c = replace(c, epochs=int(variant.removesuffix(" epochs")))
    if method == "LassoNet":
        return _lassonet(c, rows, cell["seed"], place)
    if method == "HSIC-Lasso":
        return _hsic(c, rows, place)
    if method == "dgating.path":
        return _path(c, rows, cell["seed"], place)
    depth, again = int(method.removeprefix("D = ")), variant == "refit"
    return {"points": _spread(c, lambda lam: _gated(c, rows, depth, lam, cell["seed"], place, again))}


def _spread(c: Configuration, fit: Callable[[float], dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainings at strengths that fill the range of ``ks``: outwards until it is covered, then into the widest gap."""
    low, high = min(c.ks) / 2, 2 * max(c.ks)
    points = [fit(c.lam_start)]
    while len(points) < c.runs:
        points.sort(key=lambda p: p["lam"])
        # a run that diverged is as good as one that lost everything: look below it
        left = [math.log(min(max(p.get("features", 0), low), high)) for p in points]
        if left[0] < math.log(max(c.ks)):
            lam = points[0]["lam"] / 2.5
        elif left[-1] > math.log(min(c.ks)):
            lam = points[-1]["lam"] * 2.5
        else:
            i = max(range(len(left) - 1), key=lambda i: left[i] - left[i + 1])
            lam = math.sqrt(points[i]["lam"] * points[i + 1]["lam"])
        points.append(fit(float(f"{lam:.4g}")))
    return sorted(points, key=lambda p: p["lam"])


def split(c: Configuration, name: str, place: Place) -> Split:
    """Training and test rows: the official ones, else 80/20; columns standardised by the training rows."""
    found = data.load(name, place.data)
    if found.X_test is None:
        found = data.split(found, 0.2, 0)
    if name in ("mnist", "fashion_mnist") and c.rows is not None and len(found.X) > c.rows:
        some = np.random.default_rng(0).permutation(len(found.X))[: c.rows]
        found = replace(found, X=found.X[some], y=found.y[some])
    found = data.standardised(found)
    X, X_test = (torch.tensor(part, dtype=torch.float32, device=place.device) for part in (found.X, found.X_test))
    y, y_test = (torch.tensor(np.asarray(p), dtype=torch.long, device=place.device) for p in (found.y, found.y_test))
    return X, X_test, y, y_test


def _gated(
    c: Configuration, rows: Split, depth: int, lam: float, seed: int, place: Place, again: bool = False
) -> dict[str, Any]:  # fmt: skip
    """A training from scratch at one strength, as in the paper; ``again``: then a fresh network on its columns."""
    X, X_test, y, y_test = rows
    torch.manual_seed(seed)
    net = lenet(X.shape[1], int(y.max()) + 1, c.hidden)
    dg.gate_(net, dg.features(net[0]), depth=depth)
    net.to(place.device)
    epoch = math.ceil(len(y) / c.batch)
    watch = Watch(net, lam, every=epoch, window=epoch, threshold=THRESHOLD)
    start = time.perf_counter()
    train(
        net, X, y, nn.functional.cross_entropy, c.recipe(), generator=place.generator(seed), lam=lam,
        before_step=watch.before_step, on_step=watch.on_step,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    score = accuracy(net, X_test, y_test)
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        return {"lam": lam, "diverged": True}
    found = watch.found()
    found["features"] = found.pop("left")
    if again and found["features"]:
        (norms,) = dg.group_norms(net).values()
        score = _on_columns(c, rows, (norms > THRESHOLD).nonzero()[:, 0], seed, place)
    return {"lam": lam, "accuracy": score, **found, "seconds": round(seconds, 2),
            "compact": without_inputs(net, X_test, THRESHOLD)}  # fmt: skip


def _path(c: Configuration, rows: Split, seed: int, place: Place) -> dict[str, Any]:
    """Beyond the paper: one warm path with D = 3, the defaults of the library."""
    X, X_test, y, y_test = rows
    start = time.perf_counter()
    path = dg.path(
        lambda: lenet(X.shape[1], int(y.max()) + 1, c.hidden),
        (X, y),
        depth=3,
        relax_steps=50,
        min_groups=3,
        seed=seed,
        device=place.device,
    )
    seconds = time.perf_counter() - start
    points = [
        {"lam": p.lam, "features": p.n_groups, "accuracy": accuracy(path.restore(p).to(place.device), X_test, y_test)}
        for p in path
    ]
    return {"points": points, "seconds": round(seconds, 2)}


def _lassonet(c: Configuration, rows: Split, seed: int, place: Place) -> dict[str, Any]:
    X, X_test, y, y_test = rows
    points: list[dict[str, Any]] = []

    def look(columns: Tensor, predict: Any) -> None:
        if 0 < len(columns) <= 2 * max(c.ks) or not points:
            right = predict(X_test) == y_test.cpu().numpy()
            points.append({"features": len(columns), "accuracy": float(right.mean())})

    seconds = lassonet_path(X, y, look, seed=seed, hidden=c.hidden, device=place.device, **c.lassonet)
    return {"points": points, "seconds": round(seconds, 2)}


def _hsic(c: Configuration, rows: Split, place: Place) -> dict[str, Any]:
    """Columns once, then the network of the other methods on them, for every k and seed."""
    X, _, y, _ = rows
    start = time.perf_counter()
    chosen = hsic_lasso(X.cpu(), y.cpu(), [k for k in c.ks if k <= X.shape[1]])
    seconds = time.perf_counter() - start
    runs = []
    for seed in c.seeds:
        points = []
        for columns in (chosen[k].to(X.device) for k in sorted(chosen, reverse=True)):
            points.append({"features": len(columns), "accuracy": _on_columns(c, rows, columns, seed, place)})
        runs.append(points)
    return {"runs": runs, "seconds": round(seconds, 2)}


def _on_columns(c: Configuration, rows: Split, columns: Tensor, seed: int, place: Place) -> float:
    """Test accuracy of an ungated network that sees only these columns."""
    X, X_test, y, y_test = rows
    torch.manual_seed(seed)
    net = lenet(len(columns), int(y.max()) + 1, c.hidden).to(place.device)
    train(net, X[:, columns], y, nn.functional.cross_entropy, c.recipe(), generator=place.generator(seed))
    return accuracy(net, X_test[:, columns], y_test)
