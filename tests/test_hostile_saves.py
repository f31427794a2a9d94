"""Files are not trusted: a damaged, edited or forged save is refused in one line, and costs no memory."""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import dgating as dg
from benchmarks import hostile_saves as hostile
from dgating.files._reading import MOST_DEPTH, read_json, read_safetensors
from dgating.files._sealing import seal_safetensors

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("name", "files"), [(name, round(200 * f.share)) for name, f in hostile.FORMATS.items()])
def test_changed_files_are_refused_or_mean_the_same(name, files):
    found = hostile.attack(name, files, seed=7)
    assert found["first_faults"] == []
    assert found[hostile.REFUSED] + found[hostile.SAME] + found[hostile.OTHER] == files
    if not hostile.FORMATS[name].plain and name != "folder of a killed run":
        assert found[hostile.REFUSED] > files / 2


# --- JSON ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "levels"),
        ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "levels"),
        ('{"a":' * 101 + "1" + "}" * 101, "levels"),
        ('["\\"", ' + "[" * 100, "levels"),
        ("1" * 100_000, "64 bits"),
        (str(1 << 63), "64 bits"),
        ("NaN", "finite"),
        ("[-Infinity]", "finite"),
        ("1e999", "finite"),
        ('{"a": 1, "a": 1}', "'a' is there twice"),
        (b"\xff\xfe", "UTF-8"),
        ('"\\ud800"', "UTF-8"),
        ("", "Expecting value"),
        ("{} x", "Extra data"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_json(text)


def test_json_that_is_read():
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert read_json(deep) == json.loads(deep)
    quoted = ["[" * 1000, '\\"[', "\\", "\\\\", '{"', "😀", "λ"]
    for ascii_only in (True, False):
        assert read_json(json.dumps(quoted, ensure_ascii=ascii_only)) == quoted
    assert read_json(str(-(1 << 63))) == -(1 << 63)
    assert read_json("[NaN]", nan=True) != read_json("[1.5]", nan=True)


# --- the header of safetensors ---


def stored(path: Path, body: bytes, **entries: tuple) -> Path:
    header = {name: dict(zip(("dtype", "shape", "data_offsets"), e, strict=True)) for name, e in entries.items()}
    path.write_bytes(hostile.with_header(header, body))
    return path


@pytest.mark.parametrize(
    ("body", "entries"),
    [
        (8, {"a": ("F32", [2], [0, 8])}),
        (12, {"b": ("F32", [2], [4, 12]), "a": ("F32", [], [0, 4])}),
        (0, {"a": ("F32", [0, 5], [0, 0])}),
        (0, {}),
    ],
)
def test_headers_that_are_read(body, entries, tmp_path):
    path = stored(tmp_path / "x.safetensors", bytes(body), **entries)
    found = read_safetensors(path).tensors()
    assert {name: list(t.shape) for name, t in found.items()} == {name: e[1] for name, e in entries.items()}


@pytest.mark.parametrize(
    ("body", "entries"),
    [
        (9, {"a": ("F32", [2], [0, 8])}),  # a byte that belongs to none
        (7, {"a": ("F32", [2], [0, 8])}),
        (12, {"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])}),  # overlap
        (16, {"a": ("F32", [2], [0, 8]), "b": ("F32", [1], [12, 16])}),  # a gap
        (8, {"a": ("F32", [3], [0, 8])}),
        (8, {"a": ("F32", [10**9, 10**9], [0, 8])}),
        (0, {"a": ("F32", [0, 1 << 62], [0, 0])}),
        (8, {"a": ("F32", [-2], [0, 8])}),
        (8, {"a": ("F32", [True, 2], [0, 8])}),
        (8, {"a": ("F32", [2.0], [0, 8])}),
        (8, {"a": ("PICKLE", [2], [0, 8])}),
        (8, {"a": (None, [2], [0, 8])}),
        (8, {"a": ("F32", [2], [8, 0])}),
        (8, {"a": ("F32", [2], [0])}),
        (4, {"a": ("F32", [1] * 100, [0, 4])}),
    ],
)
def test_headers_that_are_refused(body, entries, tmp_path):
    path = stored(tmp_path / "x.safetensors", bytes(body), **entries)
    with pytest.raises(ValueError, match=r"tensors do not fill|other bytes than|no dtype, shape and offsets"):
        read_safetensors(path)


def test_a_header_that_is_longer_than_the_file(tmp_path):
    for length in (1 << 62, 10**9, 3):
        path = tmp_path / "x.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(ValueError, match="bytes"):
            read_safetensors(path)


def test_the_checksum_is_of_every_byte(tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.arange(4)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    whole = seal_safetensors(path.read_bytes(), '{"n": 1}')
    path.write_bytes(whole)
    assert read_safetensors(path).sealed
    assert all(torch.equal(t, tensors[n]) for n, t in load_file(path).items())  # a file like any other
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with contextlib.suppress(ValueError):
            assert not read_safetensors(path).sealed  # no field for a checksum any more: every format wants one


# --- compact models ---


@pytest.fixture
def compact(tmp_path) -> Path:
    hostile.FORMATS["compact model"].save(tmp_path)
    return tmp_path / "small.safetensors"


def edit(path: Path, change, forged: bool) -> None:
    """``change(header, manifest, body)`` in place; a forged file has the checksum that belongs to it."""
    header, body = hostile.split_header(path.read_bytes())
    manifest, data = json.loads(header["__metadata__"]["dgating"]), bytearray(body)
    change(header, manifest, data)
    header["__metadata__"]["dgating"] = json.dumps(manifest)
    made = hostile.with_header(header, bytes(data))
    path.write_bytes(hostile.resealed(made, 8 + int.from_bytes(made[:8], "little")) if forged else made)


def exchanged(header, manifest, body):
    """Two tensors of the same shape."""
    names = [n for n, e in header.items() if n.startswith("2.running")]
    header[names[0]], header[names[1]] = header[names[1]], header[names[0]]


def flipped(header, manifest, body):
    body[5] ^= 1


def other_index(header, manifest, body):
    """Another unit is kept: the sizes are the same."""
    manifest["steps"][0]["slices"]["0.weight"][0]["keep"][0] -= 1


def older(header, manifest, body):
    """Passed off as a file of the format without a checksum."""
    header["__metadata__"].pop("sha256")


@pytest.mark.parametrize("change", [exchanged, flipped, other_index, older])
def test_what_is_bound_by_the_checksum(change, compact):
    edit(compact, change, forged=False)
    with pytest.raises(ValueError, match="checksum"):
        dg.load_compact(hostile.mlp().eval(), compact)


def set_in(*way):
    """Put the last of these at the place that the others name in the first step."""

    def change(header, manifest, body):
        place = manifest["steps"][0]
        *keys, last, value = way
        for key in keys:
            place = place[key]
        place[last] = value

    return change


def not_finite(header, manifest, body):
    start = header["0.bias"]["data_offsets"][0]
    body[start : start + 4] = b"\x00\x00\xc0\x7f"


def other_dtype(header, manifest, body):
    name = next(n for n, e in header.items() if n != "__metadata__" and e["dtype"] == "F32")
    header[name]["dtype"] = "I32"


HUGE = {
    "items": [{"items": [{"tensor": [10**5, 10**4], "dtype": "float32"}], "tuple": True}, {"dict": {}}],
    "tuple": True,
}
FORGED = [
    ("a bias of 10^9 numbers", set_in("biases", {"0.bias": 10**9}), "a bias '0.bias' of 1000000000"),
    ("a bias of what has none", set_in("biases", {"1.bias": 3}), "'1.bias' is no bias of ReLU"),
    ("a bias that is an attribute", set_in("biases", {"0.forward": 3}), "'0.forward' is no bias"),
    ("inputs nobody needs", set_in("inputs", {"": HUGE}), "inputs of"),
    ("inputs of 4 GB", set_in("inputs", {"1": HUGE}), "inputs of 4,000,000,000 bytes"),
    ("inputs of another dtype", set_in("inputs", {"1": {"tensor": [1], "dtype": "load"}}), "dtype 'load'"),
    ("a size that grows", set_in("sizes", [["3", "view", "size", 8, 10**9]]), "goes from 8 to 1000000000"),
    ("an attribute that grows", set_in("attributes", {"3": [["", "in_features", 8, 9]]}), "an attribute"),
    ("any attribute", set_in("attributes", {"3": [["", "training", 1, 0]]}), "an attribute"),
    ("an attribute nobody changes", set_in("attributes", {"5": [["", "out_features", 3, 2]]}), "KeyError|no size"),
    ("indices that fall", set_in("slices", "0.weight", 0, "keep", [7, 6, 5, 4, 3, 2]), "with the indices"),
    ("an index twice", set_in("slices", "0.weight", 0, "keep", [2, 2, 3, 4, 5, 6]), "with the indices"),
    ("indices of truth values", set_in("slices", "0.weight", 0, "keep", [False, True]), "with the indices"),
    ("nan in a weight", not_finite, "holds nan or infinite numbers"),
    ("another dtype", other_dtype, r"is torch.int32, expected torch.float32: take model.to"),
]


@pytest.mark.parametrize(("change", "message"), [f[1:] for f in FORGED], ids=[f[0] for f in FORGED])
def test_forged_compact_models(change, message, compact):
    edit(compact, change, forged=True)
    with pytest.raises(ValueError, match=message) as caught:
        dg.load_compact(hostile.mlp().eval(), compact)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_dtype_is_refused(compact):
    with pytest.raises(ValueError, match=r"expected torch.float64: take model.to\(torch.float32\)"):
        dg.load_compact(hostile.mlp().double(), compact)


class Masked(nn.Sequential):
    """A model with a mask of infinities and a new bias: both are as they were after loading."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3, bias=False))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))

    def forward(self, x):
        return super().forward(x) + self.mask


def masked(tmp_path):
    net = Masked()
    with torch.no_grad():
        net[0].weight[:2], net[0].bias[:2] = 0, 1.0
    small = dg.compact(net, (torch.randn(3, 4),))
    dg.save_compact(small, tmp_path / "small.safetensors")
    return small


def test_masks_of_infinities_are_declared(tmp_path):
    small = masked(tmp_path)
    again = dg.load_compact(Masked(), tmp_path / "small.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True))
    edit(tmp_path / "small.safetensors", lambda h, m, b: m.update(not_finite=[]), forged=True)
    with pytest.raises(ValueError, match="'mask' holds nan or infinite numbers"):
        dg.load_compact(Masked(), tmp_path / "small.safetensors")


def test_a_new_bias_has_the_dtype_of_its_layer(tmp_path):
    net = Masked().to(torch.float64)
    with torch.no_grad():
        net[0].weight[:2], net[0].bias[:2] = 0, 1.0
    dg.save_compact(dg.compact(net, (torch.randn(3, 4).double(),)), tmp_path / "small.safetensors")
    assert dg.load_compact(Masked().double(), tmp_path / "small.safetensors")[2].bias.dtype == torch.float64


def as_format_1(path: Path) -> None:
    """The file as an earlier version wrote it."""

    def change(header, manifest, body):
        header["__metadata__"].pop("sha256")
        manifest["format"] = "dgating/compact/1"
        manifest.pop("not_finite")

    edit(path, change, forged=False)


def test_files_of_format_1_are_read_with_a_warning(tmp_path):
    small = masked(tmp_path)
    as_format_1(tmp_path / "small.safetensors")
    with pytest.warns(UserWarning, match="has no checksum.*save it again"):
        again = dg.load_compact(Masked(), tmp_path / "small.safetensors")
    assert torch.equal(again[2].weight, small[2].weight)
    edit(tmp_path / "small.safetensors", not_finite, forged=False)
    with (
        pytest.raises(ValueError, match="holds nan or infinite numbers"),
        pytest.warns(UserWarning, match="has no checksum"),
    ):
        dg.load_compact(Masked(), tmp_path / "small.safetensors")


# --- paths, cross-validation, reports ---


def test_every_number_of_a_report_counts(tmp_path):
    """Medians, words and their order, columns, target, classes: each change by hand is refused."""
    from dgating.tables._predictor import Predictor

    hostile.save_report(tmp_path)
    file = tmp_path / "preprocessing.json"
    words = json.loads(file.read_text())
    for way in hostile.leaves(words):
        changed = json.loads(file.read_text())
        place = changed
        for key in way[:-1]:
            place = place[key]
        old = place[way[-1]]
        place[way[-1]] = old[::-1] if isinstance(old, str | list) else not old if isinstance(old, bool) else 1
        if changed == words:
            continue
        content = file.read_bytes()
        file.write_text(json.dumps(changed, indent=1) + "\n")
        with pytest.raises(ValueError, match="Run dgating select again") as caught:
            Predictor.load(tmp_path)
        assert "\n" not in str(caught.value)
        file.write_bytes(content)
    Predictor.load(tmp_path)


def test_reports_of_earlier_versions_are_refused(tmp_path):
    from dgating.tables._predictor import Predictor

    hostile.save_report(tmp_path)
    file = tmp_path / "preprocessing.json"
    words = json.loads(file.read_text())
    words.pop("sha256")
    file.write_text(json.dumps({**words, "format": "dgating/table-model/1"}))
    with pytest.raises(ValueError, match=r"not the format 'dgating/table-model/2' of this version.*Run dgating select"):
        Predictor.load(tmp_path)


def test_scores_belong_to_their_path(tmp_path):
    """Scores of one run beside the path of another."""
    rows = hostile.rows()
    for seed in (0, 1):
        found = dg.cross_validate_path(nn.Linear(5, 1), rows, [0.3, 0.6], folds=2, dense_steps=5, steps=300, seed=seed)
        found.save(tmp_path / str(seed))
    (tmp_path / "0" / "scores.json").write_bytes((tmp_path / "1" / "scores.json").read_bytes())
    with pytest.raises(ValueError, match=r"'path.safetensors' is not the file that was written with 'scores.json'"):
        dg.CrossValidatedPath.load(tmp_path / "0")


def test_paths_of_format_1_are_read_with_a_warning(tmp_path):
    hostile.save_path(tmp_path)
    before = hostile.points(dg.RegularizationPath.load(tmp_path / "path.safetensors"))

    def change(header, manifest, body):
        header["__metadata__"].pop("sha256")
        manifest["format"] = "dgating/path/1"
        manifest.pop("folder")

    edit(tmp_path / "path.safetensors", change, forged=False)
    with pytest.warns(UserWarning, match="has no checksum"):
        assert hostile.points(dg.RegularizationPath.load(tmp_path / "path.safetensors")) == before


def test_a_result_of_another_run_is_not_taken(tmp_path):
    """A file with a right checksum that was copied from a folder of other settings, or is that of another fold."""
    from dgating.tasks._run import Task, run_tasks

    def tasks():
        return [Task(f"task_{i}", hostile.work, (i,)) for i in range(2)]

    mine = run_tasks(tasks(), folder=tmp_path / "a", settings={"lam": 1.0})
    other = [Task(f"task_{i}", hostile.work, (i + 10,)) for i in range(2)]
    run_tasks(other, folder=tmp_path / "b", settings={"lam": 2.0})
    a, b = tmp_path / "a", tmp_path / "b"
    for content in ((b / "task_0.safetensors").read_bytes(), (a / "task_1.safetensors").read_bytes()):
        (a / "task_0.safetensors").write_bytes(content)
        again = run_tasks(tasks(), folder=a, settings={"lam": 1.0})
        assert (again[0]["scores"] == mine[0]["scores"]).all()


# --- memory ---

GREEDY = """
import json, resource, sys, torch, dgating as dg
kind, text = sys.argv[1:]
net = torch.nn.Linear(4, 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    dg.GateConfig.from_json(text).apply_(net)
except ValueError as error:
    print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, str(error)]))
"""


def gates(**changes) -> str:
    net = nn.Linear(4, 2)
    data = json.loads(dg.GateConfig.from_model(dg.gate_(net, dg.features(net))).to_json())
    group, part = data["groups"][0], data["groups"][0]["parts"][0]
    for key, value in changes.items():
        place = group if key == "depth" else part if key == "n_groups" else part["members"][0]
        place[key] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        gates(depth=10**8),
        gates(shape=[2, 10**9], labelled=[1, 10**9], n_groups=10**9),
        gates(shape=[2, 10**9], labelled=[1, 10**9], kind="runs", values=[0], lengths=[10**9], n_groups=1),
        gates(kind="runs", values=[0, 1], lengths=[10**9, 10**9], n_groups=2),
        gates(n_groups=10**9, kind="runs", values=[0, 1], lengths=[2, 2]),
    ],
    ids=["depth", "groups", "runs", "lengths", "number"],
)
def test_gates_of_a_small_file_take_little_memory(text):
    done = subprocess.run(
        [sys.executable, "-c", GREEDY, "gates", text], capture_output=True, text=True, check=True, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30)),
    )  # fmt: skip
    grown, message = json.loads(done.stdout)
    assert grown < 50 * 1024, message
    assert message.startswith("GateConfig: ")


def test_large_files_are_refused_unread(tmp_path):
    path = tmp_path / "gates.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # a file with a hole: it takes no room
    with pytest.raises(ValueError, match="expected at most 33,554,432 bytes"):
        dg.GateConfig.load(path)


def test_results_that_are_stored_hold_no_fault():
    """What the benchmark found in all its files."""
    found = json.loads((ROOT / "benchmarks" / "results" / "hostile_saves.json").read_text())["formats"]
    assert sum(f["files"] for f in found.values()) == hostile.FILES
    assert all(f[hostile.FAULT] == 0 and f["peak_mb"] < 200 for f in found.values())
