"""Networks with selected inputs as scikit-learn estimators."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_iris, make_regression
from sklearn.feature_selection import SelectFromModel
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

from dgating.estimators._network import DGatedClassifier, DGatedClassifierCV, DGatedRegressor, DGatedRegressorCV

QUICK = {"hidden_layer_sizes": (16,), "dense_steps": 60, "steps": 10, "relax_steps": 5, "random_state": 0}
# for the conventions, which fit some hundred models
QUICKEST = {**QUICK, "hidden_layer_sizes": (8,), "dense_steps": 40, "steps": 3, "relax_steps": 0}
SINGLE = [DGatedClassifier, DGatedRegressor]
EVERY = [*SINGLE, DGatedClassifierCV, DGatedRegressorCV]

WEIGHTS = (
    "batches of a weighted row and of repeated rows differ, as for every estimator trained by stochastic gradients"
)
FAILING = {
    "check_sample_weight_equivalence_on_dense_data": WEIGHTS,
    "check_sample_weight_equivalence_on_sparse_data": WEIGHTS,
}


def estimator(kind, **options):
    extra = {"cv": 2} if kind.__name__.endswith("CV") else {}
    return kind(**{**QUICK, **extra, **options})


FEW = {**QUICKEST, "steps": 12, "cv": 2, "lams": [0.01, 0.1, 0.5]}
noise_is_fine = pytest.mark.filterwarnings("ignore:No features were selected")  # some tables of the checks are noise


@noise_is_fine
@parametrize_with_checks(
    [DGatedRegressor(**QUICKEST), DGatedClassifierCV(**FEW)], expected_failed_checks=lambda _: FAILING
)
def test_conventions(estimator, check):
    """Of both tasks, of one path and of cross-validation: each of the four parts an estimator is made of."""
    check(estimator)


@pytest.mark.slow
@noise_is_fine
@parametrize_with_checks(
    [DGatedClassifier(**QUICKEST), DGatedRegressorCV(**FEW)], expected_failed_checks=lambda _: FAILING
)
def test_conventions_of_the_others(estimator, check):
    check(estimator)


def nonlinear(n: int = 400, p: int = 10, seed: int = 0):
    """Columns 1 and 4 matter, by a product and a square."""
    X = np.random.default_rng(seed).normal(size=(n, p)).astype(np.float32)
    return X, X[:, 1] * X[:, 4] + X[:, 1] ** 2


@pytest.mark.parametrize("kind", EVERY)
def test_only_the_columns_that_matter_are_read(kind):
    X, y = nonlinear()
    if "Classifier" in kind.__name__:
        y = np.array(["low", "high"])[(y > np.median(y)).astype(int)]
    model = estimator(kind, steps=30, relax_steps=50, rule="1se").fit(X, y)
    support = model.get_support()
    assert support[[1, 4]].all()
    assert support.sum() < 10
    assert model.model_[0].in_features == support.sum()
    assert model.transform(X).shape == (400, support.sum())
    broken = X.copy()
    broken[:, ~support] = 1e6
    assert np.array_equal(model.predict(X), model.predict(broken))
    assert ((model.feature_importances_ > 0) == support).all()
    assert model.score(X, y) > 0.7


def test_predictions_are_those_of_the_full_network():
    X, y = nonlinear()
    model = estimator(DGatedRegressor).fit(X, y)
    point = next(p for p in model.path_ if p.lam == model.lam_)
    full = model.path_.restore(point)
    scaled = torch.as_tensor((X - model.centre_) / model.scale_, dtype=torch.float32)
    with torch.no_grad():
        expected = full(scaled)[:, 0].numpy() * y.std() + y.mean()
    assert np.allclose(model.predict(X), expected, atol=1e-4)
    assert np.allclose(model.centre_, X.mean(0), atol=1e-6)
    assert np.allclose(model.scale_, X.std(0), atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_exactly_so_many_columns(k):
    X, y = load_diabetes(return_X_y=True)
    assert estimator(DGatedRegressor, n_groups=k).fit(X, y).get_support().sum() == k


def test_a_given_strength_is_reached_gently():
    X, y = nonlinear()
    model = estimator(DGatedRegressor, lam=0.3).fit(X, y)
    assert model.lam_ == 0.3
    assert model.path_.lams == sorted(model.path_.lams)
    assert set(np.flatnonzero(model.get_support())) <= {1, 4}
    assert estimator(DGatedRegressor, lam=0.0).fit(X, y).get_support().all()
    with pytest.warns(RuntimeWarning, match="no group may ever leave"):
        estimator(DGatedRegressor, lam=1e-4).fit(X, y)


@pytest.mark.parametrize("scoring", [None, "neg_log_loss", "balanced_accuracy"])
def test_the_strength_of_the_rule_by_hand(scoring):
    X, y = load_iris(return_X_y=True)
    model = estimator(DGatedClassifierCV, cv=3, scoring=scoring, lams=[0.02, 0.1, 0.4, 1.5]).fit(X, y)
    means = model.scores_.mean(0)
    best = int(np.flatnonzero(means == means.max())[-1])
    error = model.scores_[:, best].std(ddof=1) / 3**0.5
    chosen = max(i for i in range(4) if means[i] >= means[best] - error)
    assert model.best_index_ == chosen
    assert model.lam_ == model.lams_[chosen]
    if scoring != "balanced_accuracy":
        assert (model.scores_ < 0).all()


def test_the_default_score_is_the_log_loss():
    X, y = load_iris(return_X_y=True)
    options = {"cv": 3, "lams": [0.02, 0.1, 0.4, 1.5]}
    a, b = (estimator(DGatedClassifierCV, **options, scoring=s).fit(X, y) for s in (None, "neg_log_loss"))
    assert np.allclose(a.scores_, b.scores_, atol=1e-5)
    a, b = (estimator(DGatedRegressorCV, **options, scoring=s).fit(X[:, 1:], X[:, 0]) for s in (None, "r2"))
    assert np.allclose(a.scores_, b.scores_, atol=1e-5)


def test_a_fold_is_a_fit_without_its_rows():
    """Scores of a scorer are those of an estimator that is fitted to the other rows at the same strengths."""
    X, y = nonlinear(200)
    half = np.arange(200) < 100
    splits = [(np.flatnonzero(half), np.flatnonzero(~half))]
    options = {"lams": [0.02, 0.1, 0.3], "steps": 20, "rule": "best", "scoring": "neg_mean_absolute_error"}
    model = estimator(DGatedRegressorCV, **options, cv=splits).fit(X, y)
    alone = estimator(DGatedRegressorCV, **options, cv=[(np.arange(50), np.arange(50, 100))]).fit(X[half], y[half])
    scores = []
    for lam in options["lams"]:
        alone.best_index_ = alone.path_.lams.index(lam)
        from dgating.estimators._network_fit import scaled

        setup, found = alone._setup(X[half], y[half])
        made = scaled(X[half], y[half], np.ones(100), True)
        alone._finish(setup, found, made, alone.path_, alone.path_[alone.best_index_])
        scores.append(-np.abs(alone.predict(X[~half]) - y[~half]).mean())
    assert np.allclose(model.scores_[0], scores, atol=1e-4)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_folds_elsewhere_give_the_same_model(backend):
    X, y = nonlinear(200)
    options = {"lams": [0.02, 0.1, 0.3], "steps": 20, "cv": 3}
    model = estimator(DGatedRegressorCV, **options).fit(X, y)
    with joblib.parallel_config(backend, n_jobs=2):
        again = estimator(DGatedRegressorCV, **options).fit(X, y)
    assert np.array_equal(model.scores_, again.scores_)
    assert np.array_equal(model.predict(X), again.predict(X))


def test_a_folder_is_gone_on_with(tmp_path):
    X, y = nonlinear(200)
    options = {"lams": [0.02, 0.1, 0.3], "steps": 20, "cv": 3, "folder": tmp_path / "cv"}
    model = estimator(DGatedRegressorCV, **options).fit(X, y)
    (tmp_path / "cv" / "fold_1.safetensors").unlink()
    assert (tmp_path / "cv" / "path.safetensors").is_file()
    again = estimator(DGatedRegressorCV, **options).fit(X, y)
    assert np.array_equal(model.scores_, again.scores_)
    assert np.array_equal(model.predict(X), again.predict(X))
    assert again.path_.restore(0)[0].in_features == 10
    with pytest.raises(ValueError, match="holds results of others"):
        estimator(DGatedRegressorCV, **options, relax_steps=6).fit(X, y)


def test_one_hot_columns_come_and_go_together():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"colour": rng.choice(list("rgb"), 300), "junk": rng.choice(list("xyz"), 300)})
    frame["number"] = rng.normal(size=300)
    y = (frame["colour"] == "r") * 2.0 + frame["number"]
    encoder = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["colour", "junk"]),
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    X = encoder.fit_transform(frame)
    model = estimator(DGatedRegressor, groups="auto", steps=30).fit(X, y)
    assert set(model.selected_groups_) == {"colour_*", "number"}
    assert model.get_support()[[c.startswith("colour") for c in X.columns]].all()
    assert list(model.get_feature_names_out()) == [c for c in X.columns if not c.startswith("junk")]


@pytest.mark.parametrize("groups", [2, (4, 6), [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]], list("aaaabbbbbb")])
def test_groups_in_every_form(groups):
    X, y = nonlinear(150)
    model = estimator(DGatedRegressor, groups=groups, lam=0.05, steps=20).fit(X, y)
    support = model.get_support()
    for j in range(len(model.group_names_)):
        assert len(set(support[model.groups_ == j])) == 1


def test_unpenalised_columns_stay():
    X, y = nonlinear()
    labels = np.arange(10)
    labels[9] = -1
    model = estimator(DGatedRegressor, groups=np.where(labels < 0, -1, labels), lam=0.5, steps=30).fit(X, y)
    assert model.get_support()[9]
    assert not model.get_support()[[0, 2, 3, 5, 6, 7, 8]].any()


def test_weights_of_rows_and_classes():
    X, y = load_iris(return_X_y=True)
    one = estimator(DGatedClassifier, lam=0.05, steps=20).fit(X, y)
    ones = estimator(DGatedClassifier, lam=0.05, steps=20).fit(X, y, sample_weight=np.ones(150))
    assert np.array_equal(one.predict_proba(X), ones.predict_proba(X))
    without = np.where(y == 2, 1e-9, 1.0)
    model = estimator(DGatedClassifier, lam=0.05, steps=20).fit(X, y, sample_weight=without)
    assert (model.predict(X) != 2).all()
    heavy = estimator(DGatedClassifier, lam=0.05, steps=20, class_weight={2: 1e3}).fit(X, y)
    assert (heavy.predict(X) == 2).mean() > 0.5
    balanced = estimator(DGatedClassifier, lam=0.05, steps=20, class_weight="balanced").fit(X, y)
    assert np.allclose(balanced.predict_proba(X), one.predict_proba(X), atol=1e-5)


def test_several_targets():
    X, y = make_regression(200, 8, n_informative=2, n_targets=3, random_state=0)
    model = estimator(DGatedRegressor, steps=30).fit(X, y)
    assert model.predict(X).shape == (200, 3)
    assert model.score(X, y) > 0.9
    assert model.get_support().sum() < 8


def test_in_pipelines_searches_and_selectors():
    X, y = load_iris(return_X_y=True)
    inner = estimator(DGatedClassifier, n_groups=2)
    pipeline = make_pipeline(
        SelectFromModel(inner, threshold=1e-12), estimator(DGatedClassifier, lam=0.05, steps=20, hidden_layer_sizes=8)
    )
    assert pipeline.fit(X, y).score(X, y) > 0.9
    assert pipeline[0].get_support().sum() == 2
    frame = clone(inner).fit(pd.DataFrame(X, columns=list("abcd")), y).set_output(transform="pandas")
    assert frame.transform(pd.DataFrame(X, columns=list("abcd"))).shape == (150, 2)
    search = GridSearchCV(estimator(DGatedClassifier), {"n_groups": [1, 2]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.9
    assert search.best_estimator_.get_support().sum() == search.best_params_["n_groups"]


def test_pickled_and_cloned():
    X, y = nonlinear(200)
    model = estimator(DGatedRegressor).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(model.predict(X), again.predict(X))
    assert np.array_equal(clone(model).fit(X, y).predict(X), model.predict(X))
    other = estimator(DGatedRegressor, random_state=1).fit(X, y)
    assert not np.array_equal(other.predict(X), model.predict(X))


def test_a_mapped_table_is_the_same_table(tmp_path):
    X, y = nonlinear()
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    a, b = (estimator(DGatedRegressor, lam=0.1).fit(table, y) for table in (X, mapped))
    assert np.array_equal(a.predict(X), b.predict(mapped))


def test_constant_columns_and_targets_leave(capsys):
    X, y = nonlinear(200)
    X[:, 0] = 3.0
    model = estimator(DGatedRegressor, steps=30, verbose=True).fit(X, y)
    assert not model.get_support()[0]
    assert "groups" in capsys.readouterr().out
    flat = estimator(DGatedRegressor, lr=0.2).fit(X, np.full(200, 5.0))
    assert np.allclose(flat.predict(X), 5.0, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes: expected"),
        ({"activation": "sine"}, "activation: expected one of"),
        ({"rule": "other"}, "rule: expected"),
        ({"lam": -1.0}, "lam: expected"),
        ({"lam": 0.1, "n_groups": 2}, "lam or n_groups, received both"),
        ({"n_groups": 99}, "n_groups: expected a whole number in 1 .. 9"),
        ({"validation_fraction": 1.0}, "validation_fraction: expected"),
        ({"depth": 1}, "depth"),
        ({"steps": 0}, "steps: expected"),
        ({"groups": 3}, "block size that divides the 10 columns"),
    ],
)
def test_refused(options, message):
    X, y = nonlinear(60)
    with pytest.raises(ValueError, match=message):
        estimator(DGatedRegressor, **options).fit(X, y)


def test_refused_data():
    X, y = nonlinear(60)
    with pytest.raises(ValueError, match="received 1 class"):
        estimator(DGatedClassifier).fit(X, np.zeros(60, dtype=int))
    with pytest.raises(ValueError, match="NaN"):
        estimator(DGatedRegressor).fit(np.where(X > 2, np.nan, X), y)
    with pytest.raises(ValueError, match=r"n_splits=200|number of splits"):
        estimator(DGatedRegressorCV, cv=200).fit(X, y)
