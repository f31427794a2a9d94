"""The parts of the network estimators: reading rows, fitting a path, predicting with the selected columns alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from dgating._checks import check_below_one, check_depth, check_device, check_lams, check_number, check_whole
from dgating.estimators._class_weight import class_factors, codes_of
from dgating.estimators._folds import THREADS, keep_scores, splits_of
from dgating.estimators._groups import ColumnGroups, column_groups
from dgating.estimators._network_fit import ACTIVATIONS, INPUTS, Scaled, Setup, fitness, fold, network, scaled
from dgating.estimators._selector import GroupSelectorMixin
from dgating.maths import RULES, lam_grid
from dgating.paths import BLOCK, Options, PathPoint, RegularizationPath, kept_path
from dgating.tasks import Task, check_workers, claim, fingerprint, run_tasks

GENTLE = 40  # strengths on the way to one that was given
GENTLE_FROM = 0.01  # where that way begins, as a share


class NetworkBase(GroupSelectorMixin, BaseEstimator):
    """Fitting and predicting; what a target is belongs to the two kinds below."""

    # parameters of every public class
    hidden_layer_sizes: Any
    activation: str
    depth: int
    groups: Any
    standardize: bool
    dense_steps: int
    steps: int
    relax_steps: int
    batch_size: int | None
    rule: str
    within: float
    lr: float
    momentum: float
    weight_decay: float
    device: Any
    random_state: Any
    verbose: bool
    n_features_in_: int

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        raise NotImplementedError

    def _n_outputs(self, y: np.ndarray) -> int:
        raise NotImplementedError

    def _check(self) -> None:
        """What no data are needed for."""
        if self.rule not in RULES:
            raise ValueError(f"rule: expected one of {list(RULES)}, received {self.rule!r}.")
        check_number("within", self.within)
        check_depth(self.depth)
        check_device(self.device)
        names = ("dense_steps", "steps", "relax_steps", "batch_size", "lr", "momentum", "weight_decay")
        Options(**{name: getattr(self, name) for name in names})

    def _setup(self, X: np.ndarray, y: np.ndarray) -> tuple[Setup, ColumnGroups]:
        hidden = tuple(np.atleast_1d(self.hidden_layer_sizes).tolist())
        if any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in hidden):
            raise ValueError(f"hidden_layer_sizes: expected whole numbers >= 1, received {self.hidden_layer_sizes!r}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {sorted(ACTIVATIONS)}, received {self.activation!r}.")
        found = column_groups(self.groups, X, getattr(self, "feature_names_in_", None))
        names = ("dense_steps", "steps", "relax_steps", "batch_size", "lr", "momentum", "weight_decay", "device")
        options = {name: getattr(self, name) for name in names}
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return Setup(hidden, self.activation, self._n_outputs(y), found.labels, self.depth, seed, options), found

    def _finish(
        self, setup: Setup, found: ColumnGroups, made: Scaled, path: RegularizationPath, point: PathPoint
    ) -> Any:
        """Keep the network of a point, cut down to the columns that it reads."""
        state = dict(point.state)
        weight = state["0.weight"]
        norms = weight.double().norm(dim=0)
        self.feature_importances_ = norms.numpy()
        self._columns = norms.nonzero()[:, 0].numpy()
        state["0.weight"] = weight[:, self._columns]
        self.model_ = network((len(self._columns), *setup.hidden, setup.n_outputs), setup.activation)
        self.model_.load_state_dict(state)
        self.model_.eval()
        self.centre_, self.scale_ = made.centre.double().numpy(), 1 / made.factor.double().numpy()
        self._target_centre, self._target_scale = made.target_centre, made.target_scale
        self.groups_ = found.labels
        self.group_names_ = found.names
        self.selected_groups_ = [found.names[j] for j in point.kept[INPUTS].nonzero()[:, 0].tolist()]
        self.lam_ = point.lam
        self.path_ = path
        self.n_iter_ = setup.options["dense_steps"] + sum(p.steps for p in path)
        if self.verbose:
            print(
                f"{type(self).__name__}: D = {self.depth}, lam = {point.lam:.3g}, {len(self.selected_groups_)} of "
                f"{len(found.names)} groups"
            )
        return self

    def _report(self) -> Callable[[PathPoint], object] | None:
        if not self.verbose:
            return None
        return lambda p: print(
            f"lam {p.lam:.3g}: {p.n_groups} groups, loss {p.loss:.4g}, score {p.score:.4g}, {p.seconds:.1f} s"
        )

    def _outputs(self, X: Any) -> np.ndarray:
        """``(n, k)`` outputs in the units of the targets, a block of rows at a time."""
        check_is_fitted(self, "model_")
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        model = copy.deepcopy(self.model_).double()  # so that a row's outputs do not depend on those beside it
        widths = [m.out_features for m in model if isinstance(m, torch.nn.Linear)]
        made = np.empty((len(X), widths[-1]))
        rows = max(1, BLOCK // max(X.shape[1], *widths))
        centre, scale = self.centre_[self._columns], self.scale_[self._columns]
        with torch.no_grad():
            for start in range(0, len(X), rows):
                part = (X[start : start + rows][:, self._columns] - centre) / scale
                made[start : start + rows] = model(torch.as_tensor(part, dtype=torch.float64)).numpy()
        return made * self._target_scale + self._target_centre

    def _predicted(self, outputs: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def predict(self, X: Any) -> np.ndarray:
        """Predictions for ``X (n, p)``; only the selected columns are looked at."""
        return self._predicted(self._outputs(X))


class SinglePath(NetworkBase):
    """One path; the strength is given, or chosen on rows held back."""

    lam: float | None
    n_groups: int | None
    validation_fraction: float

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> Any:
        self._check()
        if self.n_groups is not None:
            check_whole("n_groups", self.n_groups, 1)
        check_below_one("validation_fraction", self.validation_fraction, zero=False)
        if self.lam is not None:
            check_number("lam", self.lam)
            if self.n_groups is not None:
                raise ValueError("expected lam or n_groups, received both; leave lam=None for so many groups.")
        X, y, rows = self._read(X, y, sample_weight)
        setup, found = self._setup(X, y)
        made = scaled(X, y, rows, self.standardize)
        common: dict[str, Any] = {"validation": self._held(len(X)), "score": fitness, "callback": self._report()}
        if self.n_groups is not None:
            path = setup.budget_path(made, self.n_groups, **common)
            return self._finish(setup, found, made, path, path[-1])
        if self.lam is not None:
            common["validation"] = None
            path = setup.path(made, made.data, self._way_to(float(self.lam)), **common)
            return self._finish(setup, found, made, path, path[-1])
        path = setup.path(made, made.data, None, **common)
        return self._finish(setup, found, made, path, path.select(self.rule, within=self.within))

    def _held(self, n: int) -> float:
        if round(self.validation_fraction * n) >= n:
            raise ValueError(
                f"validation_fraction: expected a share in (0, 1) that leaves rows to train on, received "
                f"{self.validation_fraction!r} of {n} rows."
            )
        return float(self.validation_fraction)

    @staticmethod
    def _way_to(lam: float) -> list[float]:
        """Strengths that rise gently to the one that was asked for."""
        return lam_grid(lam, GENTLE_FROM, GENTLE) if lam > 0 else [0.0]


class CrossValidatedNetwork(NetworkBase):
    """Choosing the strength by cross-validation."""

    lams: Any
    cv: Any
    scoring: Any
    n_jobs: int | None
    folder: Any
    best_index_: int

    def _fit_many(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """The path of all rows, then scores of every fold at its strengths."""
        self._check()
        check_workers(self.n_jobs, THREADS)
        lams = check_lams(self.lams)
        X, y, rows = self._read(X, y, sample_weight)
        setup, found = self._setup(X, y)
        splits = splits_of(self.cv, X, y, isinstance(self, ClassifierMixin), setup.seed)
        made = scaled(X, y, rows, self.standardize)
        settings, place = {}, None
        if self.folder is not None:
            settings = {
                "estimator": type(self).__name__, "data": fingerprint(X, y, rows), "groups": fingerprint(found.labels),
                "splits": fingerprint(*(part for split in splits for part in split)), "lams": lams,
                "network": [setup.hidden, setup.activation, setup.depth, setup.seed], "options": setup.options,
                "standardize": self.standardize, "scoring": self.scoring, "classes": getattr(self, "classes_", None),
            }  # fmt: skip
            place = claim(Path(self.folder), settings)
        path = kept_path(
            place, THREADS, lambda: setup.path(made, made.data, lams, validation=None, callback=self._report())
        )
        path = replace(path, model=setup.build())  # one from the folder has none
        judge = (
            None if self.scoring is None else _Judge(get_scorer(self.scoring), self._template(X), X, self._as_given(y))
        )
        tasks = [
            Task(f"fold_{i}", fold, (X, y, rows, path.lams, *split, setup, self.standardize, judge))
            for i, split in enumerate(splits)
        ]
        results = run_tasks(
            tasks, n_jobs=self.n_jobs, threads=THREADS, folder=place, settings=settings,
            progress="cross-validation" if self.verbose else None,
        )  # fmt: skip
        keep_scores(self, path.lams, results)
        return self._finish(setup, found, made, path, path[self.best_index_])

    def _as_given(self, y: np.ndarray) -> np.ndarray:
        """Targets as the user writes them."""
        return y

    def _template(self, X: np.ndarray) -> NetworkBase:
        """This estimator, to predict from given outputs."""
        made = copy.copy(self)
        made.n_features_in_ = X.shape[1]
        return made


class _Judge:
    """A scorer of scikit-learn for outputs that are there already."""

    def __init__(self, scorer: Callable[..., float], template: NetworkBase, X: np.ndarray, y: np.ndarray) -> None:
        self.scorer, self.template, self.X, self.y = scorer, template, X, y

    def __call__(self, outputs: np.ndarray, rows: np.ndarray) -> float:
        known = copy.copy(self.template)
        known._outputs = lambda X: outputs  # type: ignore[method-assign]
        return float(self.scorer(known, self.X[rows], self.y[rows]))


class NetworkRegression(RegressorMixin, NetworkBase):
    """Squared loss, one target or several."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        X, y = validate_data(
            self, X, y, dtype=[np.float32, np.float64], multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        self._one_target = y.ndim == 1
        rows = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not rows.any():
            raise ValueError("sample_weight: expected numbers >= 0 with a positive sum, received zeros only.")
        return X, y.astype(np.float64), rows

    def _n_outputs(self, y: np.ndarray) -> int:
        return 1 if y.ndim == 1 else y.shape[1]

    def _predicted(self, outputs: np.ndarray) -> np.ndarray:
        return outputs[:, 0] if self._one_target else outputs


class NetworkClassification(ClassifierMixin, NetworkBase):
    """Cross entropy of one logit a class."""

    class_weight: Any

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], ensure_min_samples=2)
        check_classification_targets(y)
        rows = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self.classes_, codes, mass = codes_of(y, rows)
        return X, codes, rows * class_factors(self.class_weight, self.classes_, mass)[codes]

    def _n_outputs(self, y: np.ndarray) -> int:
        return len(self.classes_)

    def _as_given(self, y: np.ndarray) -> np.ndarray:
        return self.classes_[y]

    def _predicted(self, outputs: np.ndarray) -> np.ndarray:
        return self.classes_[outputs.argmax(1)]

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits: ``(n,)`` of the second of two classes against the first, or ``(n, k)``."""
        made = self._outputs(X)
        return made[:, 1] - made[:, 0] if made.shape[1] == 2 else made

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """``(n, k)`` logarithms of the chances of the classes."""
        made = self._outputs(X)
        made = made - made.max(1, keepdims=True)
        return made - np.log(np.exp(made).sum(1, keepdims=True))

    def predict_proba(self, X: Any) -> np.ndarray:
        """``(n, k)`` chances of the classes, in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))
