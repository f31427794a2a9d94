"""``export``: a model as one file for another runtime, checked against the model before it is written."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgating._checks import check_number, check_path, check_weights
from dgating.deploy._batch import Inputs, exported, outputs_of
from dgating.deploy._formats import check_onnx, gist, to_onnx, to_pt2
from dgating.files import write_bytes
from dgating.gating import evaluating, is_gated
from dgating.structure import (
    EXPORT,
    Args,
    Kwargs,
    call_kwargs,
    silent,
    split_inputs,
    tensors_of,
    uncompiled,
)


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
        >>> from dgating.deploy._export import export
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(net, torch.randn(5, 4), f"{folder}/net.pt2")
        >>> done.path.name, done.batch_sizes, done.max_difference < 1e-6
        ('net.pt2', (1, 5, 6), True)
    """
    path = check_path("path", path)
    content, done = export_bytes(model, example_inputs, path, kwargs, dynamic_batch, verify, tolerance)
    write_bytes(path, content)
    return done


def export_bytes(
    model: nn.Module,
    example_inputs: object,
    path: Path,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_batch: bool = True,
    verify: bool = True,
    tolerance: float = 1e-4,
) -> tuple[bytes, Exported]:
    """What :func:`export` would write to ``path``, checked; nothing is written."""
    convert = {".onnx": to_onnx, ".pt2": to_pt2}.get(path.suffix.lower())
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
    if convert is to_onnx:
        check_onnx(model)
    args, named = split_inputs(example_inputs, kwargs)
    inputs = Inputs.of(args, call_kwargs(model, named), dynamic_batch)
    with EXPORT, evaluating(model), torch.no_grad(), _quiet():
        expected = outputs_of(model, inputs, verify)  # before the costly part: a model that cannot run, cannot run
        file = convert(exported(model, inputs))
        difference = None
        if verify and file.run is not None:
            difference = max(
                _compare(model, file.run, inputs, n, outputs, tolerance, path) for n, outputs in expected.items()
            )
    done = Exported(
        path=path,
        bytes=len(file.content),
        nodes=file.nodes,
        opset=file.opset,
        batch_sizes=() if difference is None else tuple(sorted(expected)),
        max_difference=difference,
    )
    return file.content, done


def _compare(
    model: nn.Module,
    run: Callable[[Args, Kwargs], list[Tensor]],
    inputs: Inputs,
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
        raise RuntimeError(f"export: {where} does not run ({gist(error)}). {advice}") from error
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
    gap = (a - b).abs().masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0)
    gap = gap.nan_to_num(nan=float("inf"), posinf=float("inf"))
    return float(gap.max()) / max(1.0, float(a.abs().nan_to_num(0.0, 0.0).max()))


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, log lines and prints of the exporters: what matters is raised, or in the result."""
    with silent(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
