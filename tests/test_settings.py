"""What a folder of results knows of the call that made it: every option, and functions by what they compute."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dgating as dg
from dgating.tasks._fingerprint import described

HERE = Path(__file__).parent
SCALE = 2.0
X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
Y = X[:, 0] - 2 * X[:, 1]
FAST = {"dense_steps": 2, "steps": 2, "lams": [0.1, 0.2], "folds": 2}


def times(factor):
    return lambda x: x * factor


def helper(x):
    return x + 1


def uses_helper(x):
    return helper(x)


def uses_scale(x):
    return x * SCALE


class Scorer:
    def __init__(self, power):
        self.power = power

    def __call__(self, output, target):
        return -float((output.reshape(-1) - target).abs().pow(self.power).mean())


def nested(x):
    return sorted(x, key=lambda v: v * 3)


PAIRS = [
    ("two lambdas", lambda x: x + 1, lambda x: x + 2),
    ("what they enclose", times(2.0), times(3.0)),
    ("defaults", lambda x, p=1: x, lambda x, p=2: x),
    ("keyword defaults", lambda x, *, p=1: x, lambda x, *, p=2: x),
    ("a lambda inside", nested, lambda x: sorted(x, key=lambda v: v * 4)),
    ("partials", functools.partial(max, 1), functools.partial(max, 2)),
    ("objects", Scorer(1), Scorer(2)),
    ("methods", Scorer(1).__call__, Scorer(2).__call__),
    ("built in functions", abs, max),
    ("classes", nn.ReLU, nn.GELU),
    ("arrays", np.arange(3), np.arange(4)),
    ("tensors of bfloat16", torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
    ("texts in an array", np.array(["a", "b"], dtype=object), np.array(["b", "a"], dtype=object)),
    ("numbers and texts", 1, "1"),
    ("dtypes", torch.float32, torch.float64),
    ("devices", torch.device("cpu"), torch.device("meta")),
    ("weights of a model", nn.Linear(2, 2), nn.Linear(2, 2)),
    ("sets", {1, 2}, {1, 3}),
]


@pytest.mark.parametrize(("a", "b"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_different_things_are_described_differently(a, b):
    assert described(a) != described(b)
    for value in (a, b):
        assert json.loads(json.dumps(described(value))) == described(value)


def test_the_same_is_described_alike():
    assert described(times(2.0)) == described(times(2.0))
    assert described(Scorer(1)) == described(Scorer(1))
    assert described({"a": (1, 2.5, None)}) == {"a": [1, 2.5, None]}
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert described(net) == described(nn.Sequential(*net))
    before = described(net)
    net[0].weight.requires_grad_(False)
    assert described(net) != before


def test_what_a_function_names_in_its_module_counts(monkeypatch):
    before = described(uses_helper), described(uses_scale)
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda x: x - 1)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    assert described(uses_helper) != before[0]
    assert described(uses_scale) != before[1]


def test_another_process_describes_alike():
    things = "[uses_helper, uses_scale, nested, times(2.0), set('abcdefghijkl')]"  # a set in an order of its own
    mine = json.dumps([described(thing) for thing in eval(things)])
    script = f"import json; from test_settings import *; print(json.dumps([described(t) for t in {things}]))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"},
    )  # fmt: skip
    assert done.stdout.strip() == mine


def test_what_is_not_known_is_refused():
    with pytest.raises(TypeError, match="cannot tell one Generator from another"):
        described({"score": np.random.default_rng(0)})


def normed():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


CHANGES = [
    {"score": lambda o, t: -float((o.reshape(-1) - t).abs().mean())},
    {"loss": lambda o, t: (o.reshape(-1) - t).abs()},
    {"groups": lambda m: dg.features(m[0], name="other")},
    {"depth": 4},
    {"lr": 0.01},
    {"momentum": 0.5},
    {"weight_decay": 0.1},
    {"zero_below": 0.01},
    {"min_groups": 1},
    {"compact": False},
    {"relax_steps": 1},
    {"patience": 1},
    {"batch_size": 8},
    {"threads": 2},
    {"seed": 1},
    {"folds": 4},
    {"lams": [0.1, 0.3]},
    {"steps": 3},
    {"dense_steps": 3},
    {"device": "cpu"},
]


@pytest.mark.filterwarnings("ignore:path. a group without signal")
def test_a_folder_is_of_one_call(tmp_path):
    """Each option of another value is refused, each by itself; the first call goes on."""
    first = {"score": lambda o, t: -float((o.reshape(-1) - t).square().mean()), **FAST}
    net = normed()
    found = dg.cross_validate_path(net, (X, Y), folder=tmp_path, **first)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    for change in CHANGES:
        with pytest.raises(ValueError, match="holds results of others"):
            dg.cross_validate_path(net, (X, Y), folder=tmp_path, **{**first, **change})
    with pytest.raises(ValueError, match="holds results of others"):
        dg.cross_validate_path(net, (X, Y, torch.ones(40)), folder=tmp_path, **first)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    again = dg.cross_validate_path(net, (X, Y), folder=tmp_path, **first)
    assert np.array_equal(again.scores, found.scores)


def test_estimators_tell_scorers_apart(tmp_path):
    from sklearn.metrics import make_scorer, mean_absolute_error

    def scorer(power):
        return lambda model, X, y: -float(np.mean(np.abs(model.predict(X) - y) ** power))

    x, y = X.numpy(), Y.numpy()
    for kind, options in ((dg.DGatedLinearRegressorCV, {}), (dg.DGatedRegressorCV, {"dense_steps": 2, "steps": 100})):
        folder = tmp_path / kind.__name__
        common = {"lams": [0.05, 0.1], "cv": 2, "random_state": 0, "folder": folder, **options}
        kind(scoring=scorer(1), **common).fit(x, y)
        kind(scoring=scorer(1), **common).fit(x, y)
        for other in (scorer(2), make_scorer(mean_absolute_error, greater_is_better=False), "r2"):
            with pytest.raises(ValueError, match="holds results of others"):
                kind(scoring=other, **common).fit(x, y)
