"""Run the cells of an experiment that are not stored yet, several at a time, and store each as it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import joblib

from dgating.tasks import shown, some_threads
from experiments.common import store
from experiments.common.environment import environment
from experiments.common.experiment import Cell, Experiment, Place, Record
from experiments.common.registry import experiment
from experiments.common.subnormals import flushing_subnormals
from experiments.data import require

# of torch in every process: sums depend on how they are split, and a result must not depend on ``jobs``
THREADS = 1


def run(
    name: str,
    scale: str,
    *,
    data: Path | None = None,
    out: Path | None = None,
    jobs: int = 1,
    device: str = "cpu",
    only: dict[str, str] | None = None,
    restart: bool = False,
) -> Path:
    """Compute what is missing of an experiment at a scale; the file that holds its results.

    Args:
        name: of the experiment.
        scale: ``smoke``, ``cpu``, ``paper``, and ``gpu`` of some.
        data: folder of data sets.
        out: where results are stored, by default beside the experiment's code.
        jobs: processes at a time.
        device: where networks are trained.
        only: compute only cells with these values (compared as text).
        restart: drop what is stored.

    Raises:
        ValueError: no such experiment or scale, no cell with these values, a file of another configuration, or several
            ``jobs`` for an experiment about time.
        DataMissing: a data set is neither in the folder nor to be downloaded; before anything is computed.
    """
    it = experiment(name)
    if scale not in it.configurations:
        raise ValueError(f"scale: expected one of {', '.join(it.configurations)}, received {scale!r}.")
    if it.alone and jobs != 1:
        raise ValueError(
            f"jobs: expected 1, received {jobs}: {name} measures time, and its cells would share the machine."
        )
    configuration, settings = it.configurations[scale], it.settings(scale)
    cells = it.cells(configuration)
    wanted = [cell for cell in cells if all(str(cell.get(k)) == v for k, v in (only or {}).items())]
    if not wanted:
        raise ValueError(f"only: no cell has {only}; cells look like {cells[0]}.")
    file = results(it, out) / f"{scale}.json"
    known = [] if restart else store.read(file, settings)
    done = {store.key(record.cell) for record in known}
    left = [cell for cell in wanted if store.key(cell) not in done]
    require(it.datasets(configuration), data)
    order = {store.key(cell): i for i, cell in enumerate(cells)}
    for record in shown(_computed(it, scale, left, Place(data, device), jobs), f"{name} {scale}", len(left), 0):
        known.append(record)
        known.sort(key=lambda r: order.get(store.key(r.cell), len(order)))
        store.write(file, name, scale, settings, known, len(cells))
    return file


def results(it: Experiment, out: Path | None) -> Path:
    """The folder that holds the results of an experiment."""
    return it.folder / "results" if out is None else out / it.name


def _computed(it: Experiment, scale: str, left: list[Cell], place: Place, jobs: int) -> Iterable[Record]:
    calls = (joblib.delayed(_one)(it.name, scale, cell, place) for cell in left)
    return joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)  # type: ignore[return-value]


def _one(name: str, scale: str, cell: Cell, place: Place) -> Record:
    it = experiment(name)  # by name: functions of a module that ran as a script do not travel
    measure: Callable[..., dict[str, Any]] = it.measure
    with some_threads(THREADS), flushing_subnormals():
        start = time.perf_counter()
        found = measure(it.configurations[scale], cell, place)
        return Record(cell, found, round(time.perf_counter() - start, 3), environment(place.device))
