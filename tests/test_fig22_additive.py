"""Fig. 22: the simulated effects, the batched additive networks, the zeroing rule, and the smoke run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dgating as dg
from experiments.common import store
from experiments.common.experiment import Place, Record
from experiments.fig22_additive import EXPERIMENT
from experiments.fig22_additive.judge import plots, summarise, tables, verdicts
from experiments.fig22_additive.measure import (
    PLAIN,
    THRESHOLD,
    Configuration,
    cells,
    errors,
    measure,
    penalty,
    squared_error,
    zeroed,
)
from experiments.fig22_additive.network import (
    AdditiveNetworks,
    by_column,
    recalibrated,
    separated,
    without_dead_columns,
)
from experiments.fig22_additive.simulation import FUNCTIONS, Folds, effect, simulate

RUNS, COLUMNS, HIDDEN = 2, 7, (6, 4)


def _net(norm: bool = True) -> AdditiveNetworks:
    """With statistics of batch norm and a bias that are not those of the start."""
    net = AdditiveNetworks(RUNS, COLUMNS, HIDDEN, norm)
    with torch.no_grad():
        for p in net.norms.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
        net.bias += torch.randn(RUNS)
    for _ in range(3):
        net(2 * torch.randn(50, RUNS, COLUMNS) + 1)
    return net.eval()


def _folds() -> Folds:
    return simulate(0, 100, COLUMNS, 1.0, RUNS)


# the simulation


@pytest.mark.parametrize("k", range(len(FUNCTIONS)))
def test_effects_have_mean_zero_and_variance_one(k: int) -> None:
    values = effect(k, np.random.default_rng(k).standard_normal(400_000))
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.var() == pytest.approx(1, abs=0.02)


def test_folds_are_a_partition_and_the_target_is_the_sum() -> None:
    quiet, folds = simulate(1, 60, COLUMNS, 0.0, 3), simulate(1, 60, COLUMNS, 0.5, 3)
    assert folds.X.shape == (40, 3, COLUMNS)
    assert folds.X_test.shape == (20, 3, COLUMNS)
    assert torch.equal(quiet.X, folds.X)
    wanted = sum(effect(k, quiet.X[..., k].double().numpy()) for k in range(len(FUNCTIONS)))
    np.testing.assert_allclose(quiet.y.numpy(), wanted, atol=1e-4)
    assert 0.3 < float((folds.y - quiet.y).std()) < 0.7
    held = [set(folds.y_test[:, i].tolist()) for i in range(3)]
    everything = set.union(*held)
    assert len(everything) == 60
    for i in range(3):
        assert set(folds.y[:, i].tolist()) == everything - held[i]


def test_rows_that_folds_do_not_divide() -> None:
    with pytest.raises(ValueError, match="expected a multiple of the 3 folds, received 100"):
        simulate(0, 100, COLUMNS, 1.0, 3)


# the network


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batched_networks_are_the_separate_ones(norm: bool, training: bool) -> None:
    net, x = _net(norm).train(training), torch.randn(40, RUNS, COLUMNS)
    apart = [separated(net, run) for run in range(RUNS)]  # before the forward pass changes the running statistics
    together = net(x)
    for i, one in enumerate(apart):
        torch.testing.assert_close(one(x[:, i]), together[:, i], rtol=1e-5, atol=1e-5)


def test_starts_as_linear_layers_do() -> None:
    torch.manual_seed(0)
    net = AdditiveNetworks(40, 50, (8,))
    first, last = net.entrance.weight.detach(), net.last.weight.detach()
    assert float(first.abs().max()) == pytest.approx(1, abs=0.01)  # one input: U(-1, 1)
    assert float(last.abs().max()) == pytest.approx(8**-0.5, abs=0.001)
    assert float(last.std()) == pytest.approx((8 * 3) ** -0.5, rel=0.02)


def test_models_share_nothing() -> None:
    """A gradient of one model's error is zero in the other's parameters, and equals that of the separate model."""
    net, folds = _net().train(), _folds()
    lonely = separated(net, 0)
    squared_error(net(folds.X), folds.y).backward()
    (lonely(folds.X[:, 0]) - folds.y[:, 0]).square().mean().backward()
    for k, shape in enumerate(lonely.shapes):
        mine = shape[0].weight.grad  # type: ignore[index]
        torch.testing.assert_close(net.entrance.weight.grad[k], mine, rtol=1e-3, atol=1e-5)  # type: ignore[index]
    net.zero_grad()
    (net(folds.X)[:, 0] - folds.y[:, 0]).square().mean().backward()
    other = slice(COLUMNS, None)
    assert not net.entrance.weight.grad[other].any()  # type: ignore[index]
    assert not net.last.weight.grad[other].any()  # type: ignore[index]
    assert net.entrance.weight.grad[:COLUMNS].any()  # type: ignore[index]


def test_groups_are_the_columns_of_each_model() -> None:
    net, x = _net(), torch.randn(9, RUNS, COLUMNS)
    before, norms = net(x), net.norms_of_columns()
    wanted = torch.stack([net.entrance.weight[i].norm() for i in range(RUNS * COLUMNS)]).reshape(RUNS, COLUMNS)
    torch.testing.assert_close(norms, wanted)
    dg.gate_(net, by_column(net), depth=3)
    assert torch.equal(net(x), before)
    torch.testing.assert_close(dg.group_norms(net)["columns"], norms.flatten())
    torch.testing.assert_close(net.norms_of_columns(), norms)


def test_recalibrated_matches_statistics_by_hand() -> None:
    net, folds = _net(), _folds()
    was = {key: value.clone() for key, value in net.state_dict().items()}
    fresh = recalibrated(net, folds.X, folds.y)
    assert all(torch.equal(value, was[key]) for key, value in net.state_dict().items())
    h = net.entrance(folds.X.permute(1, 2, 0).reshape(RUNS * COLUMNS, 1, -1)).reshape(-1, len(folds.y))
    norm = fresh.norms[0]
    assert isinstance(norm, nn.BatchNorm1d)
    torch.testing.assert_close(norm.running_mean, h.mean(1))
    torch.testing.assert_close(norm.running_var, h.var(1))
    torch.testing.assert_close((fresh(folds.X) - folds.y).mean(0), torch.zeros(RUNS), rtol=0, atol=1e-5)


# what a threshold leaves


@pytest.mark.parametrize("depth", [None, 2, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_zeroed_functions_are_zero(depth: int | None, norm: bool) -> None:
    net, folds = _net(norm), _folds()
    with torch.no_grad():
        net.entrance.weight[[0, 3, COLUMNS + 1]] *= 1e-5
    if depth:
        dg.gate_(net, by_column(net), depth=depth)
    full = zeroed(net)
    assert dg.is_gated(net) == bool(depth)  # a copy
    assert not dg.is_gated(full)
    dead = torch.zeros(RUNS, COLUMNS, dtype=torch.bool)
    dead[0, [0, 3]] = dead[1, 1] = True
    shapes = recalibrated(full, folds.X, folds.y).shapes(folds.X_test)
    assert not shapes[dead].any()
    assert (shapes[~dead].std(1) > 1e-3).all()
    # the others are what they were
    torch.testing.assert_close(full.shapes(folds.X_test)[~dead], net.shapes(folds.X_test)[~dead], rtol=1e-4, atol=1e-5)


def test_without_dead_columns_is_the_same_function() -> None:
    net, folds = _net(), _folds()
    with torch.no_grad():
        net.entrance.weight[[0, 3, 5]] = 0
    full = separated(recalibrated(zeroed(net), folds.X, folds.y), 0)
    small = without_dead_columns(full)
    assert small.columns == (1, 2, 4, 6)
    torch.testing.assert_close(small(folds.X_test[:, 0]), full(folds.X_test[:, 0]), rtol=0, atol=1e-6)
    each = sum(p.numel() for p in full.shapes[0].parameters())
    assert sum(p.numel() for p in small.parameters()) == 4 * each + 1


def test_errors_by_hand() -> None:
    """The error of the zeroed, recalibrated model; that of the others; how large functions below the threshold are."""
    net, folds = _net(), _folds()
    with torch.no_grad():
        net.entrance.weight[2] *= 1e-5
    found = errors(net, folds)
    exact = recalibrated(zeroed(net), folds.X, folds.y)
    wanted = (exact(folds.X_test) - folds.y_test).square().mean(0)
    assert found["error"] == pytest.approx(wanted.tolist(), rel=1e-4)
    kept = recalibrated(net, folds.X, folds.y)
    assert found["dead_size"] == pytest.approx(float(kept.shapes(folds.X_test)[0, 2].detach().std()), rel=1e-3)
    running = (net(folds.X_test) - folds.y_test).square().mean(0)
    assert found["running"] == pytest.approx(running.tolist(), rel=1e-4)
    assert errors(_net(), folds)["dead_size"] is None


def test_penalties_by_hand() -> None:
    net = _net()
    weight = net.entrance.weight.detach().flatten(1).double()
    for method, wanted in {
        "SNAM": weight.square().sum(1).sqrt().sum(), "L1": weight.abs().sum(), "L2": weight.square().sum(),
    }.items():  # fmt: skip
        term = penalty(method, 0.3)
        assert term is not None
        assert float(term(net).detach()) == pytest.approx(0.3 * float(wanted), rel=1e-5)
    assert penalty("D = 3", 0.3) is None


# the experiment


@pytest.fixture(scope="module")
def smoke(smoke_file: Callable[[str], Path]) -> list[Record]:
    return store.read(smoke_file("fig22_additive"), EXPERIMENT.settings("smoke"))


def test_smoke_run(smoke: list[Record]) -> None:
    c: Configuration = EXPERIMENT.configurations["smoke"]
    assert [r.cell for r in smoke] == cells(c)
    for record in smoke:
        assert len(record.found["folds"]) == c.folds
        for fold in record.found["folds"]:
            assert fold["left"] == [k for k, norm in enumerate(fold["norms"]) if norm > THRESHOLD]
            assert 1 <= fold["support_epoch"] <= c.epochs
        sizes = record.found["sizes"]
        assert sizes["full"]["parameters"] >= sizes["compact"]["parameters"] >= sizes["without"]["parameters"]
        assert max(sizes[name]["difference"] for name in ("compact", "without")) < 1e-5
    weak, strong = (r for r in smoke if r.cell["method"] == "SNAM")
    assert np.mean(weak.found["train"]) < 4
    assert sum(weak.found["folds"][0]["norms"]) > sum(strong.found["folds"][0]["norms"])
    summary = summarise(c, smoke)
    assert len(verdicts(c, summary)) >= 3
    assert {"paths", "norms"} == set(plots(c, summary))
    assert "set to zero" in tables(c, summary)


def test_a_cell_is_repeatable(smoke: list[Record]) -> None:
    c: Configuration = EXPERIMENT.configurations["smoke"]
    first = smoke[1]
    assert measure(c, first.cell, Place()) == first.found


def test_incomplete_records(smoke: list[Record]) -> None:
    c: Configuration = EXPERIMENT.configurations["smoke"]
    for some in ([], smoke[:1], smoke[-1:], smoke[1:3]):
        summary = summarise(c, some)
        verdicts(c, summary)
        tables(c, summary)
        plots(c, summary)


def _record(method: str, lam: float, error: float, left: int, dead_size: float | None = None) -> Record:
    norms = [0.5] * left + [1e-5] * (20 - left)
    fold: dict[str, Any] = {"norms": norms, "left": list(range(left)), "support_epoch": 3}
    if method.startswith("D = 3"):
        fold |= {"certified": 20 - left, "certified_epoch": 2, "certified_above": 0, "revoked": 0}
    size = {"parameters": 10, "flops": 20, "difference": 1e-7}
    spread = [error + d for d in (-0.02, -0.01, 0.0, 0.01, 0.02)]
    found = dict.fromkeys(("error", "train", "kept", "running"), spread) | {
        "folds": [fold] * 5, "dead_size": dead_size, "alive_size": 0.5,
        "sizes": {"full": size, "compact": size, "without": size},
    }  # fmt: skip
    return Record({"seed": 0, "method": method, "lam": lam}, found, 1.0)


def _records(snam_left: int, dead_size: float, deep_error: float) -> list[Record]:
    rows = {
        "D = 2": [(1.2, 20, None), (1.25, 9, 1e-3)],
        "D = 3": [(deep_error + 0.1, 12, 1e-3), (deep_error, 5, dead_size)],
        "SNAM": [(1.3, 20, None), (1.4, snam_left, None)],
    }
    return [
        _record(method, lam, *values)
        for method, points in rows.items()
        for lam, values in zip((0.1, 1.0), points, strict=True)
    ]


def test_verdicts_by_hand() -> None:
    c = Configuration()
    good = verdicts(c, summarise(c, _records(20, 1e-3, 1.1)))
    assert [v.status for v in good] == ["reproduced"] * 4
    assert "5.0 (D = 3), 20.0 (D = 2), 20.0 (SNAM)" in good[0].ours
    assert "lower by 0.200 ± 0.000" in good[1].ours
    assert "5.0 (D = 3), 20.0 (SNAM)" in good[2].ours
    bad = verdicts(c, summarise(c, _records(18, 0.3, 1.4)))
    assert [v.status for v in bad] == ["reproduced", "not reproduced", "partly", "partly"]
    assert "sd up to 0.3, error 1.400 with them" in bad[0].why
    assert not good[0].why
    assert "divides small weights out" in bad[3].why


def test_strengths_without_every_table_are_left_out() -> None:
    c = Configuration(seeds=(0, 1))
    records = _records(20, 1e-3, 1.1)
    second = Record({**records[2].cell, "seed": 1}, records[2].found, 1.0)
    assert [p["lam"] for p in summarise(c, [*records, second])["D = 3"]["points"]] == [0.1]


def test_methods_and_strengths() -> None:
    c = Configuration()
    assert c.grid[0] == 0.01
    assert c.grid[-1] == 10.0
    assert c.methods == ["D = 2", "D = 3", "D = 4", "SNAM", "L1", "L2", "D = 3" + PLAIN, "SNAM" + PLAIN]
    assert len(cells(c)) == 80
