"""Saving and loading compact models: the loaded model is the saved one, bit by bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import dgating as dg
from benchmarks.zoo import FAMILIES
from benchmarks.zoo._zero import Units

# model built afresh, its inputs, and its units: what a case needs of a family


@dataclass(frozen=True)
class Case:
    """A family of the zoo, some of its tasks, and the share of units to zero in each of what a task finds, in turn."""

    family: str
    tasks: tuple[str, ...]
    shares: tuple[float, ...] = (0.3,)
    target: str = "module"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.family} {'+'.join(self.tasks)} {self.target}"

    def build(self) -> nn.Module:
        return FAMILIES[self.family].build()

    def zeroed(self) -> nn.Module:
        model = self.build()
        generator = torch.Generator().manual_seed(0)
        for task in self.tasks:
            zero(model, FAMILIES[self.family].tasks[task], self.shares, generator)
        return model

    def compact(self, model: nn.Module, **more: Any) -> nn.Module:
        return dg.compact(model, FAMILIES[self.family].inputs(), target=self.target, **self.options, **more)

    def inputs(self) -> Any:
        return FAMILIES[self.family].inputs()


def zero(model: nn.Module, task: Any, shares: tuple[float, ...], generator: torch.Generator) -> None:
    """Zero another share in every layer, so that no two layers end up alike."""
    found: list[Units] = list(task.find(model))
    for i, units in enumerate(found):
        one = copy.copy(task)
        object.__setattr__(one, "find", lambda _m, units=units: [units])
        one.apply(model, generator, shares[i % len(shares)])


UNEVEN = (0.25, 0.6)
CASES = [
    Case("llama", ("neurons", "heads"), UNEVEN),
    Case("llama_2_per_kv", ("neurons", "query_heads"), UNEVEN),
    Case("t5", ("neurons", "heads"), UNEVEN),
    Case("mixtral", ("neurons", "heads")),
    Case("gpt2", ("neurons", "heads"), UNEVEN),
    Case("resnet18", ("channels",), UNEVEN),
    Case("nanogpt", ("neurons", "heads"), UNEVEN),
    Case("encoder_norm_first", ("neurons", "heads"), UNEVEN),
    Case("mlp_sigmoid", ("neurons",)),
    Case("weight_reuse", ("neurons",)),
    Case("llama", ("neurons", "heads"), UNEVEN, "graph"),
    Case("t5", ("neurons",), UNEVEN, "graph"),
    Case("resnet18", ("channels",), UNEVEN, "graph"),
    Case("nanogpt", ("neurons", "heads"), UNEVEN, "graph"),
    Case("encoder_norm_last", ("heads",), UNEVEN, "graph"),
]
LARGE = {"t5 neurons graph"}  # a graph of as many operations as that of llama, which stays


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        out = model(*inputs) if isinstance(inputs, tuple) else model(**inputs)
    values = [out] if isinstance(out, Tensor) else out.values() if isinstance(out, dict) else out
    return [x for x in values if isinstance(x, Tensor)]


def same(a: nn.Module, b: nn.Module, inputs: Any) -> None:
    """Same outputs, same state, bit by bit."""
    for x, y in zip(run(a, inputs), run(b, inputs), strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    same_state(a, b)


def same_state(a: nn.Module, b: nn.Module) -> None:
    mine, other = a.state_dict(), b.state_dict()
    assert list(mine) == list(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert {n: p.requires_grad for n, p in a.named_parameters()} == {
        n: p.requires_grad for n, p in b.named_parameters()
    }


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.id, marks=[pytest.mark.slow] if c.id in LARGE else []) for c in CASES]
)
def test_loaded_is_saved(case, tmp_path):
    full = case.zeroed()
    small = case.compact(full)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in full.parameters())
    dg.save_compact(small, tmp_path / "small.safetensors")
    fresh = case.build()
    untouched = {n: t.clone() for n, t in fresh.state_dict().items()}
    again = dg.load_compact(fresh, tmp_path / "small.safetensors")
    same(small, again, case.inputs())
    assert all(torch.equal(t, untouched[n]) for n, t in fresh.state_dict().items())
    if case.target == "module":
        assert [type(m).__name__ for m in again.modules()] == [type(m).__name__ for m in small.modules()]
        assert str(again) == str(small)
    else:
        assert isinstance(again, GraphModule)
    for x, y in zip(run(full, case.inputs()), run(again, case.inputs()), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [CASES[0], CASES[7], CASES[12]], ids=lambda c: c.id)
def test_a_loaded_model_can_be_saved_again(case, tmp_path):
    small = case.compact(case.zeroed())
    dg.save_compact(small, tmp_path / "one.safetensors")
    again = dg.load_compact(case.build(), tmp_path / "one.safetensors")
    dg.save_compact(again, tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


TWICE = [
    ("llama", "neurons", "heads", "module"),
    ("resnet18", "channels", "channels", "module"),
    ("nanogpt", "heads", "neurons", "module"),
    ("encoder_norm_first", "heads", "neurons", "module"),
    ("mlp_sigmoid", "neurons", "neurons", "module"),
    ("lenet300", "neurons", "neurons", "graph"),
]


@pytest.mark.parametrize(("name", "first", "second", "target"), TWICE)
def test_compacted_twice(name, first, second, target, tmp_path):
    """Two compactions are two steps in the file; either gives the same model."""
    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(3)
    full = family.build()
    zero(full, family.tasks[first], (0.3,), generator)
    middle = dg.compact(full, family.inputs(), target=target)
    if target == "graph":
        with torch.no_grad():
            dict(middle.named_parameters())["3.weight"][:7] = 0
            dict(middle.named_parameters())["3.bias"][:7] = 0
    else:
        zero(middle, family.tasks[second], (0.3,), generator)
    small = dg.compact(middle, family.inputs(), target=target)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (full, middle, small)]
    assert sizes[0] > sizes[1] > sizes[2]
    dg.save_compact(small, tmp_path / "small.safetensors")
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        assert len(json.loads(file.metadata()["dgating"])["steps"]) == 2
    same(small, dg.load_compact(family.build(), tmp_path / "small.safetensors"), family.inputs())


def test_loaded_in_two_steps(tmp_path):
    """A file of one step on a model loaded from a file: the records add up."""
    family = FAMILIES["lenet300"]
    full = family.build()
    zero(full, family.tasks["neurons"], (0.3,), torch.Generator().manual_seed(0))
    dg.save_compact(dg.compact(full, family.inputs()), tmp_path / "one.safetensors")
    middle = dg.load_compact(family.build(), tmp_path / "one.safetensors")
    with torch.no_grad():
        middle[3].weight[:9] = 0
        middle[3].bias[:9] = 0
    small = dg.compact(middle, family.inputs())
    dg.save_compact(small, tmp_path / "two.safetensors")
    same(small, dg.load_compact(family.build(), tmp_path / "two.safetensors"), family.inputs())


@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[6], CASES[7], CASES[12]], ids=lambda c: c.id)
def test_trained_on_after_compaction(case, tmp_path):
    small = case.compact(case.zeroed()).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-2, momentum=0.9)
    inputs = case.inputs()
    for _ in range(3):
        out = small(*inputs) if isinstance(inputs, tuple) else small(**inputs)
        first = out if isinstance(out, Tensor) else next(iter(out.values()))
        optimizer.zero_grad()
        first.square().mean().backward()
        optimizer.step()
    small.eval()
    dg.save_compact(small, tmp_path / "small.safetensors")
    same(small, dg.load_compact(case.build(), tmp_path / "small.safetensors"), inputs)


@pytest.mark.parametrize("name", ["llama_2_per_kv", "nanogpt", "t5"])
def test_tied_weights_stay_tied(name, tmp_path):
    family = FAMILIES[name]
    full = family.build()
    tied = shared_names(full)
    assert tied
    zero(full, family.tasks["neurons"], UNEVEN, torch.Generator().manual_seed(0))
    small = dg.compact(full, family.inputs())
    dg.save_compact(small, tmp_path / "small.safetensors")
    again = dg.load_compact(family.build(), tmp_path / "small.safetensors")
    assert shared_names(small) == shared_names(again) == tied
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        assert len(list(file.keys())) < len(small.state_dict())  # stored once
    same(small, again, family.inputs())


def shared_names(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    return [found for found in names.values() if len(found) > 1]


def test_a_bias_that_folding_created(tmp_path):
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 9), nn.Sigmoid(), nn.Linear(9, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))

    full = build()
    with torch.no_grad():
        full[0].weight[:4] = 0
        full[0].bias[:4] = torch.arange(4.0)
    x = torch.randn(3, 6)
    small = dg.compact(full, (x,))
    assert small[2].bias is not None
    assert small[2].in_features == 5
    dg.save_compact(small, tmp_path / "small.safetensors")
    again = dg.load_compact(build(), tmp_path / "small.safetensors")
    assert again[2].bias.requires_grad
    same(small, again, (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", [CASES[0], CASES[8], CASES[12]], ids=lambda c: c.id)
def test_other_dtypes(case, dtype, tmp_path):
    inputs = pytree.tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, case.inputs())
    small = dg.compact(case.zeroed().to(dtype), inputs, target=case.target)
    assert {p.dtype for p in small.parameters()} == {dtype}
    dg.save_compact(small, tmp_path / "small.safetensors")
    again = dg.load_compact(case.build().to(dtype), tmp_path / "small.safetensors")
    same(small, again, inputs)


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_that_of_the_model_it_is_built_from(training, tmp_path):
    case = CASES[5]
    dg.save_compact(case.compact(case.zeroed()), tmp_path / "small.safetensors")
    again = dg.load_compact(case.build().train(training), tmp_path / "small.safetensors")
    assert {m.training for m in again.modules()} == {training}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_on_the_loaded_model(name, beams, tmp_path):
    """Greedy and beam search with the key-value cache, on layers of different sizes, as the zeroed full model."""
    family = FAMILIES[name]
    full = family.build()
    for i, task in enumerate(("neurons", "heads")):
        zero(full, family.tasks[task], UNEVEN if name == "gpt2" else (0.25, 0.5), torch.Generator().manual_seed(i))
    dg.save_compact(dg.compact(full, family.inputs()), tmp_path / "small.safetensors")
    again = dg.load_compact(family.build(), tmp_path / "small.safetensors")
    prompt = family.inputs()["input_ids"]
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False,
        "num_beams": beams, "pad_token_id": 0,
    }  # fmt: skip
    expected = full.generate(prompt, use_cache=False, **options)
    assert expected.shape[1] == prompt.shape[1] + 12
    assert torch.equal(full.generate(prompt, use_cache=True, **options), expected)
    assert torch.equal(again.generate(prompt, use_cache=True, **options), expected)


def test_the_cache_of_a_compact_llama_is_smaller():
    """Layer by layer: a key-value head that left is not cached."""
    family = FAMILIES["llama"]
    full = family.build()
    task = copy.copy(family.tasks["heads"])
    object.__setattr__(task, "find", lambda m, find=task.find: list(find(m))[:1])  # the first layer only
    task.apply(full, torch.Generator().manual_seed(0), 0.5)
    small = dg.compact(full, family.inputs())
    cache = small(**family.inputs(), use_cache=True).past_key_values
    assert [layer.keys.shape[1] for layer in cache.layers] == [1, 2]


def test_the_weights_of_the_fresh_model_do_not_matter(tmp_path):
    """Loading needs the architecture, not the weights it came with."""
    case = CASES[8]
    small = case.compact(case.zeroed())
    dg.save_compact(small, tmp_path / "small.safetensors")
    fresh = case.build()
    for p in fresh.parameters():
        p.data.fill_(float("nan"))
    same(small, dg.load_compact(fresh, tmp_path / "small.safetensors"), case.inputs())


# --- what is refused ---


def mlp(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


@pytest.fixture
def file(tmp_path):
    net = mlp()
    with torch.no_grad():
        net[0].weight[:3] = 0
        net[0].bias[:3] = 0
    path = tmp_path / "small.safetensors"
    dg.save_compact(dg.compact(net, (torch.randn(5, 4),)), path)
    return path


WRONG: list[tuple[str, Callable[[], nn.Module]]] = [
    ("narrower", lambda: mlp(6)),
    ("wider", lambda: mlp(20)),
    ("the compact size", lambda: mlp(5)),
    ("other layers", lambda: nn.Linear(4, 2)),
    ("no weights", nn.ReLU),
    ("a conv", lambda: nn.Conv2d(3, 4, 3)),
    ("more layers", lambda: nn.Sequential(*mlp(), nn.Linear(2, 2))),
    ("no bias", lambda: nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))),
]


@pytest.mark.parametrize(("why", "build"), WRONG, ids=[w[0] for w in WRONG])
def test_another_architecture_is_refused(why, build, file):
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"load_compact: 'small.safetensors' does not fit"):
        dg.load_compact(model, file)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        dg.load_compact(mlp(), file)


def test_a_foreign_file_is_refused(tmp_path):
    plain = tmp_path / "plain.safetensors"
    save_file(mlp().state_dict(), plain)
    with pytest.raises(ValueError, match="load_state_dict"):
        dg.load_compact(mlp(), plain)
    text = tmp_path / "notes.safetensors"
    text.write_text("dear diary")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        dg.load_compact(mlp(), text)
    with pytest.raises(FileNotFoundError, match=r"no file 'none.safetensors'"):
        dg.load_compact(mlp(), tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        dg.load_compact(mlp(), tmp_path)


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "future.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"dgating": json.dumps({"format": "dgating/compact/99"})})
    with pytest.raises(ValueError, match=r"dgating/compact/2'.*dgating/compact/99"):
        dg.load_compact(mlp(), path)


@pytest.mark.parametrize("what", [mlp(), "small", None])
def test_what_is_not_compact_is_not_saved(what, tmp_path):
    with pytest.raises(ValueError, match="expected a model made by"):
        dg.save_compact(what, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_refused_save_leaves_the_old_file(file):
    before = file.read_bytes()
    with pytest.raises(ValueError, match="expected a model made by"):
        dg.save_compact(mlp(), file)
    assert file.read_bytes() == before


def test_a_file_holds_no_paths_and_no_inputs(tmp_path):
    """The manifest is shapes and sizes; the numbers of the example inputs are not in the file."""
    case = CASES[12]
    dg.save_compact(case.compact(case.zeroed()), tmp_path / "small.safetensors")
    with safe_open(tmp_path / "small.safetensors", framework="pt") as opened:
        text = opened.metadata()["dgating"]
    assert "/home" not in text
    assert ".py" not in text
