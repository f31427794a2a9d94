"""What gating costs: time and memory of a full training step, gated against ungated, in one interleaved run.

``python -m benchmarks.gating_overhead [--quick]``. What is measured, and why that way, is in ``README.md``.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself otherwise; read when torch is imported

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import dgating as dg
from benchmarks._common import environment, store
from experiments.common.memory import peak_bytes

DEPTHS = (2, 3, 4)
COMPILED_DEPTH = 3
LAM = 1e-4  # small: nothing may collapse while the clock runs, subnormal numbers are slow
WEIGHT_DECAY = 5e-4
THREADS = 2
Batch = tuple[Tensor, Tensor]
Step = Callable[[], None]


# --- models ---------------------------------------------------------------------------------------------------------


def lenet() -> nn.Module:
    """LeNet-300-100."""
    hidden = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(100, 10))


def vgg() -> nn.Module:
    """Six convolutions with batch norm, 32-32-M-64-64-M-128-128-M, for 32 x 32 inputs."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, 10))


class Block(nn.Module):
    """A pre-norm transformer block with one fused projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A small decoder for characters."""

    def __init__(self, layers: int = 4, width: int = 128, heads: int = 4, length: int = 64, words: int = 65) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).flatten(0, 1)


def picture_batch(shape: tuple[int, ...], n: int) -> Batch:
    return torch.randn(n, *shape), torch.randint(10, (n,))


def text_batch(n: int) -> Batch:
    ids = torch.randint(65, (n, 65))
    return ids[:, :-1].contiguous(), ids[:, 1:].flatten()


# --- groups ---------------------------------------------------------------------------------------------------------


def columns(model: nn.Module) -> list[dg.Groups]:
    return [dg.features(model[0])]  # type: ignore[index]


def rows(model: nn.Module) -> list[dg.Groups]:
    return [dg.neurons(model)]


def conv_filters(model: nn.Module) -> list[dg.Groups]:
    return [dg.filters(model)]


def heads_and_neurons(model: nn.Module) -> list[dg.Groups]:
    """Value rows of every head, and the neurons of every MLP; queries and keys stay ungated."""
    groups = [dg.neurons(model, include="blocks.*.up")]
    for block in model.blocks:  # type: ignore[union-attr]
        width = block.qkv.in_features
        labels = torch.full((3 * width,), -1)
        labels[2 * width :] = torch.arange(width) // (width // block.heads)
        groups.append(dg.by_labels(block.qkv, labels[:, None]))
    return groups


@dataclass(frozen=True)
class Case:
    """One model, its groups and its batch. ``burst`` steps are run in a row, see ``measure``."""

    name: str
    model: Callable[[], nn.Module]
    groups: Callable[[nn.Module], list[dg.Groups]]
    batch: Callable[[int], Batch]
    size: int
    optimizer: Callable[[Any], torch.optim.Optimizer]
    repetitions: int
    burst: int
    no_decay_baseline: bool = False
    quick: bool = True
    compiled: bool = True


sgd = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
adam = partial(torch.optim.Adam, lr=1e-4)


def cases() -> list[Case]:
    out = []
    for size in (32, 128, 512):
        for name, groups in (("input columns", columns), ("rows", rows)):
            out.append(
                Case(
                    f"LeNet-300-100, {name}", lenet, groups, partial(picture_batch, (784,)), size, sgd,
                    repetitions=200, burst=4, no_decay_baseline=True,
                    quick=size == 32, compiled=size in (32, 512) and groups is columns,
                )
            )  # fmt: skip
    pictures = partial(picture_batch, (3, 32, 32))
    out.append(Case("VGG-6, filters", vgg, conv_filters, pictures, 32, sgd, repetitions=40, burst=2))
    out.append(Case("GPT 4 x 128, value heads + MLP", GPT, heads_and_neurons, text_batch, 12, adam, 40, burst=2))
    return out


# --- variants -------------------------------------------------------------------------------------------------------


class NaiveGate(nn.Module):
    """The gating of the literature: ``w * g1 * ... * g_{D-1}``, each product a new tensor of the weight's size."""

    def __init__(self, labels: Tensor, n_groups: int, depth: int) -> None:
        super().__init__()
        self.gates = nn.ParameterList(nn.Parameter(torch.ones(n_groups)) for _ in range(depth - 1))
        ordered = torch.equal(labels.reshape(-1), torch.arange(n_groups))
        self.shape = tuple(labels.shape)
        self.register_buffer("labels", None if ordered else labels)

    def forward(self, w: Tensor) -> Tensor:
        for gate in self.gates:
            if self.labels is None:
                w = w * gate.view(self.shape)
            else:  # the appended one stands at index -1 and leaves ungated entries alone
                w = w * torch.cat([gate, gate.new_ones(1)])[self.labels]
        return w


def gate_naively(model: nn.Module, groups: Iterable[dg.Groups], depth: int) -> list[dict[str, Any]]:
    """Gate in place the naive way; the parameter groups have the same decays as those of the library."""
    factors: list[nn.Parameter] = []
    for member in (m for g in groups for p in g.parts for m in p.members):
        assert isinstance(member.owner, nn.Module)
        gate = NaiveGate(member.partition.labels, member.partition.n_groups, depth)
        parametrize.register_parametrization(member.owner, member.name, gate)
        factors += member.owner.parametrizations[member.name].parameters()  # type: ignore[index,union-attr]
    held = {id(p) for p in factors}
    rest = [p for p in model.parameters() if id(p) not in held]
    return [{"params": factors, "weight_decay": 2 * LAM / depth}, {"params": rest, "weight_decay": WEIGHT_DECAY}]


@dataclass(frozen=True)
class Variant:
    """One way of training a case: ``kind`` is ``ungated``, ``no decay``, ``gated`` or ``naive``."""

    kind: str
    depth: int | None = None

    @property
    def name(self) -> str:
        return self.kind if self.depth is None else f"{self.kind} D={self.depth}"


def variants(case: Case) -> list[Variant]:
    plain = [Variant("ungated")] + ([Variant("no decay")] if case.no_decay_baseline else [])
    return plain + [Variant(kind, depth) for kind in ("gated", "naive") for depth in DEPTHS]


class Training:
    """A model, its optimizer and one batch, ready to step."""

    def __init__(self, case: Case, variant: Variant, compiled: bool = False) -> None:
        torch.manual_seed(0)  # the same weights and batch for every variant
        self.model = case.model()
        self.x, self.y = case.batch(case.size)
        self.optimizer = case.optimizer(self._gate(case, variant))
        self.forward = torch.compile(self.model) if compiled else self.model

    def _gate(self, case: Case, variant: Variant) -> list[dict[str, Any]]:
        if variant.depth is None:
            decay = WEIGHT_DECAY if variant.kind == "ungated" else 0.0
            return [{"params": list(self.model.parameters()), "weight_decay": decay}]
        groups = case.groups(self.model)
        if variant.kind == "naive":
            return gate_naively(self.model, groups, variant.depth)
        dg.gate_(self.model, groups, depth=variant.depth)
        return dg.param_groups(self.model, LAM, weight_decay=WEIGHT_DECAY)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.forward(self.x), self.y)

    def step(self) -> None:
        """The step of every training loop."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


# --- time -----------------------------------------------------------------------------------------------------------


def turn(step: Step, burst: int) -> float:
    """Seconds of a step: the median of ``burst`` steps in a row.

    Training runs one model all the time. The first step of a turn brings the model back into the caches, so it is left
    out when the burst has others.
    """
    times = []
    for _ in range(burst):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)


def page_faults() -> int:
    """Pages that the system has handed to this process without reading a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@dataclass
class Measured:
    """Seconds of a step per repetition, and page faults a step."""

    seconds: list[float]
    faults: float = 0.0


def measure(steps: dict[str, Step], repetitions: int, burst: int, warm_up: int = 5) -> dict[str, Measured]:
    """All variants take turns in every repetition, and the order swaps each time.

    Page faults are counted because they explain most of what differs between two runs on one machine: glibc gives a
    large block back to the system when it lies on top of the heap, and the next step pays to get it again.
    """
    for step in steps.values():
        for _ in range(warm_up):
            step()
    out = {name: Measured([]) for name in steps}
    order = list(steps)
    for _ in range(repetitions):
        for name in order:
            before = page_faults()
            out[name].seconds.append(turn(steps[name], burst))
            out[name].faults += (page_faults() - before) / (burst * repetitions)
        order.reverse()
    return out


def compare(times: list[float], baseline: list[float]) -> dict[str, Any]:
    """The ratio of the medians, and the quartiles of the ratios within one repetition (they see the same machine)."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(times, baseline, strict=True)], n=4)
    return {
        "ratio_of_medians": round(statistics.median(times) / statistics.median(baseline), 4),
        "median_of_ratios": round(middle, 4),
        "quartiles_of_ratios": [round(low, 4), round(high, 4)],
    }


def summary(measured: dict[str, Measured]) -> dict[str, Any]:
    """Median milliseconds of every variant, and its comparisons with the ungated ones."""
    out: dict[str, Any] = {}
    for name, own in measured.items():
        median = statistics.median(own.seconds) * 1e3
        out[name] = {"median_ms": round(median, 4), "page_faults_per_step": round(own.faults, 1)}
        for baseline in ("ungated", "no decay"):
            if baseline in measured and name not in ("ungated", "no decay"):
                out[name][f"against {baseline}"] = compare(own.seconds, measured[baseline].seconds)
    return out


# --- memory ---------------------------------------------------------------------------------------------------------

MEMORY_METHOD = (
    "peak: parameters + optimizer state + the largest sum of live allocations during one step that starts without "
    "gradients, from the allocation events of torch.profiler (temporaries of the backward pass included, the baseline "
    "being free of gradients). saved_for_backward: storages that autograd keeps after the forward pass and that are "
    "neither parameters nor the batch. Counted, not sampled: repeated runs agree to a few per cent or better"
)


def storage_bytes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Size of each distinct storage, by address."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def saved_bytes(training: Training) -> int:
    """What autograd holds between forward and backward, each storage once, without what is there anyway."""
    saved: list[Tensor] = []  # held until counted, so that no address is used twice

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = training.loss()
    kept = storage_bytes(saved)
    del loss
    lasting = storage_bytes([*training.model.parameters(), *training.model.buffers(), training.x, training.y])
    return sum(n for address, n in kept.items() if address not in lasting)


def memory(training: Training) -> dict[str, int]:
    """What a step holds in memory, see ``MEMORY_METHOD``."""
    for _ in range(2):  # optimizer state exists from here on, and whatever the first steps cache
        training.step()
    parameters = list(training.model.parameters())
    state = [v for s in training.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    out = {
        "parameters": sum(p.nbytes for p in parameters),
        "optimizer_state": sum(t.nbytes for t in state),
        "saved_for_backward": saved_bytes(training),
    }
    peak = peak_bytes(training.step, before=training.optimizer.zero_grad)
    return {**out, "peak": out["parameters"] + out["optimizer_state"] + peak}


# --- floor ----------------------------------------------------------------------------------------------------------


def triad_bandwidth(numel: int, repetitions: int = 50) -> float:
    """Bytes a second of ``a = b + 2 c`` on tensors of this size: what a pass over this weight costs here and now.

    The size matters: a weight that stays in the caches moves several times faster than one that does not.
    """
    a, b, c = (torch.ones(numel) for _ in range(3))
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        torch.add(b, c, alpha=2.0, out=a)
        times.append(time.perf_counter() - start)
    return 3 * a.nbytes / statistics.median(times)


FLOOR_PASSES = {
    # forward: read omega, write W.  backward: read dW, write domega; then the gates' gradient from dW * omega
    "eager": 2 + 2 + 3 + 1,  # the product is a tensor of its own: two reads and a write, then read to be summed
    "fused": 2 + 3,  # one backward kernel: read dW and omega, write domega, sum on the way
    "decay": 3,  # gradient + decay * omega; the ungated model pays the same unless it has no decay
}


def floor(case: Case) -> dict[str, Any]:
    """Passes over the gated weights, and the time they take at the bandwidth of this machine at these sizes."""
    model = case.model()
    members = [m for g in case.groups(model) for p in g.parts for m in p.members]
    sizes = [int(m.partition.sizes.sum()) for m in members]
    bandwidth = {n: triad_bandwidth(n) for n in sorted(set(sizes))}
    one_pass = sum(4 * n / bandwidth[n] for n in sizes)
    return {
        "gated_weights": sum(sizes),
        "triad_gb_per_s": {str(n): round(b / 1e9, 2) for n, b in bandwidth.items()},
        "passes": FLOOR_PASSES,
        "bytes": {name: 4 * sum(sizes) * n for name, n in FLOOR_PASSES.items()},
        "ms": {name: round(one_pass * n * 1e3, 4) for name, n in FLOOR_PASSES.items()},
    }


# --- runs -----------------------------------------------------------------------------------------------------------


def run_eager(case: Case, repetitions: int) -> dict[str, Any]:
    trainings = {v.name: Training(case, v) for v in variants(case)}
    check_same_function(trainings)
    held = {name: memory(t) for name, t in trainings.items()}
    times = measure({name: t.step for name, t in trainings.items()}, repetitions, case.burst)
    out = summary(times)
    for name, sizes in held.items():
        out[name]["memory_bytes"] = sizes
        out[name]["memory_ratio"] = round(sizes["peak"] / held["ungated"]["peak"], 4)
    least = floor(case)
    base = out["ungated"]["median_ms"]
    least["ratio"] = {n: round(1 + least["ms"][n] / base, 4) for n in ("eager", "fused")}
    return {"case": case.name, "batch": case.size, "mode": "eager", "variants": out, "floor": least}


def check_same_function(trainings: dict[str, Training]) -> None:
    """Before the first step every variant computes the same loss; anything else would be a comparison of two models."""
    with torch.no_grad():
        losses = {name: t.loss().item() for name, t in trainings.items()}
    first = next(iter(losses.values()))
    wrong = {name: loss for name, loss in losses.items() if not math.isclose(loss, first, rel_tol=1e-5)}
    if wrong:
        raise RuntimeError(f"variants differ before training: expected a loss of {first}, received {wrong}.")


def run_compiled(
    case: Case, repetitions: int, kinds: Iterable[str] = ("ungated", "no decay", "gated", "naive")
) -> dict[str, Any]:
    """The same with ``torch.compile``; a machine without a compiler gets a reason instead of numbers."""
    result = {"case": case.name, "batch": case.size, "mode": "torch.compile"}
    chosen = [v for v in variants(case) if v.depth in (None, COMPILED_DEPTH) and v.kind in kinds]
    torch._dynamo.reset()
    try:
        trainings = {v.name: Training(case, v, compiled=True) for v in chosen}
        for t in trainings.values():
            t.step()
    except Exception as error:
        return {**result, "skipped": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    times = measure({name: t.step for name, t in trainings.items()}, repetitions, case.burst)
    return {**result, "variants": summary(times)}


def table(results: list[dict[str, Any]]) -> str:
    """Median of the paired ratios, one line a case; behind each, in brackets, the naive gating."""
    head = ["case", "batch", "mode", "ungated ms", *(f"D={d} (naive)" for d in DEPTHS)]
    head += [f"D={COMPILED_DEPTH} quartiles", f"D={COMPILED_DEPTH} no decay", "floor", f"D={COMPILED_DEPTH} memory"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in results:
        cells = [r["case"], str(r["batch"]), r["mode"]]
        cells += [f"skipped: {r['skipped']}"] if "skipped" in r else table_cells(r)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_cells(r: dict[str, Any]) -> list[str]:
    found = r["variants"]

    def ratio(kind: str, depth: int, baseline: str = "ungated") -> str:
        seen = found.get(f"{kind} D={depth}", {}).get(f"against {baseline}")
        return "–" if seen is None else f"{seen['median_of_ratios']:.2f}"

    middle = found[f"gated D={COMPILED_DEPTH}"]
    low, high = middle["against ungated"]["quartiles_of_ratios"]
    cells = [f"{found['ungated']['median_ms']:.2f}"]
    cells += [f"{ratio('gated', d)} ({ratio('naive', d)})" for d in DEPTHS]
    cells += [f"{low:.2f}–{high:.2f}", ratio("gated", COMPILED_DEPTH, "no decay")]
    cells += [f"{r['floor']['ratio']['eager']:.2f}" if "floor" in r else "–"]
    return [*cells, f"{middle['memory_ratio']:.2f}" if "memory_ratio" in middle else "–"]


def rounds(case: Case, quick: bool) -> int:
    return max(4, case.repetitions // 10) if quick else case.repetitions


def run(quick: bool, compiled: bool) -> dict[str, Any]:
    results = []
    for case in cases():
        if quick and not case.quick:
            continue
        results.append(run_eager(case, rounds(case, quick)))
    for case in (c for c in cases() if compiled and c.compiled):
        if not quick:
            results.append(run_compiled(case, rounds(case, quick)))
        elif case.model is lenet and case.size == 32:  # one small compilation shows that it works, all take minutes
            results.append(run_compiled(case, rounds(case, quick), kinds=("ungated", "gated")))
    return {
        "environment": environment(),
        "settings": {
            "quick": quick, "lam": LAM, "weight_decay": WEIGHT_DECAY, "depths": DEPTHS,
            "optimizer": "SGD, momentum 0.9 (GPT: Adam)", "memory": MEMORY_METHOD,
        },
        "results": results,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions; nothing is stored")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--threads", type=int, default=THREADS, help="one is steadier on a machine with other work")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        print("warning: this machine has other work to do, the ratios will be noise", file=sys.stderr)
    start = time.perf_counter()
    result = run(args.quick, not args.no_compile)
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(table(result["results"]))
    if not args.quick:
        store("gating_overhead", result)


if __name__ == "__main__":
    main()
