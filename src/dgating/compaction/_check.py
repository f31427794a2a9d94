"""Refuse a compact model that is not the same function, and name the module to blame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dgating.compaction._inputs import Args, tensors_of
from dgating.compaction._verify import (
    LARGE,
    difference,
    inputs_to_check,
    main_dtype,
    quiet_copy,
    run,
    scale_of,
    to_double,
    tolerance,
    weight_bytes,
)
from dgating.structure._capture import CompactionError

ROUNDED = 1e-6  # what single roundings to float32 may do inside a float64 run, relative to the largest output


def check_runs(model: nn.Module, args: Args, kwargs: Mapping[str, Any]) -> None:
    """Raise :class:`CompactionError` where the original itself fails; export does not see every mismatch of dtypes."""
    try:
        run(model, args, kwargs)
    except Exception as error:
        raise CompactionError(
            f"{type(model).__name__} does not run on these inputs ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Pass example inputs that the model takes."
        ) from error


def check_same(
    model: nn.Module, small: nn.Module, args: Args, kwargs: Mapping[str, Any], folded: bool = False
) -> float:
    """Raise :class:`CompactionError` unless both models give the same outputs; the largest difference seen."""
    a, b, given = model, small, (args, kwargs)
    dtype, rounds = main_dtype(model), False
    if dtype == torch.float32 and weight_bytes(model) < LARGE:
        try:
            doubles = quiet_copy(model).double(), quiet_copy(small).double()
            wide = to_double((args, dict(kwargs)))
            for twin in doubles:
                run(twin, *wide)
            rounds = rounds_to_float32(doubles[0], *wide)
            (a, b), (args, kwargs), dtype = doubles, wide, torch.float64
        except Exception:  # a forward that insists on a dtype (or a compact model that fails, which shows below)
            pass
        if a is not model and not folded and not rounds and not _has_graph(small):
            return _compare(a, b, args, kwargs, tolerance(dtype))
        if a is not model:
            # A graph has the casts of its tracing in it, a folded constant has been rounded, and some forwards cast to
            # float32 themselves: float64 tells no more than float32 then.
            _compare(a, b, args, kwargs, ROUNDED)
    limit = tolerance(main_dtype(model))
    if main_dtype(model) == torch.float64 and (folded or _has_graph(small) or rounds_to_float32(model, *given)):
        limit = ROUNDED
    return _compare(model, small, *given, limit)


class _Float32(TorchDispatchMode):
    """Whether any operation puts out single precision."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= any(isinstance(t, Tensor) and t.dtype == torch.float32 for t in pytree.tree_leaves(out))
        return out


def rounds_to_float32(model: nn.Module, args: Args, kwargs: Mapping[str, Any]) -> bool:
    """Whether a model in float64 casts to float32 on its way."""
    with _Float32() as mode:
        run(model, args, kwargs)
    return mode.seen


def _has_graph(model: nn.Module) -> bool:
    return any(isinstance(m, GraphModule) for m in model.modules())


def _compare(a: nn.Module, b: nn.Module, args: Args, kwargs: Mapping[str, Any], limit: float) -> float:
    worst = 0.0
    for inputs in inputs_to_check(args, kwargs):
        expected = run(a, *inputs)
        try:
            result = run(b, *inputs)
        except Exception as error:
            raise CompactionError(
                f"the compact model does not run ({type(error).__name__}: {str(error).splitlines()[0]}). "
                f"{_culprit(a, b, inputs)} Use target='graph', which needs no attributes, or "
                "dg.register_module_rule for the type of that module."
            ) from error
        gap = difference(expected, result)
        if gap > limit * scale_of(expected) and difference(expected, run(a, *inputs)) > limit * scale_of(expected):
            raise CompactionError(
                f"{type(a).__name__} gives other outputs each time it is called, in eval mode, too: there is no "
                "function to keep. Make its forward deterministic, or pass verify=False at your own risk."
            )
        if gap > limit * scale_of(expected):
            raise CompactionError(
                f"the compact model is not the same function: the outputs differ by {gap:.3g} "
                f"(tolerance {limit * scale_of(expected):.1g}). {_culprit(a, b, inputs)} This is a bug in a rule of "
                "the structure engine or of a module" + ("." if _has_graph(b) else "; target='graph' may work.")
            )
        worst = max(worst, gap)
    return worst


def _culprit(a: nn.Module, b: nn.Module, inputs: Any) -> str:
    """Name the first module whose output differs though its shape is the same, or that raises."""
    outputs: list[dict[str, list[tuple[str, Tensor]]]] = [{}, {}]
    order: list[str] = []
    for side, model in enumerate((a, b)):
        handles = []
        for path, module in model.named_modules():
            if path:

                def hook(_m: nn.Module, _i: Any, out: Any, path: str = path, side: int = side) -> None:
                    outputs[side].setdefault(path, tensors_of(out))
                    if side == 0 and path not in order:
                        order.append(path)

                handles.append(module.register_forward_hook(hook))
        try:
            run(model, *inputs)
        except Exception:
            pass
        finally:
            for handle in handles:
                handle.remove()
    for path in order:
        if path not in outputs[1]:
            return f"It fails in or before {path!r}."
        x, y = outputs[0][path], outputs[1][path]
        if [t.shape for _, t in x] == [t.shape for _, t in y] and difference(x, y) > 1e-6 * scale_of(x):
            return f"The first module that differs is {path!r}."
    return "No single module differs."
