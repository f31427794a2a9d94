"""``export``: a model as one file for another runtime, checked against the model before it is written."""

from __future__ import annotations

import inspect
import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dgating._checks import check_weights
from dgating._config import write_bytes
from dgating._model import is_gated
from dgating._modes import evaluating
from dgating._optim import check_number
from dgating.compaction._inputs import (
    Args,
    Kwargs,
    call_kwargs,
    split_inputs,
    tensors_of,
    uncompiled,
)

ONNX_LIMIT = 2**31 - 2**20  # a protobuf file holds at most 2 GiB, graph included
NOISY = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        path: the file.
        bytes: its size.
        nodes: operators in the graph.
        opset: version of the ONNX operators; ``None`` for ``.pt2``.
        batch_sizes: batch sizes at which the file's outputs were compared with the model's; empty if none were. More
            than one means that axis 0 is free.
        max_difference: the largest difference found, over the larger of one and the output's largest magnitude;
            ``None`` if nothing was compared.
    """

    path: Path
    bytes: int
    nodes: int
    opset: int | None
    batch_sizes: tuple[int, ...]
    max_difference: float | None


@dataclass(frozen=True)
class _File:
    content: bytes
    nodes: int
    opset: int | None
    run: Callable[[Args, Kwargs], list[Tensor]] | None  # None: there is no runtime to run it with


def export(
    model: nn.Module,
    example_inputs: object,
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_batch: bool = True,
    verify: bool = True,
    tolerance: float = 1e-4,
) -> Exported:
    r"""Write a model to one file: ``.onnx`` for ONNX runtimes, ``.pt2`` for torch without the model's code.

    The file is loaded back and every output compared with the model's own, before it appears at ``path``: on the
    example inputs and, with ``dynamic_batch``, on batches of one and of one more than the example, made of the same
    rows. The difference is :math:`\max|a - b| / \max(1, \max|a|)` for each output; outputs that are not floats must be
    equal. Neither the example inputs nor paths of this machine are stored in the file.

    Args:
        model: a model without gates; it is exported in evaluation mode and left as it was. Where ``forward`` has
            ``use_cache``, it is exported with ``use_cache=False`` unless given.
        example_inputs: a tuple of positional arguments, a tensor, or a dict of keyword arguments. Tensors become
            inputs of the file; everything else is fixed.
        path: ends in ``.onnx`` or ``.pt2``; missing folders are made, and a file that is there is replaced.
        kwargs: further keyword arguments.
        dynamic_batch: leave axis 0 free in every input tensor that has the batch size there (the size that most
            tensors have).
        verify: compare before writing. ``.onnx`` files need onnxruntime for this; without it they are only checked
            for being well-formed, and ``max_difference`` of the result is ``None``.
        tolerance: largest difference accepted.

    Returns:
        An :class:`Exported`: path, size, nodes, opset and the largest difference.

    Raises:
        ValueError: a gated model, another suffix, a model that fixes the batch size (pass ``dynamic_batch=False``), a
            model without tensors among its outputs, or one too large for a single ONNX file.
        TypeError: not a module, not inputs, not a number.
        ImportError: ``.onnx`` without the ``onnx`` extra.
        RuntimeError: torch cannot export this model, or the file does not compute the same. Nothing is written then.

    Example:
        >>> import tempfile, torch, dgating as dg
        >>> from dgating.compaction._export import export
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(net, torch.randn(5, 4), f"{folder}/net.pt2")
        >>> done.path.name, done.batch_sizes, done.max_difference < 1e-6
        ('net.pt2', (1, 5, 6), True)
    """
    path = Path(path)
    convert = {".onnx": _to_onnx, ".pt2": _to_pt2}.get(path.suffix.lower())
    if convert is None:
        raise ValueError(f"path: expected a name that ends in .onnx or .pt2, received {path.name!r}.")
    if path.is_dir():
        raise ValueError(f"path: expected a file, {path.name!r} is a folder.")
    check_number("tolerance", tolerance)
    check_weights(model)
    model = uncompiled(model)
    if is_gated(model):
        raise ValueError(
            f"model: expected a model without gates, received a gated {type(model).__name__}. Call collapse_ first."
        )
    if convert is _to_onnx:
        _check_onnx(model)
    args, named = split_inputs(example_inputs, kwargs)
    inputs = _Inputs.of(args, call_kwargs(model, named), dynamic_batch)
    with evaluating(model), torch.no_grad(), _quiet():
        expected = _outputs(model, inputs, verify)  # before the costly part: a model that cannot run, cannot run
        file = convert(_exported(model, inputs))
        difference = None
        if verify and file.run is not None:
            difference = max(
                _compare(model, file.run, inputs, n, outputs, tolerance, path) for n, outputs in expected.items()
            )
    write_bytes(path, file.content)
    return Exported(
        path=path,
        bytes=len(file.content),
        nodes=file.nodes,
        opset=file.opset,
        batch_sizes=() if difference is None else tuple(sorted(expected)),
        max_difference=difference,
    )


@dataclass(frozen=True)
class _Inputs:
    """Example inputs, flat, their batch size, and which of them have a batch axis that is to be free."""

    leaves: list[Any]
    spec: Any
    batch: int
    batched: list[bool]

    @classmethod
    def of(cls, args: Args, kwargs: Kwargs, dynamic: bool) -> _Inputs:
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


def _outputs(model: nn.Module, inputs: _Inputs, every: bool) -> dict[int, list[tuple[str, Tensor]]]:
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
                f"dynamic_batch: the model runs at batch size {inputs.batch} but not at {n} ({_gist(error)}). "
                "Pass dynamic_batch=False for a file of fixed shapes."
            ) from error
        if not out[n]:
            raise ValueError(f"model: expected tensors among the outputs of {type(model).__name__}, found none.")
    return out


def _exported(model: nn.Module, inputs: _Inputs) -> torch.export.ExportedProgram:
    """The graph, without the source paths that torch notes at every node."""
    # sizes 0 and 1 would be taken for constants
    args, kwargs = inputs.sized(max(2, inputs.batch) if inputs.dynamic else inputs.batch)
    model = _named(model, kwargs)
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
                f"({_gist(error)}). Pass dynamic_batch=False for a file of fixed shapes."
            ) from error
        raise RuntimeError(
            f"export: torch.export cannot read {type(model).__name__} ({_gist(error)}). Nothing was written."
        ) from error
    for graph in program.graph_module.modules():
        if isinstance(graph, torch.fx.GraphModule):
            for node in graph.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _named(model: nn.Module, kwargs: Kwargs) -> nn.Module:
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


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:
        return False
    return True


def _to_pt2(program: torch.export.ExportedProgram) -> _File:
    program.example_inputs = None  # they would be stored
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    loaded = torch.export.load(io.BytesIO(content))
    module = loaded.module()

    def run(args: Args, kwargs: Kwargs) -> list[Tensor]:
        return [t for _, t in tensors_of(module(*args, **kwargs))]

    return _File(content, sum(node.op == "call_function" for node in loaded.graph.nodes), None, run)


def _to_onnx(program: torch.export.ExportedProgram) -> _File:
    import onnx

    try:
        made = torch.onnx.export(program, (), dynamo=True, verbose=False, external_data=False)
    except Exception as error:
        raise RuntimeError(
            f"export: torch.onnx cannot convert this model ({_gist(error)}). A .pt2 file may do instead."
        ) from error
    assert made is not None
    proto = made.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    return _File(content, len(proto.graph.node), opset, _onnx_runner(content))


def _onnx_runner(content: bytes) -> Callable[[Args, Kwargs], list[Tensor]] | None:
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only

    @cache
    def session() -> Any:  # at the first run, where a failure is reported
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(args: Args, kwargs: Kwargs) -> list[Tensor]:
        names = [entry.name for entry in session().get_inputs()]
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        feed = {name: x.detach().cpu().numpy() for name, x in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session().run(None, feed)]

    return run


def _check_onnx(model: nn.Module) -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"export to .onnx needs {' and '.join(missing)}: pip install 'dgating[onnx]'.")
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if size > ONNX_LIMIT:
        raise ValueError(
            f"model: one ONNX file holds at most 2 GiB, received {size / 2**30:.1f} GiB of weights. Export to .pt2, or "
            "convert to half precision first."
        )


def _compare(
    model: nn.Module,
    run: Callable[[Args, Kwargs], list[Tensor]],
    inputs: _Inputs,
    n: int,
    expected: list[tuple[str, Tensor]],
    tolerance: float,
    path: Path,
) -> float:
    """The largest difference at one batch size; an error where it is too large."""
    where = f"{path.name} at batch size {n}"
    args, kwargs = inputs.sized(n)
    advice = "Nothing was written; verify=False writes it all the same."
    if n != inputs.batch:
        advice += " With dynamic_batch=False only the example's size has to agree."
    try:
        got = run(args, kwargs)
    except Exception as error:
        raise RuntimeError(f"export: {where} does not run ({_gist(error)}). {advice}") from error
    if len(got) != len(expected):
        raise RuntimeError(
            f"export: {where} has {len(got)} outputs, expected {[name for name, _ in expected]}. {advice}"
        )
    worst = 0.0
    for (name, a), b in zip(expected, got, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise RuntimeError(
                f"export: output {name!r} of {where} is {tuple(b.shape)} of {b.dtype}, expected {tuple(a.shape)} of "
                f"{a.dtype}. {advice}"
            )
        difference = _difference(a, b)
        if not difference <= tolerance:
            again = tensors_of(model(*args, **kwargs))
            if any(_difference(x, y) > tolerance for (_, x), (_, y) in zip(expected, again, strict=True)):
                advice = f"But two calls of the model differ as much: it is random in evaluation mode. {advice}"
            raise RuntimeError(
                f"export: output {name!r} of {where} differs from the model's by {difference:.1e}, expected at most "
                f"{tolerance:.1e}. {advice}"
            )
        worst = max(worst, difference)
    return worst


def _difference(a: Tensor, b: Tensor) -> float:
    """``max|a - b| / max(1, max|a|)``; infinite where one is not finite and the other is another number."""
    a, b = a.detach().cpu(), b.detach().cpu()
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float("inf")
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    a, b = a.double(), b.double()
    gap = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0).nan_to_num(nan=float("inf"))
    return float(gap.max()) / max(1.0, float(a.abs().nan_to_num(0.0, 0.0).max()))


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, log lines and prints of the exporters: what matters is raised, or in the result."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _gist(error: BaseException) -> str:
    """Kind and gist of an error: its first line, or the constraint that torch.export found violated."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    gist = next(
        (line.removeprefix("- ").split(". ")[0] for line in lines if line.startswith("- ")), lines[0] if lines else ""
    )
    return f"{type(error).__name__}: {gist}".rstrip(": ")
