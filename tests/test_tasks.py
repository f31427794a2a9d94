"""Tasks spread by joblib: order, folders, and runs that are killed in the middle."""

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

from dgating.files._writing import beside
from dgating.tasks._fingerprint import fingerprint
from dgating.tasks._run import SETTINGS, Task, claim, run_tasks

HERE = Path(__file__).parent


def work(seed, size, pause=0.0, log=None):
    """Random numbers of an own seed, a sum that depends on the number of threads, and a line in a log."""
    time.sleep(pause)
    if log is not None:
        with Path(log).open("a") as file:
            file.write(f"{seed}\n")
    x = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return {"product": (x @ x).numpy(), "threads": np.array([torch.get_num_threads()])}


def jobs(n=4, **options):
    return [Task(f"task_{i}", work, (i, 20), options) for i in range(n)]


def same(a, b):
    return all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def test_results_are_in_the_order_of_the_tasks():
    found = run_tasks(jobs())
    assert same(found, [work(i, 20) for i in range(4)])


def test_processes_and_threads_give_the_same_numbers(tmp_path):
    alone = run_tasks(jobs())
    assert same(alone, run_tasks(jobs(), n_jobs=2, folder=tmp_path))
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert same(alone, run_tasks(jobs()))
    assert all(result["threads"].item() == 1 for result in alone)
    two = run_tasks(jobs(), threads=2)
    assert all(result["threads"].item() == 2 for result in two)
    assert torch.get_num_threads() == 1  # as before


def test_finished_tasks_are_not_computed_again(tmp_path):
    folder, log = tmp_path / "folder", tmp_path / "log"
    first = run_tasks(jobs(2, log=log), folder=folder)
    assert log.read_text().split() == ["0", "1"]
    whole = run_tasks(jobs(4, log=log), folder=folder)
    assert log.read_text().split() == ["0", "1", "2", "3"]
    assert same(whole[:2], first)
    assert same(whole, run_tasks(jobs(4)))


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "gone"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    expected = run_tasks(jobs(), folder=tmp_path)
    file = tmp_path / "task_2.safetensors"
    content = {"cut": file.read_bytes()[:-5], "empty": b"", "foreign": b"no tensors at all"}
    file.unlink() if damage == "gone" else file.write_bytes(content[damage])
    assert same(run_tasks(jobs(), folder=tmp_path), expected)
    assert same(run_tasks(jobs(), folder=tmp_path), expected)
    assert file.stat().st_size > 1000


def test_folders_of_others_are_refused_and_left_alone(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run_tasks(jobs(2), folder=ours, settings={"lam": 1.0})
    before = {f: f.read_bytes() for f in ours.iterdir()}
    with pytest.raises(ValueError, match="'ours' holds results of others"):
        run_tasks(jobs(4), folder=ours, settings={"lam": 2.0})
    assert before == {f: f.read_bytes() for f in ours.iterdir()}
    assert (ours / SETTINGS) in before
    theirs.mkdir()
    (theirs / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="expected an empty folder or one of an earlier run"):
        run_tasks(jobs(), folder=theirs)
    assert [f.name for f in theirs.iterdir()] == ["letter.txt"]


def test_an_error_keeps_what_was_finished(tmp_path):
    log = tmp_path / "log"
    broken = [*jobs(2, log=log), Task("broken", work, (2, "wrong"))]
    with pytest.raises(TypeError):
        run_tasks(broken, folder=tmp_path / "folder")
    run_tasks(jobs(2, log=log), folder=tmp_path / "folder")
    assert log.read_text().split() == ["0", "1"]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    folder, log = tmp_path / "folder", tmp_path / "log"
    script = (
        "from test_tasks import *; "
        f"run_tasks([Task(f'task_{{i}}', work, (i, 20), dict(pause=0.5, log={str(log)!r})) for i in range(6)], "
        f"folder={str(folder)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=HERE)
    try:
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*.safetensors"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = len(list(folder.glob("*.safetensors")))
    assert 2 <= done < 6
    found = run_tasks(jobs(6, log=log), folder=folder)
    assert same(found, [work(i, 20) for i in range(6)])
    assert len(log.read_text().split()) <= 7  # at most the task in the middle twice
    assert log.read_text().split()[-(6 - done) :] == [str(i) for i in range(done, 6)]


def test_progress_is_shown_on_standard_error(capsys):
    run_tasks(jobs(2), progress="folds")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "folds" in captured.err
    assert "2/2" in captured.err


def test_fingerprints_tell_arrays_apart():
    x, y = np.arange(12.0).reshape(3, 4), np.arange(3)
    changed = x.copy()
    changed[2, 3] += 1e-9
    alike = {fingerprint(v, y) for v in (x, x.copy(), np.asfortranarray(x), torch.tensor(x))}
    others = {fingerprint(v, y) for v in (x.T, x.astype(np.float32), changed, x.reshape(12))} | {fingerprint(x)}
    assert len(alike) == 1
    assert len(alike | others) == 6


def test_a_kill_right_after_the_settings_were_written_leaves_nothing(tmp_path: Path) -> None:
    """The temporary name and the final one are then links to one file."""
    file = claim(tmp_path / "run", {"steps": 1}) / SETTINGS
    left = beside(file, f"-{'0' * 16}.tmp")
    os.link(file, left)
    claim(tmp_path / "run", {"steps": 1})
    assert [place.name for place in (tmp_path / "run").iterdir()] == [SETTINGS]
