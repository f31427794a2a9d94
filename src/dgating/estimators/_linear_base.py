"""The parts of the linear estimators: reading rows, fitting one strength or many, predicting."""

from __future__ import annotations

import copy
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dgating._checks import check_below_one, check_depth, check_number, check_strengths, check_whole
from dgating.estimators._class_weight import class_factors, codes_of
from dgating.estimators._folds import THREADS, keep_scores, splits_of
from dgating.estimators._groups import ColumnGroups, column_groups
from dgating.estimators._linear_fit import LinearPath, Options, Standardized, standardized
from dgating.estimators._linear_folds import fold_tasks
from dgating.estimators._selector import GroupSelectorMixin
from dgating.linear import BLOCK, LossName
from dgating.maths import RULES, lam_grid
from dgating.tasks import check_workers, fingerprint, run_tasks, some_threads

DEFAULT_SHARE = 0.05  # of lam_max, for lam=None


class LinearBase(GroupSelectorMixin, BaseEstimator):
    """Fitting and predicting; what a target is belongs to the two kinds below."""

    # parameters of every public class
    depth: int
    groups: Any
    fit_intercept: bool
    standardize: bool
    tol: float
    max_iter: int
    verbose: bool

    # set by a fit
    coef_: np.ndarray
    intercept_: Any
    n_features_in_: int
    classes_: np.ndarray  # of classifiers

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raise NotImplementedError

    def _loss(self) -> LossName:
        raise NotImplementedError

    def _with(self, coef: np.ndarray, intercept: np.ndarray) -> Any:
        """This estimator with other coefficients ``(p, k)`` and intercept ``(k,)``."""
        other = copy.copy(self)
        other._store(coef, intercept)
        return other

    def _store(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        raise NotImplementedError

    def _as_given(self, y: np.ndarray) -> np.ndarray:
        """Targets as the user writes them."""
        return y

    def _options(self) -> Options:
        return Options(self.depth, self._loss(), self.fit_intercept, self.standardize, self.tol, self.max_iter)

    def _check(self) -> None:
        """What no data are needed for."""
        check_depth(self.depth)
        check_below_one("tol", self.tol, zero=False)
        check_whole("max_iter", self.max_iter, 1)

    def _column_groups(self, X: np.ndarray) -> ColumnGroups:
        return column_groups(self.groups, X, getattr(self, "feature_names_in_", None))

    def _fit_one(self, lam: float | None, X: Any, y: Any, sample_weight: Any) -> Any:
        """Fit at one strength."""
        if lam is not None:
            check_number("lam", lam)
        self._check()
        X, y, rows = self._read(X, y, sample_weight)
        found = self._column_groups(X)
        table = standardized(X, y, rows, found.labels, self._options())
        lam = DEFAULT_SHARE * table.lam_max if lam is None else float(lam)
        return self._finish(found, table, table.path([lam]), 0)

    def _finish(self, found: ColumnGroups, table: Standardized, path: LinearPath, index: int) -> Any:
        coef = path.coef[index]
        self._store(coef.numpy(), path.intercept[index].numpy())
        self.feature_importances_ = (coef * table.scale.unsqueeze(1)).norm(dim=1).numpy()
        self.groups_ = found.labels
        self.group_names_ = found.names
        self.selected_groups_ = [found.names[j] for j in np.flatnonzero(path.active[index].numpy())]
        self.lam_ = float(path.lams[index])
        self.n_iter_ = int(path.n_iter.sum())
        self.solver_ = path.solver
        self.path_ = path
        if self.verbose:
            print(
                f"{type(self).__name__}: D = {self.depth}, lam = {self.lam_:.3g}, {len(self.selected_groups_)} of "
                f"{len(found.names)} groups, {self.n_iter_} steps ({self.solver_}), {path.seconds:.2f} s"
            )
        return self

    def _linear(self, X: Any) -> np.ndarray:
        """``(n, k)`` linear predictions, a block of rows at a time."""
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        coef = np.atleast_2d(self.coef_).T
        made = np.empty((len(X), coef.shape[1]))
        rows = max(1, BLOCK // X.shape[1])
        for start in range(0, len(X), rows):
            made[start : start + rows] = X[start : start + rows] @ coef
        return made + self.intercept_


class LinearRegression(RegressorMixin, LinearBase):
    """Squared loss, one target or several."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _loss(self) -> LossName:
        return "squared"

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        X, y = validate_data(
            self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        self._one_target = y.ndim == 1
        return X, y, _check_sample_weight(sample_weight, X, dtype=np.float64)

    def _store(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        self.coef_ = coef[:, 0] if self._one_target else np.ascontiguousarray(coef.T)
        self.intercept_ = float(intercept[0]) if self._one_target else intercept

    def predict(self, X: Any) -> np.ndarray:
        """Predictions ``(n,)``, or ``(n, k)`` if it was fitted to several targets."""
        made = self._linear(X)
        return made[:, 0] if self._one_target else made


class LinearClassification(ClassifierMixin, LinearBase):
    """Log loss of one logit for two classes, of one a class for more."""

    class_weight: Any

    def _loss(self) -> LossName:
        return "logistic" if len(self.classes_) == 2 else "multinomial"

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        rows = _check_sample_weight(sample_weight, X, dtype=np.float64)
        self.classes_, codes, mass = codes_of(y, rows)
        return X, codes, rows * class_factors(self.class_weight, self.classes_, mass)[codes]

    def _as_given(self, y: np.ndarray) -> np.ndarray:
        return self.classes_[y]

    def _store(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        common = intercept.mean() if len(intercept) > 1 else 0.0  # the same added to every logit changes nothing
        self.coef_, self.intercept_ = np.ascontiguousarray(coef.T), intercept - common

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits: ``(n,)`` of the second of two classes, or ``(n, k)``."""
        made = self._linear(X)
        return made[:, 0] if made.shape[1] == 1 else made

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """``(n, k)`` logarithms of the chances of the classes."""
        made = self._linear(X)
        if made.shape[1] == 1:
            return -np.logaddexp(0, np.hstack([made, -made]))
        made = made - made.max(1, keepdims=True)
        return made - np.log(np.exp(made).sum(1, keepdims=True))

    def predict_proba(self, X: Any) -> np.ndarray:
        """``(n, k)`` chances of the classes, in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most likely class of every row."""
        made = self.decision_function(X)
        return self.classes_[(made > 0).astype(int) if made.ndim == 1 else made.argmax(1)]


class CrossValidated(LinearBase):
    """Choosing the strength by cross-validation."""

    lams: Any
    lam_ratio: float
    cv: Any
    rule: str
    within: float
    scoring: Any
    n_jobs: int | None
    folder: Any
    best_index_: int
    random_state: Any
    _default_scoring: str
    _single: type[LinearBase]

    def _fit_many(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """Scores of every fold at every strength, then the path of all rows up to the largest."""
        if self.rule not in RULES:
            raise ValueError(f"rule: expected one of {list(RULES)}, received {self.rule!r}.")
        check_number("within", self.within)
        check_workers(self.n_jobs, THREADS)
        check_strengths(self.lams)
        self._check()
        X, y, rows = self._read(X, y, sample_weight)
        classifier = isinstance(self, LinearClassification)
        splits = splits_of(self.cv, X, y, classifier, self.random_state)
        if classifier:
            self._check_classes(y, rows, splits)
        found, options = self._column_groups(X), self._options()
        table = standardized(X, y, rows, found.labels, options)
        lams = self._grid(table)
        scoring = self._default_scoring if self.scoring is None else self.scoring
        score_rows = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        tasks = fold_tasks(
            X, y, rows, score_rows, found.labels, lams, splits, options, self._template(X), get_scorer(scoring)
        )
        arrays = (X, y, rows) if score_rows is None else (X, y, rows, score_rows)
        results = run_tasks(
            tasks,
            n_jobs=self.n_jobs,
            threads=THREADS,
            folder=self.folder,
            settings=None if self.folder is None else self._settings(arrays, found, lams, splits, scoring),
            progress="cross-validation" if self.verbose else None,
        )
        keep_scores(self, lams, results)
        with some_threads(THREADS):
            path = table.path(lams)
        return self._finish(found, table, path, self.best_index_)

    def _grid(self, table: Standardized) -> list[float]:
        if isinstance(self.lams, Integral):
            return lam_grid(table.lam_max, self.lam_ratio, int(self.lams))
        return np.unique(np.asarray(self.lams, dtype=np.float64)).tolist()

    def _template(self, X: np.ndarray) -> LinearBase:
        """An estimator for one strength that lacks nothing but coefficients."""
        made = self._single()
        made.n_features_in_ = X.shape[1]
        for name in ("classes_", "_one_target"):
            if hasattr(self, name):
                setattr(made, name, getattr(self, name))
        return made

    def _check_classes(self, y: np.ndarray, rows: np.ndarray, splits: list[Any]) -> None:
        for i, (train, _) in enumerate(splits):
            absent = np.flatnonzero(np.bincount(y[train], rows[train], len(self.classes_)) == 0)
            if len(absent):
                raise ValueError(
                    f"cv: expected rows of every class in the training part of every fold, fold {i} has none of "
                    f"{self.classes_[absent].tolist()}; take fewer or stratified folds, or leave out rare classes."
                )

    def _settings(self, arrays: Any, found: Any, lams: Any, splits: Any, scoring: Any) -> dict[str, Any]:
        return {
            "estimator": type(self).__name__,
            "data": fingerprint(*arrays),
            "classes": getattr(self, "classes_", None),
            "groups": fingerprint(found.labels),
            "splits": fingerprint(*(part for split in splits for part in split)),
            "lams": lams,
            "options": vars(self._options()) | {"scoring": scoring},
        }
