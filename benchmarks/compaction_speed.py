"""How much of the saved arithmetic becomes saved time: models of realistic size, before and after compaction.

A quarter and a half of the neurons, heads and channels of each model are set to zero and compacted away, of the plain
convolutional networks also four fifths and nine tenths. Stored are the ratios of parameters, FLOPs and latency
(medians of calls that take turns). Where less than ``EXPECTED`` of the FLOP speed-up arrives as latency, the times of
the operators are stored, too.

    python -m benchmarks.compaction_speed [--quick] [--only NAME ...] [--threads 1 2]

More threads than idle cores measure the other work on the machine: the load is in the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dgating as dg
from benchmarks._common import environment, store
from benchmarks.zoo import FAMILIES, _hf, randomise_, text, vision
from benchmarks.zoo._conv import chain
from benchmarks.zoo._family import images, tokens
from benchmarks.zoo._zero import Task, channels, neurons
from experiments.common.convnets import VGG16, vgg

SHARES = (0.25, 0.5)
MORE = (*SHARES, 0.8, 0.9)
EXPECTED = 0.6  # latency speed-up over FLOP speed-up


@dataclass(frozen=True)
class Case:
    """A model, its inputs, the units to zero, and which shares of them."""

    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Any]
    tasks: tuple[Task, ...]
    shares: tuple[float, ...] = SHARES


def wide_vgg() -> nn.Module:
    """VGG-16 of the paper."""
    return vgg(VGG16, hidden=512, classes=10, inputs=3, side=32)


def narrow_vgg() -> nn.Module:
    """That of ``experiments/fig06_filters`` at scale ``cpu``."""
    return vgg(((32, 32), (64, 64), (128, 128)), hidden=128, classes=10, inputs=1, side=14)


def vgg_units(m: Any) -> Any:
    convs, norms, linear = ([x for x in m if isinstance(x, kind)] for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
    yield from chain(*([conv, norm] for conv, norm in zip(convs, norms, strict=True)))
    yield channels([convs[-1], norms[-1]], [linear[0]])  # one pixel each
    yield neurons(*linear)


def resnet() -> nn.Module:
    import transformers as hf

    sizes = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    return hf.ResNetForImageClassification(hf.ResNetConfig(**sizes))


def mobilenet() -> nn.Module:
    import transformers as hf

    return hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(image_size=96))


def convnext() -> nn.Module:
    import transformers as hf

    sizes = {"hidden_sizes": [64, 128, 256], "depths": [2, 4, 2], "num_stages": 3}
    return hf.ConvNextForImageClassification(hf.ConvNextConfig(**sizes))


def bert() -> nn.Module:
    import transformers as hf

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return hf.BertModel(hf.BertConfig(vocab_size=2000, **sizes))


def gpt() -> nn.Module:
    import transformers as hf

    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=2000, n_embd=256, n_layer=4, n_head=8, n_positions=128, **ends))


def llama() -> nn.Module:
    import transformers as hf

    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32}
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 704, **heads}
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=2000, **sizes))


def pixels(size: int, batch: int) -> Callable[[torch.Generator], Any]:
    return lambda generator: {"pixel_values": images(generator, size=size, batch=batch)}


def ids(length: int, batch: int) -> Callable[[torch.Generator], Any]:
    return lambda generator: {"input_ids": tokens(generator, length=length, batch=batch, vocab=2000)}


LENET = FAMILIES["lenet300"]
CASES = {
    "LeNet-300-100": Case(
        LENET.build, lambda g: (torch.randn(64, 1, 28, 28, generator=g),), (LENET.tasks["neurons"],)
    ),
    "VGG-16-BN, 32 x 32": Case(
        wide_vgg, lambda g: (images(g, batch=8),), (Task(vgg_units),), MORE
    ),
    "VGG-6 of Fig. 6, 14 x 14": Case(
        narrow_vgg, lambda g: (images(g, size=14, channels=1, batch=256),), (Task(vgg_units),), MORE
    ),
    "ResNet-18, 64 x 64": Case(resnet, pixels(64, 8), (Task(vision.resnet_channels),), MORE),
    "MobileNetV2, 96 x 96": Case(mobilenet, pixels(96, 4), (Task(vision.mobilenet_v2_channels),)),
    "ConvNeXt 64-128-256, 64 x 64": Case(
        convnext, pixels(64, 8), (Task(lambda m: _hf.mlps(m, "pwconv1 pwconv2")),)
    ),
    "BERT 6 x 384": Case(
        bert,
        ids(64, 8),
        (
            Task(lambda m: _hf.mlps(m, "intermediate.dense output.dense")),
            Task(lambda m: _hf.attention(m, 32, "self.query self.key self.value output.dense")),
        ),
    ),
    "GPT-2 4 x 256": Case(
        gpt,
        ids(64, 8),
        (
            Task(lambda m: _hf.mlps(m, "c_fc c_proj")),
            Task(lambda m: _hf.fused_attention(m, 32, 8, "c_attn c_proj")),
        ),
    ),
    "Llama 4 x 256, grouped queries": Case(
        llama, ids(64, 8), (text.LLAMA_TASKS["neurons"], Task(lambda m: _hf.attention(m, 32)))
    ),
}  # fmt: skip


def operators(model: nn.Module, inputs: Any, number: int = 5, calls: int = 5) -> dict[str, float]:
    """Milliseconds of a call in each of the operators that take the most."""
    from torch.profiler import ProfilerActivity, profile

    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    with torch.no_grad():
        model(*args, **kwargs)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(calls):
                model(*args, **kwargs)
    times = {e.key.removeprefix("aten::"): e.self_cpu_time_total / 1e3 / calls for e in seen.key_averages()}
    return {name: round(times[name], 3) for name in sorted(times, key=lambda name: -times[name])[:number]}


def measure(case: Case, share: float, repeats: int, threads: list[int]) -> dict[str, Any]:
    """Zero, compact, and compare the two models at each number of threads."""
    torch.manual_seed(0)
    full = randomise_(case.build(), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    dead: dict[nn.Parameter, Tensor] = {}
    units = 0
    for task in case.tasks:
        marks, number = task.apply(full, generator, share)
        units += number
        for p, mask in marks.gone.items():
            dead[p] = dead.get(p, mask) | mask
    inputs = case.inputs(torch.Generator().manual_seed(1))
    small = dg.compact(full, inputs)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (full, small))
    assert before - after == sum(int(mask.sum()) for mask in dead.values()), "a unit that should leave stays"
    out: dict[str, Any] = {"units": units, "parameters": [before, after], "threads": {}}
    for n in threads:
        torch.set_num_threads(n)
        p = dg.profile(small, inputs, reference=full, repeats=repeats)
        assert p.reference is not None
        assert p.latency_speedup is not None
        assert p.flop_speedup is not None
        row: dict[str, Any] = {
            "latency_ms": [p.reference.latency_ms, p.latency_ms],
            "quartiles_ms": [list(p.reference.latency_quartiles_ms), list(p.latency_quartiles_ms)],
            "latency_speedup": p.latency_speedup,
            "flop_speedup": p.flop_speedup,
            "size_ratio": p.size_ratio,
            "realised": p.latency_speedup / p.flop_speedup,
        }
        if row["realised"] < EXPECTED:
            row["operators_ms"] = {"before": operators(full, inputs), "after": operators(small, inputs)}
        out["threads"][str(n)] = row
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, print only")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), help="some models, print only")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="numbers of threads, one after the other")
    options = parser.parse_args()
    runs = []
    print("| model | zeroed | threads | parameters | FLOPs | latency | realised |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        for share in CASES[name].shares:
            run = measure(CASES[name], share, 5 if options.quick else 30, options.threads)
            runs.append({"model": name, "share": share, **run})
            for n, row in run["threads"].items():
                a, b = row["latency_ms"]
                print(f"| {name} | {share:.0%} | {n} | {row['size_ratio']:.2f}x | {row['flop_speedup']:.2f}x | "
                      f"{row['latency_speedup']:.2f}x ({a:.2f} to {b:.2f} ms) | {row['realised']:.2f} |",
                      flush=True)  # fmt: skip
                if "operators_ms" in row:
                    print(f"where the time goes, ms: {row['operators_ms']}", flush=True)
    if not options.quick and options.only == list(CASES):
        store("compaction_speed", {"environment": environment(), "runs": runs})


if __name__ == "__main__":
    main()
