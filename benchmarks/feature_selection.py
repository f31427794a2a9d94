"""Feature selection by a 300-100 network: seconds of the whole path, accuracy on it and after a refit.

    python -m benchmarks.feature_selection --data FOLDER                       # hours; goes on where it stopped
    python -m benchmarks.feature_selection --data FOLDER --methods dgating     # ours alone, minutes
    python -m benchmarks.feature_selection --report                            # the table of what is stored

One data split a table; seeds are those of the network, the batches and the refits. For ``k`` features a method's
selection is the first point of its path with at most ``k`` (the rule of LassoNet's own script), a forest's the ``k``
most important. *Chosen* is the point with the best accuracy on a tenth of the training rows among those with at most
``k`` features: what ``select(n_groups=k)`` returns. Refit: a fresh 300-100 network on these columns and all training
rows, SGD, batch 256, step size 0.1 to 0 by a cosine, momentum 0.9, 100 epochs, last epoch, mean of two seeds.

Peers, where they can be imported: LassoNet with the defaults of its constructor and ``M=10``, HSIC-Lasso (blocks of 20,
M = 3, 200 features, MNIST 100), a forest of 500 trees.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dgating as dg
from benchmarks._common import RESULTS, environment, store
from benchmarks._tables import TABLES, Split, table
from experiments.common.baselines import forest_order, hsic_lasso, lassonet_path
from experiments.common.networks import accuracy, lenet

KS = (10, 25, 50, 100, 200)
HIDDEN = (300, 100)
NAME = "feature_selection"
# one setting for every table: the defaults of dgating.path, and a short relaxed fit at every point
PATH = {"depth": 3, "relax_steps": 50, "min_groups": 3}

Point = tuple[Tensor, float]  # columns, accuracy on the path (nan where there is none)
Found = tuple[list[Point], dict[int, Point], float]  # points dense to sparse, chosen for each k, seconds


def refit(data: Split, columns: Tensor, seed: int, epochs: int = 100) -> float:
    X, X_test, y, y_test = data
    torch.manual_seed(seed)
    X, X_test = X[:, columns], X_test[:, columns]
    net = lenet(len(columns), int(y.max()) + 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    steps = epochs * math.ceil(len(X) / 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(256):
            loss = nn.functional.cross_entropy(net(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return accuracy(net, X_test, y_test)


def dgating(data: Split, seed: int, **options: Any) -> Found:
    X, X_test, y, y_test = data
    start = time.perf_counter()
    path = dg.path(
        lambda: lenet(X.shape[1], int(y.max()) + 1), (X, y), validation=0.1, seed=seed, **{**PATH, **options}
    )
    seconds = time.perf_counter() - start

    def seen(p: dg.PathPoint) -> Point:
        return p.kept["0.weight"].nonzero()[:, 0], accuracy(path.restore(p), X_test, y_test)

    points = {id(p): seen(p) for p in path}
    chosen = {k: points[id(path.select(n_groups=k))] for k in KS if path[-1].n_groups <= k}
    return list(points.values()), chosen, seconds


def forest(data: Split, seed: int) -> Found:
    start = time.perf_counter()
    order = forest_order(data[0], data[2], seed=seed, jobs=torch.get_num_threads())
    return [(order[:k], math.nan) for k in sorted(KS, reverse=True)], {}, time.perf_counter() - start


def lassonet(data: Split, seed: int) -> Found:
    X, X_test, y, y_test = data
    points: list[Point] = []

    def look(columns: Tensor, predict: Callable[[Tensor], np.ndarray]) -> None:
        if len(columns) <= 2 * max(KS):
            points.append((columns, float((predict(X_test) == y_test.numpy()).mean())))

    return points, {}, lassonet_path(X, y, look, seed=seed, hidden=HIDDEN)


def hsic(data: Split, seed: int) -> Found:
    most = 100 if data[0].shape[1] == 784 else 200
    start = time.perf_counter()
    chosen = hsic_lasso(data[0], data[2], [k for k in KS if k <= most], jobs=torch.get_num_threads())
    return [(chosen[k], math.nan) for k in sorted(chosen, reverse=True)], {}, time.perf_counter() - start


METHODS: dict[str, Callable[..., Found]] = {"dgating": dgating, "forest": forest, "lassonet": lassonet, "hsic": hsic}
TITLES = {"isolet": "ISOLET", "coil20": "COIL-20", "madelon": "MADELON", "mnist10k": "MNIST, 10,000 rows"}
PACKAGES = {"forest": "scikit-learn", "lassonet": "lassonet", "hsic": "pyHSICLasso"}


def run(method: str, data: Split, seed: int, **options: Any) -> dict[str, Any]:
    """One method on one table with one seed, as JSON."""
    points, chosen, seconds = METHODS[method](data, seed, **options)
    rows = {}
    for k in KS:
        first = next((p for p in points if len(p[0]) <= k), None)
        if first is None or len(first[0]) == 0:
            continue
        rows[k] = {"first": _scored(data, first, seed)}
        if k in chosen:
            rows[k]["chosen"] = _scored(data, chosen[k], seed)
    return {"seconds": round(seconds, 2), "points": len(points), "threads": torch.get_num_threads(), "k": rows}


def _scored(data: Split, point: Point, seed: int) -> dict[str, Any]:
    columns, on_path = point
    again = statistics.mean(refit(data, columns, s) for s in (2 * seed, 2 * seed + 1))
    scored = {"features": len(columns), "refit": round(100 * again, 2)}
    return scored if math.isnan(on_path) else {**scored, "path": round(100 * on_path, 2)}


def means(runs: dict[str, Any], method: str, kind: str, measure: str) -> list[float | None]:
    """Mean over the seeds at each number of features; None where no seed has a selection."""
    found = []
    for k in KS:
        cells = [r["k"].get(str(k), {}).get(kind, {}).get(measure) for r in runs.get(method, {}).values()]
        cells = [c for c in cells if c is not None]
        found.append(statistics.mean(cells) if cells else None)
    return found


def best_peer(runs: dict[str, Any]) -> list[float | None]:
    """The best mean after the refit among the peers, at each number of features."""
    peers = [means(runs, method, "first", "refit") for method in PACKAGES]
    return [max((c for c in column if c is not None), default=None) for column in zip(*peers, strict=True)]


def table_rows(stored: dict[str, Any]) -> list[str]:
    """The table of ``benchmarks/README.md``, a line a data set."""
    lines = []
    for name, title in TITLES.items():
        runs = stored["runs"].get(name, {})
        columns = [means(runs, m, "first", "path") for m in ("dgating", "lassonet")]
        columns += [means(runs, "dgating", "first", "refit"), best_peer(runs)]
        cells = (" / ".join("-" if v is None else f"{v:.1f}" for v in c) for c in columns)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def report(stored: dict[str, Any]) -> str:
    """Means over the seeds, a block a data set, then the rows of the README."""
    lines = []
    for name in TABLES:
        runs = stored["runs"].get(name, {})
        lines += ["", f"{name:28}{'seconds':>9}" + "".join(f"{k:>9}" for k in KS)]
        for method, seeds in runs.items():
            times = statistics.mean(r["seconds"] for r in seeds.values())
            for kind in ("first", "chosen"):
                for measure in ("path", "refit"):
                    cells = means(runs, method, kind, measure)
                    if any(c is not None for c in cells):
                        shown = "".join(f"{'-':>9}" if c is None else f"{c:9.1f}" for c in cells)
                        lines.append(f"{method:10}{kind + ', ' + measure:18}{times:9.1f}{shown}   ({len(seeds)} seeds)")
    return "\n".join([*lines, "", *table_rows(stored)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="only print what is stored")
    parser.add_argument("--again", action="store_true", help="measure anew what is stored")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = RESULTS / f"{NAME}.json"
    stored = json.loads(file.read_text()) if file.is_file() else {"settings": {**PATH, "ks": KS}, "runs": {}}
    for name in () if options.report else options.tables:
        data = table(name, options.data)
        for method in options.methods:
            for seed in options.seeds:
                seeds = stored["runs"].setdefault(name, {}).setdefault(method, {})
                if str(seed) in seeds and not options.again:
                    continue
                made = run(method, data, seed)
                versions = {p: importlib.metadata.version(p) for m, p in PACKAGES.items() if m == method}
                seeds[str(seed)] = json.loads(json.dumps({**made, "environment": {**environment(), **versions}}))
                store(NAME, stored)
                print(name, method, seed, f"{made['seconds']:.1f} s", flush=True)
    print(report(stored))


if __name__ == "__main__":
    main()
