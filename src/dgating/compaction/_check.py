"""Refuse a compact model that is not the same function, and name the module to blame."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from dgating.compaction._recorder import record
from dgating.compaction._traced import FixedSize
from dgating.compaction._verify import (
    LARGE,
    difference,
    inputs_to_check,
    main_dtype,
    other_sizes,
    quiet_copy,
    run,
    scale_of,
    to_double,
    tolerance,
    weight_bytes,
)
from dgating.structure import Args, CompactionError, Watching, tensors_of

ROUNDED = 1e-5  # what single roundings to float32 may do inside a float64 run, relative to the largest output


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
    main, low = main_dtype(model), lowest_dtype(model, args, kwargs)
    if tolerance(low) > tolerance(main):  # half precision somewhere: float64 would be another function
        return _compare(model, small, args, kwargs, tolerance(low), sizes=True)
    if main == torch.float32 and weight_bytes(model) < LARGE and (wide := _doubled(model, small, args, kwargs)):
        twin, small_twin, inputs = wide
        if not folded and not _has_graph(small) and lowest_dtype(twin, *inputs) == torch.float64:
            return _compare(twin, small_twin, *inputs, tolerance(torch.float64), sizes=True)
        # A graph has the casts of its tracing in it, a folded constant has been rounded, and some forwards cast to
        # float32 themselves: float64 tells no more than float32 then.
        _compare(twin, small_twin, *inputs, ROUNDED)
    limit = tolerance(main)
    if main == torch.float64 and (folded or _has_graph(small) or low != main):
        limit = ROUNDED
    return _compare(model, small, args, kwargs, limit, sizes=True)


def _doubled(
    model: nn.Module, small: nn.Module, args: Args, kwargs: Mapping[str, Any]
) -> tuple[nn.Module, nn.Module, tuple[Any, Any]] | None:
    """Both models and their inputs in float64, if they run there."""
    try:
        twins = quiet_copy(model).double(), quiet_copy(small).double()
        wide = to_double((args, dict(kwargs)))
        for twin in twins:
            run(twin, *wide)
    except Exception:  # a forward that insists on a dtype (or a compact model that fails, which shows later)
        return None
    return *twins, wide


class _Dtypes(Watching):
    """The dtypes that operations put out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def after(self, out: Any) -> None:
        self.seen |= {t.dtype for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()}


def lowest_dtype(model: nn.Module, args: Args, kwargs: Mapping[str, Any]) -> torch.dtype:
    """The coarsest floating point that a model computes in on its way."""
    with _Dtypes() as mode:
        run(model, args, kwargs)
    return max([main_dtype(model), *mode.seen], key=lambda d: torch.finfo(d).eps)


def _has_graph(model: nn.Module) -> bool:
    return any(isinstance(m, GraphModule) for m in model.modules())


def _compare(
    a: nn.Module, b: nn.Module, args: Args, kwargs: Mapping[str, Any], limit: float, sizes: bool = False
) -> float:
    """The largest difference on the example and fresh inputs; ``sizes``: at other sizes, too, if ``a`` takes them."""
    worst = 0.0
    for inputs in inputs_to_check(args, kwargs):
        worst = max(worst, _gap(a, b, inputs, run(a, *inputs), limit))
    for inputs in other_sizes(args, kwargs) if sizes else []:
        try:
            expected = run(a, *inputs)
        except Exception:  # the model itself has fixed sizes
            continue
        with contextlib.suppress(FixedSize):  # a graph that holds its sizes says so
            worst = max(worst, _gap(a, b, inputs, expected, limit, held=FixedSize))
    return worst


def _gap(
    a: nn.Module,
    b: nn.Module,
    inputs: Any,
    expected: list[tuple[str, Tensor]],
    limit: float,
    held: type[Exception] | tuple[()] = (),
) -> float:
    """The largest difference on one input; an error where it is too large. ``held`` passes through."""
    try:
        result = run(b, *inputs)
    except held:
        raise
    except Exception as error:
        path, told = _culprit(a, b, inputs)
        raise CompactionError(
            f"the compact model does not run ({type(error).__name__}: {str(error).splitlines()[0]}). "
            f"{told} Use target='graph', which needs no attributes, or dg.register_module_rule for the type of that "
            "module.",
            path,
        ) from error
    gap = difference(expected, result)
    allowed = limit * scale_of(expected)
    if gap <= allowed:
        return gap
    if difference(expected, run(a, *inputs)) > allowed:
        raise CompactionError(
            f"{type(a).__name__} gives other outputs each time it is called, in eval mode, too: there is no "
            "function to keep. Make its forward deterministic, or pass verify=False at your own risk."
        )
    path, told = _culprit(a, b, inputs)
    raise CompactionError(
        f"the compact model is not the same function: the outputs differ by {gap:.3g} (tolerance {allowed:.1g}). "
        f"{told} Its forward may use sizes that it reads from tensors"
        + (", or a rule of the structure engine is wrong." if _has_graph(b) else "; target='graph' may work."),
        path,
    )


def _culprit(a: nn.Module, b: nn.Module, inputs: Any) -> tuple[str | None, str]:
    """The innermost module that gets the same inputs and gives another output of the same shape, or none at all."""
    (given, outputs), (given_b, outputs_b) = (record(m, [p for p, _ in m.named_modules()], *inputs) for m in (a, b))
    for path, x in outputs.items():  # parts before their whole
        if not path or path not in given_b or not _alike(tensors_of(given[path]), tensors_of(given_b[path])):
            continue
        if path not in outputs_b:
            return path, f"It fails in {path!r}."
        y = outputs_b[path]
        if [t.shape for _, t in x] == [t.shape for _, t in y] and not _alike(x, y):
            return path, f"The first module that differs is {path!r}."
    return None, "No single module differs."


def _alike(x: list[tuple[str, Tensor]], y: list[tuple[str, Tensor]]) -> bool:
    return difference(x, y) <= 1e-6 * scale_of(x)
