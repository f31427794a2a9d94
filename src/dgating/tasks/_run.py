"""Independent tasks spread by joblib, each result kept in a folder: a killed run goes on where it stopped.

A task is a function of its arguments and draws random numbers from its own seed alone, so that a result does not
depend on who computes it. Every task runs with the same number of threads everywhere: sums of floating point numbers
depend on how they are split.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.numpy import save

from dgating._checks import check_folder, check_whole
from dgating.files import MALFORMED, read_json, read_safetensors, remove_left, seal_safetensors, write_bytes
from dgating.tasks._fingerprint import described

MOST_WORKERS = 10_000  # processes or threads
Result = dict[str, np.ndarray]
Item = TypeVar("Item")
SETTINGS, FORMAT = "settings.json", "dgating/result/1"

# torch's random numbers and number of threads belong to the process: tasks in threads of one process take turns
_turn = threading.Lock()


@dataclass(frozen=True)
class Task:
    """``function(*arguments, **options)`` returns arrays by name; ``name`` is that of its file."""

    name: str
    function: Callable[..., Result]
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


def run_tasks(
    tasks: Sequence[Task],
    *,
    n_jobs: int | None = None,
    threads: int = 1,
    folder: str | Path | None = None,
    settings: dict[str, Any] | None = None,
    progress: str | None = None,
) -> list[Result]:
    """All results, in the order of the tasks.

    Args:
        tasks: what to compute.
        n_jobs: as in joblib: processes at a time (of its default backend, or of the one that
            ``joblib.parallel_config`` names); ``None`` is one, unless that says otherwise, ``-1`` one a core.
        threads: of torch in every task.
        folder: where finished results are kept, and found again by the next call.
        settings: what the results depend on; a folder made with others is refused.
        progress: words before a progress bar on standard error; ``None`` for none.

    Raises:
        ValueError: the folder belongs to other settings, or is not one of ours.
    """
    check_workers(n_jobs, threads)
    place = None if folder is None else claim(check_folder("folder", folder), settings or {})
    key = "" if place is None else folder_key(place)
    results: dict[int, Result] = {}
    for i, task in enumerate(tasks):
        if place is not None and (found := _read(place / f"{task.name}.safetensors", key)) is not None:
            results[i] = found
    left = [i for i in range(len(tasks)) if i not in results]
    for i, result in shown(_computed(tasks, left, n_jobs, threads), progress, len(tasks), len(results)):
        results[i] = result
        if place is not None:
            _write(place / f"{tasks[i].name}.safetensors", key, result)
    return [results[i] for i in range(len(tasks))]


def check_workers(n_jobs: int | None, threads: int) -> None:
    """Refuse numbers of processes and threads that cannot be meant."""
    if n_jobs is not None and (isinstance(n_jobs, bool) or not isinstance(n_jobs, Integral) or n_jobs == 0):
        raise ValueError(f"n_jobs: expected a number of processes, -1 for one a core, or None, received {n_jobs!r}.")
    if n_jobs is not None and abs(n_jobs) > MOST_WORKERS:
        raise ValueError(f"n_jobs: expected at most {MOST_WORKERS:,} processes, received {n_jobs!r}.")
    check_whole("threads", threads, 1, MOST_WORKERS)


def _computed(tasks: Sequence[Task], left: list[int], n_jobs: int | None, threads: int) -> Iterable[tuple[int, Result]]:
    if not left:
        return ()
    try:
        import joblib
    except ImportError as error:
        raise ImportError("cross-validation needs joblib: pip install 'dgating[sklearn]'.") from error

    calls = (joblib.delayed(_one)(i, tasks[i], threads) for i in left)
    backend, active = joblib.parallel.get_active_backend()
    kind = "generator_unordered" if getattr(backend, "supports_return_generator", False) else "list"
    return joblib.Parallel(n_jobs=active if n_jobs is None else n_jobs, return_as=kind)(calls)  # type: ignore[return-value]


def _one(index: int, task: Task, threads: int) -> tuple[int, Result]:
    with _turn, some_threads(threads):
        result = task.function(*task.arguments, **task.options)
    return index, {name: np.ascontiguousarray(values) for name, values in result.items()}


@contextmanager
def some_threads(threads: int) -> Iterator[None]:
    """So many threads of torch inside, as many as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shown(results: Iterable[Item], words: str | None, total: int, done: int) -> Iterator[Item]:
    """The items as they come, with a progress bar on standard error (``words=None``: without)."""
    if words is None:
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task(words, total=total, completed=done)
        for item in results:
            bar.advance(line)
            yield item


def claim(folder: Path, settings: dict[str, Any]) -> Path:
    """The folder for these settings; made, or found with the same."""
    versions = {name: version(name) for name in ("dgating", "torch")}  # results of two versions never mix
    text = (json.dumps({**described(settings), "versions": versions}, indent=2, sort_keys=True) + "\n").encode()
    file = folder / SETTINGS
    if file.is_file():
        if file.stat().st_size != len(text) or file.read_bytes() != text:
            raise ValueError(
                f"folder: expected one of these settings, {folder.name!r} holds results of others "
                f"(see {SETTINGS} in it). Take another folder, or delete it."
            )
        remove_left(file)  # nobody writes it a second time
    elif folder.is_dir() and not all(file.name.endswith(".tmp") for file in folder.iterdir()):
        raise ValueError(f"folder: expected an empty folder or one of an earlier run, {folder.name!r} holds others.")
    else:
        try:
            write_bytes(file, text, new=True)
        except FileExistsError:  # another process was faster: with the same settings it is welcome
            return claim(folder, settings)
    return folder


def folder_key(folder: Path) -> str:
    """What the files of a folder say they belong to: a hash of its settings."""
    return hashlib.sha256((folder / SETTINGS).read_bytes()).hexdigest()


def _write(file: Path, key: str, result: Result) -> None:
    manifest = {"format": FORMAT, "folder": key, "task": file.stem}
    write_bytes(file, seal_safetensors(save(result), json.dumps(manifest)))


def _read(file: Path, key: str) -> Result | None:
    """A result of this task in this folder, or ``None`` where there is no whole one: it is computed again."""
    try:
        stored = read_safetensors(file)
        manifest = {"format": FORMAT, "folder": key, "task": file.stem}
        if not stored.sealed or read_json(stored.metadata.get("dgating", "null")) != manifest:
            return None
        return {name: t.numpy() for name, t in stored.tensors().items()}
    except (FileNotFoundError, *MALFORMED):
        return None
