"""The ``dgating`` command: what it prints, what it writes, and how it fails."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import dgating as dg
import dgating.cli.demo
import dgating.cli.inspect_onnx
import dgating.cli.models
from dgating._text import plain
from dgating.cli.app import app

FILES = ["compact.safetensors", "model.onnx", "model.safetensors", "pixels.png", "report.json"]


def dgating_(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(dgating.cli.demo, "EPOCHS", 2)


def digits_net():
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


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
def test_demo_writes_its_files(short, tmp_path, depth):
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
    assert set(report["accuracy"]) == {"dense", "gated", "after exact zeros", "compact"}
    assert report["accuracy"]["compact"] == report["accuracy"]["after exact zeros"]
    assert all(0 <= a <= 1 for a in report["accuracy"].values())

    net = digits_net()
    net.load_state_dict(load_file(out / "model.safetensors"))
    for layer, name in ((0, "pixels"), (2, "hidden 1"), (4, "hidden 2")):
        assert int(net[layer].weight.any(0).sum()) == report["groups"][name]["kept"]
    assert all(torch.isfinite(p).all() for p in net.parameters())

    small = dg.load_compact(digits_net(), out / "compact.safetensors")
    kept = [report["groups"][name]["kept"] for name in ("hidden 1", "hidden 2")]
    assert [small[0].out_features, small[2].out_features] == kept
    assert report["compact"]["layers"] == [[64, 300, 100, 10], [64, *kept, 10]]
    after, before = report["compact"]["profile"], report["compact"]["profile"]["reference"]
    assert after["parameters"] == sum(p.numel() for p in small.parameters())
    assert before["parameters"] == sum(p.numel() for p in net.parameters())
    x = torch.rand(50, 64)
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-4)
    assert report["compact"]["max_difference"] < 1e-4
    assert report["compact"]["onnx"]["max_difference"] < 1e-4

    assert (out / "pixels.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_demo_says_what_it_found(short, tmp_path):
    result = dgating_("demo", "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    for name, g in report["groups"].items():
        assert f"{name}: {g['kept']} of {g['groups']} kept" in result.output
    assert f"dense {report['accuracy']['dense']:.3f}" in result.output
    assert "-".join(map(str, report["compact"]["layers"][1])) in result.output
    assert f"{report['compact']['profile']['parameters']:,}" in result.output


def test_demo_is_reproducible_and_replaces_its_files(short, tmp_path):
    runs = []
    for seed in (1, 1, 2):
        assert dgating_("demo", "--seed", seed, "--out", tmp_path, "--force").exit_code == 0
        assert names(tmp_path) == FILES
        report = json.loads((tmp_path / "report.json").read_text())
        del report["seconds"]
        del report["compact"]["profile"]  # it has times
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


def test_demo_without_onnx_says_so(short, monkeypatch, tmp_path):
    monkeypatch.setattr(dgating.cli.demo, "find_spec", lambda name: None)
    result = dgating_("demo", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert names(tmp_path) == [name for name in FILES if name != "model.onnx"]
    assert "pip install 'dgating[onnx]'" in " ".join(result.output.split())
    assert "dgating[onnx]" in json.loads((tmp_path / "report.json").read_text())["compact"]["onnx"]


def test_missing_scikit_learn_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = dgating_("demo", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install 'dgating[demo]'" in result.stderr


# --- dgating compact, dgating inspect ---

MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

def trained():
    net = build()
    with torch.no_grad():
        net[0].weight[:3] = 0
        net[0].bias[:3] = 0
    return net

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(50, 6), nn.Linear(6, 9), nn.Linear(9, 2)
        self.b.weight.data[:, 2:4] = 0

    def forward(self, ids, mask=None):
        y = self.b(self.a(self.table(ids)).relu())
        return y if mask is None else y * mask.unsqueeze(-1)

def text():
    torch.manual_seed(0)
    return Text()

def inputs():
    return {"ids": torch.randint(0, 50, (2, 7)), "mask": torch.ones(2, 7)}

def fails():
    raise KeyError("nothing here")

def number():
    return 3

not_a_function = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a module that builds models; the module has another name every time."""
    monkeypatch.chdir(tmp_path)
    name = f"models_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    yield SimpleNamespace(path=tmp_path, module=name)
    sys.modules.pop(name, None)


@pytest.fixture
def program(folder):
    """A saved program with a free batch axis."""
    module = dgating.cli.models.call(f"{folder.module}:trained").eval()
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(module, (torch.randn(5, 4),), dynamic_shapes=({**batch},)), "net.pt2")
    return folder.path / "net.pt2"


def ok(*args):
    result = dgating_(*args)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*args):
    """One line and exit code 2; returns the line."""
    result = dgating_(*args)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    return result.stderr


def test_compact_says_what_it_would_do_and_writes_nothing(folder):
    before = names(folder.path)
    said = ok("compact", f"{folder.module}:trained", "--input", "3x4")
    assert "0.weight (+6 slices): 3 of 8 leave" in said
    assert re.search(r"parameters.* 74 .* 47 .*64%", said)
    assert re.search(r"largest difference (0\.0e\+00|\d\.\de-\d+)", said)
    assert "nothing written" in said
    assert [n for n in names(folder.path) if n != "__pycache__"] == before


def test_compact_a_built_model(folder):
    source = dgating.cli.models.call(f"{folder.module}:trained")
    save_file(source.state_dict(), "weights.safetensors")
    said = ok(
        "compact", f"{folder.module}:build", "--weights", "weights.safetensors", "--input", "3x4",
        "--out", "small.safetensors", "--out", "small.onnx", "--out", "small.pt2", "--plan", "plan.json",
    )  # fmt: skip
    assert all(f"wrote small.{kind}" in said for kind in ("safetensors", "onnx", "pt2"))
    small = dg.load_compact(dgating.cli.models.call(f"{folder.module}:build").eval(), "small.safetensors")
    x = torch.randn(6, 4)
    torch.testing.assert_close(small(x), source.eval()(x))
    torch.testing.assert_close(torch.export.load("small.pt2").module()(x), small(x))
    plan = json.loads((folder.path / "plan.json").read_text())
    assert plan["parameters"] == [74, 47]


@pytest.mark.parametrize("option", ["--out", "--plan"])
def test_compact_replaces_a_file_only_by_force(program, option):
    there = Path("there.pt2" if option == "--out" else "there.json")
    there.write_text("mine")
    args = ["compact", program, option, there.name]
    assert "is there already" in refused(*args)
    assert there.read_text() == "mine"
    ok(*args, "--force")
    assert there.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "net.pt2", "--force"], "which is read"),
        (["--plan", "link.pt2", "--force"], "which is read"),
        (["--out", "one.pt2", "--plan", "./one.pt2"], "is named twice"),
        (["--out", "folder.pt2", "--force"], "is a folder or a device"),
    ],
)
def test_compact_never_replaces_what_it_reads(program, options, said):
    os.symlink("net.pt2", "link.pt2")
    Path("folder.pt2").mkdir()
    before = {p.name: p.read_bytes() for p in Path().iterdir() if p.is_file()}
    assert said in refused("compact", "net.pt2", *options)
    assert before == {p.name: p.read_bytes() for p in Path().iterdir() if p.is_file()}


def test_compact_the_weights_of_a_compact_model(folder):
    ok("compact", f"{folder.module}:trained", "--input", "3x4", "--out", "one.safetensors")
    again = ["--weights", "one.safetensors", "--input", "3x4", "--out", "two.safetensors"]
    said = ok("compact", f"{folder.module}:build", *again)
    assert "0 units leave, 47 -> 47 parameters" in said
    assert "2 steps" in ok("inspect", "two.safetensors")


@pytest.mark.parametrize(
    "inputs",
    [["--input", "2x7:int64:50"], ["--input", "ids=2x7:int64:50", "--input", "mask=2x7:ones"], ["--inputs", "inputs"]],
)
def test_compact_other_inputs(folder, inputs):
    inputs = [f"{folder.module}:{i}" if i == "inputs" else i for i in inputs]
    assert "2 of 9 leave" in ok("compact", f"{folder.module}:text", *inputs, "--out", "small.safetensors")


def test_compact_a_program(program):
    said = ok("compact", program, "--out", "small.pt2", "--out", "small.onnx")
    assert "3 of 8 leave" in said
    assert "wrote small.pt2" in said
    full, small = (torch.export.load(p).module() for p in (program, "small.pt2"))
    for rows in (1, 5, 9):  # the batch stays free
        x = torch.randn(rows, 4)
        torch.testing.assert_close(small(x), full(x))
    assert sum(p.numel() for p in torch.export.load("small.pt2").parameters()) == 47
    assert "0 units leave" in ok("compact", "small.pt2")


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("free", [True, False])
def test_compact_a_program_of_token_numbers(folder, stored, free):
    """Its inputs are those stored in the file, or made up from what the graph says: sizes, ranges, rows of a table."""
    model = dgating.cli.models.call(f"{folder.module}:text").eval()
    dims = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=3)} if free else None
    args = (torch.randint(0, 50, (2, 7)), torch.rand(2, 7))
    exported = torch.export.export(model, args, dynamic_shapes=(dims, dims) if free else None)
    if not stored:
        exported.example_inputs = None
    torch.export.save(exported, "text.pt2")
    said = ok("compact", "text.pt2", "--out", "small.pt2")
    assert "2 of 9 leave" in said
    assert ("no longer free: ids.shape[1], mask.shape[1]" in said) == free
    if free and not stored:
        args = tuple(x[:, :4] for x in args)
    torch.testing.assert_close(torch.export.load("small.pt2").module()(*args), model(*args))
    assert "2 of 9 leave" in ok("compact", "text.pt2", "--input", "2x7:int64:50", "--input", "2x7")


def test_compact_keeps_constants_if_asked(folder):
    (folder.path / f"{folder.module}_b.py").write_text(
        "import torch\n"
        "def build():\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 2))\n"
        "    net[0].weight.data[:3] = 0\n"
        "    return net\n"
    )
    model = f"{folder.module}_b:build"
    assert "3 of 8 leave" in ok("compact", model, "--input", "3x4")
    assert "0 of 8 leave" in ok("compact", model, "--input", "3x4", "--no-fold")


BAD = [
    (["nowhere.pt2"], "no file 'nowhere.pt2'"),
    (["model.pth"], "expected a .pt2 file or package.module:function"),
    (["{m}:trained"], "expected the inputs of the model"),
    (["{m}:trained", "--input", "3x4", "--inputs", "{m}:inputs"], "expected one of them"),
    (["{m}:trained", "--input", "3by4"], "--input: expected"),
    (["{m}:trained", "--input", "3x4:floof"], "--input: expected"),
    (["{m}:trained", "--input", "3x5"], "torch.export cannot read"),
    (["{m}:missing", "--input", "3x4"], "expected a function"),
    (["{m}:not_a_function", "--input", "3x4"], "expected a function"),
    (["{m}:fails", "--input", "3x4"], "KeyError"),
    (["{m}:number", "--input", "3x4"], "returned int"),
    (["no_such_module:build", "--input", "3x4"], "cannot import"),
    (["{m}:trained", "--input", "3x4", "--weights", "none.safetensors"], "no file 'none.safetensors'"),
    (["{m}:trained", "--input", "3x4", "--weights", "{m}.py"], "expected a .safetensors file"),
    (["{m}:trained", "--input", "3x4", "--out", "small.bin"], "--out: expected"),
    (["net.pt2", "--out", "small.safetensors"], "becomes a .pt2 or .onnx"),
    (["net.pt2", "--weights", "w.safetensors"], "a .pt2 file holds its own"),
    (["net.pt2", "--input", "3x4", "--input", "3x4"], "expected 1 tensors"),
]


@pytest.mark.parametrize(("args", "said"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_compact_refuses_in_one_line(program, folder, args, said):
    before = set(names(folder.path)) | {"__pycache__"}
    assert said in refused("compact", *(a.format(m=folder.module) for a in args))
    assert set(names(folder.path)) <= before


def test_compact_refuses_weights_of_another_model(folder):
    save_file(nn.Linear(3, 3).state_dict(), "other.safetensors")
    said = refused("compact", f"{folder.module}:build", "--input", "3x4", "--weights", "other.safetensors")
    assert "does not fit Sequential" in said


@pytest.mark.parametrize("command", ["compact", "inspect"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_program_is_one_line(program, command, share):
    content = program.read_bytes()
    program.write_bytes(content[: int(share * len(content))])
    assert "is not a whole .pt2 file" in refused(command, program)


class Evil:
    def __reduce__(self):
        return print, ("unpickled!",)


@pytest.mark.parametrize("place", ["sample_inputs", "legacy weights", "weights", "object", "library"])
def test_what_is_pickled_in_a_program_is_not_opened(program, place, capfd):
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    evil = buffer.getvalue()
    with zipfile.ZipFile(program) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    root = next(iter(parts)).partition("/")[0]
    if place == "sample_inputs":
        parts[f"{root}/data/sample_inputs/model.pt"] = evil
    elif place == "legacy weights":
        parts[f"{root}/data/weights/model.pt"] = evil
    elif place == "weights":
        config = json.loads(parts[f"{root}/data/weights/model_weights_config.json"])
        config["config"]["0.weight"]["use_pickle"] = True
        parts[f"{root}/data/weights/model_weights_config.json"] = json.dumps(config).encode()
        parts[f"{root}/data/weights/weight_0"] = evil
    elif place == "object":
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        config = {"config": {"x": entry}}
        parts[f"{root}/data/constants/model_constants_config.json"] = json.dumps(config).encode()
        parts[f"{root}/data/constants/opaque_obj_0"] = pickle.dumps(Evil())
    else:
        parts[f"{root}/data/aotinductor/model/model.so"] = b"\x7fELF"
    with zipfile.ZipFile(program, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    said = refused("inspect", program)
    assert "which are not opened" in said or "compiled code" in said
    assert "unpickled!" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("suffix", ["pt2", "safetensors", "onnx", "json"])
@pytest.mark.parametrize("content", [b"", b"dear diary", b"PK\x03\x04", bytes(range(256)) * 9, b"{}", b"[1, 2]"])
def test_a_foreign_file_is_one_line(folder, suffix, content):
    path = folder.path / f"foreign.{suffix}"
    path.write_bytes(content)
    assert path.name in refused("inspect", path) or suffix == "json"


def test_a_zip_that_is_no_program_is_one_line(folder):
    with zipfile.ZipFile("other.pt2", "w") as archive:
        archive.writestr("notes/today.txt", "dear diary")
    assert "holds no exported program" in refused("inspect", "other.pt2")


@pytest.mark.parametrize("name", ["missing.pt2", "missing.safetensors", "missing.onnx", "missing.json", "."])
def test_inspect_of_nothing(folder, name):
    assert "error: " in refused("inspect", name)


def test_inspect_of_another_kind(folder):
    assert "expected a name that ends in" in refused("inspect", f"{folder.module}.py")


def test_inspect_a_compact_model(folder):
    ok("compact", f"{folder.module}:trained", "--input", "3x4", "--out", "small.safetensors")
    said = ok("inspect", "small.safetensors")
    assert "written by dg.save_compact" in said
    assert "1 step" in said
    assert re.search(r"3\.weight.* 5 along axis 1 .* 2x5 ", said)


def test_inspect_a_damaged_manifest(folder):
    manifest = {"format": "dgating/compact/2", "steps": [{"target": "module"}], "shared": {}}
    save_file({"x": torch.zeros(1)}, "bad.safetensors", metadata={"dgating": json.dumps(manifest)})
    assert "damaged manifest" in refused("inspect", "bad.safetensors")
    manifest = {"format": "dgating/compact/99"}
    save_file({"x": torch.zeros(1)}, "bad.safetensors", metadata={"dgating": json.dumps(manifest)})
    assert "dgating/compact/99" in refused("inspect", "bad.safetensors")


def test_inspect_counts_zeros(folder):
    w = torch.ones(4, 6)
    w[1] = 0
    w[:, 2:4] = 0
    tensors = {"w": w, "b": torch.zeros(3), "n": torch.tensor(7), "none": torch.zeros(0, 2), "half": w.bfloat16()}
    save_file(tensors, "plain.safetensors")
    said = ok("inspect", "plain.safetensors")
    assert "5 tensors, 52 numbers" in said
    assert re.search(r" w .*float32.* 4x6 .* 50% .* 1 of 4, 2 of 6 ", said)
    assert re.search(r" b .* 3 .* 100% .* 3 of 3 ", said)


def test_inspect_a_program(program):
    said = ok("inspect", program)
    assert "74 parameters" in said
    assert "2 linear" in said
    assert re.search(r"input input: s\d+x4 float32", said)
    assert re.search(r" 0\.weight .*float32.* 8x4 .* 38% .* 3 of 8, - ", said)
    assert "dgating compact net.pt2 says what could be removed" in said


def test_inspect_an_onnx_file(folder):
    ok("compact", f"{folder.module}:trained", "--input", "3x4", "--out", "small.onnx")
    said = ok("inspect", "small.onnx")
    assert "opset ai.onnx" in said
    assert re.search(r"input \w+: \w+x4 float", said)
    assert "2 Gemm" in said


def test_inspect_onnx_without_onnx(folder, monkeypatch):
    (folder.path / "x.onnx").write_bytes(b"x")
    monkeypatch.setattr(dgating.cli.inspect_onnx, "find_spec", lambda name: None)
    assert "pip install 'dgating[onnx]'" in refused("inspect", "x.onnx")


def test_inspect_a_gate_config(folder):
    net = digits_net()
    dg.gate_(net, [dg.features(net[0], name="pixels"), dg.neurons(net[2], name="hidden")], depth=4)
    dg.GateConfig.from_model(net).save("gates.json")
    said = ok("inspect", "gates.json")
    assert re.search(r"pixels.* 64 .* 4 .* 0\.weight", said)
    assert re.search(r"hidden.* 100 .* 4 .* 2\.weight", said)


NAMES = ["[/]", "[bold]w[/bold]", ":smile:", "a\x1b[31mb", "a\x1b]0;title\x07b", "a\rb", "a\nb", "a\u202eb", "a\x9bb"]


def harmless(said):
    return "\x1b" not in said and all(c.isprintable() or c == "\n" for c in said)


@pytest.mark.parametrize("name", NAMES)
def test_names_from_files_are_shown_and_never_interpreted(folder, name):
    """As they are, with a mark in place of what would steer a terminal; in reports and in errors."""
    shown = plain(name)
    save_file({name: torch.zeros(2)}, "names.safetensors")
    said = ok("inspect", "names.safetensors")
    assert shown in said
    assert harmless(said)

    net = digits_net()
    dg.gate_(net, [dg.features(net[0], name="pixels")])
    dg.GateConfig.from_model(net).save("gates.json")
    text = (folder.path / "gates.json").read_text().replace('"pixels"', json.dumps(name))
    (folder.path / "gates.json").write_text(text)
    said = ok("inspect", "gates.json")
    assert shown in said
    assert harmless(said)

    save_file({"x": torch.zeros(1)}, "bad.safetensors", metadata={"dgating": json.dumps({"format": name})})
    assert harmless(refused("inspect", "bad.safetensors"))


@pytest.mark.parametrize("name", NAMES[:3])
def test_names_in_a_plan_are_shown_as_they_are(folder, monkeypatch, name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({name: nn.Linear(4, 8), "last": nn.Linear(8, 2)})
            with torch.no_grad():
                self.layers[name].weight[:3] = 0
                self.layers[name].bias[:3] = 0

        def forward(self, x):
            return self.layers["last"](self.layers[name](x).relu())

    monkeypatch.setitem(sys.modules, "named_models", SimpleNamespace(build=Named))
    assert f"layers.{name}.weight" in ok("compact", "named_models:build", "--input", "3x4")
