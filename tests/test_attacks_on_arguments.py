"""Arguments of a wrong kind: the answer names the argument, and what was expected."""

import re

import pytest
import torch
from torch import nn

import dgating as dg

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, 0]
LABELS = torch.arange(6)
HUGE = 10**30


def rows():
    return dg.by_dim(nn.Linear(3, 2), 0)


def gated():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return dg.gate_(net, dg.neurons(net[0]))


def by_gradient(**changes):
    return dg.proximal_gradient(**{"X": X, "y": Y, "labels": LABELS, "lam": 0.1} | changes)


def cross_validated(**changes):
    return dg.cross_validate_path(nn.Linear(6, 1), (X, Y), 2, folds=2, steps=2, **changes)


NAMES = {
    "features": lambda name: dg.features(nn.Linear(3, 2), name=name),
    "neurons": lambda name: dg.neurons(nn.Linear(3, 2), name=name),
    "filters": lambda name: dg.filters(nn.Conv2d(1, 2, 3), name=name),
    "whole": lambda name: dg.whole(nn.Linear(3, 2), name=name),
    "by_dim": lambda name: dg.by_dim(nn.Linear(3, 2), 0, name=name),
    "by_dim, groups": lambda name: dg.by_dim(nn.Linear(3, 2), 0, group_name=name),
    "by_labels": lambda name: dg.by_labels(nn.Linear(3, 2), torch.arange(3), name=name),
    "by_labels, groups": lambda name: dg.by_labels(nn.Linear(3, 2), torch.arange(3), group_name=name),
    "tie": lambda name: dg.tie(rows(), rows(), name=name),
    "concat": lambda name: dg.concat(rows(), name=name),
}


@pytest.mark.parametrize("name", [5, 0, {}, [], b"x", torch.ones(2)], ids=str)
@pytest.mark.parametrize("finder", NAMES)
def test_a_name_is_text(finder, name):
    with pytest.raises(TypeError, match=f"name: expected text, received {type(name).__name__}"):
        NAMES[finder](name)


REFUSED = {
    "labels, none": (lambda: dg.by_labels(nn.Linear(3, 2), None), TypeError, "labels: expected integers"),
    "labels, huge": (lambda: dg.by_labels(nn.Linear(3, 2), 2**62), ValueError, "missing [0, 1, 2, 3, 4]"),
    "labels, beyond": (lambda: dg.by_labels(nn.Linear(3, 2), HUGE), TypeError, "labels: expected integers"),
    "labels, far": (lambda: dg.by_labels(nn.Linear(3, 2), torch.tensor([0, 1, 2**62])), ValueError, "missing [2, 3, 4"),
    "prox, weight": (lambda: dg.group_prox(None, LABELS, 0.1, 1.0), TypeError, "weight: expected a tensor"),
    "prox, whole": (lambda: dg.group_prox(LABELS, LABELS, 0.1, 1.0), TypeError, "weight: expected floating-point"),
    "prox, labels": (lambda: dg.group_prox(X[0], [1], 0.1, 1.0), TypeError, "labels: expected a tensor"),
    "prox, far": (lambda: dg.group_prox(X[0], LABELS * 2**58, 0.1, 1.0), ValueError, "labels: expected numbers below"),
    "norms": (lambda: dg.prox_norm(3.0, 0.1, 1.0), TypeError, "norms: expected a tensor, received float"),
    "tau": (lambda: dg.prox_norm(X, 10**400, 1.0), ValueError, "tau: expected a finite number"),
    "X": (lambda: by_gradient(X=None), TypeError, "X: expected a tensor"),
    "y": (lambda: by_gradient(y=[1.0]), TypeError, "y: expected a tensor"),
    "dtypes": (lambda: by_gradient(y=Y.double()), ValueError, "X, y: expected rows of one dtype"),
    "no rows": (lambda: by_gradient(X=X[:0], y=Y[:0]), ValueError, "X, y: expected rows"),
    "init, shape": (lambda: by_gradient(init=torch.ones(3)), ValueError, "init: expected 6 numbers"),
    "init": (lambda: by_gradient(init="x"), TypeError, "init: expected a tensor"),
    "depth": (lambda: by_gradient(depth=HUGE), ValueError, "depth: expected a whole number from 2 to 64"),
    "depth, part": (lambda: by_gradient(depth=2.5), ValueError, "depth: expected a whole number"),
    "tol": (lambda: by_gradient(tol=-1), ValueError, "tol: expected a finite number >= 0"),
    "tol, text": (lambda: by_gradient(tol="x"), TypeError, "tol: expected a number"),
    "lam": (lambda: by_gradient(lam="x"), TypeError, "lam: expected a number"),
    "lam, huge": (lambda: by_gradient(lam=10**400), ValueError, "lam: expected a finite number"),
    "max_iter": (lambda: by_gradient(max_iter="x"), ValueError, "max_iter: expected a whole number"),
    "lams": (lambda: dg.path(nn.Linear(6, 1), (X, Y), b"x", steps=2), TypeError, "lams: expected rising strengths"),
    "monitor": (lambda: dg.report(gated(), monitor="x"), TypeError, "monitor: expected an AbsorptionMonitor"),
    "n_jobs": (lambda: cross_validated(n_jobs=2**62), ValueError, "n_jobs: expected at most"),
    "folder": (lambda: cross_validated(folder=5), TypeError, "folder: expected a path, received int"),
    "folder, file": (lambda: cross_validated(folder=__file__), ValueError, "folder: expected a folder"),
    "save": (lambda: dg.save_compact(nn.Linear(2, 2), 5), TypeError, "path: expected a path, received int"),
    "load": (lambda: dg.load_compact(nn.Linear(2, 2), None), TypeError, "path: expected a path"),
    "export": (lambda: dg.export(nn.Linear(6, 2), X, b"a.pt2"), TypeError, "path: expected a path, received bytes"),
    "path": (lambda: dg.RegularizationPath.load(5), TypeError, "path: expected a path"),
    "scores": (lambda: dg.CrossValidatedPath.load(5), TypeError, "folder: expected a path"),
    "gates": (lambda: dg.GateConfig.load(5), TypeError, "path: expected a path"),
    "gates, save": (lambda: dg.GateConfig.from_model(gated()).save(5), TypeError, "path: expected a path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_argument_is_named(case):
    call, kind, text = REFUSED[case]
    with pytest.raises(kind, match=re.escape(text)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def path():
    return dg.path(nn.Linear(6, 1), (X, Y), 2, steps=10)


@pytest.mark.parametrize("point", ["x", 0.5, None, True, [0], torch.ones(2)], ids=str)
def test_a_point_is_one_or_an_index(path, point):
    with pytest.raises(TypeError, match="point: expected a point of this path or its index"):
        path.restore(point)


@pytest.mark.parametrize("point", [HUGE, -HUGE, 2, -3])
def test_an_index_is_in_the_path(path, point):
    with pytest.raises(IndexError, match="point: expected an index"):
        path.restore(point)


def test_numbers_beyond_64_bits_are_numbers():
    """Python's integers have no end; torch compares with 64 bits of them."""
    net = gated()
    assert set(dg.sparsity(net, tol=HUGE).values()) == {1.0}
    assert [row.kept for row in dg.report(net, tol=HUGE).rows] == [0]
    assert dg.prox_norm(torch.ones(3), HUGE, 1.0).tolist() == [0.0] * 3
    with pytest.raises(FloatingPointError, match="not finite"):
        dg.path(nn.Linear(6, 1), (X, Y), 2, steps=10, lr=HUGE)
