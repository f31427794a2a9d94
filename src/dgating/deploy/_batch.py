"""Example inputs with a free batch axis, and the graph that is exported on them."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dgating.deploy._formats import gist
from dgating.structure import Args, Kwargs, tensors_of


@dataclass(frozen=True)
class Inputs:
    """Example inputs, flat, their batch size, and which of them have a batch axis that is to be free."""

    leaves: list[Any]
    spec: Any
    batch: int
    batched: list[bool]

    @classmethod
    def of(cls, args: Args, kwargs: Kwargs, dynamic: bool) -> Inputs:
        leaves, spec = pytree.tree_flatten((args, kwargs))
        sizes = [x.shape[0] for x in leaves if isinstance(x, Tensor) and x.ndim > 0]
        if dynamic and (not sizes or 0 in sizes):
            raise ValueError(
                "dynamic_batch: expected example tensors with at least one row, received "
                f"{'an empty one' if sizes else 'none'}. Pass dynamic_batch=False for fixed shapes."
            )
        batch = Counter(sizes).most_common(1)[0][0] if sizes else 1  # the first one of equally common ones
        batched = [dynamic and isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == batch for x in leaves]
        return cls(leaves, spec, batch, batched)

    @property
    def dynamic(self) -> bool:
        return any(self.batched)

    @property
    def checked(self) -> list[int]:
        """Batch sizes to compare at, the example's first."""
        return list(dict.fromkeys([self.batch, 1, self.batch + 1])) if self.dynamic else [self.batch]

    def sized(self, n: int) -> tuple[Args, Kwargs]:
        """The inputs with ``n`` rows, those of the example in turn; the example itself where it has as many."""
        leaves = self.leaves
        if n != self.batch:
            rows = (torch.arange(n) + 1) % self.batch
            leaves = [
                x.index_select(0, rows.to(x.device)) if b else x for x, b in zip(leaves, self.batched, strict=True)
            ]
        return pytree.tree_unflatten(leaves, self.spec)


def _with_keywords(model: nn.Module, kwargs: Kwargs) -> nn.Module:
    """The model with every keyword in its signature: torch 2.13 fails on free axes where ``**kwargs`` takes one."""
    known = inspect.signature(model.forward).parameters
    if kwargs.keys() <= known.keys():
        return model
    own = [p for p in known.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    extra = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in kwargs if key not in known]
    forward = partial(model.forward)
    forward.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
    shell = object.__new__(type(model))  # shares every tensor and module, so that names stay and the model, too
    shell.__dict__.update(model.__dict__, forward=forward)
    return shell


def exported(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The graph, without the source paths that torch notes at every node."""
    # sizes 0 and 1 would be taken for constants
    args, kwargs = inputs.sized(max(2, inputs.batch) if inputs.dynamic else inputs.batch)
    model = _with_keywords(model, kwargs)
    shapes = torch.export.ShapesCollection()
    batch = torch.export.Dim("batch")
    for x, b in zip(pytree.tree_leaves((args, kwargs)), inputs.batched, strict=True):
        if b:
            shapes[x] = {0: batch}
    capture = partial(torch.export.export, model, args, kwargs, strict=False)
    try:
        program = capture(dynamic_shapes=shapes.dynamic_shapes(model, args, kwargs) if inputs.dynamic else None)
    except Exception as error:
        if inputs.dynamic and _works(capture):
            raise ValueError(
                f"dynamic_batch: {type(model).__name__} cannot be exported with a free batch axis "
                f"({gist(error)}). Pass dynamic_batch=False for a file of fixed shapes."
            ) from error
        raise RuntimeError(
            f"export: torch.export cannot read {type(model).__name__} ({gist(error)}). Nothing was written."
        ) from error
    for graph in program.graph_module.modules():
        if isinstance(graph, torch.fx.GraphModule):
            for node in graph.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:
        return False
    return True


def outputs_of(model: nn.Module, inputs: Inputs, every: bool) -> dict[int, list[tuple[str, Tensor]]]:
    """The model's outputs at the batch sizes to compare at, or at the example's alone."""
    out = {}
    for n in inputs.checked if every else [inputs.batch]:
        args, kwargs = inputs.sized(n)
        try:
            out[n] = tensors_of(model(*args, **kwargs))
        except Exception as error:
            if n == inputs.batch:
                raise
            raise ValueError(
                f"dynamic_batch: the model runs at batch size {inputs.batch} but not at {n} ({gist(error)}). "
                "Pass dynamic_batch=False for a file of fixed shapes."
            ) from error
        if not out[n]:
            raise ValueError(f"model: expected tensors among the outputs of {type(model).__name__}, found none.")
    return out
