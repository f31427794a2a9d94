"""Cross-validation of paths: one path a fold, all on the same strengths, spread by joblib."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dgating._checks import check_fold, check_folder, check_path, check_whole
from dgating.files import (
    MALFORMED,
    read_json_file,
    read_sealed_json,
    refusing,
    seal_json,
    warn_unsealed,
    write_bytes,
)
from dgating.maths import choose, standard_errors
from dgating.paths._data import Data, as_data
from dgating.paths._path import check_call, path, seeded
from dgating.paths._result import PathPoint, RegularizationPath
from dgating.paths._result_file import path_from_file, path_to_bytes
from dgating.paths._walk import Options
from dgating.tasks import (
    Result,
    Task,
    check_workers,
    claim,
    described,
    fingerprint,
    folder_key,
    run_tasks,
    some_threads,
)

if TYPE_CHECKING:
    import pandas as pd

FORMAT, UNSEALED = "dgating/cross-validation/2", "dgating/cross-validation/1"
PATH_FILE, SCORES_FILE = "path.safetensors", "scores.json"


@dataclass(frozen=True, eq=False)
class CrossValidatedPath:
    """Made by :func:`cross_validate_path`; ``K`` folds, ``L`` strengths.

    Attributes:
        path: trained on all rows; its points have no scores.
        scores: ``(K, L)`` scores on the rows left out, larger is better; ``nan`` where the path of a fold had ended.
        n_groups: ``(K, L)`` numbers of groups left.
    """

    path: RegularizationPath
    scores: np.ndarray
    n_groups: np.ndarray

    def select(
        self,
        rule: str = "1se",
        *,
        n_groups: int | None = None,
        max_params: int | None = None,
        max_flops: int | None = None,
        within: float = 0.01,
    ) -> PathPoint:
        r"""The point of the path on all rows at the λ that a rule takes.

        With the mean :math:`m_l` of the ``K`` scores at a strength, :math:`b = \mathrm{arg\,max} m_l`, and the standard
        deviation ``s`` (with ``K - 1``) of the scores at ``b``: the largest λ with :math:`m_l \ge m_b` for ``"best"``,
        :math:`m_b - s/\sqrt K` for ``"1se"``, ``m_b - within`` for ``"within"``.

        Args:
            rule: ``"1se"``, ``"best"`` or ``"within"``.
            n_groups: only points with at most so many groups.
            max_params: only points with at most so many parameters.
            max_flops: only points with at most so many FLOPs a row.
            within: for ``"within"``.

        Raises:
            ValueError: an unknown rule, or no point that meets the bounds.

        Reference: Hastie, Tibshirani, Friedman, section 7.10; arXiv 2509.23898, appendix E.5.
        """
        bounds = {"n_groups": n_groups, "parameters": max_params, "flops": max_flops}
        fits = [all(m is None or getattr(p, n) <= m for n, m in bounds.items()) for p in self.path]
        if not any(fits):
            few = min(p.n_groups for p in self.path)
            raise ValueError(
                f"select: no point of this path meets the bounds; its sparsest has {few} groups. Loosen the bounds, or "
                "run the path to a larger lam."
            )
        return self.path[choose(np.where(fits, self.scores, math.nan), rule, within)]

    def to_frame(self) -> pd.DataFrame:
        """One row a strength: mean score, its standard error, groups on all rows and on the mean of the folds."""
        import pandas as pd

        return pd.DataFrame(
            {
                "lam": self.path.lams,
                "score": self.scores.mean(0),
                "standard_error": standard_errors(self.scores),
                "n_groups": [p.n_groups for p in self.path],
                "n_groups_folds": self.n_groups.mean(0),
                "parameters": [p.parameters for p in self.path],
            }
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the path and the scores into a folder: safetensors and JSON, each with a checksum."""
        where, content = check_folder("folder", folder), path_to_bytes(self.path)
        scores = {
            "format": FORMAT, "path_sha256": hashlib.sha256(content).hexdigest(), "scores": _listed(self.scores),
            "n_groups": _listed(self.n_groups),
        }  # fmt: skip
        write_bytes(where / PATH_FILE, content)
        write_bytes(where / SCORES_FILE, seal_json(scores))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CrossValidatedPath:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such files.
            ValueError: others, or damaged or changed ones.

        Warns:
            UserWarning: files of format ``dgating/cross-validation/1``, which had no checksum.
        """
        where = check_path("folder", folder)
        found = RegularizationPath.load(where / PATH_FILE)
        if not (where / SCORES_FILE).is_file():
            raise FileNotFoundError(f"CrossValidatedPath.load: no file {SCORES_FILE!r} in {where.name!r}.")
        whole = f"CrossValidatedPath.load: {where.name!r} is not a whole folder written by CrossValidatedPath.save"
        with refusing(whole, "Cross-validate again, or take another folder."):
            content = read_json_file(where / SCORES_FILE, nan=True)
            if not isinstance(content, dict) or content.get("format") not in (FORMAT, UNSEALED):
                raise ValueError(f"{SCORES_FILE!r} has not the format {FORMAT!r}")
            if content["format"] == FORMAT:
                content = read_sealed_json(where / SCORES_FILE)
                if content["path_sha256"] != hashlib.sha256((where / PATH_FILE).read_bytes()).hexdigest():
                    raise ValueError(f"{PATH_FILE!r} is not the file that was written with {SCORES_FILE!r}")
            scores, n_groups = (_unlisted(content[name], name) for name in ("scores", "n_groups"))
            if scores.shape != n_groups.shape or scores.shape[1:] != (len(found),) or len(scores) == 0:
                raise ValueError(f"scores {scores.shape} and numbers of groups {n_groups.shape} of {len(found)} points")
        if content["format"] == UNSEALED:
            warn_unsealed("CrossValidatedPath.load", where / SCORES_FILE)
        return cls(found, scores, n_groups)


def cross_validate_path(
    model_fn: nn.Module | Callable[[], nn.Module],
    data: Any,
    lams: Sequence[float] | int | None = None,
    *,
    folds: int | Sequence[tuple[Any, Any]] = 5,
    n_jobs: int | None = None,
    threads: int = 1,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
    seed: int = 0,
    **options: Any,
) -> CrossValidatedPath:
    """A path on all rows, and one without each fold, on the same strengths.

    Strengths within a fold follow each other, as each begins where the last one ended; the folds are spread by joblib:
    over processes, or over whatever ``joblib.parallel_config`` names (Dask, Ray). All random numbers come from
    ``seed``, and every task has ``threads`` threads, so that results do not depend on where it ran.

    Args:
        model_fn: builds the model, or a model (which is copied).
        data: as in :func:`path`.
        lams: as in :func:`path`; with ``None`` the path on all rows chooses them.
        folds: a number (classes are spread evenly), or pairs of arrays: rows to train on, rows to score.
        n_jobs: processes at a time, ``-1`` for one a core; ``None`` for what ``joblib.parallel_config`` says, else one.
        threads: of torch in each.
        folder: finished parts are kept there, and a later call goes on from them, also after a killed one. It belongs
            to this model, these data and options: any other call is refused.
        progress: show a bar on standard error.
        seed: as in :func:`path`; also shuffles the rows before the folds are cut.
        options: all other options of :func:`path` but ``validation`` and ``callback``.

    Returns:
        A :class:`CrossValidatedPath`.

    Raises:
        ValueError: fewer rows (of a class) than folds, options or a folder that do not fit.

    Example:
        >>> import torch, dgating as dg
        >>> _ = torch.manual_seed(0)
        >>> X = torch.randn(200, 8); y = X[:, 0] - 2 * X[:, 1] + 0.1 * torch.randn(200)
        >>> found = dg.cross_validate_path(torch.nn.Linear(8, 1), (X, y), 16, folds=3, steps=40)
        >>> found.select("1se").kept["weight"].nonzero()[:, 0].tolist()
        [0, 1]
    """
    refused = {"validation", "callback", "states"} & options.keys()
    if refused:
        raise TypeError(
            f"cross_validate_path: {sorted(refused)} cannot be given; every fold is scored on its own rows."
        )
    check_workers(n_jobs, threads)
    known = check_options(options, lams, seed)
    rows = as_data(data)
    splits = _splits(rows, folds, seed)
    with seeded(seed, options.get("device")):
        base = model_fn if isinstance(model_fn, nn.Module) else model_fn()
    settings = {} if folder is None else {
        "data": fingerprint(*rows.inputs, rows.target, *([] if rows.weight is None else [rows.weight])),
        "model": described(base),
        "folds": fingerprint(*(index for split in splits for index in split)),
        "lams": known,
        "threads": threads, "seed": seed, "options": described(options),
    }  # fmt: skip
    place = None if folder is None else claim(check_folder("folder", folder), settings)
    whole = kept_path(place, threads, lambda: path(base, rows, known, validation=None, seed=seed, **options))
    whole = replace(whole, model=base)  # one from the folder has none
    arrays = _arrays(data, rows)
    tasks = [
        Task(f"fold_{i}", _fold, (base, arrays, *split, whole.lams, seed, options)) for i, split in enumerate(splits)
    ]
    results = run_tasks(
        tasks, n_jobs=n_jobs, threads=threads, folder=place, settings=settings,
        progress="folds" if progress else None,
    )  # fmt: skip
    return CrossValidatedPath(
        whole, np.stack([r["scores"] for r in results]), np.stack([r["n_groups"] for r in results])
    )


def check_options(options: dict[str, Any], lams: Any, seed: Any) -> int | list[float] | None:
    """Refuse options that :func:`path` would refuse, before a folder is made; the strengths as they are used."""
    unknown = options.keys() - inspect.signature(path).parameters.keys()
    if unknown:
        raise TypeError(f"cross_validate_path: unknown options {sorted(unknown)}; expected some of those of path.")
    Options(**{f.name: options[f.name] for f in fields(Options) if f.name in options})
    named = {name: options.get(name) for name in ("groups", "loss", "score", "device", "callback")}
    check_whole("min_groups", options.get("min_groups", 0), 0)
    return check_call(lams, depth=options.get("depth", 3), seed=seed, **named)


def kept_path(place: Path | None, threads: int, make: Callable[[], RegularizationPath]) -> RegularizationPath:
    """The path on all rows: that of an earlier call in this folder, or a new one, with so many threads."""
    if place is None:
        with some_threads(threads):
            return make()
    file, key = place / PATH_FILE, folder_key(place)
    try:
        header, points = path_from_file(file)
        if header.get("folder") == key:  # else it was copied here from another folder
            return RegularizationPath(tuple(PathPoint(**p) for p in points), header["depth"], header["settings"])
    except (FileNotFoundError, *MALFORMED):  # a damaged file is computed again
        pass
    with some_threads(threads):
        made = make()
    write_bytes(file, path_to_bytes(made, key))
    return made


def _fold(
    base: nn.Module, arrays: tuple[Any, ...], train: np.ndarray, test: np.ndarray, lams: list[float], seed: int,
    options: dict[str, Any],
) -> Result:  # fmt: skip
    """Scores and numbers of groups ``(L,)`` of one fold."""
    inputs, target, weight = arrays
    rows = as_data((inputs, target) if weight is None else (inputs, target, weight))
    parts = [rows.view(torch.as_tensor(index)) for index in (train, test)]
    found = path(base, parts[0], lams, validation=parts[1], seed=seed, states=False, **options)
    return padded(found, len(lams))


def padded(found: RegularizationPath, n: int) -> Result:
    """Scores and numbers of groups at ``n`` strengths, of a path that may have ended before the last."""
    scores, n_groups = np.full(n, math.nan), np.full(n, math.nan)
    for i, point in enumerate(found):
        scores[i], n_groups[i] = point.score, point.n_groups
    if len(found) and found[-1].n_groups == 0:  # nothing is left that a larger λ could change
        scores[len(found) :], n_groups[len(found) :] = found[-1].score, 0
    return {"scores": scores, "n_groups": n_groups}


def _arrays(data: Any, rows: Data) -> tuple[Any, Any, Any]:
    """Inputs, target and weight as arrays, which joblib shares between processes by mapping them into memory.

    Arrays of the caller go as they are: one that lies on disk already is not written a second time.
    """
    given = data if isinstance(data, tuple | list) else (None, None)
    inputs = given[0] if isinstance(given[0], tuple | list) else (given[0],)
    kept = [x if isinstance(x, np.ndarray) else t.cpu().numpy() for x, t in zip(inputs, rows.inputs, strict=False)]
    weight = None if rows.weight is None else rows.weight.cpu().numpy()
    return tuple(kept), rows.target.cpu().numpy(), weight


def _splits(rows: Data, folds: Any, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of every fold."""
    if not isinstance(folds, int):
        made = [check_fold(i, fold, len(rows)) for i, fold in enumerate(folds)] if isinstance(folds, Iterable) else []
        if not made:
            raise ValueError(f"folds: expected a whole number >= 2 or pairs of row numbers, received {folds!r}.")
        return made
    if isinstance(folds, bool) or folds < 2:
        raise ValueError(f"folds: expected a whole number >= 2 or pairs of row numbers, received {folds!r}.")
    classes = not rows.target.is_floating_point() and rows.target.ndim == 1
    order = np.random.default_rng(seed).permutation(len(rows))
    if classes:  # class by class, then dealt out in turn
        labels = rows.target.cpu().numpy()
        order = order[np.argsort(labels[order], kind="stable")]
        fewest = int(np.unique(labels, return_counts=True)[1].min())
    else:
        fewest = len(rows)
    if fewest < folds:
        what = "of every class" if classes else "in all"
        raise ValueError(f"folds: expected at least {folds} rows {what}, received {fewest}. Take folds={fewest}.")
    number = np.empty(len(rows), dtype=np.int64)
    number[order] = np.arange(len(rows)) % folds
    return [(np.flatnonzero(number != i), np.flatnonzero(number == i)) for i in range(folds)]


def _listed(numbers: np.ndarray) -> list[list[float | None]]:
    """JSON has no ``nan``."""
    return [[None if math.isnan(x) else x for x in row] for row in numbers.tolist()]


def _unlisted(rows: Any, name: str) -> np.ndarray:
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        raise ValueError(f"{name} are no table")
    if not all(x is None or type(x) in (int, float) for row in rows for x in row):
        raise ValueError(f"{name} are no numbers")
    return np.array([[math.nan if x is None else x for x in row] for row in rows], dtype=float)


__all__ = ["CrossValidatedPath", "cross_validate_path"]
