"""Compaction of the zoo: the same function, and exactly what the oracle says is gone.

One task of every listed family runs in float32, some in float64, too; the other tasks, the rest of the zoo and the
target "graph" are slow. The comparison is the benchmark's own, so the engine's verification is switched off.
"""

import copy

import pytest
import torch

import dgating as dg
from benchmarks.coverage import DTYPES, TARGETS, gap, measure
from benchmarks.zoo import FAMILIES

LISTED = (
    *("gpt2", "bert", "llama", "llama_2_per_kv", "qwen2", "mistral", "mixtral", "opt", "t5", "phi3", "falcon"),
    *("vit", "swin", "convnext", "resnet", "mobilenet_v2", "regnet", "whisper"),
    *("lenet", "vgg16_bn", "resnet18", "densenet", "shufflenet_v2", "unet", "squeeze_excite"),
    *("encoder_norm_first", "nanogpt", "lstm", "mamba"),
)
DOUBLE = ("llama_2_per_kv", "t5", "swin", "densenet", "encoder_norm_first")
RIGHT = ("exact", "exact, more gone", "none to remove")
KEPT = {("bloom", "heads"), ("mpt", "heads")}  # their position biases are computed from the number of heads


def cases():
    for name, family in FAMILIES.items():
        hardest = "heads" if "heads" in family.tasks else next(iter(family.tasks))
        for task in family.tasks:
            for target in TARGETS:
                for dtype in DTYPES:
                    fast = target == "module" and task == hardest and name in (LISTED if dtype == "float32" else DOUBLE)
                    marks = [] if fast else [pytest.mark.slow]
                    yield pytest.param(name, task, target, dtype, marks=marks, id=f"{name}-{task}-{target}-{dtype}")


@pytest.mark.parametrize(("name", "task", "target", "dtype"), list(cases()))
def test_same_function_and_just_the_oracle_is_gone(name, task, target, dtype):
    row = measure(FAMILIES[name], task, target, DTYPES[dtype], verify=False)
    if row["verdict"] == "does not run":
        pytest.skip(f"the full model does not run: {row['why']}")
    assert row["verdict"] in (("kept",) if (name, task) in KEPT else RIGHT), row


def altered(change):
    """A stand-in for ``compact`` that changes one weight of a copy, or nothing."""

    def compact(model, inputs, **_):
        small = copy.deepcopy(model)
        small.compaction = dg.plan_compaction(model, inputs)
        with torch.no_grad():
            small[-1].weight[0, 0] += change
        return small

    return compact


def refusing(*_, **__):
    raise dg.CompactionError("no\nmore")


def broken(*_, **__):
    raise IndexError("7")


@pytest.mark.parametrize(
    ("compact", "verdict", "why"),
    [
        (altered(1e-3), "WRONG", "outputs differ"),
        (altered(0.0), "kept", "linear in 9 reads it"),
        (refusing, "refused", "CompactionError: no"),
        (broken, "WRONG", "IndexError: 7"),
    ],
)
def test_the_comparison_notices(monkeypatch, compact, verdict, why):
    monkeypatch.setattr(dg, "compact", compact)
    row = measure(FAMILIES["lenet"], "neurons", "module", torch.float32)
    assert row["verdict"] == verdict
    assert why in row["why"]


def test_gap():
    x = torch.ones(2, 3)
    assert gap([x], [x + 0.5]) == 0.5
    assert gap([x], [x[:1]]) == gap([x], [x, x]) == gap([x], [x / 0]) == float("inf")
