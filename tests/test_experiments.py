"""The runner, the report and the shared parts of the experiments."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import dgating as dg
from experiments.__main__ import app
from experiments.common import report, store
from experiments.common.baselines import _FastSort, hsic_lasso
from experiments.common.compacted import compacted, without_inputs
from experiments.common.experiment import SCALES, Place, Record
from experiments.common.networks import accuracy, lenet
from experiments.common.plots import band, figure
from experiments.common.registry import experiment, names
from experiments.common.runner import run
from experiments.common.statistics import at_quality, by, cost_at, frontier, mean_and_error, shown, table
from experiments.common.subnormals import flushes_subnormals, flushing_subnormals
from experiments.common.training import Recipe, make_optimizer, train
from experiments.common.watch import Watch, settled
from experiments.fig03_dynamics.judge import _tenth
from experiments.fig03_dynamics.measure import fit
from experiments.fig05_features.judge import _best, accuracy_at
from experiments.fig05_features.measure import Configuration, _spread

ROOT = Path(__file__).parent.parent


# the runner


@pytest.mark.parametrize("name", names())
def test_smoke(name: str, smoke_file: Callable[[str], Path], tmp_path: Path) -> None:
    """Every experiment runs from end to end without data sets; what it stores can be judged, drawn, at any moment."""
    file = tmp_path / name / "smoke.json"
    file.parent.mkdir()
    shutil.copyfile(smoke_file(name), file)
    it = experiment(name)
    stored = store.load(file)
    configuration, settings = it.configurations["smoke"], it.settings("smoke")
    assert len(stored["cells"]) == stored["cells_in_all"] == len(it.cells(configuration))
    (found,) = report.reported(it, tmp_path, ("smoke",))
    assert "Incomplete" not in report.block(found)
    pictures = report.draw(found)
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    records = store.read(file, settings)
    for n in range(1, len(records)):
        store.write(file, name, "smoke", settings, records[:n], len(records))
        (found,) = report.reported(it, tmp_path, ("smoke",))
        assert f"Incomplete: {n} of {len(records)}" in report.block(found)
        assert it.plots(configuration, found.summary) is not None


def test_scales_of_every_experiment() -> None:
    for name in names():
        it = experiment(name)
        assert {*SCALES} - {"gpu"} <= set(it.configurations) <= {*SCALES}
        for scale in it.configurations:
            cells = [store.key(cell) for cell in it.cells(it.configurations[scale])]
            assert len(cells) == len(set(cells)) > 0
            json.dumps(it.settings(scale), allow_nan=False)


def results(file: Path) -> list[object]:
    return [(cell["cell"], cell["found"]) for cell in store.load(file)["cells"]]


def test_killed_and_resumed(tmp_path: Path) -> None:
    """kill -9 at any moment: the next run goes on and finds what an unbroken one finds."""

    def begin(*command: str) -> subprocess.Popen[bytes]:
        """All runs in processes of one kind: the last digit of a sum is a matter of threads and memory."""
        env, nowhere = {**os.environ, "OMP_NUM_THREADS": "1"}, subprocess.DEVNULL
        return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=nowhere, stderr=nowhere, env=env)

    broken, unbroken = (["run", "fig04_regression", "--out", str(tmp_path / name)] for name in ("broken", "whole"))
    file = tmp_path / "broken" / "fig04_regression" / "smoke.json"
    process = begin("-m", "experiments", *broken)
    while not file.is_file() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(store.load(file)["cells"])
    assert 0 < done < 6
    both = f"for words in {[broken, unbroken]}: app(words, standalone_mode=False)"
    assert begin("-c", f"from experiments.__main__ import app\n{both}").wait() == 0
    whole = results(tmp_path / "whole" / "fig04_regression" / "smoke.json")
    assert len(whole) == 6
    assert results(file) == whole


def test_only_some_cells_then_the_others(tmp_path: Path) -> None:
    file = run("fig04_regression", "smoke", out=tmp_path, only={"method": "oracle"})
    assert [cell["cell"]["method"] for cell in store.load(file)["cells"]] == ["oracle"]
    run("fig04_regression", "smoke", out=tmp_path, only={"method": "FISTA"})
    assert [cell["cell"]["method"] for cell in store.load(file)["cells"]] == ["oracle", "FISTA"]
    with pytest.raises(ValueError, match="no cell has"):
        run("fig04_regression", "smoke", out=tmp_path, only={"method": "magic"})


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    alone = run("fig04_regression", "smoke", out=tmp_path / "1", only={"method": "D = 3"})
    many = run("fig04_regression", "smoke", out=tmp_path / "2", only={"method": "D = 3"}, jobs=2)
    assert results(alone) == results(many)


def test_other_configurations_never_mix(tmp_path: Path) -> None:
    file = run("fig04_regression", "smoke", out=tmp_path, only={"method": "oracle"})
    stored = json.loads(file.read_text())
    stored["configuration"]["steps"] += 1
    text = json.dumps(stored)
    file.write_text(text)
    with pytest.raises(store.OtherConfiguration, match=r"differs in steps.*--restart"):
        run("fig04_regression", "smoke", out=tmp_path, only={"method": "oracle"})
    assert file.read_text() == text
    run("fig04_regression", "smoke", out=tmp_path, only={"method": "oracle"}, restart=True)
    assert json.loads(file.read_text())["configuration"]["steps"] == stored["configuration"]["steps"] - 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "something else"}', "\x00"])
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "fig04_regression" / "smoke.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ValueError, match="expected"):
        run("fig04_regression", "smoke", out=tmp_path)
    assert file.read_text() == text


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="fig04_regression"):
        run("fig99", "smoke")
    with pytest.raises(ValueError, match="smoke, cpu, paper"):
        run("fig04_regression", "huge")


def test_numbers_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.write(tmp_path / "x.json", "x", "cpu", {}, [Record({}, {"a": math.nan}, 1.0)], 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "fig99"], "expected one of"),
        (["run", "fig04_regression", "--only", "method"], "KEY=VALUE"),
        (
            [
                "run",
                "fig03_dynamics",
                "--scale",
                "cpu",
            ],
            "mnist",
        ),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "DGATING_DATA": "", "COLUMNS": "300"}
    env |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code != 0
    assert isinstance(done.exception, SystemExit)  # no traceback
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


# the report


def test_the_pages_hold_what_is_stored() -> None:
    """No number in a page that a stored result does not hold: the pages are what ``report`` renders."""
    runs = report.everything()
    for file, text in report.rendered(runs):
        assert file.read_text(encoding="utf-8") == text, f"{file.parent.name}: run python -m experiments report"
    for found in (found for stored in runs.values() for found in stored):
        for picture in found.figures:
            assert (found.file.parent / f"{picture}.png").is_file()


def test_smoke_runs_are_never_reported(tmp_path: Path) -> None:
    run("fig04_regression", "smoke", out=tmp_path, only={"method": "oracle"})
    assert report.reported(experiment("fig04_regression"), tmp_path) == []


# shared parts


def test_mean_and_error() -> None:
    mean, error = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    assert math.isnan(mean_and_error([1.0])[1])
    assert shown([1.0, 3.0], 1) == "2.0 ± 1.0"
    assert shown([1.0], 1) == "1.0"
    assert table(["a", "b"], [[1, 2]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    records = [Record({"a": i % 2}, {}, 0.0) for i in range(4)]
    assert {k: len(v) for k, v in by(records, lambda cell: cell["a"]).items()} == {0: 2, 1: 2}


def test_what_a_quality_costs_is_linear_on_the_frontier() -> None:
    points = [(0.8, 0.93), (0.3, 0.94), (1.0, 1.0), (0.1, 0.7), (0.1, 0.6)]
    assert frontier(points) == [(0.1, 0.7), (0.3, 0.94), (1.0, 1.0)]
    assert cost_at(0.94, points) == pytest.approx(0.3)
    assert cost_at(0.82, points) == pytest.approx(0.2)  # half of the way
    assert cost_at(0.97, points) == pytest.approx(0.65)
    assert (cost_at(0.1, points), cost_at(2.0, points)) == (0.1, 1.0)  # nothing cheaper, nothing better is there
    assert at_quality(0.82, [(0.3, 0.94, 4.0), (0.1, 0.7, 2.0)]) == pytest.approx((0.2, 0.82, 3.0))


def test_gates_may_have_a_step_size_of_their_own() -> None:
    net = nn.Linear(3, 2)
    dg.gate_(net, dg.features(net))
    optimizer = make_optimizer(net, Recipe(epochs=1, batch=0, lr=0.1, gate_lr=0.5), lam=0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    gates = {id(p) for name, p in net.named_parameters() if name.endswith("gamma")}
    assert gates
    assert all(rate == (0.5 if p in gates else 0.1) for p, rate in rates.items())


def test_subnormal_numbers_are_zeros_inside_and_numbers_outside() -> None:
    assert not flushes_subnormals()
    with flushing_subnormals():
        assert flushes_subnormals()
        with flushing_subnormals():
            pass
        assert flushes_subnormals()
    assert not flushes_subnormals()


@pytest.mark.parametrize(
    ("looks", "first"),
    [([1, 2, 3], 2), ([3, 3, 3], 0), ([1, 3, 3], 1), ([3, 1, 3], 2), ([True], 0), ([False, True, True], 1)],
)
def test_settled(looks: list[object], first: int) -> None:
    assert settled(looks) == first
    assert settled([torch.tensor([0, int(v)]) for v in looks]) == first  # type: ignore[call-overload]


def test_watch_tells_the_first_certificate_from_the_one_that_stays() -> None:
    net = nn.Linear(2, 3)
    dg.gate_(net, dg.neurons(net))
    watch = Watch(net, 0.1, every=1, window=1, threshold=1e-4)
    yes, no = True, False
    watch.steps = [10, 20, 30, 40, 50]
    watch.left = [torch.tensor(v) for v in ([yes] * 3, [yes] * 3, [yes, yes, no], [yes, no, no], [yes, no, no])]
    watch.certified = [
        torch.tensor(v) for v in ([yes, yes, yes], [no, no, yes], [no, no, yes], [no, no, yes], [no, yes, yes])
    ]
    found = watch.found()
    assert (found["left"], found["certified"], found["support_step"]) == (1, 2, 40)
    assert (found["certified_step"], found["certified_for_good"]) == (10, 50)
    assert (found["certified_above"], found["revoked"]) == (1, 1)
    watch.certified[-1] = torch.tensor([no, no, yes])
    assert watch.found()["certified_for_good"] is None


def test_tenth() -> None:
    assert _tenth([[0, 10, 0], [5, 0.5, 0], [10, 3, 0], [15, 1, 0], [20, 0.2, 0]]) == 15
    assert math.isnan(_tenth([[0, 10, 0], [5, 0.5, 0], [10, 3, 0]]))


def test_band_leaves_diverged_runs_out() -> None:
    _, panels = figure()
    nan = math.nan
    band(panels[0, 0], [1, 2, 3], [[1.0, 2.0, nan], [3.0, nan, nan], [5.0, 4.0, 6.0]], "D = 3")
    (line,) = panels[0, 0].lines
    assert np.ma.filled(line.get_ydata(), nan).tolist()[:2] == [3.0, 3.0]
    assert math.isnan(np.ma.filled(line.get_ydata(), nan)[2])


def test_hsic_lasso_selects_at_every_k() -> None:
    """With k columns to find, the k columns of the path: not the first k of a longer list."""
    pytest.importorskip("pyHSICLasso", reason="from the dependency group peers")
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 12, generator=generator)
    y = (X[:, 3] + 0.5 * X[:, 7] > 0).long()
    found = hsic_lasso(X, y, (1, 2, 5))
    assert found[1].tolist() == [3]
    assert found[2].tolist() == [3, 7]
    assert len(found[5]) <= 5
    assert {3, 7} <= set(found[5].tolist())


def test_best_counts_ahead_level_and_behind() -> None:
    rival = {"LassoNet": (90.0, 1.0), "D = 2": (80.0, 1.0)}
    cells = [(f"x {i}", {"D = 3": (ours, 1.0), "D = 4": (50.0, 1.0), **rival}) for i, ours in enumerate([95.0] * 9)]
    assert _best(cells).status == "reproduced"
    mixed = [*cells[:6], ("level", {"D = 3": (91.0, 1.0), **rival}), ("lost", {"D = 3": (80.0, 1.0), **rival})]
    verdict = _best(mixed)
    assert verdict.status == "partly"
    assert "ahead of all others in 6 of 8 cells" in verdict.ours
    assert "level in 1, behind in 1" in verdict.ours
    assert verdict.why == "behind at lost: LassoNet 90.0, ours 80.0"
    assert _best([("lost", {"D = 3": (80.0, math.nan), **rival})]).status == "not reproduced"


def test_accuracy_at() -> None:
    points = [{"features": 100, "accuracy": 0.9}, {"features": 10, "accuracy": 0.5}, {"features": 0, "accuracy": 0.1}]
    assert accuracy_at(points, 10) == 0.5
    assert accuracy_at(points, 100) == 0.9
    assert accuracy_at(points, 32) == pytest.approx(0.5 + 0.4 * math.log(3.2) / math.log(10))
    assert accuracy_at(points, 9) is None
    assert accuracy_at(points, 101) is None
    assert accuracy_at([*points, {"features": 10, "accuracy": 0.7}], 10) == pytest.approx(0.6)


def test_strengths_are_sought_until_the_range_is_filled() -> None:
    c = replace(Configuration(), runs=8, ks=(10, 25, 50, 100, 200))
    asked: list[float] = []

    def fitted(lam: float) -> dict[str, float]:
        asked.append(lam)
        return {"lam": lam, "features": int(600 * math.exp(-30 * lam)), "accuracy": 0.5}

    points = _spread(c, fitted)
    assert len(points) == len(asked) == 8
    left = [p["features"] for p in points]
    assert left == sorted(left, reverse=True)
    assert left[0] >= 200
    assert left[-1] <= 10
    inside = [n for n in left if 10 < n < 200]
    assert len(inside) >= 3


def test_variants_of_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """More epochs; or the columns that are left, and only these, for a fresh network."""
    features = importlib.import_module("experiments.fig05_features.measure")
    c = replace(experiment("fig05_features").configurations["smoke"], runs=2)
    epochs, columns = [], []

    def on_columns(c: Configuration, rows: object, chosen: torch.Tensor, seed: int, place: Place) -> float:
        columns.append(len(chosen))
        return 0.125

    def trained(*arguments: Any, **options: Any) -> Any:
        epochs.append(arguments[4].epochs)
        return train(*arguments, **options)

    monkeypatch.setattr(features, "_on_columns", on_columns)
    monkeypatch.setattr(features, "train", trained)
    found = features.measure(c, {"dataset": "digits", "method": "D = 2, 3 epochs", "seed": 0}, Place())
    assert epochs == [3, 3]
    assert columns == []
    found = features.measure(c, {"dataset": "digits", "method": "D = 3, refit", "seed": 0}, Place())
    assert epochs[2:] == [c.epochs] * 2
    left = [p for p in found["points"] if p["features"]]
    assert sorted(columns) == sorted(p["features"] for p in left)
    assert {p["accuracy"] for p in left} == {0.125}


def test_fit_of_an_exponential() -> None:
    times = list(np.linspace(0, 10, 50))
    found = fit(times, [3 * math.exp(-0.7 * t) for t in times])
    assert found["rate"] == pytest.approx(0.7)
    assert found["r2"] == pytest.approx(1)


def small(depth: int = 3) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A network whose target needs two of six columns."""
    X = torch.randn(256, 6)
    y = (X[:, 0] + X[:, 1] > 0).long()
    net = lenet(6, 2, (16,))
    dg.gate_(net, dg.features(net[0]), depth=depth)
    return net, X, y


def test_training_equals_a_plain_loop() -> None:
    net, X, y = small()
    twin, _, _ = (small()[0], X, y)
    twin.load_state_dict(net.state_dict())
    recipe = Recipe(3, 64, 0.1, momentum=0.9, schedule="constant")
    train(net, X, y, nn.functional.cross_entropy, recipe, generator=Place().generator(1), lam=0.01)
    optimizer = torch.optim.SGD(dg.param_groups(twin, 0.01), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for rows in torch.randperm(256, generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(twin(X[rows]), y[rows]).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_training_ends_when_it_is_told_to() -> None:
    net, X, y = small()
    seen: list[int] = []
    train(
        net, X, y, nn.functional.cross_entropy, Recipe(3, 64, 0.1), generator=Place().generator(0),
        on_step=lambda step, _: seen.append(step) or step == 5,
    )  # fmt: skip
    assert seen == [1, 2, 3, 4, 5]
    assert not net.training


def test_watch_knows_when_the_support_was_final() -> None:
    net, X, y = small()
    watch = Watch(net, 0.1, every=4, window=4, threshold=1e-4)
    train(
        net, X, y, nn.functional.cross_entropy, Recipe(400, 64, 0.1), generator=Place().generator(0), lam=0.1,
        before_step=watch.before_step, on_step=watch.on_step,
    )  # fmt: skip
    found = watch.found()
    norms = torch.cat(list(dg.group_norms(net).values()))
    assert found["left"] == int((norms > 1e-4).sum()) < 6
    history = torch.stack(watch.left)
    first = watch.steps.index(found["support_step"])
    assert bool((history[first:] == history[-1]).all())
    assert first == 0 or not torch.equal(history[first - 1], history[-1])
    assert found["certified_step"] is not None
    assert found["certified_step"] <= found["support_step"]
    known = watch.certified[watch.steps.index(found["certified_step"])]
    assert bool(known[~history[-1]].all())


def test_compacted_is_the_same_function() -> None:
    net, X, _ = small()
    with torch.no_grad():
        dg.zero_(
            net,
            {"0.weight" if "0.weight" in dg.group_norms(net) else next(iter(dg.group_norms(net))): torch.arange(6) > 1},
        )
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = without_inputs(net, X, 1e-6)
    assert found["parameters"] == [6 * 16 + 16 + 34, 2 * 16 + 16 + 34]
    assert found["difference"] < 1e-6
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())

    net = lenet(6, 2, (16,))
    dg.gate_(net, dg.neurons(net[0], name="hidden"), depth=2)
    dg.zero_(net, {"hidden": torch.arange(16) > 3})
    found = compacted(net, X, 1e-6)
    assert found["parameters"] == [6 * 16 + 16 + 34, 6 * 4 + 4 + 10]
    assert found["difference"] < 1e-6


def test_accuracy_counts_right_rows() -> None:
    net = nn.Identity()
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert accuracy(net, outputs, torch.tensor([0, 1, 1]), batch=2) == pytest.approx(2 / 3)


def test_the_faster_sort_of_lassonet_changes_nothing() -> None:
    pytest.importorskip("lassonet")
    operator, v, u = importlib.import_module("lassonet.prox"), torch.randn(3, 50), torch.randn(20, 50)
    plain = operator.prox(v, u, lambda_=3.0, lambda_bar=0.1, M=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator, "torch", _FastSort())
        fast = operator.prox(v, u, lambda_=3.0, lambda_bar=0.1, M=10)
    assert all(torch.equal(a, b) for a, b in zip(plain, fast, strict=True))
