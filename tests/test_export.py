"""Exported files: they compute what the model computes at every batch size, hold no private data, or do not exist."""

import dataclasses
import importlib.util
import inspect
import os

import pytest
import torch
from torch import nn

import dgating as dg
from dgating.deploy import _export, _formats
from dgating.deploy._export import export
from dgating.structure._inputs import tensors_of

FORMATS = [".pt2", ".onnx"]
PATHS = [b"/home", b"/usr", b"/tmp", b"site-packages", b"test_export", os.sep.encode() + b"torch" + os.sep.encode()]


@pytest.fixture(autouse=True)
def onnx_there(request):
    """Skip what needs the extra where it is not installed."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("suffix") == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def conv():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    net(torch.randn(16, 3, 8, 8))  # running statistics that matter
    return net


class Several(nn.Module):
    """Positional and keyword tensors, a constant, a ``None``, an input that is not used; outputs of every kind."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x, table, scale=None, *, mask=None, double=False, unused=None, missing=None):
        y = self.layer(x) + table.sum(0)
        y = y * mask if mask is not None else y
        y = y * scale if scale is not None else y
        y = y * 2 if double else y
        return {"y": y, "more": (y.sum(1), None, y.argmax(1)), "again": y}


def several_inputs(n):
    named = {"unused": torch.randn(n, 2), "double": True, "mask": torch.rand(n, 4), "missing": None}
    return (torch.randn(n, 3), torch.randn(7, 4)), named


def transformer(kind):
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24}
    size |= {"num_hidden_layers": 1, "num_attention_heads": 4}
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, num_key_value_heads=2))
    return transformers.BertForSequenceClassification(transformers.BertConfig(**size))


def tokens(n):
    mask = torch.ones(n, 7, dtype=torch.long)
    mask[0, 5:] = 0
    return {"attention_mask": mask, "input_ids": torch.randint(0, 32, (n, 7))}


CASES = {
    "mlp": (mlp, lambda n: (torch.randn(n, 8), None)),
    "conv": (conv, lambda n: ((torch.randn(n, 3, 8, 8),), None)),
    "several": (Several, several_inputs),
    "lstm": (lambda: nn.LSTM(8, 4, batch_first=True), lambda n: (torch.randn(n, 5, 8), None)),
    "llama": (lambda: transformer("llama"), lambda n: (tokens(n), {"output_hidden_states": True})),
    "bert": (lambda: transformer("bert"), lambda n: (tokens(n), None)),
}


def run(path, model, inputs, kwargs=None):
    """Outputs of the file and of the model, by other means than the library's own check."""
    args = (inputs,) if isinstance(inputs, torch.Tensor) else () if isinstance(inputs, dict) else inputs
    named = {**(inputs if isinstance(inputs, dict) else {}), **(kwargs or {})}
    if "use_cache" in inspect.signature(model.forward).parameters:
        named["use_cache"] = False
    expected = [t for _, t in tensors_of(model.eval()(*args, **named))]
    if path.suffix == ".pt2":
        return [t for _, t in tensors_of(torch.export.load(path).module()(*args, **named))], expected
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    by_name = {k: v for k, v in named.items() if isinstance(v, torch.Tensor)}
    entries = [entry.name for entry in session.get_inputs()]
    free = [name for name in entries if name not in by_name]
    by_name |= dict(zip(free, args, strict=True))
    return [torch.from_numpy(a) for a in session.run(None, {k: by_name[k].numpy() for k in entries})], expected


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_the_same_at_any_batch_size(name, suffix, tmp_path, capfd):
    build, inputs = CASES[name]
    model = build()
    example, kwargs = inputs(3)
    done = export(model, example, tmp_path / f"net{suffix}", kwargs=kwargs)
    assert done.path == tmp_path / f"net{suffix}"
    assert done.batch_sizes == (1, 3, 4)
    assert done.max_difference < 1e-5
    assert done.nodes > 0
    assert (done.opset is None) == (suffix == ".pt2")
    assert done.bytes == done.path.stat().st_size
    assert os.listdir(tmp_path) == [done.path.name]  # one file, nothing left over
    assert capfd.readouterr() == ("", "")
    with torch.no_grad():
        for n in (1, 2, 9):
            got, expected = run(done.path, model, *inputs(n))
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_example_of_one_row_leaves_the_batch_free(suffix, tmp_path):
    net = mlp()
    done = export(net, torch.randn(1, 8), tmp_path / f"net{suffix}")
    assert done.batch_sizes == (1, 2)
    with torch.no_grad():
        for n in (1, 5):
            got, expected = run(done.path, net, torch.randn(n, 8))
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_file_holds_no_paths_and_no_example(suffix, tmp_path):
    x = torch.randn(6, 8)
    content = export(mlp(), x, tmp_path / f"net{suffix}").path.read_bytes()
    assert not [p for p in [*PATHS, os.getcwd().encode()] if p in content]
    assert x[0].numpy().tobytes() not in content


@pytest.mark.parametrize("suffix", FORMATS)
def test_fixed_shapes(suffix, tmp_path):
    done = export(FixesBatch(), torch.randn(4, 3), tmp_path / f"net{suffix}", dynamic_batch=False)
    assert done.batch_sizes == (4,)
    with torch.no_grad():
        got, expected = run(done.path, FixesBatch(), torch.randn(4, 3))
    torch.testing.assert_close(got, expected)


def test_nothing_about_the_model_changes(tmp_path):
    net = nn.Sequential(conv(), nn.Dropout())
    net[0].eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    parameters, flags = list(net.parameters()), [m.training for m in net.modules()]
    export(net, torch.randn(2, 3, 8, 8), tmp_path / "net.pt2")
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(a is b and b.grad is None for a, b in zip(parameters, net.parameters(), strict=True))
    assert [m.training for m in net.modules()] == flags


def test_a_keyword_that_only_kwargs_takes(tmp_path):
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x, **kwargs):
            return self.layer(x) * kwargs["scale"] if kwargs["on"] else x

    net, scale = Loose(), torch.rand(4, 3)
    before = dict(net.__dict__)
    done = export(net, torch.randn(4, 3), tmp_path / "net.pt2", kwargs={"scale": scale, "on": True})
    assert net.__dict__ == before
    x, scale = torch.randn(2, 3), torch.rand(2, 3)
    loaded = torch.export.load(done.path)
    torch.testing.assert_close(loaded.module()(x, scale=scale, on=True), net(x, scale=scale, on=True))
    assert sorted(loaded.state_dict) == ["layer.bias", "layer.weight"]


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "NET.PT2"
    export(mlp(), torch.randn(2, 8), str(path))
    first = path.read_bytes()
    export(mlp(), torch.randn(2, 8), path)
    assert path.read_bytes() != first
    assert os.listdir(path.parent) == ["NET.PT2"]


def test_a_collapsed_model(tmp_path):
    net = mlp()
    dg.gate_(net, dg.features(net[0]), depth=3)
    dg.collapse_(net)
    assert export(net, torch.randn(2, 8), tmp_path / "net.pt2").max_difference < 1e-6


def test_non_finite_outputs_agree(tmp_path):
    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    x = torch.tensor([[0.0, -1.0], [1.0, float("inf")]])
    assert export(Log(), x, tmp_path / "log.pt2").max_difference == 0.0


def test_without_verification(tmp_path):
    done = export(Random(), torch.randn(2, 3), tmp_path / "net.pt2", verify=False)
    assert (done.batch_sizes, done.max_difference) == ((), None)
    assert done.path.exists()


def test_without_onnxruntime_nothing_is_compared(tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    hide(monkeypatch, "onnxruntime")
    done = export(mlp(), torch.randn(2, 8), tmp_path / "net.onnx")
    assert (done.batch_sizes, done.max_difference) == ((), None)
    assert done.path.exists()


def hide(monkeypatch, *names):
    real = importlib.util.find_spec
    monkeypatch.setattr(_formats, "find_spec", lambda name: None if name in names else real(name))


@pytest.mark.parametrize("missing", [("onnx",), ("onnxscript",), ("onnx", "onnxscript")])
def test_without_the_extra(missing, tmp_path, monkeypatch):
    hide(monkeypatch, *missing)
    with pytest.raises(ImportError, match=rf"{' and '.join(missing)}: pip install 'dgating\[onnx\]'"):
        export(mlp(), torch.randn(2, 8), tmp_path / "net.onnx")
    assert not os.listdir(tmp_path)


class FixesBatch(nn.Module):
    def forward(self, x):
        return x.reshape(4, -1) * 2


class EvenBatch(nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0] // 2, 2, -1)


class Random(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class NoTensor(nn.Module):
    def forward(self, x):
        return len(x)


def gated():
    net = mlp()
    return dg.gate_(net, dg.features(net[0]))


X = torch.randn(4, 3)
REFUSED = {
    "suffix": (mlp, X, "net.pt", {}, ValueError, r"ends in \.onnx or \.pt2, received 'net\.pt'"),
    "no suffix": (mlp, X, "net", {}, ValueError, r"received 'net'"),
    "a folder": (mlp, X, "folder.pt2", {}, ValueError, r"'folder\.pt2' is a folder"),
    "not a module": (lambda: print, X, "net.pt2", {}, TypeError, r"model: expected a torch\.nn\.Module"),
    "lazy": (lambda: nn.LazyLinear(3), X, "net.pt2", {}, ValueError, r"lazy.*forward pass"),
    "gated": (gated, X, "net.pt2", {}, ValueError, r"without gates.*gated Sequential.*collapse_"),
    "inputs": (mlp, 3, "net.pt2", {}, TypeError, r"example_inputs: expected a tuple"),
    "twice": (mlp, {"x": X}, "net.pt2", {"kwargs": {"x": X}}, ValueError, r"given twice"),
    "tolerance": (mlp, X, "net.pt2", {"tolerance": -1.0}, ValueError, r"tolerance: expected a finite number >= 0"),
    "tolerance kind": (mlp, X, "net.pt2", {"tolerance": "1"}, TypeError, r"tolerance: expected a number"),
    "empty batch": (mlp, torch.zeros(0, 8), "net.pt2", {}, ValueError, r"an empty one.*dynamic_batch=False"),
    "no batch": (nn.ReLU, torch.tensor(1.0), "net.pt2", {}, ValueError, r"received none.*dynamic_batch=False"),
    "wrong shape": (mlp, X, "net.pt2", {}, RuntimeError, r"shapes cannot be multiplied"),
    "fixed batch": (FixesBatch, X, "net.pt2", {}, ValueError, r"dynamic_batch.*dynamic_batch=False"),
    "fixed batch, seen in the graph": (
        FixesBatch,
        X,
        "net.pt2",
        {"verify": False},
        ValueError,
        r"FixesBatch cannot be exported with a free batch axis .*constant \(4\).*dynamic_batch=False",
    ),
    "even batch": (EvenBatch, X, "net.pt2", {}, ValueError, r"runs at batch size 4 but not at 1 .*dynamic_batch=False"),
    "random": (Random, X, "net.pt2", {}, RuntimeError, r"differs.*random in evaluation mode.*Nothing was written"),
    "branches": (Branches, X, "net.pt2", {}, RuntimeError, r"torch\.export cannot read Branches.*data-dependent"),
    "no tensor": (NoTensor, X, "net.pt2", {}, ValueError, r"tensors among the outputs of NoTensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_nothing_written(name, tmp_path, capfd):
    build, inputs, path, options, error, message = REFUSED[name]
    (tmp_path / "folder.pt2").mkdir()
    model = build()
    flags = [m.training for m in model.modules()] if isinstance(model, nn.Module) else []
    with pytest.raises(error, match=message) as caught:
        export(model, inputs, tmp_path / "new" / path if path != "folder.pt2" else tmp_path / path, **options)
    assert caught.type is error
    assert os.listdir(tmp_path) == ["folder.pt2"]
    assert not flags or [m.training for m in model.modules()] == flags
    assert capfd.readouterr() == ("", "")


def test_a_wrong_file_is_not_written(tmp_path, monkeypatch):
    """The check is real: a converter that goes wrong is caught, and the old file stays."""
    path = tmp_path / "net.pt2"
    export(mlp(), torch.randn(2, 8), path)
    before = path.read_bytes()

    def changed(answer):
        def convert(program, right=_export.to_pt2):
            file = right(program)
            return dataclasses.replace(file, run=lambda a, k: answer(file.run(a, k)))

        monkeypatch.setattr(_export, "to_pt2", convert)

    real = _export.to_pt2
    for answer, message in [
        (
            lambda out: [out[0] + 1e-2],
            r"output '' of net\.pt2 at batch size 2 differs.*1\.0e-02, expected at most 1\.0e-04",
        ),
        (lambda out: [out[0][:1]], r"is \(1, 2\) of torch\.float32, expected \(2, 2\)"),
        (lambda out: [out[0].double()], r"torch\.float64, expected \(2, 2\) of torch\.float32"),
        (lambda out: out * 2, r"has 2 outputs, expected \[''\]"),
        (lambda out: [out[0] * float("nan")], r"differs from the model's by inf"),
        (lambda out: out[3], r"does not run \(IndexError"),
    ]:
        monkeypatch.setattr(_export, "to_pt2", real)
        changed(answer)
        with pytest.raises(RuntimeError, match=message):
            export(mlp(), torch.randn(2, 8), path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["net.pt2"]


def test_integer_outputs_must_be_equal():
    a = torch.tensor([100_000, 2])
    assert _export._difference(a, a.clone()) == 0.0
    assert _export._difference(a, a + 1) == float("inf")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export(mlp(), torch.randn(2, 8), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["net.pt2"]


@pytest.mark.parametrize("suffix", [".onnx"])
def test_weights_beyond_one_file(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(_formats, "ONNX_LIMIT", 100)
    with pytest.raises(ValueError, match=r"at most 2 GiB.*\.pt2"):
        export(mlp(), torch.randn(2, 8), tmp_path / f"net{suffix}")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", [".onnx"])
def test_an_operator_that_onnx_lacks(suffix, tmp_path, capfd):
    class Solve(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvalsh(x @ x.mT)

    with pytest.raises(RuntimeError, match=r"torch\.onnx cannot convert.*\.pt2 file may do"):
        export(Solve(), torch.randn(2, 3, 3), tmp_path / f"net{suffix}")
    assert not os.listdir(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert export(Solve(), torch.randn(2, 3, 3), tmp_path / "net.pt2").max_difference < 1e-4
