"""Files that somebody made to do harm: nothing in them runs, and the answer is one line."""

import json
import random
import subprocess
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import dgating as dg
from benchmarks._common import RESULTS
from benchmarks._mutations import BOMBS, MUTANTS, damaged, leaves, pack, payloads, put, unpack
from benchmarks.hostile_files import FORMATS, honest
from dgating.cli import pt2_grammar as grammar
from dgating.cli.app import app
from dgating.cli.pt2_sizes import expression
from dgating.files._reading import named_json

KINDS = list(FORMATS)


@pytest.fixture(scope="module")
def files():
    return {name: honest(kind) for name, kind in FORMATS.items()}


@pytest.fixture
def attack(tmp_path, monkeypatch):
    """Open a file by a command; no code may run, and a refusal is one line."""
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "MARKER"

    def run(command, suffix, content, what=""):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        result = CliRunner().invoke(app, [command, str(path)])
        assert not marker.exists(), f"{what} ran"
        assert result.exception is None or isinstance(result.exception, SystemExit), (what, result.exception)
        assert result.exit_code in (0, 2), what
        if result.exit_code:
            assert result.stderr.startswith("error: "), what
            assert result.stderr.count("\n") == 1, (what, result.stderr)
        assert "\x1b" not in result.output, what
        assert "\x07" not in result.output, what
        assert sorted(p.name for p in tmp_path.iterdir()) == [path.name], what
        return result

    run.marker = str(marker)
    return run


def model_json(content):
    parts = unpack(content)
    name = next(n for n in parts if n.endswith("models/model.json"))
    return parts, name, json.loads(parts[name])


@pytest.mark.parametrize("command", ["inspect", "compact"])
def test_no_text_of_a_program_is_evaluated(files, attack, command):
    """Every text of the graph, its keys included, says something that runs where it is evaluated."""
    parts, name, graph = model_json(files["pt2"])
    ways = payloads(attack.marker)[:9]
    places = list(leaves(graph, (str,)))
    assert len(places) > 300
    for i, at in enumerate(places):
        if command == "compact" or i % 10 == 0:  # inspect does not read most of them
            changed = put(graph, at, ways[i % len(ways)])
            content = pack(list((parts | {name: json.dumps(changed).encode()}).items()))
            attack(command, ".pt2", content, f"{ways[i % len(ways)]} at {at}")


EVALUATED = [
    ("graph", "tensor_values", "input", "sizes", 0, "as_expr", "expr_str"),
    ("graph", "nodes", 0, "target"),
    ("graph", "nodes", 0, "name"),
    ("graph", "nodes", 0, "inputs", 0, "name"),
    ("graph", "nodes", 0, "outputs", 0, "as_tensor", "name"),
    ("signature", "input_specs", 0, "parameter", "parameter_name"),
    ("module_call_graph", 0, "signature", "in_spec"),
    ("module_call_graph", 0, "signature", "out_spec"),
    ("module_call_graph", 0, "signature", "forward_arg_names", 0),
]


@pytest.mark.parametrize("at", EVALUATED, ids=lambda at: ".".join(map(str, at)))
def test_what_torch_would_evaluate_takes_no_code(files, attack, at):
    parts, name, graph = model_json(files["pt2"])
    for text in payloads(attack.marker):
        changed = put(graph, ("graph_module", *at), text)
        content = pack(list((parts | {name: json.dumps(changed).encode()}).items()))
        assert attack("compact", ".pt2", content, text).exit_code == 2, text


@pytest.mark.parametrize("name", KINDS)
def test_made_files_are_refused_or_read_as_data(files, attack, name):
    kind = FORMATS[name]
    rng = random.Random(0)
    for what, content in MUTANTS[kind.suffix](files[name], attack.marker, rng, 32):
        for (command,) in kind.commands:
            if len(content) < 2**22:  # the large ones are measured in a process of their own
                attack(command, kind.suffix, content, what)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_one_line(files, attack, name):
    kind = FORMATS[name]
    for what, content in damaged(files[name], random.Random(1), 60):
        attack("inspect", kind.suffix, content, what)


@pytest.mark.parametrize("name", KINDS)
def test_honest_files_are_read(files, attack, name):
    for (command,) in FORMATS[name].commands:
        assert attack(command, FORMATS[name].suffix, files[name]).exit_code == 0


MEMORY = """
import json, sys, tempfile, random
from pathlib import Path
from benchmarks import hostile_files as h
h.warm()
name = sys.argv[1]
kind = h.FORMATS[name]
wanted = sys.argv[2:]
with tempfile.TemporaryDirectory() as folder:
    for what, content in h.MUTANTS[kind.suffix](h.honest(kind), folder + "/MARKER", random.Random(0), 0):
        if any(w in what for w in wanted):
            path = Path(folder) / ("bomb" + kind.suffix)
            path.write_bytes(content)
            done = h.attempt(("inspect",), path, Path(folder))
            print(json.dumps([what, done["code"], done["megabytes"]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("pt2", ["deflate bomb", "huge shape", "expanded", "many lists", "many dicts"]),
        ("onnx", ["many nodes", "many attributes", "packed numbers"]),
        ("safetensors", ["many dicts", "huge empty"]),
        ("json", ["many lists", "many dicts"]),
    ],
)
def test_a_bomb_takes_little_memory(name, wanted):
    command = [sys.executable, "-c", MEMORY, name, *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) >= len(wanted)
    for what, code, megabytes in results:
        assert code == (0 if what == "a huge empty tensor" else 2), what
        assert megabytes < 200, (what, megabytes)


# --- honest programs ---


class Text(nn.Module):
    """A small language model: two tables, blocks with attention, tied output."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 16), nn.Embedding(64, 16)
        layer = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(**layer) for _ in range(2))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        n = ids.shape[1]
        x = self.tokens(ids) + self.places(torch.arange(n, device=ids.device))
        mask = torch.full((n, n), float("-inf")).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=mask)
        return {"logits": self.head(x), "last": [x[:, -1], x.mean(1)]}


class Picture(nn.Module):
    """Convolutions with free sides: quotients, maxima and minima of sizes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.pool, self.up, self.head = nn.MaxPool2d(2), nn.Upsample(scale_factor=2.0), nn.Linear(8, 2)

    def forward(self, x):
        y = self.up(self.pool(self.b(self.a(x)).relu()))
        return self.head(y.mean((2, 3))), x[:, :, ::3, 1:-1].reshape(x.shape[0], -1)[:, : x.shape[2] // 3]


class Regions(nn.Module):
    """Regions without gradients and in another precision become graphs of their own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("scale", torch.arange(4.0).expand(2, 4))

    def forward(self, x):
        with torch.no_grad():
            y = self.layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = self.layer(x)
        return y * z * self.scale


AUTO = torch.export.Dim.AUTO
HONEST = {
    "fixed": (lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU("tanh"), nn.Linear(8, 2)), (torch.randn(3, 4),), None),
    "text, free": (Text, (torch.randint(0, 50, (3, 7)),), ({0: AUTO, 1: AUTO},)),
    "text, fixed": (Text, (torch.randint(0, 50, (3, 7)),), None),
    "picture, free": (Picture, (torch.randn(4, 3, 32, 36),), ({0: AUTO, 2: AUTO, 3: AUTO},)),
    "regions": (Regions, (torch.randn(2, 4),), None),
    "recurrent": (lambda: nn.LSTM(4, 5, batch_first=True), (torch.randn(2, 6, 4),), None),
    "half": (lambda: nn.Linear(4, 3).bfloat16(), (torch.randn(2, 4).bfloat16(),), ({0: AUTO},)),
}


@pytest.mark.filterwarnings("ignore:No complete tensor found", "ignore:The tensor attributes")  # of torch.export
@pytest.mark.parametrize("case", HONEST)
def test_an_honest_program_is_read_as_torch_reads_it(tmp_path, case):
    from dgating.cli.pt2 import inputs_of, module_of, read_program

    build, args, free = HONEST[case]
    program = torch.export.export(build().eval(), args, dynamic_shapes=free, strict=False)
    for stored in (True, False):
        if not stored:
            program.example_inputs = None
        path = tmp_path / "net.pt2"
        torch.export.save(program, path)
        read = read_program(path)
        given, kwargs = inputs_of(read)
        if stored:
            torch.testing.assert_close(given, args, rtol=0, atol=0)
        by_torch = torch.export.load(path)
        expected = by_torch.module()(*given, **kwargs)
        torch.testing.assert_close(module_of(read)(*given, **kwargs), expected, rtol=0, atol=0)
        assert list(read.state_dict) == list(by_torch.state_dict)
        assert CliRunner().invoke(app, ["inspect", str(path)]).exit_code == 0


def test_what_export_writes_is_read(tmp_path):
    dg.export(Text().eval(), torch.randint(0, 50, (3, 7)), tmp_path / "text.pt2")
    result = CliRunner().invoke(app, ["compact", str(tmp_path / "text.pt2")])
    assert result.exit_code == 0, result.output


def test_nested_example_inputs_are_read_without_unpickling(tmp_path):
    from dgating.cli.pt2 import read_program

    class Nested(nn.Module):
        def forward(self, x, more, scale=1.0, mode=None):
            return x * scale + more["a"][0] + more["b"]

    x = torch.randn(3, 4)
    args = (x, {"a": [x[0].clone(), x.t().contiguous().t()], "b": torch.ones(1, dtype=torch.float64).expand(3, 4)})
    kwargs = {"scale": 2.5, "mode": None}
    torch.export.save(torch.export.export(Nested(), args, kwargs), tmp_path / "net.pt2")
    read = read_program(tmp_path / "net.pt2")
    assert read.example_inputs is not None
    torch.testing.assert_close(read.example_inputs, (args, kwargs), rtol=0, atol=0)


# --- grammars ---

SIZES = [
    "Symbol('s0', positive=True, integer=True)",
    "Symbol('u0', integer=True)",
    "Add(FloorDiv(Add(Symbol('s0', positive=True, integer=True), Integer(-1)), Integer(2)), Integer(1))",
    "Max(Integer(1), Mul(Integer(16), Symbol('s23', positive=True, integer=True)))",
    "TruncToInt(FloatTrueDiv(ToFloat(Symbol('s0', integer=True)), Float('1.5', precision=53)))",
    "Pow(Symbol('s0', integer=True), Integer(2))",
    "Pow(Symbol('s0', integer=True), Rational(1, 2))",
    "StrictLessThan(Symbol('u0', integer=True), Integer(4))",
    "And(Equality(Symbol('s0'), Integer(3)), Not(Unequality(Symbol('s1'), Integer(3))))",
    "s0 + 2*s1 - 1",
    "((s0 - 1)//2) + 1",
    "s0**2",
    "Mod(s0, 4)",
    "s0 >= 2",
    "true",
]


@pytest.mark.parametrize("text", SIZES)
def test_sizes_that_torch_writes_are_accepted_and_mean_the_same(text):
    assert expression(text).replace(" ", "") == text.replace(" ", "") or "((" in text
    assert expression(expression(text)) == expression(text)


NO_SIZES = [
    "", "x", "s0.is_integer", "s0[0]", "__import__('os')", "Symbol('x')", "Symbol('s0', commutative='a')",
    "Symbol(Symbol('s0'))", "lambda: 1", "[1]", "{1}", "(s0, s1)", "s0 if s1 else 2", "s0 and s1", "f'{s0}'", "'s0'",
    "print(s0)", "Add(*s0)", "Add(s0, evaluate=True)", "Add.mro()", "(Add)(s0)(s0)", "(s0 := 3)", "9**9**9", "s0**s1",
    "Pow(Integer(9), Pow(Integer(9), Integer(9)))", "Pow(Integer(2), Integer(99999))", "1" * 30, "1e999", "s0;s1",
    "LShift(Integer(1), Integer(100000))", "s0\nimport os", "Float('nan')", "Integer('7')", "1j", "...", "None",
    "s0 in s1", "(" * 5_000, "+" * 5_000 + "1", "Add(" * 300 + ")" * 300, "s0 + " * 10_000 + "1",
    "Symbol('s99999999')", "sympify('1')", "Function('f')(s0)", "S.One", "s0!", "Add(s0, Symbol)",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_SIZES, ids=range(len(NO_SIZES)))
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="expected a size"):
        expression(text)


def test_a_letter_that_looks_like_another_becomes_it():
    assert expression("\N{FULLWIDTH LATIN SMALL LETTER S}0") == "s0"


@pytest.mark.parametrize(
    "text",
    [
        "torch.ops.aten.linear.default", "torch.ops.aten.add.Tensor", "torch.ops.aten.sym_size.int",
        "torch.ops.aten.arange.default", "torch.ops.aten.gelu.default", "torch.ops.aten.pad.default",
        "torch.ops.aten.__and__.Tensor", "torch.ops.aten._assert_scalar.default", "torch.ops.aten.div.Tensor_mode",
        "torch.ops.aten._assert_tensor_metadata.default", "torch.ops.aten.to.dtype_layout", "torch.ops.aten.lstm.input",
        "torch.ops.aten.item.default", "torch.ops.aten.einsum.default", "torch.ops.aten.split.Tensor",
        "torch.ops.aten.index.Tensor", "torch.ops.aten.scaled_dot_product_attention.default",
        "torch.ops.aten.upsample_nearest2d.vec", "torch.ops.aten.dropout.default", "torch.ops.aten.norm.ScalarOpt_dim",
        "torch.ops.higher_order.wrap_with_set_grad_enabled", "_operator.mul", "torch.sym_max", "math.trunc",
    ],
)  # fmt: skip
def test_operators_that_compute_are_accepted(text):
    assert grammar.operator(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "torch.ops.aten.from_file.default", "torch.ops.aten.from_file.out", "torch.ops.aten.save.default",
        "torch.ops.aten._print.default", "torch.ops.aten.warn.default", "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.record_stream.default", "torch.os.system", "torch.load", "torch.hub.load", "torch.save",
        "torch.ops.load_library", "torch.ops.aten.linear", "torch.ops.aten.linear.default.__call__", "torch.sym_sum",
        "torch.ops.aten.__class__.__init__", "torch.ops.aten.nothing.default", "_operator.methodcaller",
        "_operator.attrgetter", "_operator.call", "math.__loader__", "#x:y", "print", "torch.ops.prim.device.default",
        "torch.ops.higher_order.triton_kernel_wrapper_functional", "torch.ops.higher_order.call_torchbind",
        "torch.ops.profiler._record_function_enter.default", "torch.ops.inductor.resize_storage_bytes_.default",
    ],
)  # fmt: skip
def test_what_is_no_operator_is_refused(text):
    with pytest.raises(ValueError, match="expected an operator of ATen"):
        grammar.operator(text)


def spec(kind, context, *children):
    return {"type": kind, "context": context, "children_spec": list(children)}


LEAF = spec(None, None)


def test_a_mapping_of_another_library_is_read_as_a_dict():
    text = json.dumps([1, spec("transformers.modeling_outputs.ModelOutput", '["logits"]', LEAF)])
    assert json.loads(grammar.tree(text))[1]["type"] == "builtins.dict"


@pytest.mark.parametrize(
    "tree",
    [
        spec("collections.namedtuple", '"os.system"', LEAF),
        spec("collections.defaultdict", '{"default_factory_module": "os", "default_factory_name": "system"}', LEAF),
        spec("builtins.dict", '[{"__enum__": true, "fqn": "os:system", "name": "x"}]', LEAF),
        spec("builtins.dict", '["a"]'),
        spec("builtins.tuple", '["a"]', LEAF),
        {"type": "builtins.tuple", "context": "null"},
        [],
        None,
    ],
)
def test_a_tree_that_names_an_import_is_refused(tree):
    with pytest.raises(ValueError, match="expected"):
        grammar.tree(json.dumps([1, tree]))


@pytest.mark.parametrize("text", ["a b", "a\n", "1a", "a.b", "a(", "é", "x" * 300])
def test_names_in_code_are_identifiers(text):
    with pytest.raises(ValueError, match="expected a name"):
        grammar.identifier(text)


@pytest.mark.parametrize("text", ['a"b', "a'b", "a\\b", "a..b", "a(b)", "a\nb", "a,b"])
def test_paths_cannot_leave_their_quotes(text):
    with pytest.raises(ValueError, match="expected a path"):
        grammar.path(text)


@pytest.mark.parametrize("name", BOMBS)
def test_json_has_limits(name):
    with pytest.raises(ValueError, match="x"):
        named_json(BOMBS[name].encode("latin-1"), "x")


def test_a_language_model_of_another_library_is_read(tmp_path):
    """Its output is a class of that library: read as a dict, without importing it."""
    pytest.importorskip("transformers")
    from benchmarks.zoo import FAMILIES
    from dgating.cli.pt2 import inputs_of, module_of, read_program

    model, inputs = FAMILIES["gpt2"].build().eval(), FAMILIES["gpt2"].inputs()
    dg.export(model, inputs, tmp_path / "gpt2.pt2")
    read = read_program(tmp_path / "gpt2.pt2")
    args, kwargs = inputs_of(read)
    out = module_of(read)(*args, **kwargs)
    assert type(out) is dict
    expected = torch.export.load(tmp_path / "gpt2.pt2").module()(*args, **kwargs)
    torch.testing.assert_close(out["logits"], expected["logits"], rtol=0, atol=0)


def test_the_page_says_what_was_measured():
    stored = json.loads((RESULTS / "hostile_files.json").read_text())["formats"]
    page = (RESULTS.parents[1] / "docs" / "security.md").read_text()
    assert set(stored) >= set(FORMATS)
    for name, kind in FORMATS.items():
        for (command,) in kind.commands:
            done = stored[name][command]
            assert done["files"] >= 1_000
            assert not any(done[k] for k in ("ran code", "tracebacks", "not one line", "more than 200 MB"))
            counts = f"{done['files']:,} | {done['accepted']} | 0 | 0 | 0 | {done['most MB']} MB"
            assert f"| `.{name}`, `{command}` | {counts}" in page
