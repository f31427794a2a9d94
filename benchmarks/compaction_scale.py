"""Time and memory of ``compact`` against the size of the model.

``python -m benchmarks.compaction_scale [--quick]``. GPT-2 of width 64 with 2 to 24 layers: seconds against the nodes of
the exported graph, with the slope in log-log coordinates. Then GPT-2 as it is published (124 million parameters,
random weights): seconds, and the peak of resident memory relative to the bytes of the model. A quarter of the neurons
and heads of every layer is zero. Every measurement has a process and one thread of its own; times are processor
seconds, so that a busy machine shows in ``seconds_wall`` only.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import pstats
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import dgating as dg
from benchmarks._common import environment, store
from benchmarks.coverage import Clock, gap
from benchmarks.scale import reset_peak, slope, status_bytes
from benchmarks.zoo import _hf
from benchmarks.zoo._check import run
from benchmarks.zoo._randomise import randomise_
from benchmarks.zoo._zero import Marks, Task

SHARE, LENGTH = 0.25, 16
LAYERS, ROUNDS = (2, 4, 8, 12, 24), 2
TARGETS = {"slope": 1.2, "seconds": 30.0, "memory": 2.5}


def gpt2(layers: int | None) -> nn.Module:
    """Width 64 and so many layers; ``None``: the published sizes."""
    import transformers as hf

    small = {"n_embd": 64, "n_head": 4, "n_positions": 32, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
    config = hf.GPT2Config(use_cache=False, **({} if layers is None else {**small, "n_layer": layers}))
    return hf.GPT2LMHeadModel(config).eval()


def zero_(model: nn.Module) -> tuple[int, int]:
    """Zero neurons and heads; how many parameters were zeroed and are gone."""
    heads, width = model.config.n_head, model.config.n_embd // model.config.n_head
    zero = gone = 0
    for find in (
        lambda m: _hf.mlps(m, "c_fc c_proj"),
        lambda m: _hf.fused_attention(m, width, heads, "c_attn c_proj"),
    ):
        marks: Marks = Task(find).apply(model, torch.Generator().manual_seed(0), SHARE)[0]
        zero, gone = zero + sum(int(m.sum()) for m in marks.zero.values()), gone + marks.params()
    return zero, gone


def one(layers: int | None, verify: bool, target: str, rounds: int) -> dict[str, Any]:
    """Build, zero and compact, in a process that has imported everything; the best of some rounds."""
    tokens = {"input_ids": torch.randint(5, 99, (2, LENGTH), generator=torch.Generator().manual_seed(1))}
    with contextlib.suppress(dg.CompactionError):  # the first call imports much; that memory is no part of the model's
        dg.compact(randomise_(gpt2(1), seed=0), tokens, target=target, verify=verify)  # type: ignore[arg-type]
    base = status_bytes("VmRSS") or 0
    model = randomise_(gpt2(layers), seed=0)
    _, gone = zero_(model)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    row: dict[str, Any] = {"layers": layers or 12, "parameters": size // 4, "bytes": size, "verify": verify}
    row |= {"target": target, "rss_of_model": round(((status_bytes("VmRSS") or 0) - base) / size, 2)}
    row["peak_of_building"] = round((peak() - base) / size, 2)
    can_reset = reset_peak()
    times = []
    for _ in range(rounds):
        with Clock() as export:
            wall, start = time.perf_counter(), time.process_time()
            small = dg.compact(model, tokens, target=target, verify=verify)  # type: ignore[arg-type]
            times.append((time.process_time() - start, export.seconds, time.perf_counter() - wall))
    row |= dict(zip(("seconds", "seconds_of_export", "seconds_wall"), (round(t, 3) for t in min(times)), strict=True))
    row["ru_maxrss"] = round((peak() - base) / size, 2)
    row["peak_of_compact"] = round(((status_bytes("VmHWM") or 0) - base) / size, 2) if can_reset else None
    left = sum(p.numel() for p in small.parameters())
    row |= {"gone": size // 4 - left, "expected": gone}
    named = {**tokens, "use_cache": False}
    row["gap"] = gap(run(model, named), run(small, named))
    program = torch.export.export(model, (), named, strict=False)
    row["nodes"] = sum(node.op == "call_function" for node in program.graph.nodes)
    return row


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_process(layers: int | None, verify: bool, target: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.compaction_scale", "--one", f"{layers or 0}"]
    command += ["--rounds", str(rounds), "--target", target, *(["--verify"] if verify else [])]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"layers": layers or 12, "verify": verify, "target": target, "error": last}
    return json.loads(done.stdout.splitlines()[-1])


def text(row: dict[str, Any]) -> str:
    head = f"{row['layers']:3} layers  {row['target']:6}  verify {row['verify']!s:5}"
    if "error" in row:
        return f"{head}  {row['error']}"
    export, gone = f"{row['seconds_of_export']:.2f}", f"{row['gone']:,} of {row['expected']:,}"
    memory = f"peak {row['ru_maxrss']} of the model (building it {row['peak_of_building']})"
    size = f"{row['parameters']:11,} parameters {row['nodes']:5} nodes"
    return f"{head}  {size}  {row['seconds']:6.2f} s (export {export})  gone {gone}  gap {row['gap']:.0e}  {memory}"


def summary(small: list[dict[str, Any]], large: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for target in ("module", "graph"):
        for verify in (True, False):
            mine = [r for r in small if (r["target"], r["verify"]) == (target, verify) and "error" not in r]
            if len(mine) > 1:
                nodes = [r["nodes"] for r in mine]
                fits = {
                    "all": [r["seconds"] for r in mine],
                    "export": [r["seconds_of_export"] for r in mine],
                    "rest": [r["seconds"] - r["seconds_of_export"] for r in mine],
                }
                out[f"slope, {target}, verify {verify}"] = {
                    k: {"all sizes": slope(nodes, v), "largest two": slope(nodes[-2:], v[-2:])} for k, v in fits.items()
                }
    good = [r for r in large if "error" not in r]
    return out | {
        "seconds of the large model": max((r["seconds"] for r in good), default=None),
        "peak memory over model, ru_maxrss": max((r["ru_maxrss"] for r in good), default=None),
        "failed": len(small) + len(large) - len(good) - sum("error" not in r for r in small),
    }


def profiled(call: Callable[[], Any]) -> None:
    with cProfile.Profile() as profile:
        call()
    pstats.Stats(profile).sort_stats("cumulative").print_stats(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the large model; nothing is stored")
    parser.add_argument("--profile", type=int, metavar="LAYERS", help="profile one compaction (0: the large model)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--verify", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--target", default="module", choices=("module", "graph"))
    parser.add_argument("--rounds", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.profile is not None:
        profiled(lambda: one(arguments.profile or None, arguments.verify, arguments.target, 1))
        return
    if arguments.one is not None:
        print(json.dumps(one(arguments.one or None, arguments.verify, arguments.target, arguments.rounds)))
        return
    small, large = [], []
    for target in ("module", "graph"):
        for verify in (True, False):
            for layers in LAYERS[:3] if arguments.quick else LAYERS:
                small.append(in_process(layers, verify, target, ROUNDS))
                print(text(small[-1]), flush=True)
            if not arguments.quick:
                large.append(in_process(None, verify, target, 1))
                print(text(large[-1]), flush=True)
    result = {"environment": environment(), "targets": TARGETS, "summary": summary(small, large)}
    print(json.dumps(result["summary"], indent=1))
    if not arguments.quick:
        print(store("compaction_scale", result | {"layers": small, "large": large}))


if __name__ == "__main__":
    main()
