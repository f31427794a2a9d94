"""Linear estimators: scikit-learn's contract, groups, cross-validation against a hand computation, resuming."""

import pickle
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.feature_selection import SelectFromModel
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dgating import (
    DGatedLinearClassifier,
    DGatedLinearClassifierCV,
    DGatedLinearRegressor,
    DGatedLinearRegressorCV,
    group_bridge_path,
    group_lasso_path,
    one_hot_groups,
)
from dgating.estimators._groups import column_groups, indicator_groups
from dgating.estimators._linear_fit import standardized
from dgating.linear import _data as _linear_data
from dgating.maths._choose import choose, standard_errors

X, Y = load_diabetes(return_X_y=True)
CANCER, MALIGN = load_breast_cancer(return_X_y=True)
IRIS, SPECIES = load_iris(return_X_y=True)
FEW = {"lams": 3, "lam_ratio": 0.2, "cv": 2}


# check_class_weight_classifiers sets max_iter to 1000; whether that is enough there hangs on the processor's rounding
FINE = [
    pytest.mark.filterwarnings(f"ignore:{said}")
    for said in ("No features were selected", "group_lasso_path:RuntimeWarning")
]


@FINE[0]
@FINE[1]
@parametrize_with_checks([DGatedLinearRegressor(), DGatedLinearClassifierCV(**FEW, depth=2)])
def test_contract_of_scikit_learn(estimator, check):
    """Of both tasks, of one strength and of cross-validation: each of the four parts an estimator is made of."""
    check(estimator)


@pytest.mark.slow
@FINE[0]
@FINE[1]
@parametrize_with_checks([DGatedLinearClassifier(0.05), DGatedLinearRegressorCV(**FEW)])
def test_contract_of_scikit_learn_of_the_others(estimator, check):
    check(estimator)


# rules


SCORES = np.array([[0.5, 0.8, 0.7, 0.1], [0.5, 0.6, 0.65, np.nan]])  # means 0.5, 0.7, 0.675, none


@pytest.mark.parametrize(
    ("rule", "within", "expected"), [("best", 0, 1), ("1se", 0, 2), ("within", 0.01, 1), ("within", 0.2, 2)]
)
def test_rules_by_hand(rule, within, expected):
    assert choose(SCORES, rule, within) == expected


def test_one_standard_error_by_hand():
    scores = np.array([[1.0, 1.0, 0.4], [3.0, 2.0, 0.6], [2.0, 1.0, 0.5]])
    np.testing.assert_allclose(standard_errors(scores), np.array([1.0, 1 / np.sqrt(3), 0.1]) / np.sqrt(3))
    assert choose(scores, "1se") == 0  # 2 - 0.577 is above 4/3
    scores[:, 1] += 0.1  # and now below
    assert choose(scores, "1se") == 1
    assert choose(np.ones((2, 5)), "best") == 4  # of equal ones the largest λ


@pytest.mark.parametrize(
    ("scores", "rule", "message"),
    [
        (SCORES, "2se", r"rule: expected one of \['best', '1se', 'within'\], received '2se'"),
        (np.full((2, 2), np.nan), "best", "expected a strength that every fold has a finite score for"),
        (np.ones((1, 3)), "1se", "at least two folds"),
        (np.ones(3), "best", r"expected shape \(folds, strengths\), received \(3,\)"),
    ],
)
def test_rules_refuse(scores, rule, message):
    with pytest.raises(ValueError, match=message):
        choose(scores, rule)


# groups


COLUMNS = ["a", "b", "c", "d", "e", "f"]
TABLE = np.arange(24.0).reshape(4, 6)


@pytest.mark.parametrize(
    ("groups", "labels", "names"),
    [
        (None, [0, 1, 2, 3, 4, 5], COLUMNS),
        (2, [0, 0, 1, 1, 2, 2], [0, 1, 2]),
        (np.int64(3), [0, 0, 0, 1, 1, 1], [0, 1]),
        ((1, 3, 2), [0, 1, 1, 1, 2, 2], [0, 1, 2]),
        ([4, 2], [0, 0, 0, 0, 1, 1], [0, 1]),
        ((1, 1, 1, 1, 1, 1), [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        ([7, 7, 3, 3, 7, -1], [0, 0, 1, 1, 0, -1], [7, 3]),
        (np.array([0, 0, 1, 1, 1, 1]), [0, 0, 1, 1, 1, 1], [0, 1]),
        (["x", "x", "y", "z", "z", "x"], [0, 0, 1, 2, 2, 0], ["x", "y", "z"]),
        (pd.Series(["x", "x", "y", "z", "z", "x"]), [0, 0, 1, 2, 2, 0], ["x", "y", "z"]),
        ([[0, 5], [1], [2, 3, 4]], [0, 1, 2, 2, 2, 0], [0, 1, 2]),
        ([["a", "f"], np.array([1]), ("c", "d", 4)], [0, 1, 2, 2, 2, 0], [0, 1, 2]),
    ],
)
def test_kinds_of_groups(groups, labels, names):
    found = column_groups(groups, TABLE, COLUMNS)
    assert found.labels.tolist() == labels
    assert found.names == names


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (4, ValueError, "block size that divides the 6 columns, received 4"),
        (0, ValueError, "block size"),
        ((2, 2), ValueError, "sum 6, .* received 2 numbers with the sum 4"),
        ((7, -1), ValueError, "sizes >= 1"),
        ([1, 2], ValueError, "with the sum 6"),
        (np.array([0, 1]), ValueError, "expected 6 labels, one a column, received 2"),
        (["x", "y"], ValueError, "expected 6 labels"),
        ("each", ValueError, "expected None, an int, 'auto'.*received 'each'"),
        (True, TypeError, "received bool"),
        (2.0, TypeError, "received float"),
        ([0.5] * 6, TypeError, "received values of type float64"),
        ([[0, 1], [2, 3, 4]], ValueError, "every column in one list, column 5 is in 0"),
        ([[0, 1, 2], [2, 3, 4, 5]], ValueError, "every column in one list, column 2 is in 2"),
        ([[0, 1, 2], [3, 4, 5, 6]], ValueError, "column indices below 6 or names of columns of X, received 6"),
        ([["a", "q"]], ValueError, "received 'q'"),
    ],
)
def test_groups_that_do_not_fit(groups, error, message):
    with pytest.raises(error, match=message):
        column_groups(groups, TABLE, COLUMNS)


def test_guessed_groups():
    names = ["color_red", "color_blue", "color", "size_S", "size_L", "height_cm", "height_m", "flag_x"]
    table = np.array([[1, 0, 5, 1, 1, 1.8, 0, 1], [0, 1, 6, 0, 0, 0.0, 1, 0], [0, 0, 7, 1, 0, 1.0, 0, 1]])
    expected = ["color_*", "color_*", "color", "size_S", "size_L", "height_cm", "height_m", "flag_x"]
    assert indicator_groups(table, names).tolist() == expected  # two sizes at once; a height of 1.8; a single flag
    with pytest.raises(ValueError, match=r"'auto' reads the names .*one_hot_groups"):
        column_groups("auto", table)
    frame = pd.DataFrame(table, columns=names)
    model = DGatedLinearRegressor(0.0, depth=2, groups="auto").fit(pd.concat([frame] * 3), np.arange(9.0))
    assert model.groups_.tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert model.group_names_[0] == "color_*"


def frame():
    rng = np.random.default_rng(0)
    made = pd.DataFrame({"age": rng.normal(size=60), "col": rng.choice(["dark_red", "blue", "green"], 60)})
    made["shape_kind"], made["weight"] = rng.choice(["a_b", "c", "rare"], 60, p=[0.5, 0.45, 0.05]), rng.normal(size=60)
    return made


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (3, 3)),
        ({"drop": "first"}, (2, 2)),
        ({"min_frequency": 10}, (3, 3)),
        ({"max_categories": 2}, (2, 2)),
        ({"drop": "first", "max_categories": 2}, (1, 1)),
        ({"drop": "if_binary"}, (3, 3)),
        ({"categories": [["blue", "dark_red", "green", "new"], ["a_b", "c", "rare"]]}, (4, 3)),
    ],
)
def test_groups_read_from_an_encoder(options, sizes):
    encoder = OneHotEncoder(sparse_output=False, feature_name_combiner=lambda f, c: f"{c}?", **options)
    table = frame()
    parts = (StandardScaler(), ["age"]), (make_pipeline(SimpleImputer(strategy="most_frequent"), encoder), [1, 2])
    whole = make_column_transformer(*parts, remainder="passthrough", verbose_feature_names_out=False)
    made = make_pipeline(whole, StandardScaler()).fit(table)
    expected = ["standardscaler__age"] + ["pipeline__col"] * sizes[0] + ["pipeline__shape_kind"] * sizes[1]
    expected.append("remainder__weight")
    assert len(expected) == made.transform(table).shape[1]
    assert one_hot_groups(made).tolist() == expected
    assert one_hot_groups(whole).tolist() == expected
    alone = encoder.fit(table[["col", "shape_kind"]])
    assert one_hot_groups(alone).tolist() == ["col"] * sizes[0] + ["shape_kind"] * sizes[1]


def test_groups_of_other_parts():
    whole = make_column_transformer(
        ("drop", ["weight"]),
        (OneHotEncoder(), make_column_selector(dtype_exclude=np.number)),
        ("passthrough", ["age"]),
    ).fit(frame())
    expected = ["onehotencoder__col"] * 3 + ["onehotencoder__shape_kind"] * 3 + ["passthrough__age"]
    assert one_hot_groups(whole).tolist() == expected
    for chosen in ([False, True, True, False], slice(1, 3), slice("col", "shape_kind"), ["col", "shape_kind"], [1, -2]):
        whole = make_column_transformer((OneHotEncoder(), chosen), ("passthrough", ["age"])).fit(frame())
        assert len(set(one_hot_groups(whole)[:3])) == 1
        assert one_hot_groups(whole)[3:6].tolist() == [one_hot_groups(whole)[3]] * 3
        assert len(set(one_hot_groups(whole))) == 3
    with pytest.raises(TypeError, match=r"expected a OneHotEncoder, a ColumnTransformer .* received StandardScaler"):
        one_hot_groups(StandardScaler())


# fits


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_fit_is_the_path_of_standardised_columns(depth):
    groups, lam = np.repeat(np.arange(5), 2), 15.0
    model = DGatedLinearRegressor(lam, depth=depth, groups=2).fit(X * 100 + 7, Y)
    scale = X.std(0)
    solver, more = (group_lasso_path, {}) if depth == 2 else (group_bridge_path, {"depth": depth})
    path = solver(X / scale, Y, groups, [lam], **more)
    np.testing.assert_allclose(model.coef_, path.coef[0, :, 0].numpy() / scale / 100, rtol=1e-5)
    np.testing.assert_allclose(model.feature_importances_, path.coef[0, :, 0].abs().numpy(), rtol=1e-5)
    assert model.groups_.tolist() == groups.tolist()
    assert model.selected_groups_ == path.active[0].nonzero()[:, 0].tolist()
    assert 0 < len(model.selected_groups_) < 5
    assert model.lam_ == lam
    assert model.solver_.startswith("fista" if depth == 2 else "prox")
    np.testing.assert_allclose(
        model.predict(X * 100 + 7), X @ (model.coef_ * 100) + model.coef_.sum() * 7 + model.intercept_
    )


@pytest.mark.parametrize("depth", [2, 3])
def test_no_penalty_is_scikit_learn(depth):
    target = np.stack([Y, Y**2 / 100], 1)
    rows = np.random.default_rng(0).random(len(Y))
    model = DGatedLinearRegressor(0.0, depth=depth, tol=1e-10).fit(X, target, sample_weight=rows)
    theirs = LinearRegression().fit(X, target, sample_weight=rows)
    assert model.coef_.shape == (2, 10)
    np.testing.assert_allclose(model.predict(X), theirs.predict(X), rtol=1e-5)
    few, rows = CANCER[:, :4], rows[: len(CANCER)].repeat(2)[: len(CANCER)]
    ours = DGatedLinearClassifier(0.0, depth=depth, tol=1e-10, class_weight={0: 3.0}).fit(few, MALIGN, rows)
    theirs = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, class_weight={0: 3.0})
    theirs.fit((few - few.mean(0)) / few.std(0), MALIGN, rows)
    np.testing.assert_allclose(ours.coef_, theirs.coef_ / few.std(0), rtol=1e-3)


def test_selection_and_names():
    table, target = load_diabetes(return_X_y=True, as_frame=True)
    model = DGatedLinearRegressor(5.0).set_output(transform="pandas").fit(table, target)
    kept = [name for name, c in zip(table.columns, model.coef_, strict=True) if c != 0]
    assert model.selected_groups_ == kept
    assert model.get_feature_names_out().tolist() == kept
    assert model.transform(table).columns.tolist() == kept
    assert model.inverse_transform(model.transform(table)).shape == table.shape
    chosen = SelectFromModel(DGatedLinearRegressor(5.0), threshold=1e-12).fit(table, target)
    assert chosen.get_support().tolist() == model.get_support().tolist()
    nothing = DGatedLinearRegressor(1e6).fit(table, target)
    with pytest.warns(UserWarning, match="No features were selected"):
        assert nothing.transform(table).shape == (len(table), 0)
    np.testing.assert_allclose(nothing.predict(table), target.mean())


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("n", [20, 400])  # as it is, and condensed
def test_constant_columns_and_targets_select_nothing(depth, n):
    rng = np.random.default_rng(0)
    table = np.column_stack([np.full(n, 0.1), rng.standard_normal(n), np.full(n, 1e6), np.zeros(n)])
    model = DGatedLinearRegressor(depth=depth).fit(table, np.full(n, 0.3))
    assert model.selected_groups_ == []
    np.testing.assert_allclose(model.predict(table), 0.3)
    cross = DGatedLinearRegressorCV(lams=3, depth=depth).fit(table, np.full(n, 0.3))
    assert cross.selected_groups_ == []
    y = 2 * table[:, 1] + 0.1 * rng.standard_normal(n)
    assert DGatedLinearRegressor(depth=depth).fit(table, y).selected_groups_ == [1]
    assert DGatedLinearRegressor(depth=depth).fit(table[:, [0, 2, 3]], y).selected_groups_ == []
    classes = DGatedLinearClassifier(depth=depth).fit(table, y > 0)
    assert classes.selected_groups_ == [1]


def test_classes_groups_and_probabilities():
    names = np.array(["setosa", "versicolor", "virginica"])[SPECIES]
    model = DGatedLinearClassifier(groups=["sepal", "sepal", "petal", "petal"]).fit(IRIS, names)
    assert model.selected_groups_ == ["petal"]
    assert model.coef_.shape == (3, 4)
    assert model.intercept_.sum() == pytest.approx(0)
    np.testing.assert_allclose(model.predict_proba(IRIS).sum(1), 1)
    np.testing.assert_allclose(np.log(model.predict_proba(IRIS)), model.predict_log_proba(IRIS))
    assert (model.classes_[model.decision_function(IRIS).argmax(1)] == model.predict(IRIS)).all()
    assert model.score(IRIS, names) > 0.9
    two = DGatedLinearClassifier().fit(CANCER, MALIGN)
    assert two.decision_function(CANCER).shape == (569,)
    np.testing.assert_allclose(two.predict_proba(CANCER)[:, 1], 1 / (1 + np.exp(-two.decision_function(CANCER))))
    balanced = DGatedLinearClassifier(class_weight="balanced").fit(CANCER, MALIGN)
    rows = len(MALIGN) / 2 / np.bincount(MALIGN)[MALIGN]
    np.testing.assert_allclose(balanced.coef_, DGatedLinearClassifier().fit(CANCER, MALIGN, rows).coef_, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (DGatedLinearRegressor(-1.0), (X, Y), ValueError, "lam: expected a finite number >= 0, received -1.0"),
        (DGatedLinearRegressor("1"), (X, Y), TypeError, "lam: expected a number, received str"),
        (
            DGatedLinearRegressor(depth=1),
            (X, Y),
            ValueError,
            "depth: expected a whole number >= 2, at most 64",
        ),
        (DGatedLinearRegressor(1.0, depth=2.5), (X, Y), TypeError, "depth: expected a whole number"),
        (DGatedLinearRegressor(groups=3), (X, Y), ValueError, "groups: expected a block size"),
        (DGatedLinearRegressor(), (X, Y * np.nan), ValueError, "NaN"),
        (DGatedLinearRegressor(), (X, Y, -np.ones(442)), ValueError, "sample_weight: expected numbers >= 0"),
        (DGatedLinearClassifier(), (X, np.zeros(442, int)), ValueError, "at least two classes.*received 1 class"),
        (DGatedLinearClassifier(class_weight="even"), (IRIS, SPECIES), ValueError, "class_weight: .*'even'"),
        (DGatedLinearClassifier(class_weight={7: 1}), (IRIS, SPECIES), ValueError, r"classes of y, .* received \[7\]"),
        (DGatedLinearClassifier(), (IRIS, SPECIES, SPECIES > 0), ValueError, "each of positive weight"),
        (DGatedLinearRegressorCV(cv=5), (X[:4], Y[:4]), ValueError, "n_splits=5 greater than the number of samples"),
        (DGatedLinearRegressorCV(rule="2se"), (X, Y), ValueError, "rule: expected one of"),
        (DGatedLinearRegressorCV(lams=[1.0, -1.0]), (X, Y), ValueError, "lams: expected a number of strengths, or"),
        (DGatedLinearRegressorCV(lams=0), (X, Y), ValueError, "lams: expected a whole number >= 1"),
        (DGatedLinearClassifierCV(cv=KFold(3)), (IRIS, SPECIES), ValueError, "cv: .* fold 0 has none of .0."),
    ],
)
def test_refused(model, data, error, message):
    with pytest.raises(error, match=message):
        model.fit(*data)
    assert not hasattr(model, "coef_")


# cross-validation


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("rule", ["best", "1se"])
def test_cross_validation_by_hand(depth, rule):
    rows = np.random.default_rng(0).random(len(Y)) + 0.5
    lams = [0.1, 1.0, 5.0, 20.0]
    model = DGatedLinearRegressorCV(lams, cv=4, depth=depth, rule=rule, groups=2).fit(X, Y, sample_weight=rows)
    scores = np.empty((4, 4))
    for k, (train, test) in enumerate(KFold(4).split(X)):
        scale = np.sqrt(np.cov(X[train].T, aweights=rows[train], ddof=0).diagonal())
        solver, more = (group_lasso_path, {}) if depth == 2 else (group_bridge_path, {"depth": depth})
        path = solver(X[train] / scale, Y[train], np.repeat(np.arange(5), 2), lams, sample_weight=rows[train], **more)
        for i in range(4):
            made = X[test] / scale @ path.coef[i, :, 0].numpy() + float(path.intercept[i])
            scores[k, i] = -mean_squared_error(Y[test], made, sample_weight=rows[test])
    np.testing.assert_allclose(model.scores_, scores, rtol=1e-5)
    assert model.best_index_ == choose(scores, rule)
    assert model.lam_ == lams[model.best_index_]
    assert model.n_groups_.shape == (4, 4)
    assert model.path_.coef.shape == (4, 10, 1)
    assert np.array_equal(model.coef_, model.path_.coef[model.best_index_, :, 0].numpy())
    if depth == 2:  # convex: a single strength has the same solution
        single = DGatedLinearRegressor(model.lam_, depth=2, groups=2).fit(X, Y, rows)
        np.testing.assert_allclose(model.coef_, single.coef_, rtol=1e-3, atol=1e-6)


def test_classifier_scores_by_hand():
    model = DGatedLinearClassifierCV([0.01, 0.1], cv=3, depth=2).fit(IRIS, SPECIES)
    accurate = DGatedLinearClassifierCV([0.01, 0.1], cv=3, depth=2, scoring="accuracy").fit(IRIS, SPECIES)
    for k, (train, test) in enumerate(StratifiedKFold(3).split(IRIS, SPECIES)):
        single = DGatedLinearClassifier(0.01, depth=2).fit(IRIS[train], SPECIES[train])
        assert model.scores_[k, 0] == pytest.approx(
            -log_loss(SPECIES[test], single.predict_proba(IRIS[test])), rel=1e-4
        )
        assert accurate.scores_[k, 0] == single.score(IRIS[test], SPECIES[test])


def test_splitters_and_shuffling():
    splits = list(GroupKFold(3).split(X, Y, np.arange(442) % 7))
    assert DGatedLinearRegressorCV([1.0, 5.0], cv=splits).fit(X, Y).scores_.shape == (3, 2)
    ordered, one, again, other = (
        DGatedLinearRegressorCV([1.0, 5.0], random_state=seed).fit(X, Y).scores_ for seed in (None, 0, 0, 1)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, ordered)


def test_every_backend_gives_the_same_bits():
    model = DGatedLinearClassifierCV(lams=5, lam_ratio=0.05, cv=3)
    alone = model.fit(IRIS, SPECIES)
    attributes = ("scores_", "n_groups_", "lams_", "coef_", "intercept_")
    expected = [getattr(alone, name).copy() for name in attributes]
    spread = model.set_params(n_jobs=2).fit(IRIS, SPECIES)
    assert all(np.array_equal(getattr(spread, name), e) for name, e in zip(attributes, expected, strict=True))
    with joblib.parallel_config(backend="threading", n_jobs=2):
        threads = model.set_params(n_jobs=None).fit(IRIS, SPECIES)
    assert all(np.array_equal(getattr(threads, name), e) for name, e in zip(attributes, expected, strict=True))


def test_resuming_gives_the_same_result(tmp_path, monkeypatch):
    plain = DGatedLinearRegressorCV(lams=5, cv=4).fit(X, Y)
    model = DGatedLinearRegressorCV(lams=5, cv=4, folder=tmp_path / "folds").fit(X, Y)
    assert np.array_equal(model.scores_, plain.scores_)
    for i in (1, 3):
        (tmp_path / "folds" / f"fold_{i}.safetensors").unlink()
    done = []
    fold = model.scores_.copy()
    monkeypatch.setattr(
        "dgating.estimators._linear_folds.standardized",
        lambda *args: done.append(1) or standardized(*args),
    )
    again = DGatedLinearRegressorCV(lams=5, cv=4, folder=tmp_path / "folds").fit(X, Y)
    assert len(done) == 2
    assert np.array_equal(again.scores_, fold)
    assert np.array_equal(again.coef_, plain.coef_)
    for changed, target in (({"depth": 4}, Y), ({"cv": 3}, Y), ({"groups": 2}, Y), ({}, Y + 1), ({"scoring": "r2"}, Y)):
        with pytest.raises(ValueError, match="'folds' holds results of others"):
            DGatedLinearRegressorCV(**({"lams": 5, "cv": 4, "folder": tmp_path / "folds"} | changed)).fit(X, target)


@pytest.mark.parametrize("kind", [DGatedLinearRegressor, DGatedLinearRegressorCV])
def test_tall_tables_on_disk(tmp_path, monkeypatch, kind):
    rng = np.random.default_rng(0)
    file = np.memmap(tmp_path / "X", np.float32, "w+", shape=(2000, 12))
    file[:] = rng.standard_normal((2000, 12)) * np.arange(1, 13) + 5
    table = np.memmap(tmp_path / "X", np.float32, "r", shape=(2000, 12))
    y = np.asarray(table, np.float64)[:, :3].sum(1) + rng.standard_normal(2000)
    model = kind(**({"lams": 8} if kind is DGatedLinearRegressorCV else {"lam": 0.1})).fit(table, y)
    assert model.selected_groups_ == [0, 1, 2]
    monkeypatch.setattr("dgating.estimators._linear_fit.is_tall", lambda *_: False)
    monkeypatch.setattr(_linear_data, "is_tall", lambda *_: False)
    direct = kind(**({"lams": 8} if kind is DGatedLinearRegressorCV else {"lam": 0.1})).fit(table, y)
    np.testing.assert_allclose(model.coef_, direct.coef_, rtol=1e-5)
    np.testing.assert_allclose(model.intercept_, direct.intercept_, rtol=1e-5)


def test_in_a_pipeline_and_a_grid_search():
    table = frame()
    y = table["age"] + (table["col"] == "blue") * 3.0
    whole = make_column_transformer(
        (OneHotEncoder(), ["col", "shape_kind"]), remainder="passthrough", sparse_threshold=0
    )
    groups = one_hot_groups(whole.fit(table))
    pipe = make_pipeline(whole, DGatedLinearRegressor(groups=groups))
    search = GridSearchCV(pipe, {"dgatedlinearregressor__lam": [0.01, 0.1], "dgatedlinearregressor__depth": [2, 3]})
    search.fit(table, y)
    assert search.best_estimator_[-1].selected_groups_[0] == "onehotencoder__col"
    loaded = pickle.loads(pickle.dumps(search))
    assert np.array_equal(loaded.predict(table), search.predict(table))


def test_verbose_lines(capsys):
    DGatedLinearRegressor(5.0, verbose=True).fit(X, Y)
    assert "DGatedLinearRegressor: D = 3, lam = 5, " in capsys.readouterr().out
    DGatedLinearRegressorCV(lams=3, cv=3, verbose=True).fit(X, Y)
    captured = capsys.readouterr()
    assert "cross-validation" in captured.err
    assert "DGatedLinearRegressorCV: D = 3" in captured.out


def test_scikit_learn_is_imported_only_when_asked_for():
    code = (
        "import sys, dgating; assert 'sklearn' not in sys.modules; "
        "dgating.DGatedLinearRegressor; assert 'sklearn' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
