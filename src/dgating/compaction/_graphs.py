"""Graph targets: the exported graph itself with sliced weights and the sizes that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from dgating.compaction._compact_graph import CompactGraph
from dgating.compaction._plan import CompactionPlan, make_plan
from dgating.compaction._traced import Traced
from dgating.structure import Args, CompactionError, Engine, Slice, Solution, analyse, apply, changes, cut, solve


def graph_copy(
    model: nn.Module, args: Args, kwargs: Mapping[str, Any], fold_constants: bool, dynamic: bool, training: bool
) -> tuple[CompactionPlan, GraphModule]:
    """The whole model as a compact graph, with free sizes of its inputs if ``dynamic``."""
    how = analyse_dynamic if dynamic else analyse
    engine = how(model, args, kwargs, training=training)
    solution = solve(engine, fold_constants, create_bias=False)
    plan = make_plan(model, engine, solution)
    return plan, graph_from_plan(model, engine, solution, plan)


def graph_from_plan(model: nn.Module, engine: Engine, solution: Solution, plan: CompactionPlan) -> GraphModule:
    """Slice the weights of an analysed model and rewrite its graph."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    tensors: dict[int, Tensor] = {}
    for name, old in named.items():
        first = next((n for n in plan.slices if named.get(n) is old), name)
        if id(old) not in tensors:
            new = cut(old, plan.slices.get(first, []))
            if first in plan.folded:
                new += plan.folded[first].to(new)
            tensors[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    edit(engine, solution)
    return module_of_graph(engine.captured.program, {name: tensors[id(old)] for name, old in named.items()})


def analyse_dynamic(model: nn.Module, args: Args, kwargs: Mapping[str, Any], training: bool = False) -> Engine:
    """Analyse with free sizes of the inputs where the model allows it, else with those of the example."""
    shapes = ShapesCollection()
    for x in pytree.tree_leaves((args, dict(kwargs))):
        if isinstance(x, Tensor):
            last = x.ndim if x.ndim <= 3 else 1  # batch and sequence; the sides of an image stay what they are
            shapes[x] = {i: Dim.AUTO for i, n in enumerate(x.shape[:last]) if n > 1}
    try:
        free = shapes.dynamic_shapes(model, args, dict(kwargs))
        return analyse(model, args, kwargs, free, training=training)
    except (CompactionError, ValueError, TypeError):  # ShapesCollection raises the latter two
        return analyse(model, args, kwargs, training=training)


def edit(engine: Engine, solution: Solution) -> None:
    """Write the new sizes into the exported graph."""
    for node in list(engine.captured.program.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            node.graph.erase_node(node)  # it would tie the graph to the dtype that it was traced in
    for c in changes(engine, solution):
        node = c.node
        if c.op is not None and c.op.startswith("select:"):
            _write_list(node, int(c.op.removeprefix("select:")), c.new)
            continue
        if c.op is not None:
            axis = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
            node.target = getattr(torch.ops.aten, c.op).default
            node.args, node.kwargs = (*node.args[:1], c.new, axis), {}
            continue
        schema = node.target._schema  # type: ignore[union-attr]
        position = next(i for i, a in enumerate(schema.arguments) if a.name == c.argument)
        if position < len(node.args):
            node.args = (*node.args[:position], c.new, *node.args[position + 1 :])
        else:
            node.kwargs = {**node.kwargs, c.argument: c.new}


def _write_list(node: Node, axis: int, order: list[int]) -> None:
    """``x[..., [i, j], :]`` with other positions: the rows one by one, side by side."""
    with node.graph.inserting_before(node):
        rows = [node.graph.call_function(torch.ops.aten.slice.Tensor, (node.args[0], axis, i, i + 1)) for i in order]
    node.target, node.args, node.kwargs = torch.ops.aten.cat.default, (rows, axis), {}


def module_of_graph(program: ExportedProgram, tensors: Mapping[str, Tensor]) -> GraphModule:
    """An ordinary module that runs the graph with these tensors."""
    for name in list(program.state_dict):
        if name in tensors:
            program.state_dict[name] = tensors[name]
    for name in list(program.constants):
        if name in tensors:
            program.constants[name] = tensors[name]
    unlifted = program.module(check_guards=False)  # its guards name dtypes and sizes that compaction changes
    graph = CompactGraph(unlifted, unlifted.graph)  # without the export's refusal of train() and eval()
    graph.register_forward_pre_hook(Traced.of(program), with_kwargs=True)
    return graph


def rewritten_module(
    model: nn.Module,
    small: nn.Module,
    path: str,
    slices: Mapping[str, list[Slice]],
    args: Args,
    kwargs: Mapping[str, Any],
    dynamic: bool,
) -> None:
    """Replace one module of the compact model by its own rewritten graph, with free sizes if ``dynamic``."""
    if not path:
        raise CompactionError(
            f"the forward of {type(model).__name__} uses sizes that no attribute holds. Use target='graph'."
        )
    full = model.get_submodule(path)
    engine = (analyse_dynamic if dynamic else analyse)(full, args, kwargs)
    solution = imposed(engine, {n[len(path) + 1 :]: s for n, s in slices.items() if n.startswith(f"{path}.")})
    if solution is None:
        raise CompactionError(
            f"the forward of {path!r} ({type(full).__name__}) uses sizes that no attribute holds, and what leaves "
            "crosses its border. Use target='graph', or dg.register_module_rule for its type."
        )
    edit(engine, solution)
    mine = small.get_submodule(path)
    tensors = dict(mine.named_parameters(remove_duplicate=False)) | dict(mine.named_buffers(remove_duplicate=False))
    graph = module_of_graph(engine.captured.program, tensors)
    owner, _, name = path.rpartition(".")
    setattr(small.get_submodule(owner), name, graph)


def imposed(engine: Engine, slices: Mapping[str, list[Slice]]) -> Solution | None:
    """The solution in which these slices leave; ``None`` where the graph says that they cannot."""
    dead = np.zeros(len(engine.labels), dtype=bool)
    for info in engine.by_tensor.values():
        mine = slices.get(info.weight.name, []) if info.weight else []
        if not mine:
            continue
        for f in info.factors:
            used = {s.axis for s in mine} | {s.row for s in mine if s.row is not None} | set(f.axes)
            shape = [n if a in used else 1 for a, n in enumerate(info.shape)]
            ids = torch.from_numpy(np.broadcast_to(f.ids[0], shape).copy())
            left = np.unique(apply(ids, mine).numpy())
            gone = np.setdiff1d(np.unique(f.ids), left)
            if engine.labels.fixed(gone).any():
                return None
            dead[engine.labels.find(gone)] = True
    return Solution(engine, dead[engine.labels.find(np.arange(len(dead)))], {})
