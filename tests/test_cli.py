"""The ``dgating`` command: what it prints, what it writes, and how it fails."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import dgating as dg
import dgating.cli.demo
from dgating.cli.app import app

FILES = ["model.safetensors", "pixels.png", "report.json"]


def dgating_(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(dgating.cli.demo, "EPOCHS", 2)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_version():
    result = dgating_("--version")
    assert (result.exit_code, result.output) == (0, f"dgating {dg.__version__}\n")


def test_the_package_runs_as_a_command():
    command = [sys.executable, "-m", "dgating", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, f"dgating {dg.__version__}", "")


def test_help_names_every_option():
    result = dgating_("demo", "--help")
    assert result.exit_code == 0
    for option in ("--seed", "--depth", "--lam", "--out", "--device"):
        assert option in result.output


@pytest.mark.parametrize("depth", [2, 3])
def test_demo_writes_three_files(short, tmp_path, depth):
    out = tmp_path / "new" / "folder"
    result = dgating_("demo", "--out", out, "--depth", depth)
    assert result.exit_code == 0, result.output
    assert names(out) == FILES

    report = json.loads((out / "report.json").read_text())
    assert report["settings"] | {"seed": 0, "depth": depth, "lam": 0.01, "epochs": 2} == report["settings"]
    assert report["dgating"] == dg.__version__
    assert {name: g["groups"] for name, g in report["groups"].items()} == {
        "pixels": 64,
        "hidden 1": 300,
        "hidden 2": 100,
    }
    assert set(report["accuracy"]) == {"dense", "gated", "after exact zeros"}
    assert all(0 <= a <= 1 for a in report["accuracy"].values())

    net = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    net.load_state_dict(load_file(out / "model.safetensors"))
    for layer, name in ((0, "pixels"), (2, "hidden 1"), (4, "hidden 2")):
        assert int(net[layer].weight.any(0).sum()) == report["groups"][name]["kept"]
    assert all(torch.isfinite(p).all() for p in net.parameters())

    assert (out / "pixels.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_demo_says_what_it_found(short, tmp_path):
    result = dgating_("demo", "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    for name, g in report["groups"].items():
        assert f"{name}: {g['kept']} of {g['groups']} kept" in result.output
    assert f"dense {report['accuracy']['dense']:.3f}" in result.output


def test_demo_is_reproducible_and_replaces_its_files(short, tmp_path):
    runs = []
    for seed in (1, 1, 2):
        assert dgating_("demo", "--seed", seed, "--out", tmp_path).exit_code == 0
        assert names(tmp_path) == FILES
        report = json.loads((tmp_path / "report.json").read_text())
        del report["seconds"]
        runs.append((report, (tmp_path / "model.safetensors").read_bytes()))
    assert runs[0] == runs[1]
    assert runs[1][1] != runs[2][1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["demo", "--depth", "1"], "--depth"),
        (["demo", "--depth", "three"], "--depth"),
        (["demo", "--lam", "-1"], "--lam"),
        (["demo", "--sedd", "1"], "--sedd"),
        (["dmeo"], "dmeo"),
    ],
)
def test_a_bad_option_exits_with_two_and_says_which(args, said):
    result = dgating_(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Error" in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--device", "warp", "warp"),
        ("--device", "cuda:99", "cuda"),
        ("--device", "meta", "meta"),
        ("--lam", "nan", "lam"),
        ("--lam", "inf", "lam"),
    ],
)
def test_what_cannot_run_is_one_line_and_leaves_no_files(short, tmp_path, option, value, said):
    out = tmp_path / "out"
    result = dgating_("demo", option, value, "--out", out)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)  # nothing else escaped
    assert "Traceback" not in result.output
    assert re.search(rf"(?i)error[\s\S]*{said}", result.stderr)
    assert not out.exists()


def test_out_that_is_a_file_is_one_line(short, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    result = dgating_("demo", "--out", out)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "error:" in result.stderr
    assert out.read_text() == "mine"


def test_diverged_training_is_one_line_and_leaves_no_files(short, monkeypatch, tmp_path):
    monkeypatch.setattr(dgating.cli.demo, "LR", 1e6)
    result = dgating_("demo", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "error: training diverged" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dgating.cli.app", None)
    with pytest.raises(SystemExit, match=r"pip install 'dgating\[cli\]'"):
        dgating.cli.main()


def test_missing_scikit_learn_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = dgating_("demo", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install 'dgating[demo]'" in result.stderr
