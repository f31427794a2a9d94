"""Arguments of paths and estimators that can only be mistakes: refused before a model is built or a folder made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import dgating as dg

NAN, INF = float("nan"), float("inf")
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, 0] - 2 * X[:, 1]
FAST = {"dense_steps": 2, "steps": 2}
WHOLE = "expected a whole number"


def never():
    """A model that must not be built."""
    raise AssertionError("a model was built before the call was checked")


def with_path(**options):
    return dg.path(never, (X, Y), **{"lams": [0.1, 0.2], **FAST, **options})


def with_budget(**options):
    return dg.budget_path(never, (X, Y), **{"n_groups": 2, **FAST, **options})


def with_folds(**options):
    return dg.cross_validate_path(never, (X, Y), **{"lams": [0.1, 0.2], "folds": 2, **FAST, **options})


# of everything that trains along strengths
TRAINING = [
    ("momentum", 1.0, ValueError, r"momentum: expected a number in \[0, 1\)"),
    ("momentum", -0.1, ValueError, "momentum"),
    ("momentum", NAN, ValueError, "momentum"),
    ("momentum", True, TypeError, "momentum: expected a number, received bool"),
    ("lr", 0, ValueError, "lr: expected a finite number > 0"),
    ("lr", -1.0, ValueError, "lr"),
    ("lr", INF, ValueError, "lr"),
    ("lr", True, TypeError, "lr: expected a number, received bool"),
    ("lr", "0.1", TypeError, "lr: expected a number, received str"),
    ("weight_decay", -1e-4, ValueError, "weight_decay"),
    ("weight_decay", NAN, ValueError, "weight_decay"),
    ("steps", 0, ValueError, f"steps: {WHOLE} >= 1"),
    ("steps", -5, ValueError, f"steps: {WHOLE}"),
    ("steps", 2.5, ValueError, f"steps: {WHOLE}"),
    ("steps", True, ValueError, f"steps: {WHOLE}"),
    ("dense_steps", -1, ValueError, f"dense_steps: {WHOLE}"),
    ("relax_steps", -1, ValueError, f"relax_steps: {WHOLE}"),
    ("batch_size", 0, ValueError, f"batch_size: {WHOLE}"),
    ("batch_size", -3, ValueError, f"batch_size: {WHOLE}"),
    ("depth", 1, ValueError, f"depth: {WHOLE} >= 2, at most 64"),
    ("depth", 10**8, ValueError, f"depth: {WHOLE} >= 2, at most 64"),
    ("depth", 2.0, TypeError, f"depth: {WHOLE}"),
    ("depth", True, TypeError, f"depth: {WHOLE}"),
    ("device", "cuda:99", ValueError, "device: expected one that this machine has"),
    ("device", "gpu", ValueError, "device: expected one that this machine has"),
    ("device", "meta", ValueError, "device: expected one that computes"),
]
# of the functions
WALKS = [
    *TRAINING,
    ("zero_below", 0, ValueError, r"zero_below: expected a number in \(0, 1\)"),
    ("zero_below", 1.0, ValueError, "zero_below"),
    ("patience", 0, ValueError, f"patience: {WHOLE}"),
    ("seed", -1, ValueError, f"seed: {WHOLE} >= 0"),
    ("seed", 2**64, ValueError, f"seed: {WHOLE}"),
    ("seed", 1.5, ValueError, f"seed: {WHOLE}"),
    ("seed", True, ValueError, f"seed: {WHOLE}"),
    ("groups", "inputs", TypeError, "groups: expected a function"),
    ("groups", dg.features(nn.Linear(6, 1)), TypeError, "groups: expected a function"),
    ("loss", "mse", TypeError, "loss: expected a function"),
    ("score", "r2", TypeError, "score: expected a function"),
]
STRENGTHS = [
    ("lams", [], ValueError, "rising strengths"),
    ("lams", [0.2, 0.1], ValueError, "rising strengths"),
    ("lams", [0.1, 0.1], ValueError, "rising strengths"),
    ("lams", [0.1, NAN], ValueError, "lams: expected a finite number"),
    ("lams", [0.1, INF], ValueError, "lams: expected a finite number"),
    ("lams", [-0.1, 0.1], ValueError, "lams: expected a finite number"),
    ("lams", ["0.1"], TypeError, "lams: expected a number, received str"),
    ("lams", [True], TypeError, "lams: expected a number, received bool"),
    ("lams", "0.1", TypeError, "lams: expected rising strengths"),
    ("lams", 0.1, TypeError, "lams: expected rising strengths"),
    ("lams", 0, ValueError, f"lams: {WHOLE} >= 1"),
    ("lams", -3, ValueError, f"lams: {WHOLE}"),
    ("lams", True, ValueError, f"lams: {WHOLE}"),
    ("lams", 10**9, ValueError, f"lams: {WHOLE} >= 1, at most"),
    ("min_groups", -1, ValueError, f"min_groups: {WHOLE}"),
    ("min_groups", True, ValueError, f"min_groups: {WHOLE}"),
]
PATH = [*WALKS, *STRENGTHS, ("callback", 3, TypeError, "callback: expected a function")]
BUDGET = [
    *WALKS,
    ("callback", 3, TypeError, "callback: expected a function"),
    ("tol", -0.1, ValueError, "tol"),
    ("tol", 1.0, ValueError, "tol"),
    ("tol", NAN, ValueError, "tol"),
    ("refine", -1, ValueError, f"refine: {WHOLE}"),
    ("refine", 2.5, ValueError, f"refine: {WHOLE}"),
    ("n_groups", 0, ValueError, f"n_groups: {WHOLE}"),
    ("n_groups", True, ValueError, f"n_groups: {WHOLE}"),
    ("n_groups", None, ValueError, "expected one of n_groups"),
    ("flops", 0.5, ValueError, "received 2 of them"),
    ("speed", 2, TypeError, r"unknown options \['speed'\]"),
]
FOLDS = [
    *WALKS,
    *STRENGTHS,
    ("folds", 1, ValueError, f"folds: {WHOLE}"),
    ("folds", 0, ValueError, f"folds: {WHOLE}"),
    ("folds", True, ValueError, f"folds: {WHOLE}"),
    ("folds", 2.0, ValueError, f"folds: {WHOLE}"),
    ("folds", [], ValueError, f"folds: {WHOLE}"),
    ("folds", [1, 2], ValueError, "fold 0 is no pair"),
    ("folds", [([0, 1], [])], ValueError, "to score on: expected rows, received none"),
    ("folds", [([], [0, 1])], ValueError, "to train on: expected rows, received none"),
    ("folds", [([0, 1], [-1])], ValueError, r"row numbers in 0 .. 39, received -1 .. -1"),
    ("folds", [([0, 40], [1])], ValueError, r"row numbers in 0 .. 39, received 0 .. 40"),
    ("folds", [([0, 1, 1], [2])], ValueError, "every row once, fold 0 has rows to train on twice"),
    ("folds", [([0, 1], [2, 2])], ValueError, "every row once, fold 0 has rows to score on twice"),
    ("folds", [([0, 1], [1, 2])], ValueError, "fold 0 is scored on 1 rows that it is trained on, such as 1"),
    ("folds", [([0.5, 1.5], [2])], ValueError, "expected row numbers, received float64"),
    ("folds", [(np.arange(40) > 9, np.arange(40) < 10)], ValueError, "Of a mask, take flatnonzero"),
    ("n_jobs", 0, ValueError, "n_jobs: expected a number of processes"),
    ("n_jobs", True, ValueError, "n_jobs"),
    ("n_jobs", 1.5, ValueError, "n_jobs"),
    ("threads", 0, ValueError, f"threads: {WHOLE} >= 1"),
    ("threads", -1, ValueError, f"threads: {WHOLE}"),
    ("speed", 2, TypeError, r"unknown options \['speed'\]"),
]


def row(function, name, value, error, message):
    return pytest.param(function, name, value, error, message, id=f"{function.__name__} {name}={value!r:.40}")


@pytest.mark.parametrize(
    ("function", "name", "value", "error", "message"),
    [row(f, *case) for f, table in ((with_path, PATH), (with_budget, BUDGET), (with_folds, FOLDS)) for case in table],
)
def test_paths(function, name, value, error, message, tmp_path):
    more = {"folder": tmp_path / "folds"} if function is with_folds else {}
    with pytest.raises(error, match=message) as caught:
        function(**{name: value}, **more)
    assert caught.type is error
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("function", [with_path, with_budget, with_folds])
def test_a_device_that_is_not_there(function):
    with pytest.raises(ValueError, match="device: expected one that this machine has, received 'cuda'"):
        function(device="cuda")


NONE_LEFT = "leaves rows to train on"
DATA = [
    ("nan in X", (torch.where(X > 2, NAN, X), Y), {}, ValueError, "X: expected finite numbers"),
    ("infinity in y", (X, Y.clone().index_fill_(0, torch.tensor([3]), INF)), {}, ValueError, "y: expected finite"),
    ("nan in a weight", (X, Y, torch.full((40,), NAN)), {}, ValueError, "weight: expected finite"),
    ("a negative weight", (X, Y, -torch.ones(40)), {}, ValueError, "weight: expected one number >= 0 a row"),
    ("weights of zero", (X, Y, torch.zeros(40)), {}, ValueError, "not all of them zero"),
    ("weights of two columns", (X, Y, torch.ones(40, 2)), {}, ValueError, "weight: expected one number"),
    ("complex X", (X.to(torch.cfloat), Y), {}, TypeError, "X: expected real numbers"),
    ("a number for y", (X, torch.tensor(1.0)), {}, ValueError, "y: expected one entry a row"),
    ("no rows", (X[:0], Y[:0]), {}, ValueError, "expected rows, received none"),
    ("other rows", (X, Y[:3]), {}, ValueError, "rows everywhere"),
    ("classes below zero", (X, torch.full((40,), -100)), {}, ValueError, r"y: expected classes 0 .. k - 1"),
    ("one row, some held back", (X[:1], Y[:1]), {}, ValueError, NONE_LEFT),
    ("all rows held back", (X, Y), {"validation": 0.999}, ValueError, NONE_LEFT),
    ("a share above one", (X, Y), {"validation": 1.5}, ValueError, "validation: expected a share"),
    ("a share of nan", (X, Y), {"validation": NAN}, ValueError, "validation: expected a share"),
    ("a number held back", (X, Y), {"validation": True}, TypeError, "validation: expected"),
]


@pytest.mark.parametrize(("data", "options", "error", "message"), [d[1:] for d in DATA], ids=[d[0] for d in DATA])
def test_data_of_a_path(data, options, error, message):
    with pytest.raises(error, match=message):
        dg.path(nn.Linear(6, 1), data, [0.1], **FAST, **options)


def gated():
    net = nn.Linear(6, 1)
    return dg.gate_(net, dg.features(net))


GRIDS = [
    (lambda: dg.lam_grid(0.0), ValueError, "lam_max: expected a positive"),
    (lambda: dg.lam_grid(NAN), ValueError, "lam_max"),
    (lambda: dg.lam_grid(True), TypeError, "lam_max"),
    (lambda: dg.lam_grid(1.0, ratio=0), ValueError, "ratio"),
    (lambda: dg.lam_grid(1.0, ratio=1.5), ValueError, "ratio"),
    (lambda: dg.lam_grid(1.0, ratio=NAN), ValueError, "ratio"),
    (lambda: dg.lam_grid(1.0, n=0), ValueError, f"n: {WHOLE}"),
    (lambda: dg.lam_grid(1.0, n=True), ValueError, f"n: {WHOLE}"),
    (lambda: dg.lam_grid(1.0, n=10**9), ValueError, f"n: {WHOLE} >= 1, at most"),
    (lambda: dg.lam_max(nn.Linear(6, 1), (X, Y)), ValueError, "gated"),
    (lambda: dg.lam_max(gated(), (X, Y), steps=0), ValueError, f"steps: {WHOLE}"),
    (lambda: dg.lam_max(gated(), (X, Y), probes=0), ValueError, f"probes: {WHOLE}"),
    (lambda: dg.lam_max(gated(), (X, Y), seed=-1), ValueError, f"seed: {WHOLE}"),
    (lambda: dg.lam_max(gated(), (X, Y), "mse"), TypeError, "loss: expected a function"),
    (lambda: dg.lam_max(gated(), (X * NAN, Y)), ValueError, "finite"),
    (lambda: linear("lam_max", depth=1), ValueError, f"depth: {WHOLE} >= 2"),
    (lambda: linear("lam_max", depth=10**8), ValueError, f"depth: {WHOLE} >= 2, at most 64"),
    (lambda: linear("bridge", depth=2), ValueError, f"depth: {WHOLE} >= 3"),
    (lambda: linear("bridge", depth=10**8), ValueError, f"depth: {WHOLE} >= 3, at most 64"),
]


def linear(kind, lams=(0.1,), **options):
    groups = list(range(6))
    given = {"X": X, "y": Y, "groups": groups, **options}
    if kind == "lam_max":
        return dg.lam_max_linear(**given)
    return {"lasso": dg.group_lasso_path, "bridge": dg.group_bridge_path}[kind](lams=lams, **given)


SOLVERS = [
    ({"tol": 0}, ValueError, "tol"),
    ({"tol": -1e-7}, ValueError, "tol"),
    ({"tol": 1.0}, ValueError, "tol"),
    ({"tol": NAN}, ValueError, "tol"),
    ({"tol": True}, TypeError, "tol"),
    ({"max_iter": 0}, ValueError, f"max_iter: {WHOLE}"),
    ({"max_iter": 1.5}, ValueError, f"max_iter: {WHOLE}"),
    ({"max_iter": True}, ValueError, f"max_iter: {WHOLE}"),
    ({"lams": []}, ValueError, "lams: expected at least one"),
    ({"lams": [-0.1]}, ValueError, "lams: expected at least one number >= 0"),
    ({"lams": [NAN]}, ValueError, "lams: expected finite"),
    ({"lams": 0.1}, ValueError, "lams: expected one dimension"),
    ({"lams": [True]}, TypeError, "lams: expected numbers, received truth values"),
    ({"loss": "hinge"}, ValueError, "loss: expected one of"),
    ({"X": X * NAN}, ValueError, r"X(\[0:40\])?: expected finite"),
    ({"y": Y * INF}, ValueError, "y: expected finite"),
    ({"sample_weight": -torch.ones(40)}, ValueError, "sample_weight: expected numbers >= 0"),
    ({"sample_weight": torch.zeros(40)}, ValueError, "sample_weight: expected a positive sum"),
    ({"sample_weight": torch.full((40,), NAN)}, ValueError, "sample_weight: expected finite"),
    ({"weights": -torch.ones(6)}, ValueError, "weights: expected numbers >= 0"),
    ({"groups": [0, 1, 2, 3, 4, -2]}, ValueError, "groups: expected labels >= -1"),
    ({"start": torch.zeros(6)}, ValueError, "start: expected coefficients"),
    ({"start": (torch.zeros(5, 1), torch.zeros(1))}, ValueError, "start: expected coefficients"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *GRIDS,
        *(
            (lambda k=kind, o=options: linear(k, **o), e, m)
            for kind in ("lasso", "bridge")
            for options, e, m in SOLVERS
        ),
    ],
)
def test_grids_and_solvers(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- estimators ---

NETWORKS = [
    *TRAINING,
    ("rule", "2se", ValueError, "rule: expected one of"),
    ("within", -1, ValueError, "within"),
    ("within", NAN, ValueError, "within"),
    ("hidden_layer_sizes", (True,), ValueError, "hidden_layer_sizes"),
    ("hidden_layer_sizes", (0,), ValueError, "hidden_layer_sizes"),
    ("activation", "step", ValueError, "activation"),
]
ONE = [
    ("lam", -1, ValueError, "lam"),
    ("lam", NAN, ValueError, "lam"),
    ("lam", True, TypeError, "lam"),
    ("n_groups", 0, ValueError, f"n_groups: {WHOLE}"),
    ("n_groups", True, ValueError, f"n_groups: {WHOLE}"),
    ("validation_fraction", 0, ValueError, "validation_fraction"),
    ("validation_fraction", 1.0, ValueError, "validation_fraction"),
    ("validation_fraction", "0.2", TypeError, "validation_fraction"),
]
CV = [
    ("n_jobs", 0, ValueError, "n_jobs: expected a number of processes"),
    ("cv", 1, ValueError, "."),
    ("cv", [], ValueError, "cv: expected at least one fold"),
    ("cv", [([0, 1, 2], [-1])], ValueError, "cv: rows of fold 0: expected row numbers in 0"),
    ("cv", [([0, 1, 99], [3])], ValueError, "cv: rows of fold 0: expected row numbers in 0"),
    ("cv", [([0, 1, 2], [])], ValueError, "cv: rows of fold 0"),
    ("cv", [(np.arange(40) > 9, np.arange(40) < 10)], ValueError, "Of a mask"),
]
LINEAR = [
    ("depth", 1, ValueError, f"depth: {WHOLE} >= 2"),
    ("depth", 10**8, ValueError, f"depth: {WHOLE} >= 2, at most 64"),
    ("depth", True, TypeError, f"depth: {WHOLE}"),
    ("tol", 0, ValueError, "tol"),
    ("tol", -1, ValueError, "tol"),
    ("tol", NAN, ValueError, "tol"),
    ("max_iter", 0, ValueError, f"max_iter: {WHOLE}"),
    ("max_iter", 1.5, ValueError, f"max_iter: {WHOLE}"),
]
LINEAR_ONE = [("lam", -1, ValueError, "lam"), ("lam", NAN, ValueError, "lam"), ("lam", True, TypeError, "lam")]
LINEAR_CV = [
    ("lams", 0, ValueError, f"lams: {WHOLE}"),
    ("lams", True, ValueError, f"lams: {WHOLE}"),
    ("lams", [], ValueError, "lams: expected a number of strengths"),
    ("lams", [0.1, NAN], ValueError, "lams: expected a number of strengths"),
    ("lams", [-0.1], ValueError, "lams: expected a number of strengths"),
    ("lams", ["a"], ValueError, "lams: expected a number of strengths"),
    ("lams", [[0.1], [0.2]], ValueError, "lams: expected a number of strengths"),
    ("lam_ratio", 0, ValueError, "ratio"),
    ("lam_ratio", NAN, ValueError, "ratio"),
    ("within", -1, ValueError, "within"),
    ("rule", "2se", ValueError, "rule"),
]
LINEAR_KINDS = {
    dg.DGatedLinearRegressor: LINEAR_ONE,
    dg.DGatedLinearClassifier: LINEAR_ONE,
    dg.DGatedLinearRegressorCV: [*CV, *LINEAR_CV],
    dg.DGatedLinearClassifierCV: [*CV, *LINEAR_CV],
}
NETWORK_KINDS = {
    dg.DGatedRegressor: ONE,
    dg.DGatedClassifier: ONE,
    dg.DGatedRegressorCV: [*CV, *STRENGTHS[:-2]],
    dg.DGatedClassifierCV: [*CV, *STRENGTHS[:-2]],
}
ESTIMATORS = [
    row(kind, *case)
    for common, kinds in ((LINEAR, LINEAR_KINDS), (NETWORKS, NETWORK_KINDS))
    for kind, own in kinds.items()
    for case in [*common, *own]
]


@pytest.mark.parametrize(("kind", "name", "value", "error", "message"), ESTIMATORS)
def test_estimators(kind, name, value, error, message, tmp_path):
    y = (Y > 0).numpy() if "Classifier" in kind.__name__ else Y.numpy()
    more = {"folder": tmp_path / "folds"} if kind.__name__.endswith("CV") else {}
    with pytest.raises(error, match=message) as caught:
        kind(**{name: value}, **more).fit(X.numpy(), y)
    assert caught.type is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [*LINEAR_KINDS, *NETWORK_KINDS])
@pytest.mark.parametrize("weight", [-1.0, 0.0, NAN])
def test_weights_of_estimators(kind, weight):
    y = (Y > 0).numpy() if "Classifier" in kind.__name__ else Y.numpy()
    with pytest.raises(ValueError, match=r"[Ww]eight"):
        kind().fit(X.numpy(), y, sample_weight=np.full(40, weight))


@pytest.mark.parametrize("kind", [k for k in [*LINEAR_KINDS, *NETWORK_KINDS] if "Classifier" in k.__name__])
@pytest.mark.parametrize("factor", [-1.0, NAN])
def test_class_weights(kind, factor):
    with pytest.raises(ValueError, match="class_weight: expected a finite number >= 0"):
        kind(class_weight={True: factor}).fit(X.numpy(), (Y > 0).numpy())


def test_choices():
    found = dg.path(nn.Linear(6, 1), (X, Y), [0.1, 0.2], dense_steps=30, steps=100)
    for options, message in [
        ({"rule": "2se"}, "rule: expected"),
        ({"rule": "within", "within": -0.1}, "within"),
        ({"rule": "within", "within": NAN}, "within"),
        ({"rule": "1se", "standard_error": NAN}, "standard_error"),
        ({"rule": "1se", "standard_error": -1.0}, "standard_error"),
    ]:
        with pytest.raises(ValueError, match=message):
            found.select(**options)
