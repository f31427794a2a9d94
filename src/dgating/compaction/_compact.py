"""``compact``: a physically smaller model that computes the same function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from dgating._checks import check_eager
from dgating.compaction import _multihead  # noqa: F401  (registers its rule)
from dgating.compaction._check import check_runs, check_same
from dgating.compaction._finite import check_finite
from dgating.compaction._graphs import graph_copy, rewritten_module
from dgating.compaction._modules import fold_, follow_weights, module_changes, sliced_copy
from dgating.compaction._optimizer import check_sliceable, slice_optimizer
from dgating.compaction._plan import CompactionPlan, make_plan
from dgating.compaction._record import Record, describe_inputs
from dgating.compaction._recorder import Recorder, record
from dgating.compaction._verify import run
from dgating.gating import bare
from dgating.structure import Args, CompactionError, analyse, call_kwargs, solve, split_inputs


def compact(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    target: Literal["module", "graph"] = "module",
    fold_constants: bool = True,
    verify: bool = True,
) -> nn.Module:
    """A smaller copy of the model that computes the same function: everything that contributes exactly nothing is gone.

    The model is exported and analysed (:func:`plan_compaction` shows the outcome); what can leave without changing the
    function is cut out of every weight; the result is compared with the original. The original is never touched.

    Args:
        model: an ordinary model (collapse a gated one first).
        example_inputs: a tuple of positional or a dict of keyword arguments.
        kwargs: further keyword arguments.
        optimizer: if given, it goes on with the compact model: its parameters are exchanged and its state is sliced.
        target: ``"module"`` keeps the classes and forward code of the model; a module whose forward has sizes that no
            attribute holds is replaced by its own rewritten graph. ``"graph"`` rewrites the exported graph of the
            whole model, whatever its forward does, and returns a ``GraphModule``.
        fold_constants: let a unit leave whose activation is a constant other than zero, by moving the constant into
            the biases that it feeds.
        verify: compare the compact model with the original on the examples and on fresh random inputs, in eval mode,
            in float64 where the model is small enough to be converted.

    Returns:
        The compact model, in the same mode (train or eval) and on the same device. Its ``compaction`` attribute is the
        :class:`CompactionPlan` that was carried out.

    Raises:
        CompactionError: the model is gated, holds nan or infinite weights, cannot be exported, or the compact model is
            not the same function; the message names the first module that differs. Nothing has been changed then, the
            optimizer included.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[:3].zero_(), net[0].bias[:3].zero_()
        >>> small = dg.compact(net, (torch.randn(5, 4),))
        >>> small[0], small[2]
        (Linear(in_features=4, out_features=5, bias=True), Linear(in_features=5, out_features=2, bias=True))
    """
    if target not in ("module", "graph"):
        raise ValueError(f"target: expected 'module' or 'graph', received {target!r}.")
    check_eager(model)
    check_finite(model)
    args, named = split_inputs(example_inputs, kwargs)
    named = call_kwargs(model, named)
    training = optimizer is not None  # it goes on: what leaves must do nothing in training mode, too
    optimizer = bare(optimizer)
    if optimizer is not None:
        check_sliceable(optimizer, model)
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "compact: expected to be called outside torch.inference_mode() when an optimizer goes on, as the "
                "weights made in it can never be trained. Call it outside, or without the optimizer."
            )
    if target == "graph":
        plan, small, record_ = build_graph(model, args, named, fold_constants, verify, training)
    else:
        plan, small, record_ = build_modules(model, args, named, fold_constants, verify, training)
    modes = {path: module.training for path, module in model.named_modules()}
    for path, twin in small.named_modules():
        twin.training = modes.get(path, model.training)
    small.compaction = plan  # type: ignore[assignment]
    small._compaction_records = (*getattr(model, "_compaction_records", ()), record_)  # type: ignore[assignment]
    if optimizer is not None:
        slice_optimizer(optimizer, model, small, plan)
    return small


def build_modules(
    model: nn.Module, args: Args, kwargs: Mapping[str, Any], fold_constants: bool, verify: bool, training: bool
) -> tuple[CompactionPlan, nn.Module, Record]:
    """The compact model with its own classes.

    A size that the forward only writes down (a mask for so many heads) may be out of reach of attributes: then a second
    try leaves such tensors as they are.
    """
    for loose in (True, False):
        engine = analyse(model, args, kwargs, loose=loose, training=training)
        plan = make_plan(model, engine, solve(engine, fold_constants))
        del engine
        check_runs(model, args, kwargs)
        try:
            small, record_ = build(model, plan, args, kwargs)
            if verify:
                _check_modules(model, small, record_, args, kwargs)
            return plan, small, record_
        except CompactionError:
            if not loose:
                raise
    raise AssertionError


def _check_modules(model: nn.Module, small: nn.Module, done: Record, args: Args, kwargs: Mapping[str, Any]) -> None:
    """Verify. Modules that differ read sizes from tensors: their own graphs take their place."""
    while True:
        try:
            check_same(model, small, args, kwargs, folded=bool(done.plan.folded))
            return
        except CompactionError as error:
            if not error.module or error.module in done.inputs:
                raise
            kind = type(small.get_submodule(error.module))
            likes = [p for p, m in small.named_modules() if type(m) is kind and _touched(p, done.plan)]
            if error.module not in likes:
                raise
            inputs = record(model, likes, args, kwargs)[0]
            for path in likes:
                if path in inputs:
                    _replace(model, small, path, done, *inputs[path])


def _touched(path: str, plan: CompactionPlan) -> bool:
    return any(name.startswith(f"{path}.") for name in plan.slices)


def build_graph(
    model: nn.Module, args: Args, kwargs: Mapping[str, Any], fold_constants: bool, verify: bool, training: bool
) -> tuple[CompactionPlan, nn.Module, Record]:
    """The compact graph: with free input sizes if that gives the same function, else with those of the example."""
    for dynamic in (True, False):
        plan, small = graph_copy(model, args, kwargs, fold_constants, dynamic, training)
        described = {"": describe_inputs(args, kwargs)}
        record_ = Record(plan, "graph", shapes_of(model, plan), inputs=described, free=dynamic)
        if not verify and not dynamic:
            break
        check_runs(model, args, kwargs)
        try:
            check_same(model, small, args, kwargs, folded=bool(plan.folded))
            break
        except CompactionError:
            # a size that the graph computes from its inputs (heads times batch) cannot be rewritten
            if not dynamic:
                raise
    return plan, small, record_


def build(model: nn.Module, plan: CompactionPlan, args: Args, kwargs: Mapping[str, Any]) -> tuple[nn.Module, Record]:
    """Carry out a plan on a copy of the model, module by module."""
    small = sliced_copy(model, plan.slices)
    fold_(small, plan.folded)
    changes = module_changes(model, plan)
    recorder = Recorder(model, small, [p for p, c in changes.items() if c.sizes], args, kwargs)
    attributes, failed = follow_weights(small, changes, recorder.same, recorder.reached)
    done = Record(plan, "module", shapes_of(model, plan), attributes)
    for path in failed:
        if path not in recorder.inputs:
            raise CompactionError(
                f"the forward of {path or type(model).__name__!r} uses sizes that no attribute holds. "
                "Use target='graph', or dg.register_module_rule for its type."
            )
        _replace(model, small, path, done, *recorder.inputs[path])
    _count_features(small, args, kwargs)
    return small, done


def _replace(
    model: nn.Module, small: nn.Module, path: str, done: Record, args: Args, kwargs: Mapping[str, Any]
) -> None:
    """A module's own graph in its place, with free sizes of its inputs if it runs so."""
    rewritten_module(model, small, path, done.plan.slices, args, kwargs, dynamic=True)
    done.inputs[path] = describe_inputs(args, kwargs)
    try:
        run(small.get_submodule(path), args, kwargs)
    except Exception:  # a size that the graph computes from its inputs (heads times batch) cannot be rewritten
        rewritten_module(model, small, path, done.plan.slices, args, kwargs, dynamic=False)
        done.held.append(path)


def _count_features(small: nn.Module, args: Args, kwargs: Mapping[str, Any]) -> None:
    """Norms without tensors of their own know their channels from what they get alone."""
    bare = {p: m for p, m in small.named_modules() if isinstance(m, _InstanceNorm) and not m.state_dict()}
    for path, (given, _) in (record(small, list(bare), args, kwargs)[0] if bare else {}).items():
        bare[path].num_features = given[0].shape[given[0].ndim - bare[path]._get_no_batch_dim()]


def shapes_of(model: nn.Module, plan: CompactionPlan) -> dict[str, list[int]]:
    """The full shapes of the tensors that were sliced."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {name: list(named[name].shape) for name in plan.slices}
