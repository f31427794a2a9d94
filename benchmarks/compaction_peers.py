"""dgating and torch-pruning, side by side: who removes zeroed units exactly?

``python -m benchmarks.compaction_peers [family ...] [--tool dgating|torch-pruning] [--timeout 60]``. Both get the same
model of the zoo with the same 30 % of units zeroed. torch-pruning decides nothing itself: it is told which units, so
this compares only whether what is zero can be taken out and the result still computes the same. Left out are tasks that
no slicing can do, and those where constants have to be folded into biases, which torch-pruning does not claim to do.

*Exact* means for both: parameters are gone, the model runs on the example, on other values and on a larger batch, and
no output differs by more than 1e-5 from the zeroed model's. *Wrong* means that it runs, without an error, and differs.

dgating has one attempt, ``dg.compact(model, inputs)``, and no help. torch-pruning has several. The first exact one
counts, or else one that is wrong, or else one that raised:

* the root of a group is the first zeroed producing layer (with all of the unit's rows, so those of a fused query-key-
  value projection are listed for it, and all groups of a grouped convolution), or else the layer that reads the unit,
  or, for heads, its ``num_heads`` mechanism with an importance that ranks just the zeroed heads lowest;
* traced with eager attention on one short text, with the default attention, or with eager attention on the whole input;
* with a pruner of ours for ``Conv1D``, ``unwrapped_parameters`` with the right dimension for parameters outside of
  layers, those that belong to heads (tables of position biases, sinks) ignored, and cut by hand afterwards;
* attributes of the attention modules (number of heads, widths) are set by hand afterwards, as its README asks, with and
  without those that hold a width.

Each case has a process of its own that is ended after a minute, and each attempt a third of that: with two query heads
for each key-value head the recommended recipe does not return. Times are processor seconds of the attempt that counts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import json
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dgating as dg
from benchmarks._common import RESULTS, environment, store
from benchmarks.coverage import SHARE, compare, first_line, is_text, parameters
from benchmarks.zoo import FAMILIES
from benchmarks.zoo._check import call
from benchmarks.zoo._family import Family, Inputs
from benchmarks.zoo._zero import Axis, Marks, Task, Units, _out_dim

LIMIT = 1e-5
TOOLS = ("dgating", "torch-pruning")
HEAD_TASKS = ("heads", "query_heads")
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_attn_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
WIDTHS = ("all_head_size", "inner_dim", "split_size", "embed_dim", "hidden_size", "attn_dim", "n_embd", "d_model")


class Conv1dPruner(tp.BasePruningFunc):
    """For the ``Conv1D`` of transformers, whose weight is (inputs, outputs)."""

    def prune_out_channels(self, layer: Any, idxs: Any) -> nn.Module:
        keep = sorted(set(range(layer.nf)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, keep, 1)
        layer.bias = self._prune_parameter_and_grad(layer.bias, keep, 0)
        layer.nf = layer.out_features = len(keep)
        return layer

    def prune_in_channels(self, layer: Any, idxs: Any) -> nn.Module:
        keep = sorted(set(range(layer.nx)) - set(idxs))
        layer.weight = self._prune_parameter_and_grad(layer.weight, keep, 0)
        layer.nx = len(keep)
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return layer.nf

    def get_in_channels(self, layer: Any) -> int:
        return layer.nx


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, LAYERS) or type(module).__name__ == "Conv1D"


class Job:
    """A model with units zeroed, and where the units are: for each kind its own masks."""

    def __init__(self, family: Family, name: str, eager: bool) -> None:
        self.model, self.inputs = family.build(), family.inputs()
        if eager and hasattr(self.model, "set_attn_implementation"):
            self.model.set_attn_implementation("eager")  # type: ignore[operator]
        self.is_head = name in HEAD_TASKS
        generator = torch.Generator().manual_seed(0)
        found = list(family.tasks[name].find(self.model))
        self.units = [(u, Task(lambda _, u=u: [u]).apply(self.model, generator, SHARE)[0]) for u in found]
        self.owner = {p: (m, n) for m in self.model.modules() for n, p in m.named_parameters(recurse=False)}
        self.expected = Marks(gone=self.together()).params()

    def together(self) -> dict[nn.Parameter, Tensor]:
        gone: dict[nn.Parameter, Tensor] = {}
        for _, marks in self.units:
            for p, mask in marks.gone.items():
                gone[p] = gone[p] | mask if p in gone else mask
        return gone

    def bare(self) -> dict[nn.Parameter, int]:
        """Parameters outside of layers and norms with the dimension of the units."""
        axes = [axis for u, _ in self.units for axis in [*u.ways[0], *u.gone]]
        kinds = (*LAYERS, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.MultiheadAttention)
        outside = [a for a in axes if not isinstance(m := self.owner[a.param][0], kinds) and not is_layer(m)]
        return {a.param: a.dim for a in outside}


def units_of(axis: Axis, marks: Marks) -> list[int]:
    """The indices along this axis of a parameter that are gone as a whole."""
    mask = marks.gone[axis.param]
    others = [d for d in range(mask.dim()) if d != axis.dim]
    return (mask.all(dim=others) if others else mask).nonzero().flatten().tolist()


# --- torch-pruning --------------------------------------------------------------------------------------------------


def options(job: Job) -> dict[str, Any]:
    """The help that both its dependency graph and its pruner take."""
    kinds = {type(m) for m in job.model.modules() if type(m).__name__ == "Conv1D"}
    for m in job.model.modules():
        if type(m) in kinds:
            m.out_features = m.nf  # its head counting reads this
    bare = job.bare()
    return {
        "customized_pruners": {kind: Conv1dPruner() for kind in kinds} or None,
        "unwrapped_parameters": [] if job.is_head else list(bare.items()),
        "output_transform": lambda out: [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor)],
        "forward_fn": call,
    }


def by_group(job: Job, trace: Inputs, side: str) -> None:
    """``get_pruning_group`` from the layers that make the units, or from those that read them."""
    ignored = list(job.bare()) if job.is_head else []
    tables = [m for m in (job.owner[p][0] for p in ignored) if isinstance(m, nn.Embedding)]
    graph = tp.DependencyGraph().build_dependency(
        job.model, example_inputs=trace, ignored_params=ignored, ignored_layers=tables, verbose=False, **options(job)
    )
    for units, marks in job.units:
        starts = [(m, out, graph.get_pruner_of_module(m), index) for m, out, index in roots(job, units, marks, side)]
        before = [channels(*start[:3]) for start in starts]
        for (module, out, pruner, index), size in zip(starts, before, strict=True):
            if channels(module, out, pruner) < size:
                continue  # it went with the group of another one
            prune = pruner.prune_out_channels if out else pruner.prune_in_channels
            group = graph.get_pruning_group(module, prune, index)
            if not graph.check_pruning_group(group):
                raise RuntimeError("check_pruning_group returned False (over-pruning)")
            group.prune()


def channels(module: Any, out: bool, pruner: Any) -> int:
    return pruner.get_out_channels(module) if out else pruner.get_in_channels(module)


def roots(job: Job, units: Units, marks: Marks, side: str) -> list[tuple[Any, bool, list[int]]]:
    """The layers or the parameter to start from, whether by the outputs, and which of them."""
    found: dict[Any, tuple[Any, bool, list[int]]] = {}
    for axis in units.ways[0] if side == "producers" else [*units.ways[0], *units.gone]:
        module, name = job.owner[axis.param]
        if is_layer(module) and name == "weight" and (axis.dim == _out_dim(module)) == (side == "producers"):
            found[module] = (module, side == "producers", units_of(axis, marks))
    if not found and side == "producers":
        axis = next((a for a in units.gone if is_producer(job, a)), units.ways[0][0])
        module = job.owner[axis.param][0] if is_producer(job, axis) else axis.param
        found[module] = (module, True, units_of(axis, marks))
    if not found:
        raise RuntimeError("no layer reads these units")
    return list(found.values())


def is_producer(job: Job, axis: Axis) -> bool:
    module, name = job.owner[axis.param]
    return is_layer(module) and name == "weight" and axis.dim == _out_dim(module)


def by_heads(job: Job, trace: Inputs, _: str) -> None:
    """``BasePruner`` with ``num_heads``, told by its importance which heads to remove."""
    heads: dict[nn.Module, int] = {}
    ratios: dict[nn.Module, float] = {}
    scores: dict[nn.Module, Tensor] = {}
    for units, marks in job.units:
        axes = [(a, *job.owner[a.param]) for a in [*units.ways[0], *units.gone]]
        made = [(a, m) for a, m, n in axes if n == "weight" and is_layer(m) and a.dim == _out_dim(m)]
        read = [(a, m) for a, m, n in axes if n == "weight" and is_layer(m) and a.dim != _out_dim(m)]
        width = min(a.block for a, _ in made)
        for parent in job.model.modules():  # the projections beside those that lose heads count theirs, too
            if any(child is m for child in parent.children() for _, m in made):
                for name, child in parent.named_children():
                    if name in ("k_proj", "v_proj"):
                        heads[child] = child.weight.shape[0] // width
        for a, m in made:
            size = a.param.shape[a.dim]
            fused = size > read[0][0].param.shape[read[0][0].dim]
            heads[m] = size // width // (3 if fused else 1)
        for a, m in read:
            gone = units_of(a, marks)
            scores[m] = torch.ones(a.param.shape[a.dim])
            scores[m][gone] = 0.0
            ratios |= {x: len(gone) / a.param.shape[a.dim] for _, x in made}

    def importance(group: Any) -> Tensor | None:
        dep, index = group[0]
        inwards = pruner.DG.is_in_channel_pruning_fn(dep.handler)
        return scores[dep.target.module][index] if inwards and dep.target.module in scores else None

    convs = {type(m) for m in job.model.modules() if type(m).__name__ == "Conv1D"}
    pruner: Any = tp.pruner.BasePruner(
        job.model,
        trace,
        importance=importance,
        pruning_ratio=0.5,
        num_heads=dict(heads),
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=max(ratios.values()) - 1e-6,
        head_pruning_ratio_dict={m: r - 1e-6 for m, r in ratios.items()},
        in_channel_groups={},
        out_channel_groups={},
        ignored_layers=list(job.bare()),
        root_module_types=[*LAYERS, nn.LSTM, *convs],
        **options(job),
    )
    before = parameters(job.model)
    pruner.step()
    if parameters(job.model) == before:
        raise RuntimeError("pruner.step removed nothing")


def finish_by_hand(job: Job, widths: bool) -> None:
    """Cut what is outside of layers, and set the attributes that hold numbers of heads and widths."""
    with torch.no_grad():
        for p, dim in job.bare().items():
            module, name = job.owner[p]
            if getattr(module, name).shape == p.shape:
                gone = units_of(Axis(p, dim), Marks(gone={p: job.together()[p]}))
                keep = [i for i in range(p.shape[dim]) if i not in gone]
                setattr(module, name, nn.Parameter(p.index_select(dim, torch.tensor(keep))))
    for units, _ in job.units if job.is_head else ():
        axes = [(a, *job.owner[a.param]) for a in [*units.ways[0], *units.gone]]
        layers = [(a, m) for a, m, n in axes if n == "weight" and is_layer(m)]
        read = [(a.param.shape[a.dim], m.weight.shape[a.dim]) for a, m in layers if a.dim != _out_dim(m)]
        made = [(a.param.shape[a.dim], m.weight.shape[a.dim]) for a, m in layers if a.dim == _out_dim(m)]
        old, new = read[0]
        pairs = [((x - old) // 2, (y - new) // 2) if x > old else (x, y) for x, y in made]  # fused, or separate
        key_old, key_new = min(pairs) if len(made) > 1 or made[0][0] > old else (1, 1)  # query heads alone
        inside = {id(m) for _, m in layers}
        for module in job.model.modules():
            if any(id(x) in inside for x in module.modules()) and not is_layer(module) and small_enough(module):
                set_numbers(module, (old, new), (key_old, key_new), widths)


def small_enough(module: nn.Module) -> bool:
    """Whether it is an attention module (or its inner part), not a block, a stack or the model."""
    return sum(is_layer(m) for m in module.modules()) <= 6 and not isinstance(module, nn.ModuleList)


def set_numbers(module: nn.Module, query: tuple[int, int], key: tuple[int, int], widths: bool) -> None:
    """Attributes of one module, and those of a copy of its configuration."""
    done = getattr(module, "_set_by_hand", False)
    if done:
        return
    module._set_by_hand = True  # type: ignore[assignment]
    for holder in own_holders(module):
        for name in HEADS:
            if isinstance(n := vars(holder).get(name), int):
                setattr(holder, name, n * query[1] // query[0])
        for name in KEY_VALUE_HEADS:
            if isinstance(n := vars(holder).get(name), int):
                setattr(holder, name, n * key[1] // key[0])
        if isinstance(n := vars(holder).get("num_key_value_groups"), int):
            holder.num_key_value_groups = n * query[1] * key[0] // (query[0] * key[1])
        for name in WIDTHS:
            if widths and vars(holder).get(name) == query[0] and holder is module:
                setattr(holder, name, query[1])


def own_holders(module: nn.Module) -> Iterator[Any]:
    yield module
    if (config := getattr(module, "config", None)) is not None:
        module.config = copy.copy(config)
        yield module.config


ROUTES: dict[str, tuple[Callable[[Job, Inputs, str], None], str]] = {
    "producers": (by_group, "producers"),
    "consumers": (by_group, "consumers"),
    "num_heads": (by_heads, ""),
}


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """``TimeoutError`` in this process when the time is over."""

    def over(*_: object) -> None:
        raise TimeoutError(f"no end within {seconds:.0f} s")

    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def prune(family: Family, task: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Every attempt of torch-pruning until one is exact."""
    short = pytree.tree_map(lambda x: x[:1, :5] if is_text(x) else x[:1], family.inputs())
    is_text_model = any(is_text(x) for x in pytree.tree_leaves(family.inputs()))
    traces = {"eager, short": (True, short), "default": (False, None), "eager": (True, None)}
    if not is_text_model and not hasattr(family.build(), "set_attn_implementation"):
        traces = {"default": (False, None)}
    routes = list(ROUTES) if task in HEAD_TASKS else list(ROUTES)[:2]
    for trace, (eager, example) in traces.items():
        for route in routes:
            for widths in (True, False) if task in HEAD_TASKS else (True,):
                job = Job(family, task, eager)
                zeroed = copy.deepcopy(job.model)
                start = time.process_time()
                row: dict[str, Any] = {"attempt": f"{route}, {trace}", "expected": job.expected}
                try:
                    function, side = ROUTES[route]
                    with at_most(seconds):
                        function(job, job.inputs if example is None else example, side)
                    finish_by_hand(job, widths)
                except TimeoutError as error:
                    yield row | {"verdict": "no return", "why": str(error)}
                    break
                except Exception as error:
                    yield row | {"verdict": "raised", "why": first_line(error)[:200]}
                    break
                row |= {"seconds": round(time.process_time() - start, 3)}
                row = judge(row, zeroed, job.model, job.inputs)
                yield row
                if row["verdict"] == "exact":
                    return


# --- both -----------------------------------------------------------------------------------------------------------


def judge(row: dict[str, Any], zeroed: nn.Module, small: nn.Module, inputs: Inputs) -> dict[str, Any]:
    row["gone"] = parameters(zeroed) - parameters(small)
    try:
        found = compare(zeroed, small, inputs, "module")
    except Exception as error:
        return row | {"verdict": "raised", "why": first_line(error)}
    if "raised" in found:
        return row | {"verdict": "raised", "why": "forward, " + found["raised"][:200]}
    row["gap"] = found["worst"] if found["worst"] < float("inf") else "inf"
    if found["worst"] > LIMIT:
        return row | {"verdict": "wrong"}
    return row | {"verdict": "exact" if row["gone"] > 0 else "nothing removed"}


def compact(family: Family, task: str, _: float) -> Iterator[dict[str, Any]]:
    """The one attempt of dgating."""
    job = Job(family, task, eager=False)
    row: dict[str, Any] = {"attempt": "compact", "expected": job.expected}
    start = time.process_time()
    try:
        small = dg.compact(job.model, job.inputs)
    except Exception as error:
        yield row | {"verdict": "raised", "why": first_line(error)[:200]}
        return
    row["seconds"] = round(time.process_time() - start, 3)
    yield judge(row, job.model, small, job.inputs)


def work(tool: str, family: str, task: str, seconds: float, pipe: Connection) -> None:
    """In the process of one case: send every attempt as it ends."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for row in (compact if tool == "dgating" else prune)(FAMILIES[family], task, seconds):
            pipe.send(row)
    pipe.send(None)


def attempts(tool: str, family: str, task: str, timeout: float) -> list[dict[str, Any]]:
    """All attempts of one case; the last says so if the case did not return in time."""
    mine, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=work, args=(tool, family, task, timeout / 3, theirs))
    process.start()
    theirs.close()
    end, rows = time.perf_counter() + timeout, []
    try:
        while mine.poll(max(0.0, end - time.perf_counter())):
            row = mine.recv()
            if row is None:
                return rows
            rows.append(row)
        return [*rows, {"verdict": "no return", "attempt": "the next", "why": f"no end within {timeout:.0f} s"}]
    except EOFError:
        return [*rows, {"verdict": "raised", "attempt": "the next", "why": "the process died"}]
    finally:
        process.kill()
        process.join()


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The attempt that counts: an exact one, else the least wrong one, else one that raised."""
    order = ("exact", "wrong", "nothing removed", "no return", "raised")
    return min(rows, key=lambda r: (order.index(r["verdict"]), r.get("gap") or 0 if r["verdict"] == "wrong" else 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="family", help="default: all; the rows of some replace theirs")
    parser.add_argument("--tool", choices=TOOLS)
    parser.add_argument("--timeout", type=float, default=60.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name in arguments.families or FAMILIES:
        for task, how in FAMILIES[name].tasks.items():
            if not how.exact or how.fold:
                continue
            row: dict[str, Any] = {"family": name, "task": task}
            for tool in [arguments.tool] if arguments.tool else TOOLS:
                tried = attempts(tool, name, task, arguments.timeout)
                row[tool] = best(tried) | {"attempts": tried if tool != "dgating" else len(tried)}
                r = row[tool]
                gone = f"{r.get('gone', '-')} of {r.get('expected', '-')}"
                why = r.get("why", f"{r.get('gap')}")
                print(
                    f"{name:20} {task:12} {tool:14} {r['verdict']:16} {gone:16} {r.get('seconds', 0):6.2f} s "
                    f"{len(tried):2} {r['attempt']:24} {why}",
                    flush=True,
                )
            rows.append(row)
    print(table(rows))
    rows = merged(rows)
    result = {"environment": environment() | {"torch-pruning": version("torch-pruning")}, "summary": summary(rows)}
    print(*(f"{k}: {v}" for k, v in result["summary"].items()), sep="\n")
    print(store("compaction_peers", result | {"limit": LIMIT, "rows": rows}))


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stored rows with these in the place of theirs, in the order of the zoo."""
    stored = RESULTS / "compaction_peers.json"
    old = json.loads(stored.read_text())["rows"] if stored.exists() else []
    by_task = {(r["family"], r["task"]): r for r in old}
    for row in rows:
        by_task[row["family"], row["task"]] = by_task.get((row["family"], row["task"]), {}) | row
    order = list(FAMILIES)
    return sorted((r for r in by_task.values() if r["family"] in order), key=lambda r: order.index(r["family"]))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for tool in TOOLS:
        mine = [(r["task"], r[tool]) for r in rows if tool in r]
        by_task: dict[str, dict[str, int]] = {}
        for task in dict.fromkeys(t for t, _ in mine):
            by_task[task] = dict(collections.Counter(r["verdict"] for t, r in mine if t == task))
        out[tool] = {
            "cases": len(mine),
            "verdicts": dict(collections.Counter(r["verdict"] for _, r in mine)),
            "exact, all of the oracle": sum(r["verdict"] == "exact" and r["gone"] >= r["expected"] for _, r in mine),
            "by task": by_task,
        }
    return out


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| family | task | tool | finished | exact | seconds | parameters gone | of |", "|" + "---|" * 8]
    for row in rows:
        for tool in TOOLS:
            if tool in row:
                r = row[tool]
                finished = "yes" if r["verdict"] in ("exact", "wrong", "nothing removed") else r["verdict"]
                cells = [row["family"], row["task"], tool, finished, "yes" if r["verdict"] == "exact" else "no"]
                cells += [r.get("seconds", ""), r.get("gone", ""), r.get("expected", "")]
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
