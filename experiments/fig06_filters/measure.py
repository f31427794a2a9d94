"""One training of a convolutional network, and every smaller network that it gives: accuracy, size, speed."""

from __future__ import annotations

import copy
import functools
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dgating as dg
from dgating.maths import FLOAT32_EPS
from experiments import data
from experiments.common.convnets import RESNET18, VGG16, as_tensor, augmented, channels, resnet18, vgg
from experiments.common.experiment import Cell, Place
from experiments.common.networks import accuracy
from experiments.common.training import Recipe, train
from experiments.common.units import Units
from experiments.common.watch import Watch
from experiments.fig06_filters import peer
from experiments.fig06_filters.units import KINDS, anchor_, close_, gated, layer_scales, strengths_of

THRESHOLD = FLOAT32_EPS
BATCH = 250  # of pictures to be classified: small enough to stay in the caches
PRICE = 0.5  # power of the FLOPs of a channel in its λ where a method is "priced"
QUICK = 5.0  # times the step size of the weights for gates that are "quick"
PRUNED = ("filters", "coupled", "scales")  # kinds by which a dense network is pruned
Accuracies = dict[str, dict[str, float]]  # treatment of batch norm → part of the pictures → share right


@dataclass(frozen=True)
class Task:
    """A data set and a network for it.

    ``rows`` limits the training pictures, ``held_out`` more of them choose λ, share and treatment. ``pool`` averages
    squares of pixels, ``blocks`` are the widths of a VGG and ``widths`` those of a ResNet-18. ``lr``: of methods
    without gates; ``gated_lr``: by depth. ``epochs``, ``grids`` and ``seeds`` as in the configuration, if not given.
    """

    name: str
    dataset: str
    blocks: tuple[tuple[int, ...], ...] = ()
    widths: tuple[int, ...] = ()
    hidden: int = 512
    rows: int | None = None
    held_out: int = 5000
    pool: int = 1
    lr: float = 0.1
    gated_lr: tuple[tuple[int, float], ...] = ()
    flip: bool = True
    epochs: int | None = None
    grids: tuple[tuple[str, tuple[float, ...]], ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Configuration:
    """Section 9.4. Open there and ours: the grids of λ, how a filter's batch norm is treated, augmentation's details.

    A method is a kind of unit and a way: ``"coupled, D = 3"``, ``"filters, direct"`` (λ Σ ‖unit‖ in the loss, then
    pruned by norm), ``"scales, direct"`` (network slimming); or ``"dense"`` (pruned by norm), or ``"torch-pruning"``.
    Every method but ``dense`` has a grid of λ, by name; the penalties differ in scale, so the grids do. ``once``:
    methods for the first task and its first seed only.
    """

    tasks: tuple[Task, ...]
    grids: dict[str, tuple[float, ...]]
    seeds: tuple[int, ...] = (0,)
    once: tuple[str, ...] = ()
    epochs: int = 200
    batch: int = 128
    momentum: float = 0.9
    augment: bool = True
    bfloat16: bool = False
    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    latency_batch: int = 64
    repeats: int = 20
    version: int = 3


PAPER_TASKS = (
    Task("VGG-16, CIFAR-10", "cifar10", VGG16, gated_lr=((2, 0.3), (3, 0.4), (4, 0.4))),
    Task("VGG-16, SVHN", "svhn", VGG16, lr=2e-3, gated_lr=((2, 2e-3), (3, 3e-3), (4, 3e-3)), flip=False),
    Task("ResNet-18, CIFAR-100", "cifar100", widths=RESNET18, lr=0.2, gated_lr=((2, 0.2), (3, 0.3), (4, 0.4))),
)


def cells(c: Configuration) -> list[Cell]:
    """Seed by seed, task by task; last what is run for the first task and seed only."""
    made: list[Cell] = []

    def add(task: Task, seed: int, grids: dict[str, tuple[float, ...]]) -> None:
        made.extend(
            {"task": task.name, "method": method, "lam": lam, "seed": seed}
            for method, lams in grids.items() for lam in lams
        )  # fmt: skip

    for seed in dict.fromkeys(s for task in c.tasks for s in (task.seeds or c.seeds)):
        for task in (t for t in c.tasks if seed in (t.seeds or c.seeds)):
            grids = dict(task.grids) or {m: lams for m, lams in c.grids.items() if m not in c.once}
            add(task, seed, {"dense": (0.0,), **grids})
    first = c.tasks[0]
    add(first, (first.seeds or c.seeds)[0], {m: c.grids[m] for m in c.once})
    return made


WAY = re.compile(r"(direct|priced direct|(anchored |priced |quick )?D = ([2-9]))")


def parsed(method: str) -> tuple[str, str]:
    """``"coupled, D = 3"`` to its kind and its way; ``dense`` and ``torch-pruning`` have only a way."""
    if method in ("dense", "torch-pruning"):
        return "", method
    kind, _, way = method.partition(", ")
    if kind in KINDS and WAY.fullmatch(way):
        return kind, way
    raise ValueError(
        f"method: expected 'dense', 'torch-pruning', or one of {KINDS} with 'direct', 'D = 3' or the like, received "
        f"{method!r}."
    )


def depth_of(method: str) -> int | None:
    """D of a gated method."""
    found = WAY.fullmatch(parsed(method)[1])
    return int(found[3]) if found and found[3] else None


@dataclass(frozen=True)
class Pictures:
    """Normalised pictures and classes, on the device: to train on, to choose by, to report."""

    X: Tensor
    y: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]  # "validation" and "test"


@functools.lru_cache(maxsize=2)
def pictures(task: Task, place: Place) -> Pictures:
    """Every colour of mean 0 and variance 1 over the training pictures.

    Kept for the next cell of this process: unpacking takes as long as a short training.
    """
    found = data.load(task.dataset, place.data)
    if found.X_test is None:
        found = data.split(found, 0.2, 0)
    X_test, y_test = found.X_test, found.y_test
    assert X_test is not None
    assert y_test is not None
    order = np.random.default_rng(0).permutation(len(found.X))
    held, rest = order[: task.held_out], order[task.held_out :]
    rest = rest if task.rows is None else rest[: task.rows]
    side = math.isqrt(found.X[0].size) if found.X[0].ndim == 1 else None  # rows of pixels (digits)
    shape = (-1, side, side) if side else found.X.shape

    def tensors(X: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        x = as_tensor(torch.as_tensor(np.ascontiguousarray(X)).reshape(len(X), *shape[1:]), task.pool)
        return x.contiguous(memory_format=torch.channels_last), torch.as_tensor(np.asarray(y), dtype=torch.long)

    train, *others = (
        tensors(X, y)
        for X, y in (
            (found.X[rest], found.y[rest]), (found.X[held], found.y[held]), (X_test, y_test),
        )
    )  # fmt: skip
    mean, sd = train[0].mean((0, 2, 3), keepdim=True), train[0].std((0, 2, 3), keepdim=True)
    (X, y), validation, test = (
        (((x - mean) / sd).to(place.device), y.to(place.device)) for x, y in (train, *others)
    )  # fmt: skip
    return Pictures(X, y, {"validation": validation, "test": test})


def network(task: Task, rows: Pictures) -> nn.Module:
    """The network of a task, on the device of the pictures, in their memory format."""
    classes, inputs, side = int(rows.y.max()) + 1, rows.X.shape[1], rows.X.shape[2]
    made = (
        resnet18(task.widths, classes, inputs)
        if task.widths
        else vgg(task.blocks, task.hidden, classes, inputs, side)
    )  # fmt: skip
    made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return made.to(rows.X.device)


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """Train once; then the network's own zeros, and one-shot pruning at every ratio."""
    task = next(t for t in c.tasks if t.name == cell["task"])
    rows, (kind, way) = pictures(task, place), parsed(cell["method"])
    torch.manual_seed(cell["seed"])
    net = network(task, rows)
    units = gated(net, rows.X[:2], kind, depth_of(cell["method"])) if kind else None
    start = time.perf_counter()
    watch = _fit(c, task, rows, net, units, cell, place)
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 2)}
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        return found | {"diverged": True}
    found |= {name: accuracy(net, *part, batch=BATCH) for name, part in rows.parts.items()}
    found["filters"] = sum(conv.out_channels for conv, _ in channels(net))
    if watch is not None:
        found |= watch.found()
    found["points"] = list(_points(c, rows, net, units, way))
    return found


def _fit(
    c: Configuration, task: Task, rows: Pictures, net: nn.Module, units: Units | None, cell: Cell, place: Place
) -> Watch | None:
    (_, way), lam, generator = parsed(cell["method"]), float(cell["lam"]), place.generator(cell["seed"])
    depth = depth_of(cell["method"])
    lr = dict(task.gated_lr).get(depth or 0, task.lr)
    recipe = Recipe(
        task.epochs or c.epochs, c.batch, lr, c.momentum, bfloat16=c.bfloat16,
        gate_lr=QUICK * lr if way.startswith("quick") else None,
    )  # fmt: skip
    epoch = math.ceil(len(rows.y) / c.batch)
    lams = strengths_of(units, rows.X[:1], lam, PRICE if "priced" in way else 0.0) if units else {}
    watch = Watch(net, lams, every=epoch, window=epoch, threshold=THRESHOLD) if depth else None
    scales = layer_scales(net) if way.startswith("anchored") else None
    before = peer.regularizer(net, rows.X[:2], lam) if way == "torch-pruning" else watch and watch.before_step

    def on_step(step: int, optimizer: torch.optim.Optimizer) -> None:
        if scales is not None:
            anchor_(net, scales)
        if watch is not None:
            watch.on_step(step, optimizer)

    train(
        net, rows.X, rows.y, nn.functional.cross_entropy, recipe, generator=generator, lam=lams if depth else 0.0,
        penalty=(lambda _: units.penalty(lams)) if units and way.endswith("direct") else None, before_step=before,
        on_step=on_step, transform=(lambda x: augmented(x, generator, task.flip)) if c.augment else None,
    )  # fmt: skip
    return watch


def _points(
    c: Configuration, rows: Pictures, net: nn.Module, units: Units | None, way: str
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The networks that this training gives."""
    if way == "torch-pruning":
        full = net.eval()
        for ratio in c.ratios:
            yield {"by": "torch-pruning", "ratio": ratio} | _point(c, rows, full, peer.pruned(full, rows.X[:2], ratio))
        return
    if way == "dense":
        for kind in PRUNED:
            of = gated(copy.deepcopy(net), rows.X[:2], kind, None)
            for ratio in c.ratios:
                yield {"by": kind, "ratio": ratio} | _without(c, rows, of, of.smallest(ratio, keep=1))
        return
    assert units is not None
    if not way.endswith("direct"):
        own = units.below(THRESHOLD)
        yield {"own": True} | _without(c, rows, units, own)
    for ratio in c.ratios:
        yield {"ratio": ratio} | _without(c, rows, units, units.smallest(ratio, keep=1))


def _without(c: Configuration, rows: Pictures, units: Units, masks: dict[str, Tensor]) -> dict[str, Any]:
    """Three treatments of the batch norms of dead channels. Only closed channels can be cut out."""
    full = units.without(masks)
    kept = accuracy(full, *rows.parts["validation"], batch=BATCH)
    left = close_(full)
    found = _point(c, rows, full, dg.compact(full, (rows.X[:2],)))
    found["accuracy"]["kept"] = {"validation": kept}
    return {"left": left} | found


def _point(c: Configuration, rows: Pictures, full: nn.Module, small: nn.Module) -> dict[str, Any]:
    """Accuracy, size and speed of a compact network beside the full one."""
    example = (next(iter(rows.parts.values()))[0][: c.latency_batch],)
    sizes = dg.profile(small, example, reference=full, repeats=c.repeats)
    assert sizes.reference is not None
    accuracies: Accuracies = {
        treatment: {name: accuracy(net, *part, batch=BATCH) for name, part in rows.parts.items()}
        for treatment, net in (("closed", small), ("recalibrated", recalibrated(small, rows.X)))
    }
    return {
        "accuracy": accuracies,
        "parameters": [sizes.reference.parameters, sizes.parameters],
        "flops": [sizes.reference.flops, sizes.flops],
        "latency_ms": [round(sizes.reference.latency_ms, 4), round(sizes.latency_ms, 4)],
        "speedup": round(float(sizes.latency_speedup or 1), 3),
    }


@torch.no_grad()
def recalibrated(net: nn.Module, X: Tensor, rows: int = 2048, batch: int = 256) -> nn.Module:
    """A copy whose batch norms have the statistics of what reaches them now, over the first training pictures."""
    fresh = copy.deepcopy(net)
    for module in fresh.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    fresh.train()
    for part in X[:rows].split(batch):
        fresh(part)
    return fresh.eval()
