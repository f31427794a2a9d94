"""One training of a convolutional network, and every smaller network that it gives: accuracy, size, speed."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dgating as dg
from dgating._penalty import FLOAT32_EPS
from experiments import data
from experiments.common.convnets import RESNET18, VGG16, as_tensor, augmented, channels, resnet18, vgg
from experiments.common.experiment import Cell, Place
from experiments.common.networks import accuracy
from experiments.common.training import Recipe, train
from experiments.common.watch import Watch
from experiments.fig06_filters.units import KINDS, anchor_, close_, gate, lowest, root_mean_square, scores, without

THRESHOLD = FLOAT32_EPS
BASELINES = ("magnitude", "direct", "slimming")


@dataclass(frozen=True)
class Task:
    """A data set and a network for it.

    ``rows`` limits the training pictures, ``pool`` averages squares of pixels, ``blocks`` are the widths of a VGG and
    ``widths`` those of a ResNet-18. ``lr``: of the baselines; ``gated_lr``: by depth.
    """

    name: str
    dataset: str
    blocks: tuple[tuple[int, ...], ...] = ()
    widths: tuple[int, ...] = ()
    hidden: int = 512
    rows: int | None = None
    pool: int = 1
    lr: float = 0.1
    gated_lr: tuple[tuple[int, float], ...] = ()
    flip: bool = True


@dataclass(frozen=True)
class Configuration:
    """Section 9.4. Open there and ours: the grids of λ, how a filter's batch norm is treated, augmentation's details.

    A method is a kind of unit with a depth (``"coupled, D = 3"``), or a baseline: ``magnitude`` (global, of filters),
    ``direct`` (λ Σ ‖filter‖ in the loss, then magnitude) or ``slimming`` (λ Σ |scale|, then the size of scales).
    """

    tasks: tuple[Task, ...]
    methods: tuple[str, ...]
    lams: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    epochs: int = 200
    batch: int = 128
    momentum: float = 0.9
    augment: bool = True
    bfloat16: bool = False
    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    latency_batch: int = 64
    repeats: int = 20
    version: int = 1


PAPER_TASKS = (
    Task("VGG-16, CIFAR-10", "cifar10", VGG16, gated_lr=((2, 0.3), (3, 0.4), (4, 0.4))),
    Task("VGG-16, SVHN", "svhn", VGG16, lr=2e-3, gated_lr=((2, 2e-3), (3, 3e-3), (4, 3e-3)), flip=False),
    Task("ResNet-18, CIFAR-100", "cifar100", widths=RESNET18, lr=0.2, gated_lr=((2, 0.2), (3, 0.3), (4, 0.4))),
)


def cells(c: Configuration) -> list[Cell]:
    """Seed by seed, task by task; the dense network of ``magnitude`` has no strength."""
    return [
        {"task": task.name, "method": method, "lam": lam, "seed": seed}
        for seed in c.seeds for task in c.tasks for method in c.methods
        for lam in ((0.0,) if method == "magnitude" else c.lams)
    ]  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """Normalised pictures and classes, on the device."""

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor


@functools.lru_cache(maxsize=2)
def pictures(task: Task, place: Place) -> Pictures:
    """Training and test pictures; every colour of mean 0 and variance 1 over the training pictures.

    Kept for the next cell of this process: unpacking takes as long as a short training.
    """
    found = data.load(task.dataset, place.data)
    if found.X_test is None:
        found = data.split(found, 0.2, 0)
    if task.rows is not None and len(found.X) > task.rows:
        some = np.random.default_rng(0).permutation(len(found.X))[: task.rows]
        found = replace(found, X=found.X[some], y=found.y[some])
    assert found.X_test is not None
    side = math.isqrt(found.X[0].size) if found.X[0].ndim == 1 else None  # rows of pixels (digits)
    shape = (-1, side, side) if side else found.X.shape
    X, X_test = (
        as_tensor(torch.as_tensor(np.ascontiguousarray(part)).reshape(len(part), *shape[1:]), task.pool)
        for part in (found.X, found.X_test)
    )
    mean, sd = X.mean((0, 2, 3), keepdim=True), X.std((0, 2, 3), keepdim=True)
    X, X_test = ((part - mean).div(sd).to(place.device) for part in (X, X_test))
    y, y_test = (torch.as_tensor(np.asarray(p), dtype=torch.long, device=place.device) for p in (found.y, found.y_test))
    return Pictures(X, y, X_test, y_test)


def network(task: Task, rows: Pictures) -> nn.Module:
    """The network of a task, on the device of the pictures."""
    classes, inputs, side = int(rows.y.max()) + 1, rows.X.shape[1], rows.X.shape[2]
    made = (
        resnet18(task.widths, classes, inputs)
        if task.widths
        else vgg(task.blocks, task.hidden, classes, inputs, side)
    )  # fmt: skip
    made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return made.to(rows.X.device)


def parsed(method: str) -> tuple[str, int | None]:
    """``"coupled, D = 3"`` to ``("coupled", 3)``, a baseline to ``(name, None)``."""
    kind, _, depth = method.partition(", D = ")
    if depth and kind in KINDS:
        return kind, int(depth)
    if method in BASELINES:
        return method, None
    raise ValueError(f"method: expected a kind of {KINDS} with a depth, or one of {BASELINES}, received {method!r}.")


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """Train once; then the network's own zeros, and one-shot pruning at every ratio."""
    task = next(t for t in c.tasks if t.name == cell["task"])
    rows, lam = pictures(task, place), cell["lam"]
    kind, depth = parsed(cell["method"])
    torch.manual_seed(cell["seed"])
    net = network(task, rows)
    if depth:
        gate(net, rows.X[:2], kind, depth)
    generator = place.generator(cell["seed"])
    recipe = Recipe(
        c.epochs, c.batch, dict(task.gated_lr).get(depth or 0, task.lr), c.momentum, bfloat16=c.bfloat16
    )  # fmt: skip
    epoch = math.ceil(len(rows.y) / c.batch)
    watch = Watch(net, lam, every=epoch, window=epoch, threshold=THRESHOLD) if depth else None
    scales = root_mean_square(net) if kind == "anchored" else None

    def on_step(step: int, optimizer: torch.optim.Optimizer) -> None:
        if scales is not None:
            anchor_(net, scales)
        if watch is not None:
            watch.on_step(step, optimizer)

    start = time.perf_counter()
    train(
        net, rows.X, rows.y, nn.functional.cross_entropy, recipe, generator=generator, lam=lam,
        penalty=penalty(kind, lam), before_step=watch.before_step if watch else None, on_step=on_step,
        transform=(lambda x: augmented(x, generator, task.flip)) if c.augment else None,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        return {"diverged": True, "seconds": seconds}
    found: dict[str, Any] = {
        "accuracy": accuracy(net, rows.X_test, rows.y_test),
        "filters": sum(conv.out_channels for conv, _ in channels(net)),
        "seconds": round(seconds, 2),
    }
    if watch is not None:
        found |= watch.found()
    found["points"] = [_point(c, net, mask, rows, **words) for mask, words in _masks(c, net, cell["method"], watch)]
    return found


def penalty(kind: str, lam: float) -> Any:
    """The term in the loss of the two baselines that have one."""
    if kind == "direct":
        return lambda net: lam * sum(conv.weight.flatten(1).norm(dim=1).sum() for conv, _ in channels(net))
    if kind == "slimming":
        return lambda net: lam * sum(norm.weight.abs().sum() for _, norm in channels(net))
    return None


def _masks(c: Configuration, net: nn.Module, method: str, watch: Watch | None) -> list[tuple[Any, dict[str, Any]]]:
    """What to take out: by the network's own zeros (gated), and by share of the smallest (all)."""
    if watch is None:
        values, sizes = scores(net, method), [conv.out_channels for conv, _ in channels(net)]
        return [(lowest(values, sizes, r), {"ratio": r}) for r in (0.0, *c.ratios)]
    (name, norms), *_ = dg.group_norms(net).items()
    from dgating._units import units

    sizes = [unit.n_groups for unit in units(net)]
    known = watch.certified[-1].to(norms.device) if watch.certified else torch.zeros_like(norms, dtype=torch.bool)
    own = {"own": True, "threshold": int((norms <= THRESHOLD).sum()), "certified": int(known.sum())}
    return [
        ({name: (norms <= THRESHOLD) | known}, own),
        *(({name: lowest(norms, sizes, r)}, {"ratio": r}) for r in c.ratios),
    ]


def _point(c: Configuration, net: nn.Module, mask: Any, rows: Pictures, **words: Any) -> dict[str, Any]:
    """The network without the channels of a mask: zeroed for accuracy, compacted for size and speed."""
    full = without(net, mask)
    example = (rows.X_test[: c.latency_batch],)
    small = dg.compact(full, example)
    sizes = dg.profile(small, example, reference=full, repeats=c.repeats)
    assert sizes.reference is not None
    return {
        **words,
        "left": close_(full),
        "accuracy": accuracy(full, rows.X_test, rows.y_test),
        "recalibrated": accuracy(recalibrated(full, rows.X), rows.X_test, rows.y_test),
        "parameters": [sizes.reference.parameters, sizes.parameters],
        "flops": [sizes.reference.flops, sizes.flops],
        "latency_ms": [round(sizes.reference.latency_ms, 4), round(sizes.latency_ms, 4)],
        "speedup": round(float(sizes.latency_speedup or 1), 3),
    }


@torch.no_grad()
def recalibrated(net: nn.Module, X: Tensor, rows: int = 2048, batch: int = 256) -> nn.Module:
    """A copy whose batch norms have the statistics of what reaches them now, over the first training pictures."""
    import copy

    fresh = copy.deepcopy(net)
    for module in fresh.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    fresh.train()
    for part in X[:rows].split(batch):
        fresh(part)
    return fresh.eval()
