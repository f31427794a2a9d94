"""Cross-validated paths: the rules by hand, the same result everywhere, and after a kill."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from test_paths import LAMS, classes, mlp, table
from torch import nn

import dgating as dg
from dgating.paths._cross_validation import CrossValidatedPath, cross_validate_path
from dgating.paths._path import path
from dgating.paths._result import equal

FAST = {"dense_steps": 40, "steps": 20, "batch_size": 64}


def same(a: CrossValidatedPath, b: CrossValidatedPath) -> bool:
    alike = [np.array_equal(x, y, equal_nan=True) for x, y in ((a.scores, b.scores), (a.n_groups, b.n_groups))]
    return all(alike) and equal(a.path, b.path)


@pytest.fixture(scope="module")
def found() -> CrossValidatedPath:
    return cross_validate_path(mlp, classes(), LAMS, folds=4, **FAST)


def test_every_fold_is_the_path_without_it():
    x, y = table()
    rows = np.arange(300)
    folds = [(rows[100:], rows[:100]), (np.r_[rows[:100], rows[200:]], rows[100:200])]
    net = nn.Linear(12, 1)
    made = cross_validate_path(net, (x, y), LAMS, folds=folds, **FAST)
    assert equal(made.path, path(net, (x, y), LAMS, validation=None, **FAST))
    for k, (train, test) in enumerate(folds):
        alone = path(net, (x[train], y[train]), LAMS, validation=(x[test], y[test]), **FAST)
        assert made.scores[k, : len(alone)].tolist() == [p.score for p in alone]
        assert made.n_groups[k, : len(alone)].tolist() == [p.n_groups for p in alone]


def test_rules_by_hand(found):
    scores, lams = found.scores, found.path.lams
    means = [sum(column) / 4 for column in scores.T]
    best = max(range(len(means)), key=lambda i: (means[i], i))
    error = math.sqrt(sum((s - means[best]) ** 2 for s in scores[:, best]) / 3) / 2
    assert found.select("best").lam == lams[best]
    assert found.select("1se").lam == max(lam for lam, m in zip(lams, means, strict=True) if m >= means[best] - error)
    assert found.select("within", within=1.0).lam == lams[-1]
    assert found.select("best", n_groups=4).n_groups <= 4
    assert found.select("best", max_flops=400).flops <= 400
    with pytest.raises(ValueError, match="no point of this path"):
        found.select(n_groups=-1)
    with pytest.raises(ValueError, match="rule: expected"):
        found.select("other")


def test_folds_are_even_and_disjoint():
    from dgating.paths._cross_validation import _splits
    from dgating.paths._data import as_data

    y = torch.tensor([0] * 40 + [1] * 12)
    splits = _splits(as_data((torch.arange(52.0)[:, None], y)), 4, seed=3)
    assert sorted(np.concatenate([test for _, test in splits]).tolist()) == list(range(52))
    for train, test in splits:
        assert y[test].bincount().tolist() == [10, 3]
        assert not set(train.tolist()) & set(test.tolist())
        assert len(train) + len(test) == 52


def test_processes_and_threads_give_the_same_numbers(found):
    for backend in ("loky", "threading"):
        with joblib.parallel_config(backend, n_jobs=2):
            assert same(cross_validate_path(mlp, classes(), LAMS, folds=4, **FAST), found)


def test_dask_gives_the_same_numbers(found):
    distributed = pytest.importorskip("distributed")
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with (
        distributed.LocalCluster(**settings) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        assert same(cross_validate_path(mlp, classes(), LAMS, folds=4, **FAST), found)


@pytest.mark.slow  # Ray is not among the development packages
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_numbers(found):
    ray = pytest.importorskip("ray")
    from ray.util.joblib import register_ray

    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    try:
        register_ray()
        with joblib.parallel_config("ray", n_jobs=2):
            assert same(cross_validate_path(mlp, classes(), LAMS, folds=4, **FAST), found)
    finally:
        ray.shutdown()


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
from test_cross_validation import FAST, LAMS, classes, cross_validate_path, mlp
cross_validate_path(mlp, classes(), LAMS, folds=4, folder={folder!r}, **FAST)
"""


def test_a_killed_run_goes_on(found, tmp_path):
    folder = tmp_path / "cv"
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script])
    deadline = time.monotonic() + 120
    while not (folder / "fold_1.safetensors").is_file():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "fold_3.safetensors").is_file()
    (folder / "fold_0.safetensors").write_bytes(b"cut")  # a file system that lost the end of a file
    kept = (folder / "fold_1.safetensors").stat().st_mtime_ns
    again = cross_validate_path(mlp, classes(), LAMS, folds=4, folder=folder, **FAST)
    assert same(again, found)
    assert (folder / "fold_1.safetensors").stat().st_mtime_ns == kept
    assert torch.equal(again.path.restore(0)[0].weight, found.path.restore(0)[0].weight)
    with pytest.raises(ValueError, match="holds results of others"):
        cross_validate_path(mlp, classes(), LAMS, folds=4, folder=folder, **{**FAST, "steps": 21})
    x, y = classes()
    with pytest.raises(ValueError, match="holds results of others"):
        cross_validate_path(mlp, (x + 1, y), LAMS, folds=4, folder=folder, **FAST)


def test_saved_and_loaded(found, tmp_path):
    found.save(tmp_path / "cv")
    again = CrossValidatedPath.load(tmp_path / "cv")
    assert same(again, found)
    assert again.select("1se").lam == found.select("1se").lam
    (tmp_path / "cv" / "scores.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="not a whole folder"):
        CrossValidatedPath.load(tmp_path / "cv")
    (tmp_path / "cv" / "scores.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scores\.json"):
        CrossValidatedPath.load(tmp_path / "cv")


def test_as_a_table_and_a_picture(found, tmp_path):
    frame = found.to_frame()
    assert np.allclose(frame["score"], found.scores.mean(0))
    assert np.allclose(frame["standard_error"], found.scores.std(0, ddof=1) / 2)
    dg.plots.cross_validation(found).savefig(tmp_path / "cv.png")


def test_a_bar_is_shown(capsys):
    cross_validate_path(mlp, classes(), LAMS[-3:], folds=2, progress=True, **FAST)
    assert "folds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"folds": 1}, ValueError, "folds: expected a whole number >= 2"),
        ({"folds": 200}, ValueError, "expected at least 200 rows of every class"),
        ({"validation": 0.1}, TypeError, "cannot be given"),
        ({"steps": 0}, ValueError, "steps: expected"),
        ({"lams": [2, 1]}, ValueError, "rising"),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        cross_validate_path(mlp, classes(), **{"lams": LAMS, **FAST, **options})


def test_a_table_on_disk_is_not_copied(tmp_path, monkeypatch):
    """Neither the check, nor the folds, nor the first columns that leave double a table that is mapped."""
    from dgating.paths._data import as_data

    x, y = table()
    file = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(300, 12))
    file[:] = x.numpy()
    file.flush()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows = as_data((mapped, y))
    start = mapped.__array_interface__["data"][0]
    part = rows.view(torch.arange(200)).columns(torch.arange(1, 12))
    assert rows.inputs[0].data_ptr() == part.inputs[0].data_ptr() == start
    assert torch.equal(part.rows(torch.tensor([5, 7])).inputs[0], x[[5, 7], 1:])
    monkeypatch.setattr("dgating.paths._data.BLOCK", 12 * 64)
    assert torch.equal(part.columns(torch.tensor([0, 2])).inputs[0], x[:200][:, [1, 3]])
    few = part.columns(torch.tensor([0, 2]))  # a copy of its own, made in blocks
    assert few.index is few.keep is None
    assert torch.equal(few.target, y[:200])
    net = nn.Linear(12, 1)
    assert same(
        cross_validate_path(net, (mapped, y.numpy()), LAMS, folds=3, n_jobs=2, **FAST),
        cross_validate_path(net, (x, y), LAMS, folds=3, **FAST),
    )
    assert dg.cross_validate_path is cross_validate_path
