"""Budgets: the path ends at exactly so many groups, or just below a share of the dense model."""

from __future__ import annotations

import pytest
import torch
from test_paths import classes, mlp, table
from torch import nn

import dgating as dg
from dgating.paths._budget import budget_path
from dgating.paths._result import equal

FAST = {"dense_steps": 60, "steps": 20, "batch_size": 64}


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_exactly_so_many_features(k):
    x, y = table()
    seen = []
    found = budget_path(lambda: nn.Linear(12, 1), (x, y), n_groups=k, callback=seen.append, **FAST)
    last = found[-1]
    assert last.n_groups == int(last.kept["weight"].sum()) == k
    assert int((last.state["weight"].norm(dim=0) > 0).sum()) == k
    assert set(found) <= set(seen)
    chosen = set(last.kept["weight"].nonzero()[:, 0].tolist())
    assert chosen >= {0, 3, 7} if k >= 3 else chosen <= {0, 3, 7}
    assert float(torch.tensor([p.n_groups for p in found]).min()) == k


@pytest.mark.parametrize("name", ["params", "flops"])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_a_share_of_the_dense_model(name, share):
    x, y = classes()
    wide = lambda: nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 2))  # noqa: E731
    neurons = lambda m: dg.neurons(m, (x[:4],))  # noqa: E731
    found = budget_path(wide, (x, y), groups=neurons, validation=(x, y), **{name: share}, **FAST)
    last = found[-1]
    dense = {"params": 12 * 64 + 64 + 64 * 2 + 2, "flops": 2 * (12 * 64 + 64 * 2)}[name]
    reached = {"params": last.parameters, "flops": last.flops}[name] / dense
    assert 0.9 * share <= reached <= share
    assert found.restore(last)(x).argmax(1).eq(y).float().mean() == pytest.approx(last.score, abs=1e-6)
    before = [{"params": p.parameters, "flops": p.flops}[name] / dense for p in found[:-1]]
    assert min(before) > share


def test_a_share_of_the_time():
    x, y = classes(600)
    wide = lambda: nn.Sequential(nn.Linear(12, 1024), nn.ReLU(), nn.Linear(1024, 2))  # noqa: E731
    found = budget_path(
        wide, (x, y), groups=lambda m: dg.neurons(m, (x[:4],)), latency=0.7, refine=0, **{**FAST, "batch_size": 512}
    )
    assert found[-1].n_groups < 1000


def test_the_same_again():
    a, b = (budget_path(mlp, classes(), n_groups=4, **FAST) for _ in range(2))
    assert equal(a, b)
    assert a[-1].n_groups == 4


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "expected one of n_groups, params, flops, latency, received 0"),
        ({"n_groups": 3, "params": 0.5}, "received 2"),
        ({"n_groups": 0}, "n_groups: expected a whole number >= 1, received 0"),
        ({"n_groups": 12}, "in 1 .. 11, received 12"),
        ({"n_groups": 2.5}, "whole number"),
        ({"params": 1.5}, r"a share in \(0, 1\)"),
        ({"params": 1e-4}, "no model on the path meets the budget"),
        ({"n_groups": 3, "steps": 0}, "steps: expected"),
    ],
)
def test_refused_budgets(budget, message):
    with pytest.raises(ValueError, match=message):
        budget_path(mlp, classes(), **{**FAST, **budget})


def test_unknown_options():
    with pytest.raises(TypeError, match="epochs"):
        budget_path(mlp, classes(), n_groups=3, epochs=4)
