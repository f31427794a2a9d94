"""Export a model to a graph of ATen operations whose weights are known by name."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from dgating._checks import check_eager, check_weights
from dgating.gating import evaluating, find_units
from dgating.structure._inplace import without_inplace
from dgating.structure._one_export import EXPORT, silent


class CompactionError(RuntimeError):
    """A model cannot be analysed or compacted, or the compact model is not the same function.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> try:
        ...     dg.compact(dg.gate_(net, dg.features(net)), (torch.randn(3, 4),))
        ... except dg.CompactionError as error:
        ...     print(error)
        expected an ordinary model, received a gated one. Call dg.collapse_(model) first.

    Attributes:
        module: the path of the module to blame, where one is known.
    """

    def __init__(self, message: str, module: str | None = None) -> None:
        super().__init__(message)
        self.module = module


@dataclass(frozen=True)
class Weight:
    """A parameter, buffer or constant that a graph reads."""

    kind: str  # "parameter", "buffer" or "constant"
    name: str  # its first path in the model
    tensor: Tensor


@dataclass(frozen=True)
class Captured:
    """An exported model."""

    program: ExportedProgram
    weights: dict[Node, Weight]
    outputs: tuple[Node, ...]


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    keep: Callable[[Any], bool],
    dynamic_shapes: Any = None,
) -> Captured:
    """Export ``model`` in eval mode; operations without a rule (``keep`` says no) are decomposed where torch can.

    The training flags are put back; nothing else of the model is touched.

    Raises:
        CompactionError: ``torch.export`` cannot read the model with these inputs.
    """
    check_eager(model)
    check_weights(model)
    if find_units(model):
        raise CompactionError("expected an ordinary model, received a gated one. Call dg.collapse_(model) first.")
    with EXPORT, _quiet_eval(model):
        try:
            program = torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=dynamic_shapes)
            without_inplace(program.graph)
            program.graph_module.recompile()
            table = _decompositions(keep)
            if not all(_final(node, table) for node in program.graph.nodes):  # it costs as much as the export itself
                program = program.run_decompositions(table)
            program.graph.eliminate_dead_code()  # attention weights that nobody takes read the heads
        except Exception as error:  # torch.export raises many kinds; all mean that the model cannot be read
            first = str(error).strip().splitlines()
            raise CompactionError(
                f"torch.export cannot read {type(model).__name__} with these inputs "
                f"({type(error).__name__}: {first[0] if first else ''}). Call torch.export.export(model.eval(), args, "
                "kwargs, strict=False) to see the whole message."
            ) from error
    for node in program.graph.nodes:
        if any(_unbacked(v) for v in pytree.tree_leaves(node.meta.get("val"))):
            raise CompactionError(
                f"sizes in {type(model).__name__} depend on its data ({node.target} in {module_of(node)[0] or 'it'}): "
                "such a graph cannot be analysed. Analyse the parts of the model that have fixed shapes."
            )
    weights: dict[Node, Weight] = {}
    named = _first_names(model)
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        node, target = placeholders[spec.arg.name], spec.target
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            assert target is not None
            tensor = _attribute(model, target)
            kind = "parameter" if spec.kind is InputKind.PARAMETER else "buffer"
            weights[node] = Weight(kind, named.get(id(tensor), target), tensor)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            assert target is not None
            weights[node] = Weight("constant", target, program.constants[target])  # type: ignore[arg-type]
    output = next(n for n in program.graph.nodes if n.op == "output")
    flat = [n for n in pytree.tree_leaves(output.args[0]) if isinstance(n, Node)]
    return Captured(program, weights, tuple(flat))


def _unbacked(value: Any) -> bool:
    """Whether a size of a tensor is known only when the data is."""
    if not isinstance(value, Tensor):
        return False
    return any(isinstance(n, torch.SymInt) and n.node.hint is None for n in value.shape)


def _final(node: Node, table: dict[Any, Any]) -> bool:
    """Whether decomposing would leave a node as it is: it writes to nothing and is not taken apart."""
    if node.op != "call_function" or node.target is operator.getitem:
        return node.op in ("placeholder", "output", "call_function")
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target not in table and not node.target._schema.is_mutable
    return getattr(node.target, "__module__", "") in ("_operator", "math", "torch")  # arithmetic of sizes


def _decompositions(keep: Callable[[Any], bool]) -> dict[Any, Any]:
    return {op: how for op, how in _table().items() if not keep(op)}


@functools.cache
def _table() -> dict[Any, Any]:
    return dict(torch.export.default_decompositions().items())


def _attribute(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _first_names(model: nn.Module) -> dict[int, str]:
    """The path under which each tensor was registered first: one name for tied weights."""
    names: dict[int, str] = {}
    for path, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(tensor), path)
    return names


@contextlib.contextmanager
def _quiet_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode without the fused transformer kernel, which hides its projections, and without torch's log."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # regions without gradients would be subgraphs of their own if the others had any
        with evaluating(model), torch.no_grad(), silent():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def module_of(node: Node) -> tuple[str, str]:
    """Path and type of the innermost module that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    return str(path), kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
