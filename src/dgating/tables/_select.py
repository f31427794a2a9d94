"""The run: plan the columns, hold rows back, cross-validate, choose a strength, score what is left."""

from __future__ import annotations

import difflib
import math
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss, r2_score
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from dgating._text import quoted
from dgating.estimators import DGatedClassifierCV, DGatedLinearClassifierCV, DGatedLinearRegressorCV, DGatedRegressorCV
from dgating.maths import RULES, choose, standard_errors
from dgating.tables._encode import Feature, encode, feature_of, group_labels
from dgating.tables._kinds import DATE, Column, column_of, counts_rows
from dgating.tables._predictor import Predictor
from dgating.tables._read import Reading, check_memory
from dgating.tables._target import CLASSIFICATION, TASKS, Target, check_folds, target_of

MODELS = ("linear", "network")
DATE_MODES = ("refuse", "derive")
COPIES = 8  # of the encoded table that a fit may hold, float64
SCORES = {CLASSIFICATION: "log loss", "regression": "R²"}


@dataclass(frozen=True)
class Settings:
    """What the user asks for; the options of ``dgating select``."""

    target: str
    task: str | None = None
    model: str = "linear"
    depth: int = 3
    rule: str = "1se"
    n_features: int | None = None
    folds: int = 5
    test: float = 0.2
    hidden: tuple[int, ...] = (100,)
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    dates: str = "refuse"
    seed: int = 0
    jobs: int = 1
    reading: Reading = field(default_factory=Reading)

    def check(self) -> None:
        """Raise ``ValueError`` for a value that is no choice."""
        choices = {"task": (None, *TASKS), "model": MODELS, "rule": RULES, "dates": DATE_MODES}
        for name, good in choices.items():
            if getattr(self, name) not in good:
                words = ", ".join(word for word in good if word)
                raise ValueError(f"--{name}: expected one of {words}, received {getattr(self, name)!r}.")
        if not 0 <= self.test < 1:
            raise ValueError(f"--test: expected a share of the rows in [0, 1), received {self.test!r}.")


@dataclass(frozen=True)
class Point:
    """One strength, or the prediction without any column.

    Attributes:
        n_features: how many columns of the table it reads.
        cv: mean score of the folds, ``cv_error`` its standard error; ``nan`` where there is none.
        test: scores on the rows held back, by name; empty without such rows.
    """

    n_features: int
    cv: float
    cv_error: float
    test: dict[str, float]


@dataclass(frozen=True)
class Selection:
    """What a run found; ``J`` features in the order of the table, ``L`` strengths.

    Attributes:
        settings: what was asked for.
        target: the column that is predicted.
        rows: for training, for the test, and without a target (left out).
        columns: all that were read, with their kinds.
        dropped: reasons, by name of the column.
        features: how the others are encoded.
        lams: ``(L,)`` strengths, rising.
        scores: ``(K, L)`` of the folds, larger is better.
        norms: ``(L, J)`` norms of the standardised weights of each feature.
        index: of the strength that was taken.
        points: the chosen strength, the weakest one, and no column at all.
        predictor: the model that is left.
        notes: what the user should know.
        seconds: that it took.
    """

    settings: Settings
    target: Target
    rows: dict[str, int]
    columns: tuple[Column, ...]
    dropped: dict[str, str]
    features: tuple[Feature, ...]
    lams: np.ndarray
    scores: np.ndarray
    norms: np.ndarray
    index: int
    points: dict[str, Point]
    predictor: Predictor
    notes: tuple[str, ...]
    seconds: float

    @property
    def selected(self) -> list[str]:
        """Names of the features that are left, the most important first."""
        table = self.table()
        return table["feature"][table["selected"]].tolist()

    @property
    def standard_errors(self) -> np.ndarray:
        """``(L,)`` of the mean scores."""
        return standard_errors(self.scores)

    def table(self) -> pd.DataFrame:
        """One row a feature: selected ones by importance, then the others, those that left last first."""
        active = self.norms > 0
        last = np.where(active.any(0), len(active) - active[::-1].argmax(0), 0)  # first index without it for good
        made = pd.DataFrame(
            {
                "feature": [f.name for f in self.features],
                "selected": active[self.index],
                "importance": self.norms[self.index],
                "lam_leaves": np.append(self.lams, math.inf)[last],
            }
        )
        return made.sort_values(["importance", "lam_leaves"], ascending=False, kind="stable", ignore_index=True)


def select(frame: pd.DataFrame, settings: Settings) -> Selection:
    """Choose the columns of a table that predict one of them.

    Raises:
        ValueError: settings or columns that do not fit; the message says what to do.
        RuntimeError: training diverged.
    """
    started = time.perf_counter()
    settings.check()
    _check_names(frame, settings)
    there = frame[settings.target].notna().to_numpy()
    if not there.any():
        raise ValueError(f"--target {settings.target!r}: no row has a value.")
    absent = int((~there).sum())
    counters = {name for name in frame.columns if counts_rows(frame[name])}  # before rows leave
    frame = frame.loc[there].reset_index(drop=True)
    target = target_of(frame[settings.target], settings.task)
    columns, dropped = _columns(frame, settings, counters)
    train, test = _split(target, settings)
    check_folds(target, target.y[train], settings.folds, len(test) > 0)
    features = tuple(feature_of(c, frame[c.name].iloc[train]) for c in columns if c.name not in dropped)
    check_memory(
        8.0 * COPIES * len(frame) * sum(len(f.names) for f in features), "the table as numbers",
        "take a sample of the rows, or --drop columns",
    )  # fmt: skip
    rows = encode(features, frame)
    X, y = rows.X[train], target.y[train]
    cutter = KFold if target.classes is None else StratifiedKFold
    splits = list(cutter(settings.folds, shuffle=True, random_state=settings.seed).split(X, y))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = _fit(X, y, splits, group_labels(features), settings)
    fits = np.array([settings.n_features is None or n <= settings.n_features for n in (fit.norms > 0).sum(1)])
    rule = settings.rule if settings.n_features is None else "best"
    if not fits.any():
        raise ValueError(f"--n-features {settings.n_features}: the path has no such point; take a larger number.")
    index = choose(np.where(fits, fit.scores, math.nan), rule)
    predictors = [_predictor(fit, i, features, target, settings) for i in (index, 0)]
    points = {
        "selected": _point(fit, index, predictors[0], frame, target, test),
        "weakest": _point(fit, 0, predictors[1], frame, target, test),
        "none": _nothing(target, train, test, splits),
    }
    notes = list(dict.fromkeys(str(w.message) for w in caught))
    if points["selected"].n_features == 0:
        notes.insert(0, "No column predicts better than none at all by this rule; --rule best or another --model may.")
    return Selection(
        settings, target, {"training": len(train), "test": len(test), "without target": absent}, columns, dropped,
        features, fit.lams, fit.scores, fit.norms, index, points, predictors[0], tuple(notes),
        time.perf_counter() - started,
    )  # fmt: skip


def _check_names(frame: pd.DataFrame, settings: Settings) -> None:
    names = list(frame.columns)
    for option, wanted in (
        ("--target", [settings.target]), ("--drop", settings.drop), ("--categorical", settings.categorical)
    ):  # fmt: skip
        for name in wanted:
            if name not in names:
                close = difflib.get_close_matches(name, names, 3) or names[:10]
                hint = "; is the separator right (--separator)?" if len(names) == 1 else "."
                raise ValueError(
                    f"{option}: expected a column of the table, received {name!r}; there are {len(names)}, such as "
                    f"{', '.join(map(repr, close))}{hint}"
                )
    if settings.target in settings.drop:
        raise ValueError(f"--drop {settings.target!r}: this is the target; name another column.")


def _columns(frame: pd.DataFrame, settings: Settings, counters: set[str]) -> tuple[tuple[Column, ...], dict[str, str]]:
    """All columns but the target with their kinds, and why some are left out; all refusals in one message."""
    columns: list[Column] = []
    dropped: dict[str, str] = dict.fromkeys(settings.drop, "--drop")
    refused: dict[str, str] = {}
    for name in frame.columns:
        if name == settings.target or name in dropped:
            continue
        series = frame[name]
        try:
            column = column_of(series, categorical=name in settings.categorical)
        except ValueError as error:
            refused[name] = str(error)
            continue
        columns.append(column)
        if column.distinct == 0:
            dropped[name] = "all values are missing"
        elif column.distinct == 1 and column.missing == 0:
            dropped[name] = f"one value only: {series.iloc[0]}"
        elif name in counters and name not in settings.categorical:
            dropped[name] = "it numbers the rows"
        elif column.kind == DATE and settings.dates == "refuse":
            refused[name] = f"{name!r} has dates: --dates derive (year, month, day of week)"
    if refused:
        drop = " ".join(f"--drop {quoted(name)}" for name in refused)
        raise ValueError(f"columns that no model can read: {'; '.join(refused.values())}; or leave them out: {drop}")
    if len(dropped) == len(frame.columns) - 1:
        raise ValueError(f"expected columns to choose from, {frame.shape[1]} were read and none is left: {dropped}.")
    return tuple(columns), dropped


def _split(target: Target, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    everything = np.arange(len(target.y))
    if settings.test == 0:
        return everything, everything[:0]
    classes = target.classes is not None
    if classes:  # a class of one row cannot be on both sides
        check_folds(target, target.y, settings.folds, False)
    held = math.ceil(settings.test * len(everything))
    if len(everything) - held < 2 * settings.folds or (classes and held < len(target.classes or ())):
        raise ValueError(
            f"--test {settings.test}: {held} of {len(everything)} rows for the test do not fit {settings.folds} folds "
            "and the classes; take another share, or --test 0."
        )
    train, test = train_test_split(
        everything, test_size=held, random_state=settings.seed, stratify=target.y if classes else None
    )
    return np.sort(train), np.sort(test)


@dataclass(frozen=True)
class _Fit:
    """``estimator`` fitted, with its strengths, scores of folds and norms ``(L, J)``."""

    estimator: Any
    groups: np.ndarray
    lams: np.ndarray
    scores: np.ndarray
    norms: np.ndarray


def _fit(X: np.ndarray, y: np.ndarray, splits: list[Any], groups: np.ndarray, settings: Settings) -> _Fit:
    classes = y.dtype.kind != "f"
    common: dict[str, Any] = {
        "depth": settings.depth, "groups": groups, "cv": splits, "n_jobs": settings.jobs,
        "random_state": settings.seed, "scoring": "neg_log_loss" if classes else "r2",
    }  # fmt: skip
    if settings.model == "linear":
        estimator: Any = (DGatedLinearClassifierCV if classes else DGatedLinearRegressorCV)(**common)
    else:
        estimator = (DGatedClassifierCV if classes else DGatedRegressorCV)(settings.hidden, **common)
    try:
        estimator.fit(X, y)
    except (FloatingPointError, MemoryError) as error:
        raise RuntimeError(f"training failed: {error}; try --model linear or a sample of the rows.") from error
    if settings.model == "linear":
        weights = np.linalg.norm(estimator.path_.coef.numpy(), axis=2) * X.std(0)
    else:
        weights = np.stack([np.linalg.norm(p.state["0.weight"].double().numpy(), axis=0) for p in estimator.path_])
    squares = np.zeros((len(weights), int(groups.max()) + 1))
    np.add.at(squares.T, groups, np.square(weights).T)
    return _Fit(estimator, groups, estimator.lams_, estimator.scores_, np.sqrt(squares))


def _predictor(fit: _Fit, index: int, features: tuple[Feature, ...], target: Target, settings: Settings) -> Predictor:
    """The model at a strength, cut down to the features that it reads."""
    kept = fit.norms[index] > 0
    columns = np.flatnonzero(kept[fit.groups])
    path, estimator = fit.estimator.path_, fit.estimator
    if settings.model == "linear":
        weight, bias = path.coef[index].numpy().T[:, columns], path.intercept[index].numpy()
        if target.classes is not None and len(bias) == 1:  # one logit for two classes
            weight, bias = np.vstack([np.zeros_like(weight), weight]), np.append(0.0, bias)
        layers, activation = ((weight, bias),), "identity"
        centre, scale = np.zeros(len(columns)), np.ones(len(columns))
        target_centre, target_scale = np.zeros(1), np.ones(1)
    else:
        state = {name: t.numpy() for name, t in path[index].state.items()}
        names = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
        parts = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in names]
        layers, activation = ((parts[0][0][:, columns], parts[0][1]), *parts[1:]), estimator.activation
        centre, scale = estimator.centre_[columns], estimator.scale_[columns]
        target_centre, target_scale = estimator._target_centre, estimator._target_scale
    chosen = tuple(f for f, k in zip(features, kept, strict=True) if k)
    return Predictor(
        target.name, target.classes, chosen, activation, layers, centre, scale, target_centre, target_scale,
        settings.reading,
    )  # fmt: skip


def _point(fit: _Fit, index: int, predictor: Predictor, frame: pd.DataFrame, target: Target, test: np.ndarray) -> Point:
    found: dict[str, float] = {}
    if len(test):
        X = encode(predictor.features, frame.iloc[test]).X
        made = predictor.outputs(X) if target.classes is None else predictor.probabilities(X)
        found = _scores(target, target.y[test], made)
    error = standard_errors(fit.scores)[index]
    return Point(int((fit.norms[index] > 0).sum()), float(fit.scores[:, index].mean()), float(error), found)


def _nothing(target: Target, train: np.ndarray, test: np.ndarray, splits: list[Any]) -> Point:
    """The mean, or the shares of the classes, for every row."""

    def scores(known: np.ndarray, asked: np.ndarray) -> dict[str, float]:
        if target.classes is None:
            row = np.array([target.y[known].mean()])
        else:
            row = np.bincount(target.y[known], minlength=len(target.classes)) / len(known)
        return _scores(target, target.y[asked], np.tile(row, (len(asked), 1)))

    sign = 1 if target.classes is None else -1
    folds = np.array([[sign * scores(train[a], train[b])[SCORES[target.task]]] for a, b in splits])
    error = float(standard_errors(folds)[0])
    return Point(0, float(folds.mean()), error, scores(train, test) if len(test) else {})


def _scores(target: Target, y: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """Test scores: of probabilities ``(n, k)`` or of numbers ``(n, 1)``."""
    if target.classes is None:
        error = float(np.sqrt(np.square(y - made[:, 0]).mean()))
        return {"R²": float(r2_score(y, made[:, 0])) if len(y) > 1 else math.nan, "RMSE": error}
    loss = float(log_loss(y, made, labels=np.arange(len(target.classes))))
    return {"log loss": loss, "accuracy": float((made.argmax(1) == y).mean())}
