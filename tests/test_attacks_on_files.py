"""Attacks on what a file makes a command do: kernels, memory, the stack, the log, and other files."""

import importlib
import io
import json
import logging
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import dgating as dg
from dgating.cli import pt2_grammar as grammar
from dgating.cli.app import app
from dgating.cli.pt2_guard import Guard
from dgating.cli.pt2_sizes import expression
from dgating.files._reading import read_json

aten = torch.ops.aten


def invoke(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def refused(result):
    """A refusal is one line and exit code 2."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def saved(model, args, path, **options):
    program = torch.export.export(model.eval(), args, strict=False, **options)
    torch.export.save(program, path)
    return path


def rewrite(path, changes):
    """The archive with other members: by the end of their names, bytes or a function of the old ones."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for end, new in changes.items():
        (name,) = [n for n in parts if n.endswith(end)]
        parts[name] = new(parts[name]) if callable(new) else new
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


# --- operators and kernels ---

UNSAFE = """
    _sparse_coo_tensor_unsafe.default _sparse_csr_tensor_unsafe.default
    _sparse_compressed_tensor_unsafe.default _convert_indices_from_csr_to_coo.default
    _convert_indices_from_coo_to_csr.default segment_reduce.default _segment_reduce_backward.default
    _nested_view_from_buffer.default sparse_coo_tensor.indices from_file.default resize_.default
    resize.default resize_as_.default set_.source_Tensor set.source_Tensor add.out relu.out
    max_pool2d_with_indices_backward.default embedding_dense_backward.default convolution_backward.default
    mkldnn_rnn_layer.default quantize_per_tensor.default to_mkldnn.default _to_sparse.default lift.default
    fractional_max_pool2d.default max_unpool2d.default linalg_lu_solve.default _fused_adam.default
    embedding_renorm_.default _reshape_alias.default _unsafe_masked_index.default ormqr.default
    _foreach_zero_.default _pack_padded_sequence.default _thnn_fused_lstm_cell.default
    _transformer_encoder_layer_fwd.default
"""


@pytest.mark.parametrize("name", UNSAFE.split())
def test_an_operator_that_is_not_on_the_list_is_refused(name):
    with pytest.raises(ValueError, match="expected an operator of ATen"):
        grammar.operator(f"torch.ops.aten.{name}")


IN_PLACE = "relu_.default add_.Tensor index_put_.default masked_fill_.Scalar copy_.default fill_.Scalar squeeze_.dim"
PARTS = (
    "native_layer_norm.default _native_batch_norm_legit_no_training.default native_group_norm.default mm.default "
    "_unsafe_view.default _unsafe_index.Tensor floor_divide.default empty_permuted.default as_strided.default "
    "einsum.default gru.input stft.default fft_rfft.default _fft_r2c.default special_erfcx.default logaddexp.default "
    "grid_sampler_2d.default _weight_norm.default linalg_solve.default multinomial.default __lshift__.Scalar"
)


@pytest.mark.parametrize("name", f"{IN_PLACE} {PARTS}".split())
def test_an_operator_of_models_is_allowed(name):
    assert grammar.operator(f"torch.ops.aten.{name}") == f"torch.ops.aten.{name}"


def test_few_of_the_operators_of_aten_are_allowed():
    def passes(schema):
        try:
            return grammar.operator(f"torch.ops.{schema.name.replace('::', '.')}.{schema.overload_name or 'default'}")
        except ValueError:
            return None

    names = [passes(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("aten::")]
    found = [name for name in names if name]
    assert 800 < len(found) < 1_100
    words = ("sparse", "nested", "quant", "mkldnn", "_unsafe", "backward", "from_", "resize", "_foreach", "segment")
    odd = {n.split(".")[3] for n in found if any(w in n for w in words)}
    assert odd == {"_unsafe_view", "_unsafe_index", "_unsafe_index_put", "quantile", "nanquantile"}


def out_of_bounds(s, h):
    return h + aten._sparse_coo_tensor_unsafe(s.i, h.new_ones(1), [4, 3], is_coalesced=False).to_dense()


def few_means(s, h):
    few = s.one[:1]
    return aten._native_batch_norm_legit_no_training(h.view(1, -1, 1), few, few, few, few, 0.1, 1e-5)[0]


def far_scale(s, h):
    return aten.upsample_nearest2d(h.view(1, 1, 4, 3), [100, 100], 1e-12, 1e-12)


class Kernel(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.layer, self.use = nn.Linear(6, 3), use
        self.register_buffer("i", torch.tensor([[1], [0]]))
        self.register_buffer("one", torch.ones(12))

    def forward(self, x):
        return self.use(self, self.layer(x))


@pytest.mark.parametrize("use", [out_of_bounds, few_means, far_scale])
def test_a_kernel_that_trusts_its_caller_is_not_run_for_a_file(tmp_path, use):
    path = saved(Kernel(use), (torch.randn(4, 6),), tmp_path / "net.pt2")
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read(next(n for n in archive.namelist() if n.endswith("weights_config.json"))))
    far = torch.tensor([[2**40], [2**41]]).numpy().tobytes()
    rewrite(path, {config["config"]["i"]["path_name"]: far})
    assert "operator" in refused(invoke("compact", path)) or use is not out_of_bounds
    refused(invoke("compact", path))


def lstm(weights, h=6):
    state = [torch.zeros(1, 2, h), torch.zeros(1, 2, h)]
    return aten.lstm.input(torch.randn(3, 2, h), state, weights, True, 1, 0.0, False, False, False)


X, ONE, Q = torch.randn(2, 6, 4), torch.ones(1), torch.randn(2, 4, 3, 8)
SIX = torch.ones(6)
TRUSTING = {
    "batch norm": lambda: aten._native_batch_norm_legit_no_training(X, SIX, SIX, ONE, ONE, 0.1, 1e-5),
    "batch norm, weight": lambda: aten.native_batch_norm(X, ONE, SIX, SIX, SIX, False, 0.1, 1e-5),
    "group norm": lambda: aten.native_group_norm(X, None, None, 2, 6, 4 + 2**61, 2, 1e-5),
    "lstm": lambda: lstm([torch.ones(4, 1), torch.ones(4, 1), torch.ones(4), torch.ones(4)]),
    "lstm, states": lambda: lstm([torch.ones(24, 6), torch.ones(24, 1), torch.ones(24), torch.ones(24)]),
    "weight norm": lambda: aten._weight_norm(torch.randn(6, 2), ONE, 0),
    "attention": lambda: aten._scaled_dot_product_flash_attention_for_cpu(Q, Q[:1], Q[:1]),
    "attention, values": lambda: aten._scaled_dot_product_flash_attention_for_cpu(Q, Q, Q[:, :, :1]),
    "attention, heads": lambda: aten._scaled_dot_product_flash_attention_for_cpu(Q, Q[:, :3], Q[:, :3]),
    "attention, mask": lambda: aten._scaled_dot_product_flash_attention_for_cpu(Q, Q, Q, attn_mask=torch.ones(3, 2)),
    "bag": lambda: aten._embedding_bag(X[0], torch.tensor([0, 1]), torch.tensor([0, 2**34, 1])),
    "nearest": lambda: aten.upsample_nearest1d(X, [9], 1e-12),
    "antialias": lambda: aten._upsample_bilinear2d_aa(Q, [2, 2], False, 1e6, 1e-6),
}
FITTING = {
    "batch norm": lambda: nn.functional.batch_norm(X, SIX, SIX),
    "instance norm": lambda: nn.InstanceNorm1d(6)(X),
    "group norm": lambda: nn.GroupNorm(3, 6)(X),
    "lstm": lambda: nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True)(X)[0],
    "lstm, no biases": lambda: nn.LSTM(4, 5, bias=False)(X)[0],
    "gru": lambda: nn.GRU(4, 5)(X)[0],
    "weight norm": lambda: aten._weight_norm(torch.ones(6, 2), torch.ones(6, 1), 0),
    "attention": lambda: nn.functional.scaled_dot_product_attention(Q, Q, Q, is_causal=True),
    "attention, mask": lambda: nn.functional.scaled_dot_product_attention(Q, Q, Q, attn_mask=torch.zeros(2, 1, 3, 3)),
    "bag": lambda: nn.functional.embedding_bag(torch.tensor([0, 1]), X[0], torch.tensor([0, 1])),
    "nearest": lambda: nn.functional.interpolate(Q, scale_factor=1.7),
    "antialias": lambda: nn.functional.interpolate(Q, size=(5, 3), mode="bicubic", antialias=True),
    "half": lambda: nn.functional.interpolate(Q, scale_factor=0.5, recompute_scale_factor=True, mode="bilinear"),
}


@pytest.mark.parametrize("case", TRUSTING)
def test_the_guard_stops_a_kernel_before_it_runs(case):
    with pytest.raises(ValueError, match="do not fit each other"), torch.no_grad(), Guard():
        TRUSTING[case]()


@pytest.mark.parametrize("case", FITTING)
def test_the_guard_lets_layers_run(case):
    torch.manual_seed(0)
    expected = FITTING[case]()
    torch.manual_seed(0)
    with torch.no_grad(), Guard():
        torch.testing.assert_close(FITTING[case](), expected.detach(), rtol=0, atol=0)


class Choice(nn.Module):
    """A layer, and one of two regions."""

    def __init__(self, regions):
        super().__init__()
        self.a, self.b, self.regions = nn.Linear(6, 12), nn.Linear(12, 3), regions
        with torch.no_grad():
            self.a.weight[8:] = self.a.bias[8:] = 0

    def forward(self, x):
        return self.b(torch.cond(x.sum() > 0, *self.regions, (torch.relu(self.a(x)),)))


def test_the_guard_sees_into_regions():
    def bad(h):
        return aten.upsample_nearest1d(h[None], [12], 1e-12)[0]

    net, x = Choice((bad, lambda h: h + 1)), torch.ones(4, 6)
    with torch.no_grad(), Guard():
        net(-x)
        with pytest.raises(ValueError, match="do not fit each other"):
            net(x)


@pytest.mark.parametrize("target", ["module", "graph"])
def test_a_model_with_a_condition_is_compacted(target):
    """It stays as it is, since there is no rule for the condition; it was a NotImplementedError of torch."""
    net, x = Choice((lambda h: h * 2, lambda h: h + 1)).eval(), torch.randn(4, 6, generator=torch.Generator())
    small = dg.compact(net, (x,), target=target)
    with torch.no_grad():
        for given in (x, -x, x + 3, x - 3):
            torch.testing.assert_close(small(given), net(given), rtol=1e-6, atol=1e-6)


# --- memory, stack and log ---


@pytest.fixture
def small_pt2(tmp_path):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return saved(net, (torch.randn(4, 6),), tmp_path / "net.pt2", dynamic_shapes=({0: torch.export.Dim("b", max=64)},))


def with_pickle(path, instructions):
    """The program with other example inputs."""

    def changed(content):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
            for name in old.namelist():
                new.writestr(name, instructions if name.endswith("data.pkl") else old.read(name))
        return out.getvalue()

    return rewrite(path, {"sample_inputs/model.pt": changed})


SHARED = b")" + b"q\x00h\x00\x86" * 40  # a tuple of two equal tuples, forty levels: 2^40 hashes
DEEP = {
    "key": b"\x80\x02})" + b"\x85" * 250_000 + b"Ns}\x86.",
    "key of keywords": b"\x80\x02)})" + b"\x85" * 250_000 + b"Ns\x86.",
    "shared key": b"\x80\x02)}" + SHARED + b"Ns\x86.",
    "value": b"\x80\x02)" + b"\x85" * 250_000 + b"}\x86.",
    "number with a point": b"\x80\x02)}G" + bytes(8) + b"Ns\x86.",
}


@pytest.mark.parametrize("case", DEEP)
def test_deep_example_inputs_do_not_reach_the_end_of_the_stack(small_pt2, case):
    """In a process of its own: Python ends at a deep hash, without an exception."""
    code = "import sys; from dgating.cli.app import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", code, "inspect", str(with_pickle(small_pt2, DEEP[case]))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1


LARGE = [
    "((((((2**63)**64)**64)**64)**64)**64)",
    "Pow(Pow(Pow(Integer(3), Integer(64)), Integer(64)), Integer(64))",
    "PowByNatural(PowByNatural(Integer(3), Integer(64)), Integer(64))",
    "LShift(" * 12 + "Integer(3)" + ", Integer(64))" * 12,
    "Pow(Integer(18446744073709551615), Integer(-64))",
    "Pow(Add(s1, s2, s3, s4, s5), Integer(64))",
    " * ".join(f"(s{i} + 1)" for i in range(300)),
    "Mod(Pow(Add(s1, s2, s3, s4), Integer(40)), Add(s1, Integer(1)))",
    "FloorDiv(Pow(Add(s1, s2, s3, s4), Integer(20)), Add(s1, s2, Integer(1)))",
    " * ".join(["18446744073709551615"] * 20),
    "Mul(" + ", ".join(["Integer(18446744073709551615)"] * 20) + ")",
    "Float('1e999', precision=53)",
]


@pytest.mark.parametrize("text", LARGE, ids=range(len(LARGE)))
def test_a_size_that_would_grow_is_refused_before_it_is_evaluated(text):
    with pytest.raises(ValueError, match="expected a size"):
        expression(text)


def test_sizes_of_deep_networks_do_not_grow_too_far():
    size = "Symbol('s0', positive=True, integer=True)"
    for _ in range(30):  # convolutions with a stride
        size = f"Add(FloorDiv(Add({size}, Integer(-1)), Integer(2)), Integer(1))"
    assert expression(f"Mul({size}, {size})")
    assert expression("Mul(Integer(4096), s0, Add(s1, Integer(-1)), Pow(s2, Integer(3)))")


@pytest.mark.parametrize("tail", ["\N{GRINNING FACE}", "\\ud83d\\ude00", "\N{CJK UNIFIED IDEOGRAPH-4E00}", "\\u4e00"])
def test_one_wide_character_widens_a_whole_text(tail):
    """Python holds four bytes for every character then, or two."""
    wide = 4 if tail in ("\N{GRINNING FACE}", "\\ud83d\\ude00") else 2
    for length, fits in ((2**25 // wide - 100, True), (2**25 // wide + 100, False)):
        content = b'{"a":"' + b"x" * length + tail.encode() + b'"}'
        if fits:
            assert len(read_json(content)["a"]) == length + 1
        else:
            with pytest.raises(ValueError, match="bytes of JSON"):
                read_json(content)


@pytest.mark.parametrize("inner", [False, True])
def test_a_long_list_of_members_is_not_read(small_pt2, inner):
    n, entry = 160_000, b"PK\1\2" + bytes(24) + b"\x0a\0" + bytes(16) + b"r/00000000"
    head = n * entry
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n % 2**16, n % 2**16, len(head), 0, 0)
    if inner:
        rewrite(small_pt2, {"sample_inputs/model.pt": head + end})
    else:
        small_pt2.write_bytes(head + end)
    tracemalloc.start()
    try:
        text = refused(invoke("inspect", small_pt2))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "list its members" in text
    assert most < 40e6


@pytest.mark.parametrize("text", ["~s77", "s77 < 3", "int_oo", "Max(s0, s1, s2)"])
def test_torch_writes_no_log_about_a_file(small_pt2, monkeypatch, text):
    def changed(content):
        return re.sub(rb'"expr_str": "(?:[^"\\]|\\.)*"', b'"expr_str": ' + json.dumps(text).encode(), content)

    lines = []
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda self, record: lines.append(record.getMessage()))
    rewrite(small_pt2, {"models/model.json": changed})
    refused(invoke("compact", small_pt2))
    assert lines == []
    assert logging.root.manager.disable == 0


@pytest.mark.parametrize("command", ["inspect", "compact"])
def test_names_of_members_are_one_line(small_pt2, command):
    with zipfile.ZipFile(small_pt2, "a") as archive:
        archive.writestr("net/odd\n\x1b[31m", b"")
    text = refused(invoke(command, small_pt2))
    assert "odd\N{REPLACEMENT CHARACTER}" in text
    assert "which are not opened" in text


# --- files that a command must not replace ---

SOURCE = """
import torch
from {helper} import width

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))

def inputs():
    return (torch.randn(3, 6),)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A model in Python files of the current folder."""
    names = [f"attacked_{kind}_{tmp_path.name.replace('-', '_')}" for kind in ("net", "helper")]
    (tmp_path / f"{names[0]}.py").write_text(SOURCE.format(helper=names[1]))
    (tmp_path / f"{names[1]}.py").write_text("width = 8\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    yield names
    for name in names:
        sys.modules.pop(name, None)


def listing(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("which", [0, 1])
def test_the_code_of_the_model_is_not_replaced(project, tmp_path, which):
    name, before = f"{project[which]}.py", listing(tmp_path)
    link = tmp_path / "plan.json"
    os.link(tmp_path / name, link)
    call = ["compact", f"{project[0]}:build", "--inputs", f"{project[0]}:inputs"]
    assert "--plan" in refused(invoke(*call, "--plan", link, "--force"))
    link.unlink()
    assert listing(tmp_path) == before


def test_a_plan_is_a_json_file(project, tmp_path):
    before = listing(tmp_path)
    call = ["compact", f"{project[0]}:build", "--input", "3x6", "--force", "--plan"]
    assert "--plan: expected a name that ends in .json" in refused(invoke(*call, "plan.txt"))
    assert "which is read" in refused(invoke(*call, f"{project[0]}.py"))
    assert listing(tmp_path) == before


OUTPUTS = ["--out", "--plan"]


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_file_that_appears_meanwhile_is_not_replaced(project, tmp_path, monkeypatch, option):
    """It appears after the last look, right before the new one takes its name."""
    from dgating.files import _writing as _files

    place = tmp_path / ("late.pt2" if option == "--out" else "late.json")
    publish = _files._publish

    def late(temporary, target, new):
        if target.name == place.name:
            target.write_text("somebody's")
        publish(temporary, target, new)

    monkeypatch.setattr(_files, "_publish", late)
    call = ["compact", f"{project[0]}:build", "--input", "3x6", option, place]
    assert "there already" in refused(invoke(*call))
    assert place.read_text() == "somebody's"


def test_an_output_that_fails_leaves_no_others(project, tmp_path, monkeypatch):
    from dgating.cli import compact as command

    before = listing(tmp_path)
    outs = ["--plan", "p.json", "--out", "a.safetensors", "--out", "b.pt2"]

    def fails(*args, **kwargs):
        raise RuntimeError("no export")

    with monkeypatch.context() as patch:
        patch.setattr(command, "export_bytes", fails)
        assert invoke("compact", f"{project[0]}:build", "--input", "3x6", *outs).exit_code == 2
    assert listing(tmp_path) == before
    write = command.write_bytes

    def full(path, content, new):
        if path.suffix == ".pt2":
            raise OSError(28, "No space left on device", str(path))
        write(path, content, new=new)

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_bytes", full)
        text = refused(invoke("compact", f"{project[0]}:build", "--input", "3x6", *outs))
    assert "--out: 'b.pt2' cannot be written (No space left on device)" in text
    assert listing(tmp_path) == before


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(project, tmp_path, monkeypatch, option):
    (tmp_path / "file").write_text("x")
    place = tmp_path / "file" / ("o.pt2" if option == "--out" else "o.json")
    monkeypatch.setattr(dg, "compact", lambda *args, **kwargs: pytest.fail("computed"))
    text = refused(invoke("compact", f"{project[0]}:build", "--input", "3x6", option, place))
    assert text.startswith(f"error: {option}: ")
