"""Estimators on tall tables that lie on disk: seconds and memory against rows and columns.

    python -m benchmarks.tall_table           # stores results/tall_table.json; 4 GB in the temporary folder
    python -m benchmarks.tall_table --quick   # the small sizes, only prints

Columns are float32 and N(0, 1) in a ``numpy.memmap``; ten of them carry the target. Each fit has a process of its own.
*anonymous* is the peak of anonymous memory (what the program itself holds, read from /proc every 20 ms) above what was
there before the fit; pages of the mapped file are not in it. *resident* is the peak resident size of the process, with
them. *slope* is that of log seconds over log size.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dgating as dg
from benchmarks._common import environment, store

ESTIMATORS: dict[str, Callable[[], Any]] = {
    "DGatedLinearRegressor(depth=3)": lambda: dg.DGatedLinearRegressor(depth=3),
    "DGatedRegressor((100,))": lambda: dg.DGatedRegressor((100,), random_state=0),
}
ROWS = [(n, 1000) for n in (10_000, 30_000, 100_000, 300_000, 1_000_000)]
COLUMNS = [(100_000, p) for p in (125, 250, 500, 1000)]
QUICK = [(10_000, 125), (10_000, 250)]
BLOCK, SIGNAL, MIB = 10_000, 10, 1 << 20


def write(folder: Path, n: int, p: int) -> None:
    """``X`` and ``y`` of one size, a block of rows at a time."""
    rng = np.random.default_rng(0)
    X, y = np.memmap(folder / "X", np.float32, "w+", shape=(n, p)), np.empty(n)
    weights = rng.uniform(1, 2, SIGNAL)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        X[start:stop] = rng.standard_normal((stop - start, p), dtype=np.float32)
        y[start:stop] = X[start:stop, :SIGNAL] @ weights + rng.standard_normal(stop - start)
    X.flush()
    np.save(folder / "y.npy", y)


def anonymous() -> float:
    """MiB of anonymous memory of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
    return math.nan


def fit(name: str, folder: Path, n: int, p: int, threads: int) -> dict[str, Any]:
    """In a process of its own: fit, and watch the memory."""
    torch.set_num_threads(threads)
    X, y = np.memmap(folder / "X", np.float32, "r", shape=(n, p)), np.load(folder / "y.npy")
    rng = np.random.default_rng(1)
    ESTIMATORS[name]().fit(rng.standard_normal((100, 10)), rng.standard_normal(100))  # imports and first calls
    before, samples, done = anonymous(), [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            samples.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    model = ESTIMATORS[name]().fit(X, y)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    left = np.flatnonzero(model.feature_importances_)
    return {
        "seconds": round(seconds, 3),
        "anonymous MiB": round(max(samples) - before, 1),
        "resident MiB": round(resident, 1),
        "file MiB": round(4 * n * p / MIB, 1),
        "selected": len(left),
        "right": bool(np.array_equal(left, np.arange(SIGNAL))),
    }


def slope(rows: list[dict[str, Any]], axis: str) -> float:
    sizes, seconds = np.log([r[axis] for r in rows]), np.log([r["seconds"] for r in rows])
    return round(float(np.polyfit(sizes, seconds, 1)[0]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing stored")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, folder, n, p = arguments.one
        print(json.dumps(fit(name, Path(folder), int(n), int(p), arguments.threads)))
        return
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for n, p in QUICK if arguments.quick else sorted({*ROWS, *COLUMNS}):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), n, p)
            for name in ESTIMATORS:
                command = [sys.executable, "-m", "benchmarks.tall_table", "--threads", str(arguments.threads), "--one"]
                made = subprocess.run([*command, name, folder, str(n), str(p)], check=True, capture_output=True)
                rows.append({"estimator": name, "rows": n, "columns": p, **json.loads(made.stdout)})
                print(*(f"{k} {v}" for k, v in rows[-1].items()), sep=", ", flush=True)
    if not arguments.quick:
        slopes = {
            name: {
                axis: slope([r for r in rows if r["estimator"] == name and (r["rows"], r["columns"]) in sizes], axis)
                for axis, sizes in {"rows": ROWS, "columns": COLUMNS}.items()
            }
            for name in ESTIMATORS
        }
        print(slopes)
        result = {"environment": environment() | {"numpy": np.__version__}, "slopes": slopes, "runs": rows}
        print(store("tall_table", result).name)


if __name__ == "__main__":
    main()
