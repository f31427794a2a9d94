"""Fig. 20: the simulated target, the late fusion, the rule that chooses a strength, and the smoke run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dgating as dg
from experiments.common import store
from experiments.common.experiment import Record
from experiments.common.runner import run
from experiments.data import Dataset
from experiments.fig20_modalities import EXPERIMENT
from experiments.fig20_modalities.choice import chosen
from experiments.fig20_modalities.judge import plots, relevant, summarise, tables, verdicts
from experiments.fig20_modalities.measure import Configuration, cells, standard_error
from experiments.fig20_modalities.network import MODALITIES, LateFusion, by_modality, without_dead_branches
from experiments.fig20_modalities.simulation import FUNCTIONS, moments, pictorial, simulate, tabular


def _net(side: int = 8) -> LateFusion:
    return LateFusion(side, (3, 4), hidden=6, width=5)


def _rows(n: int = 7, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 1, side, side), torch.rand(n, len(FUNCTIONS)) * 2 - 1


# the simulation


def test_functions_have_mean_zero_and_variance_one() -> None:
    grid = np.linspace(-1, 1, 200_001)
    for _, function in FUNCTIONS:
        mean, sd = moments(function)
        assert mean == pytest.approx(function(grid).mean(), abs=1e-4)
        assert sd == pytest.approx(function(grid).std(), abs=1e-4)
    x = np.random.default_rng(0).uniform(-1, 1, (200_000, len(FUNCTIONS)))
    assert tabular(x).mean() == pytest.approx(0, abs=0.02)
    assert tabular(x).var() == pytest.approx(1, abs=0.02)


def test_digits_have_mean_zero_and_variance_one() -> None:
    digits = pictorial(np.arange(10))
    assert digits.mean() == pytest.approx(0)
    assert digits.var() == pytest.approx(1)


def _dataset(test: bool) -> Dataset:
    """Pictures of one number each, so that a picture names its row."""
    count = 60
    X = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 8, 8))
    y = np.arange(count) % 10
    return Dataset(X[:40], y[:40], X[40:], y[40:]) if test else Dataset(X, y)


@pytest.mark.parametrize("test", [False, True])
def test_target_is_the_mixture(test: bool) -> None:
    found = _dataset(test)
    parts = {a: simulate(found, a, 3, (20, 10, 10), noise=0.5, pool=2, device="cpu") for a in (0.0, 0.25, 1.0)}
    seen = []
    for i in range(3):
        none, some, whole = (parts[a][i] for a in (0.0, 0.25, 1.0))
        assert some.images.shape == (len(some.y), 1, 4, 4)
        assert torch.equal(none.images, whole.images)
        assert torch.equal(none.table, whole.table)
        row = (whole.images[:, 0, 0, 0] * found.X.max()).round().long().numpy()
        seen += row.tolist()
        digits, tabled = pictorial(row % 10), tabular(none.table.double().numpy())
        noise = none.y.numpy() - tabled  # the same at every alpha
        assert 0.2 < noise.std() < 0.8
        np.testing.assert_allclose(whole.y.numpy(), digits + noise, atol=1e-5)
        np.testing.assert_allclose(some.y.numpy(), 0.25 * digits + 0.75 * tabled + noise, atol=1e-5)
    assert len(set(seen)) == len(seen) == 40  # no picture twice
    if test:
        assert all(row >= 40 for row in seen[30:])
        assert all(row < 40 for row in seen[:30])


def test_too_many_rows() -> None:
    with pytest.raises(ValueError, match="expected at most"):
        simulate(_dataset(False), 0.0, 0, (50, 20, 10), noise=0.1, pool=1, device="cpu")


# the network


def test_output_is_linear_in_the_weights_of_each_modality() -> None:
    net, rows = _net(), _rows()
    width = net.head.in_features // 2
    with torch.no_grad():
        net.head.bias.fill_(0.3)
        image, table = net.head.weight.clone(), net.head.weight.clone()
        image[:, width:], table[:, :width] = 0, 0

        def at(a: float, b: float) -> torch.Tensor:
            net.head.weight.copy_(a * image + b * table)
            return net(*rows) - net.head.bias

        alone, other = at(1, 0), at(0, 1)
        assert alone.abs().max() > 1e-3
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(at(-2, 0.5), -2 * alone + 0.5 * other)
        # what a modality says depends on its own input alone
        net.head.weight.copy_(image)
        changed = (rows[0], rows[1] + 1)
        assert torch.equal(net(*changed), net(*rows))
        net.head.weight.copy_(table)
        assert torch.equal(net(rows[0] + 1, rows[1]), net(*rows))


def test_groups_are_the_modalities() -> None:
    net, rows = _net(), _rows()
    before, weight = net(*rows), net.head.weight.detach().clone()
    dg.gate_(net, by_modality(net), depth=3)
    assert torch.equal(net(*rows), before)
    torch.testing.assert_close(dg.group_norms(net)["modalities"], torch.stack([p.norm() for p in weight.split(5, 1)]))


@pytest.mark.parametrize("dead", [(False, True), (True, False), (True, True), (False, False)])
def test_without_dead_branches_is_the_same_function(dead: tuple[bool, bool]) -> None:
    net, rows = _net(), _rows()
    dg.gate_(net, by_modality(net), depth=2)
    dg.zero_(net, {"modalities": torch.tensor(dead)})
    dg.collapse_(net)
    net.eval()
    full = copy.deepcopy(net)
    small = without_dead_branches(net)
    torch.testing.assert_close(small(*rows), full(*rows), rtol=0, atol=1e-6)
    assert [getattr(small, name) is None for name in MODALITIES] == list(dead)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), full.parameters(), strict=True))
    count = sum(p.numel() for p in small.parameters())
    left = [name for name, gone in zip(MODALITIES, dead, strict=True) if not gone]
    branches = sum(p.numel() for name in left for p in getattr(net, name).parameters())
    assert count == 5 * len(left) + 1 + branches


# the choice of a strength


def _points(rows: list[tuple[float, int]], error: float = 0.1) -> list[dict[str, Any]]:
    return [
        {"lam": 2.0**i, "rmse": [0.0, value, 0.0], "rmse_error": error, "left": list(MODALITIES[:n])}
        for i, (value, n) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("rows", "best", "one_se"),
    [
        ([(1.0, 2), (0.9, 2), (0.95, 1), (0.98, 1), (1.1, 1)], 1, 3),  # 0.9 + 0.1: the larger of two sparse ones
        ([(1.0, 2), (0.9, 2), (0.95, 1), (0.98, 2), (1.1, 1)], 1, 2),  # the sparser one, not the larger strength
        ([(1.0, 2), (0.9, 2), (0.95, 2), (1.01, 1)], 1, 2),  # the sparse one is out of reach
        ([(0.9, 2), (0.9, 2), (1.2, 0)], 1, 1),  # equal errors: the larger strength
        ([(0.9, 1)], 0, 0),
    ],
)
def test_choice_by_hand(rows: list[tuple[float, int]], best: int, one_se: int) -> None:
    points = _points(rows)
    assert chosen(points, "best") == best
    assert chosen(points, "1se") == one_se


def test_choice_uses_the_error_of_the_best_point() -> None:
    points = _points([(0.9, 2), (0.95, 1)])
    points[0]["rmse_error"], points[1]["rmse_error"] = 0.04, 1.0
    assert chosen(points, "1se") == 0


def test_choice_leaves_diverged_points_out() -> None:
    diverged = {"lam": 8.0, "diverged": True}
    assert chosen([*_points([(0.9, 2), (0.8, 1)]), diverged], "1se") == 1
    assert chosen([diverged], "best") is None
    with pytest.raises(ValueError, match="expected one of"):
        chosen(_points([(0.9, 2)]), "2se")


def test_standard_error_of_a_root_mean_square() -> None:
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((4000, 300)) ** 2
    assert np.mean([standard_error(d) for d in draws]) == pytest.approx(np.sqrt(draws.mean(1)).std(), rel=0.05)


# the experiment


@pytest.fixture(scope="module")
def smoke(smoke_file: Callable[[str], Path]) -> list[Record]:
    return store.read(smoke_file("fig20_modalities"), EXPERIMENT.settings("smoke"))


def test_smoke_run(smoke: list[Record]) -> None:
    c: Configuration = EXPERIMENT.configurations["smoke"]
    assert [r.cell for r in smoke] == cells(c)
    for record in smoke:
        points = record.found["points"]
        assert [p["lam"] for p in points] == c.grid
        assert all(0 < p["support_epoch"] <= c.epochs for p in points)
        assert all(("screened" in p) == (record.cell["depth"] == 2) for p in points)
        assert points[0]["rmse"][0] > points[-1]["rmse"][0] * 0.5
        for rule in ("best", "1se"):
            sizes = record.found[rule]
            assert sizes["full"]["parameters"] >= sizes["compact"]["parameters"] >= sizes["without"]["parameters"]
            assert max(sizes[name]["difference"] for name in ("compact", "without")) < 1e-5
    summary = summarise(c, smoke)
    assert len(verdicts(c, summary)) == 3
    assert {"norms", "validation"} == set(plots(c, summary))
    assert "What either rule takes" in tables(c, summary)


def test_smoke_is_repeatable(smoke: list[Record], tmp_path: Any) -> None:
    file = run("fig20_modalities", "smoke", out=tmp_path, only={"alpha": "0.0", "depth": "3"})
    again = store.read(file, EXPERIMENT.settings("smoke"))
    assert [r.found for r in again] == [r.found for r in smoke if r.cell in [a.cell for a in again]]


def test_incomplete_records(smoke: list[Record]) -> None:
    c: Configuration = EXPERIMENT.configurations["smoke"]
    for some in ([], smoke[:1], smoke[-1:], smoke[1:3]):  # the last: another D at each α
        summary = summarise(c, some)
        verdicts(c, summary)
        tables(c, summary)
        plots(c, summary)


def _record(alpha: float, depth: int, split: int, left: list[list[str]], at: int) -> Record:
    points = [
        {
            "lam": 0.1 * (i + 1), "norms": [0.5 if name in names else 1e-9 for name in MODALITIES], "left": names,
            "rmse": [0.3, 0.3, 0.3], "rmse_error": 0.01, "certified": [], "theorem": True,
            "support_epoch": i + 1, "certified_epoch": i + 1 if len(names) < 2 else None, "certified_above": 0,
        }
        for i, names in enumerate(left)
    ]  # fmt: skip
    size = {"parameters": 10, "flops": 20, "difference": 1e-7}
    chosen_at = {"at": at, "full": size, "compact": size, "without": size}
    found = {"points": points, "best": {**chosen_at, "at": 0}, "1se": chosen_at}
    return Record({"alpha": alpha, "depth": depth, "split": split}, found, 1.0)


def test_verdicts_count_what_the_rule_left() -> None:
    """By hand: nine of ten splits are enough for the end points, one removal at α = 0.5 is too many."""
    c, both = Configuration(), list(MODALITIES)
    records = []
    for split in range(10):
        for alpha in (0.0, 1.0):
            good = [both, relevant(alpha), relevant(alpha)]
            records.append(_record(alpha, 3, split, good, 0 if split == 0 else 2))
        records.append(_record(0.5, 3, split, [both, both, ["image"]], 1))
    removed, kept = verdicts(c, summarise(c, records))
    assert removed.status == kept.status == "reproduced"
    assert "the image alone removed in 9 of 10 splits (D = 3)" in removed.ours
    assert "α = 0, D = 3: where it stays its norm is 5.0e-01 to 5.0e-01, at λ = 0.1;" in removed.why
    taken = summarise(c, records)["settings"][0]["1se"]
    assert [t["support_epoch"] for t in taken] == [1] + [3] * 9
    assert "9 | 3 | 3 (in 9)" in tables(c, summarise(c, records))

    records[0] = _record(0.0, 3, 0, [both, both, both], 2)
    records[3] = _record(0.0, 3, 1, [both, both, both], 2)  # eight of ten
    records[2] = _record(0.5, 3, 0, [both, both, ["image"]], 2)
    removed, kept = verdicts(c, summarise(c, records))
    assert removed.status == kept.status == "partly"
    shallow = [
        Record({**r.cell, "depth": 2}, _record(r.cell["alpha"], 2, 0, [both, both], 1).found, 1.0) for r in records
    ]
    for r in records:
        r.found["points"][0]["norms"] = [0.5 if name in relevant(r.cell["alpha"]) else 5e-4 for name in MODALITIES]
    clearer = verdicts(c, summarise(c, [*records, *shallow]))[1]
    assert clearer.status == "reproduced"
    assert "0.0 (D = 2), 3.0 (D = 3), last less first 3.0 ± 0.0" in clearer.ours
    assert "0.0 (D = 2), 1.6 (D = 3)" in clearer.ours
