"""What single modules get and give in a run of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dgating.compaction._verify import difference, part_of, preserved, run, scale_of, tolerance
from dgating.gating import evaluating
from dgating.structure import Args, tensors_of


class Recorder:
    """Inputs and outputs of some modules of the full model, to compare those of the compact one with."""

    def __init__(
        self, model: nn.Module, small: nn.Module, paths: list[str], args: Args, kwargs: Mapping[str, Any]
    ) -> None:
        self.small, self.paths = small, paths
        self.args, self.kwargs = args, kwargs
        self.inputs, self.outputs = record(model, paths, args, kwargs)
        self.mine: dict[str, tuple[Any, Any]] = {}

    def reached(self, path: str) -> bool:
        """Whether the compact model runs as far as a module; what it gets there is recorded."""
        if path not in self.mine:
            self.mine |= record(self.small, self.paths, self.args, self.kwargs)[0]
        return path in self.mine

    def same(self, path: str) -> bool | None:
        """Whether a module of the compact model does what it did; ``None``: the example does not run it."""
        if path not in self.inputs:
            return None
        given = self.mine.get(path, self.inputs[path])
        alike = _shapes(given) == _shapes(self.inputs[path])
        module = self.small.get_submodule(path)
        try:
            result = run(module, *(self.inputs[path] if alike else given))
        except Exception:  # the forward does not fit its weights: whatever it raises, these sizes are not the ones
            return False
        expected = self.outputs[path]
        if len(result) != len(expected):
            return False
        return all(_alike(x, y) for x, y in zip(expected, result, strict=True))


def _alike(before: tuple[str, Tensor], after: tuple[str, Tensor]) -> bool:
    """The same numbers, or a part of them where an axis has shrunk."""
    x, y = before[1], after[1]
    if x.shape != y.shape:
        return part_of(y, x)
    # A wrong size gives wrong numbers, not rounding; and a forward may round to float32 whatever its inputs are.
    limit = tolerance(torch.float32 if x.dtype == torch.float64 or not x.is_floating_point() else x.dtype)
    return difference([before], [after]) <= limit * scale_of([before])


def record(
    model: nn.Module, paths: list[str], args: Args, kwargs: Mapping[str, Any]
) -> tuple[dict[str, tuple[Any, Any]], dict[str, list[tuple[str, Tensor]]]]:
    """What some modules get and give in one run; a run that fails has recorded what came before."""
    inputs: dict[str, tuple[Any, Any]] = {}
    outputs: dict[str, list[tuple[str, Tensor]]] = {}
    handles = []
    for path in paths:

        def before(_m: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            inputs.setdefault(path, (tuple(args), dict(kwargs)))

        def after(_m: nn.Module, _i: Any, output: Any, path: str = path) -> None:
            outputs.setdefault(path, [(n, t.clone()) for n, t in tensors_of(output)])

        module = model.get_submodule(path)
        handles += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        with evaluating(model), torch.no_grad(), preserved(model):
            model(*args, **kwargs)
    except Exception:
        if len(inputs) == 0:
            raise
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs


def _shapes(call: Any) -> list[Any]:
    return [x.shape for x in pytree.tree_leaves(call) if isinstance(x, Tensor)]
