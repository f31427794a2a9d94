"""Bad models, inputs, optimizers and files: an error that says what to do, and nothing has changed."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from types import SimpleNamespace as Case
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dgating as dg

REFUSED = []


def refused(name: str, make: Callable[[], Case], call: Callable[[Case], Any], error: type, message: str) -> None:
    """One row: ``make()`` gives ``.net``, perhaps ``.opt``; ``call(it)`` must raise ``error`` itself."""
    REFUSED.append(pytest.param(make, call, error, message, id=name))


def refused_by_all(
    name: str, make: Callable[[], Case], inputs: Callable[[], Any], error: type, message: str, **options
):
    """One row for the plan and one for each target."""
    refused(f"plan: {name}", make, lambda c: dg.plan_compaction(c.net, inputs(), **options), error, message)
    for target in ("module", "graph"):
        call = lambda c, t=target: dg.compact(c.net, inputs(), target=t, **options)  # noqa: E731
        refused(f"{target}: {name}", make, call, error, message)


def rows() -> tuple[Tensor]:
    return (torch.randn(3, 4),)


def mlp() -> nn.Module:
    """Two units are zero and would leave."""
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[:2] = 0
        net[0].bias[:2] = 0
    net[2].eval()  # flags that differ from module to module
    return net


def plain() -> Case:
    return Case(net=mlp())


def of(forward: Callable[..., Any], *shape: int) -> Callable[[], Case]:
    """An MLP with a forward of its own."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return forward(self, *args, **kwargs)

    return lambda: Case(net=Odd())


def gated() -> Case:
    c = plain()
    dg.gate_(c.net, dg.features(c.net[0]))
    return c


def one(make: Callable[[], nn.Module]) -> Callable[[], Case]:
    return lambda: Case(net=nn.Sequential(make(), nn.Linear(6, 2)))


def quietly(make: Callable[[], nn.Module]) -> Callable[[], Case]:
    def maker() -> Case:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, or the compiler's first import
            return Case(net=make())

    return maker


def trained(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[], Case]:
    def maker() -> Case:
        c = plain()
        c.opt = make(c.net.parameters(), **options)
        c.net(*rows()).square().sum().backward()
        c.opt.step(lambda: c.net(*rows()).sum())
        c.opt.zero_grad()
        return c

    return maker


def foreign() -> Case:
    c = trained(torch.optim.SGD, lr=0.1, momentum=0.9)()
    other = trained(torch.optim.SGD, lr=0.1, momentum=0.9)()
    c.opt = other.opt
    c.other = other.net
    return c


# --- models ---

refused_by_all("gated", gated, rows, dg.CompactionError, r"gated.*collapse_")
refused_by_all("no module", lambda: Case(net={"weight": 1}), rows, TypeError, r"torch\.nn\.Module, received dict")
refused_by_all("scripted", quietly(lambda: torch.jit.script(mlp())), rows, TypeError, r"eager.*scripted")
refused_by_all("traced", quietly(lambda: torch.jit.trace(mlp(), rows()[0])), rows, TypeError, r"eager.*scripted")
refused_by_all("compiled", quietly(lambda: torch.compile(mlp())), rows, ValueError, r"bare model.*OptimizedModule")
refused_by_all("wrapped", lambda: Case(net=nn.DataParallel(mlp())), rows, ValueError, r"bare model.*DataParallel")
refused_by_all("meta", one(lambda: nn.Linear(4, 6, device="meta")), rows, ValueError, r"0\.weight.*'meta'.*Materialise")
refused_by_all("lazy", one(lambda: nn.LazyLinear(6)), rows, ValueError, r"0\.weight.*lazy.*forward")

# --- what torch.export cannot read ---

CANNOT = r"torch\.export cannot read Odd with these inputs.*Call torch\.export"


def branches(net: nn.Module, x: Tensor) -> Tensor:
    return net.body(x) if x.sum() > 0 else net.body(-x)


refused_by_all("control flow by data", of(branches), rows, dg.CompactionError, CANNOT)
refused_by_all("a loop by data", of(lambda net, x: net.body(x) * len(range(int(x.abs().sum())))), rows,
               dg.CompactionError, CANNOT)  # fmt: skip
refused_by_all("numpy", of(lambda net, x: torch.from_numpy(net.body(x).detach().numpy()).sin()), rows,
               dg.CompactionError, CANNOT)  # fmt: skip
refused_by_all("an assertion", of(lambda net, x: net.body(x) if not x.numel() else 1 / 0), rows, dg.CompactionError,
               CANNOT)  # fmt: skip
DATA = r"sizes.*depend on its data.*\bfixed shapes"
refused_by_all("a mask", of(lambda net, x: net.body(x[x[:, 0] > 0])), rows, dg.CompactionError, DATA)
refused_by_all("entries of a mask", of(lambda net, x: net.body(x) + x[x > 0].sum()), rows, dg.CompactionError, DATA)
refused_by_all(
    "nonzero", of(lambda net, x: net.body(x) + net.body[0](x).nonzero().sum()), rows, dg.CompactionError, DATA
)
refused_by_all("where", of(lambda net, x: net.body(x) + torch.where(x > 0)[0].sum()), rows, dg.CompactionError, DATA)
refused_by_all("bincount", of(lambda net, x: net.body(x) + (x.flatten() > 0).long().bincount().sum()), rows,
               dg.CompactionError, DATA)  # fmt: skip

# --- inputs ---

WRONG = r"torch\.export cannot read \w+ with these inputs.*Call torch\.export"
two = of(lambda net, x, scale: net.body(x) * scale)
refused_by_all("another width", plain, lambda: (torch.randn(3, 5),), dg.CompactionError, WRONG)
for target in ("module", "graph"):
    refused(f"{target}: another dtype", plain,
            lambda c, t=target: dg.compact(c.net, (torch.ones(3, 4).long(),), target=t),
            dg.CompactionError, r"(cannot read|does not run).*dtype")  # fmt: skip
refused_by_all("one too many", plain, lambda: (*rows(), *rows()), dg.CompactionError, WRONG)
refused_by_all("one missing", two, rows, dg.CompactionError, WRONG)
refused_by_all("an unknown keyword", plain, rows, dg.CompactionError, WRONG, kwargs={"scale": 2})
refused_by_all("None", plain, lambda: None, TypeError, r"example_inputs: expected a tuple.*received NoneType")
refused_by_all("a number", plain, lambda: 3, TypeError, r"example_inputs: expected a tuple.*received int")
refused_by_all("a string", plain, lambda: "x", TypeError, r"example_inputs: expected a tuple.*received str")
refused_by_all("a tuple of None", plain, lambda: (None,), dg.CompactionError, WRONG)
refused_by_all("nothing", plain, lambda: (), ValueError, r"example_inputs: expected at least one input.*Pass")
refused_by_all("an empty dict", plain, lambda: {}, ValueError, r"example_inputs: expected at least one input.*Pass")
refused_by_all("keys that are no names", plain, lambda: {0: rows()[0]}, TypeError, r"names of arguments.*received 0")
refused_by_all("kwargs a list", plain, rows, TypeError, r"kwargs: expected a dict.*received list", kwargs=[1])
refused_by_all("given twice", plain, lambda: {"input": rows()[0]}, ValueError, r"\['input'\] given twice.*once",
               kwargs={"input": 1})  # fmt: skip

# --- options ---

for bad in ("onnx", "", None, 3):
    refused(f"target {bad!r}", plain, lambda c, bad=bad: dg.compact(c.net, rows(), target=bad), ValueError,
            rf"target: expected 'module' or 'graph', received {bad!r}")  # fmt: skip
for target in ("module", "graph"):
    for name, make, error, message in [
        ("no optimizer", lambda: Case(net=mlp(), opt={"lr": 1}), TypeError, r"torch\.optim\.Optimizer, received dict"),
        ("LBFGS", trained(torch.optim.LBFGS), ValueError, r"LBFGS.*Call without the optimizer"),
        ("an optimizer of another model", foreign, ValueError, r"optimizer.*(another|none of|not).*model"),
    ]:
        refused(f"{target}: {name}", make, lambda c, t=target: dg.compact(c.net, rows(), optimizer=c.opt, target=t),
                error, message)  # fmt: skip


def writes_a_size() -> Case:
    """Six is written into the forward of the whole model: no attribute can follow it."""
    c = of(lambda net, x: net.body[2](net.body[0](x).view(3, 6).relu()))()
    c.opt = torch.optim.SGD(c.net.parameters(), lr=0.1)
    return c


def divides_by_a_size() -> Case:
    """In the graph this is a division by six; the code divides by what is left."""

    def forward(net, x):
        h = net.body[0](x).relu()
        return net.body[2](h) + h.sum(-1, keepdim=True) / h.shape[-1]

    c = of(forward)()
    c.opt = torch.optim.SGD(c.net.parameters(), lr=0.1)
    return c


for make, message in [
    (writes_a_size, r"sizes that no attribute holds.*target='graph'"),
    (divides_by_a_size, r"not the same function.*target='graph'"),
]:
    refused(f"module: {make.__name__}", make, lambda c: dg.compact(c.net, rows(), optimizer=c.opt), dg.CompactionError,
            message)  # fmt: skip


def extra_keys() -> Case:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.mha(x, x, x, need_weights=False)[0]

    c = Case(net=Net())
    with torch.no_grad():
        for name in ("in_proj_weight", "in_proj_bias", "bias_v"):
            getattr(c.net.mha, name)[..., 8:10] = 0 if name == "in_proj_bias" else getattr(c.net.mha, name)[..., 8:10]
        c.net.mha.in_proj_weight[8:10] = 0
        c.net.mha.in_proj_bias[8:10] = 0
        c.net.mha.bias_v[..., :2] = 0
    return c


# --- module rules ---

for bad, shown in [("Linear", "'Linear'"), (nn.Linear(2, 2), r"Linear\("), (dict, "dict"), (None, "None")]:
    refused(f"rule for {shown}", plain, lambda c, bad=bad: dg.register_module_rule(bad), TypeError,
            rf"subclass of torch\.nn\.Module, received.*{shown}")  # fmt: skip
refused("rule that is none", plain, lambda c: dg.register_module_rule(nn.Bilinear)("rule"), TypeError,
        r"expected a function.*received 'rule'")  # fmt: skip

# --- saving ---

refused("save an ordinary model", plain, lambda c: dg.save_compact(c.net, "x.safetensors"), ValueError,
        r"made by dg\.compact, received Sequential.*state_dict")  # fmt: skip
refused(
    "save a gated model", gated, lambda c: dg.save_compact(c.net, "x.safetensors"), ValueError, r"made by dg\.compact"
)
refused("save None", plain, lambda c: dg.save_compact(None, "x.safetensors"), ValueError, r"received NoneType")
refused("save a state", plain, lambda c: dg.save_compact(c.net.state_dict(), "x"), ValueError, r"received \w*[dD]ict")


def _state(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if nn.parameter.is_lazy(value) or value.is_meta:
        return type(value)
    return value.dtype, tuple(value.shape), value.detach().contiguous().view(-1).view(torch.uint8).tolist()


def fingerprint(c: Case) -> dict[str, Any]:
    """Everything that a refused call must not change, the generator's state excepted."""
    out: dict[str, Any] = {"switches": (torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled())}
    for key, net in vars(c).items():
        if isinstance(net, nn.Module):
            out[key] = {
                "state": {k: _state(v) for k, v in net.state_dict().items()},
                "modules": [(path, id(m), type(m), m.training) for path, m in net.named_modules()],
                "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()],
                "parameters": [(n, id(p), p.requires_grad) for n, p in net.named_parameters(remove_duplicate=False)],
                "attributes": [sorted(vars(m)) for m in net.modules() if not isinstance(m, torch.jit.ScriptModule)],
            }
    if isinstance(opt := getattr(c, "opt", None), torch.optim.Optimizer):
        out["groups"] = [{**g, "params": [id(p) for p in g["params"]]} for g in opt.param_groups]
        out["optimizer"] = {
            id(p): {k: _state(v) for k, v in state.items()} for p, state in opt.state.items() if isinstance(state, dict)
        }
    return out


@pytest.mark.parametrize(("make", "call", "error", "message"), REFUSED)
def test_refused_and_nothing_changed(make, call, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = make()
    before = fingerprint(case)
    with pytest.raises(error, match=re.compile(message, re.DOTALL)) as caught:
        call(case)
    assert caught.type is error  # not merely a subclass of it
    assert fingerprint(case) == before
    assert not list(tmp_path.iterdir())


def test_keys_of_its_own_are_refused_in_modules():
    """torch's attention with learned extra keys has no compact form; a graph has."""
    case = extra_keys()
    inputs = (torch.randn(2, 3, 4),)
    if dg.plan_compaction(case.net, inputs).removed:
        with pytest.raises((dg.CompactionError, ValueError), match="bias_k"):
            dg.compact(case.net, inputs)


def test_rule_of_the_user_that_fails_is_not_hidden():
    class Mine(nn.Linear):
        pass

    @dg.register_module_rule(Mine)
    def _(module, change):
        raise ZeroDivisionError("of the rule")

    net = nn.Sequential(Mine(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[0] = 0
        net[0].bias[0] = 0
    before = fingerprint(Case(net=net))
    with pytest.raises(ZeroDivisionError, match="of the rule"):
        dg.compact(net, rows())
    assert fingerprint(Case(net=net)) == before


def test_random_forwards_are_called_random():
    """Dropout that never stops: the original differs from itself, which is no bug of a rule."""
    net = of(lambda net, x: nn.functional.dropout(net.body(x), 0.5, training=True))().net
    with pytest.raises(dg.CompactionError, match="other outputs each time"):
        dg.compact(net, rows())


# --- files ---


class Columns(nn.Module):
    """Its width is an attribute without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.inner, self.outer = 6, nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).view(-1, self.width).sigmoid())


class Literal(nn.Module):
    """Its width is written into the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).view(-1, 6).sin())


def full() -> nn.Module:
    return nn.Sequential(
        Columns(), Literal(), nn.Conv1d(1, 6, 1), nn.ReLU(), nn.Conv1d(6, 6, 1, groups=2), nn.Linear(4, 2)
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    """The same model compacted as modules and as a graph."""
    torch.manual_seed(0)
    net = full()
    net.insert(2, nn.Unflatten(1, (1, 4)))
    with torch.no_grad():
        for module in (net[0], net[1]):
            module.inner.weight[:2] = 0
        net[0].outer.bias.normal_()
        net[3].weight[[0, 3]] = 0
        net[3].bias[[0, 3]] = 0
    found = {}
    for target in ("module", "graph"):
        path = tmp_path_factory.mktemp("files") / f"{target}.safetensors"
        dg.save_compact(dg.compact(net, rows(), target=target), path)
        found[target] = path.read_bytes()
    return found


def fresh() -> nn.Module:
    net = full()
    net.insert(2, nn.Unflatten(1, (1, 4)))
    return net


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header: dict[str, Any], body: bytes) -> bytes:
    """A file with another header, and the checksum that belongs to it: what is refused is the content."""
    if "sha256" in header.get("__metadata__", {}):
        header["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(header).encode()
    blank = struct.pack("<Q", len(text)) + text + body
    digest = hashlib.sha256(blank).hexdigest()
    return blank.replace(b'"sha256": "' + b"0" * 64, b'"sha256": "' + digest.encode())


def with_manifest(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with an edited manifest; ``change`` edits it in place, or returns another one."""
    header, body = header_of(data)
    manifest = json.loads(header["__metadata__"]["dgating"])
    other = change(manifest)
    header["__metadata__"]["dgating"] = other if isinstance(other, str) else json.dumps(manifest)
    return with_header(header, body)


def manifest_of(data: bytes) -> dict[str, Any]:
    return json.loads(header_of(data)[0]["__metadata__"]["dgating"])


def test_the_files_have_all_that_is_damaged_below(files):
    step = manifest_of(files["module"])["steps"][0]
    assert step["slices"].keys() >= {"0.inner.weight", "1.inner.weight", "3.weight", "4.weight"} or step["slices"]
    assert step["attributes"]["0"] == [["", "width", 6, 4]]
    assert "1" in step["inputs"]
    assert manifest_of(files["graph"])["steps"][0]["inputs"][""]
    for data in files.values():
        assert with_manifest(data, lambda m: None) is not None


DAMAGED: list[Any] = []


def damaged(name: str, change: Callable[[dict[str, Any]], Any], target: str = "module") -> None:
    DAMAGED.append(pytest.param(change, target, id=f"{target}: {name}"))


def step_with(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda m: m["steps"][0].update(values)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda m: m["steps"][0].pop(key)


def cut(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Another first slice of the first weight."""

    def change(m: dict[str, Any]) -> None:
        m["steps"][0]["slices"]["0.inner.weight"][0].update(values)

    return change


def renamed(new: str) -> Callable[[dict[str, Any]], None]:
    def change(m: dict[str, Any]) -> None:
        step = m["steps"][0]
        for key in ("slices", "shapes"):
            step[key][new] = step[key].pop("0.inner.weight")

    return change


def attribute(*entry: Any, path: str = "0") -> Callable[[dict[str, Any]], None]:
    return lambda m: m["steps"][0]["attributes"].update({path: [list(entry)]})


for target in ("module", "graph"):
    for key in ("slices", "shapes", "target", "inputs"):
        damaged(f"without {key}", without(key), target)
    for value in (None, 3, "x", [], [[]]):
        damaged(f"slices {value!r}", step_with(slices=value), target)
    for name, values in {
        "out of range": {"keep": [0, 1, 2, 9]},
        "negative": {"keep": [-1, -2, -3, -4]},
        "far out of range": {"keep": [10**12]},
        "beyond integers": {"keep": [10**30]},
        "fractions": {"keep": [0.5, 1.5, 2.5, 3.5]},
        "truth values": {"keep": [True, False, True, True]},
        "words": {"keep": ["0"]},
        "nothing": {"keep": []},
        "null": {"keep": None},
        "nested": {"keep": [[[0]]]},
        "ragged": {"keep": [[0], [1, 2]], "row": 0},
        "of a row that is not there": {"keep": [[0]], "row": 7},
        "of a negative row": {"keep": [[0]] * 6, "row": -1},
        "of a row that is a word": {"keep": [[0]], "row": "0"},
        "of an axis that is not there": {"axis": 5},
        "of a negative axis": {"axis": -1},
        "of an axis that is a word": {"axis": "0"},
        "of an axis that is true": {"axis": True},
        "too few": {"keep": [3]},
        "too many": {"keep": [2, 3, 4, 5, 5, 5]},
    }.items():
        damaged(f"indices {name}", cut(**values), target)
    for name in (
        "",
        ".",
        "..",
        "../0.inner.weight",
        "0",
        "0.inner",
        "0.inner.weight.data",
        "0.__class__",
        "a" * 5000,
        "\x00",
    ):
        damaged(f"weight {name[:30]!r}", renamed(name), target)
    damaged("no steps", lambda m: m.pop("steps"), target)
    for value in (None, 3, "abc", [1], [None], [[]], [{}], {}, []):
        damaged(f"steps {value!r}", lambda m, v=value: m.update(steps=v), target)
    damaged("a step twice", lambda m: m["steps"].append(m["steps"][0]), target)
    damaged("without shared", lambda m: m.pop("shared"), target)
    damaged("shared a list", lambda m: m.update(shared=["x"]), target)
    damaged("shared with nothing", lambda m: m.update(shared={"0.inner.weight": "nothing"}), target)
    damaged("shared with an unknown name", lambda m: m.update(shared={"nothing": "0.inner.weight"}), target)
    damaged("another format", lambda m: m.update(format="dgating/compact/99"), target)
    damaged("no format", lambda m: m.pop("format"), target)
    for name, text in {
        "no JSON": "{",
        "empty": "",
        "a number": "3",
        "a list": "[]",
        "deep": "[" * 100_000,
        "deep and closed": "[" * 100_000 + "]" * 100_000,
    }.items():
        damaged(name, lambda m, t=text: t, target)
    for value in ("spiral", None, 3, ["module"]):
        damaged(f"target {value!r}", step_with(target=value), target)

for value in (None, 3, "x", [["x"]], {"x": 1}):
    damaged(f"sizes {value!r}", step_with(sizes=value))
for value in (None, 3, [1], {"nowhere.bias": 3}, {"0.inner.nothing": 3}, {"1.inner.bias": -1}, {"1.inner.bias": "x"},
              {"1.inner.bias": 10**13}, {"1.inner.bias": 10**30}, {"": 3}):  # fmt: skip
    damaged(f"biases {value!r}", step_with(biases=value))
for value in (None, 3, [1], {"nowhere": [["", "width", 6, 4]]}, {"0": 3}, {"0": [["", "width"]]}):
    damaged(f"attributes {value!r}", step_with(attributes=value))
for name in ("forward", "__class__", "__dict__", "inner", "training", "_modules", "nothing", "weight", "a b", ""):
    damaged(f"attribute {name!r}", attribute("", name, 6, 4))
for value in ("x", None, [1], {"a": 1}, 4.5, True, -4, 10**9):
    damaged(f"attribute becomes {value!r}", attribute("", "width", 6, value))
damaged("attribute of nothing", attribute("nothing", "width", 6, 4))
damaged("attribute of a dunder", attribute("__dict__", "width", 6, 4))
for value in (None, 3, [1], {"nowhere": None}, {"1": 3}, {"1": {"tensor": [3, 4]}}, {"1": {"value": "xy"}}):
    damaged(f"inputs {value!r}", step_with(inputs=value))


def traced_on(tensor: Any, dtype: Any = "float32", **more: Any) -> Callable[[dict[str, Any]], None]:
    spec = {
        "items": [{"items": [{"tensor": tensor, "dtype": dtype}], "tuple": True}, {"dict": {}}],
        "tuple": True,
        **more,
    }
    return lambda m: m["steps"][0]["inputs"].update(dict.fromkeys(m["steps"][0]["inputs"], spec))


for target in ("module", "graph"):
    damaged("traced on another width", traced_on([3, 7]), target)
    damaged("traced on a negative shape", traced_on([3, -4]), target)
    damaged("traced on a huge tensor", traced_on([10**7, 10**7]), target)
    damaged("traced on a shape of words", traced_on(["3", "4"]), target)
    damaged("traced on what is no dtype", traced_on([3, 4], "os"), target)
    damaged("traced on a method", traced_on([3, 4], "load"), target)
    damaged("traced on a number as dtype", traced_on([3, 4], 3), target)
damaged("inputs null", lambda m: m["steps"][0]["inputs"].update({"": None}), "graph")


def load_refused(data: bytes, tmp_path, net: nn.Module | None = None) -> str:
    """The message of the refusal; the model that was given is as it was."""
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data)
    case = Case(net=fresh() if net is None else net)
    before = fingerprint(case)
    with pytest.raises((ValueError, TypeError, dg.CompactionError)) as caught:
        dg.load_compact(case.net, path)
    assert caught.type in (ValueError, TypeError, dg.CompactionError), caught.type
    assert fingerprint(case) == before
    assert path.read_bytes() == data
    return str(caught.value)


@pytest.mark.parametrize(("change", "target"), DAMAGED)
def test_a_damaged_manifest_is_refused(change, target, files, tmp_path):
    message = load_refused(with_manifest(files[target], change), tmp_path)
    assert re.search(r"Expected|expected|Export|Call|Use|Load", message), message


@pytest.mark.parametrize("target", ["module", "graph"])
@pytest.mark.parametrize("what", ["dropped", "renamed", "another shape", "extra"])
def test_damaged_tensors_are_refused(what, target, files, tmp_path):
    header, body = header_of(files[target])
    name = "3.weight"
    entry = header[name]
    if what == "dropped":
        tensors = {"other": torch.zeros(2)}
        save_file(tensors, tmp_path / "x", metadata=header["__metadata__"])
        data = with_header(*header_of((tmp_path / "x").read_bytes()))
    else:
        if what == "renamed":
            header["nothing"] = header.pop(name)
        elif what == "another shape":
            entry["shape"] = entry["shape"][::-1]
        else:
            end = len(body)
            header["nothing"] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
            body += bytes(4)
        data = with_header(header, body)
    assert "Expected a full-size model" in load_refused(data, tmp_path)


def test_other_files_are_refused(files, tmp_path):
    ordinary = tmp_path / "ordinary"
    save_file({"weight": torch.zeros(3)}, ordinary)
    whole = files["module"]
    foreign = [b"", b"\x00" * 7, b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04" + bytes(100), b"#!/bin/sh\n"]
    broken = [whole[:-1], whole[:20], whole[1:], whole[:8] + b"{" * 100, whole + b"more", ordinary.read_bytes()]
    for data in foreign + broken:
        assert re.search("written by dg.save_compact|whole safetensors", load_refused(data, tmp_path))


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "missing", tmp_path, str(tmp_path / "no" / "folder")):
        with pytest.raises(FileNotFoundError, match="load_compact: no file"):
            dg.load_compact(fresh(), path)
    for path in (None, 3):
        with pytest.raises(TypeError):
            dg.load_compact(fresh(), path)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("kind", ["torch", "pickle", "in the manifest"])
def test_no_pickle_is_loaded(kind, files, tmp_path):
    path = tmp_path / "bomb"
    if kind == "torch":
        torch.save({"weight": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    data = path.read_bytes()
    if kind == "in the manifest":
        data = with_manifest(files["module"], lambda m: data.decode("latin-1"))
    load_refused(data, tmp_path)


@pytest.mark.parametrize("target", ["module", "graph"])
def test_a_good_file_needs_no_pickle(target, files, tmp_path, monkeypatch):
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("a pickle was loaded"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was loaded"))
    path = tmp_path / "good"
    path.write_bytes(files[target])
    assert dg.load_compact(fresh(), path)(*rows()).shape == (3, 6, 2)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("gated", lambda: gated().net),
        ("another architecture", mlp),
        ("no module", lambda: "model"),
        ("nothing", lambda: None),
        ("lazy", lambda: nn.Sequential(nn.LazyLinear(3))),
        ("meta", lambda: nn.Sequential(nn.Linear(4, 6, device="meta"))),
        ("wider", lambda: nn.Sequential(Columns(), Literal(), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 8, 1))),
        ("compiled", lambda: quietly(lambda: torch.compile(fresh()))().net),
        ("scripted", lambda: quietly(lambda: torch.jit.script(mlp()))().net),
    ],
)
@pytest.mark.parametrize("target", ["module", "graph"])
def test_another_model_is_refused(name, build, target, files, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(files[target])
    net = build()
    before = fingerprint(Case(net=net))
    with pytest.raises((ValueError, TypeError), match=r"(?s)load_compact|model: expected"):
        dg.load_compact(net, path)
    assert fingerprint(Case(net=net)) == before


def test_a_compact_model_is_no_full_size_one(files, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(files["module"])
    small = dg.load_compact(fresh(), path)
    with pytest.raises(ValueError, match=r"does not fit.*full-size"):
        dg.load_compact(small, path)


def test_saving_to_what_is_no_path(files, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(files["module"])
    small = dg.load_compact(fresh(), path)
    before = copy.deepcopy(small.state_dict())
    for bad in (None, 3):
        with pytest.raises(TypeError):
            dg.save_compact(small, bad)
    torch.testing.assert_close(small.state_dict(), before, rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
