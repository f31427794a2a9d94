"""What a file of each format is made of, and how it is run again to be checked."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dgating.structure import Args, Kwargs, tensors_of

ONNX_LIMIT = 2**31 - 2**20  # a protobuf file holds at most 2 GiB, graph included


@dataclass(frozen=True)
class File:
    content: bytes
    nodes: int
    opset: int | None
    run: Callable[[Args, Kwargs], list[Tensor]] | None  # None: there is no runtime to run it with


def to_pt2(program: torch.export.ExportedProgram) -> File:
    program.example_inputs = None  # they would be stored
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    content = buffer.getvalue()
    loaded = torch.export.load(io.BytesIO(content))
    module = loaded.module()

    def run(args: Args, kwargs: Kwargs) -> list[Tensor]:
        return [t for _, t in tensors_of(module(*args, **kwargs))]

    return File(content, sum(node.op == "call_function" for node in loaded.graph.nodes), None, run)


def to_onnx(program: torch.export.ExportedProgram) -> File:
    import onnx

    try:
        made = torch.onnx.export(program, (), dynamo=True, verbose=False, external_data=False)
    except Exception as error:
        raise RuntimeError(
            f"export: torch.onnx cannot convert this model ({gist(error)}). A .pt2 file may do instead."
        ) from error
    assert made is not None
    proto = made.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    return File(content, len(proto.graph.node), opset, _onnx_runner(content))


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


def check_onnx(model: nn.Module) -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ImportError(f"export to .onnx needs {' and '.join(missing)}: pip install 'dgating[onnx]'.")
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if size > ONNX_LIMIT:
        raise ValueError(
            f"model: one ONNX file holds at most 2 GiB, received {size / 2**30:.1f} GiB of weights. Export to .pt2, or "
            "convert to half precision first."
        )


def gist(error: BaseException) -> str:
    """Kind and gist of an error: its first line, or the constraint that torch.export found violated."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    gist = next(
        (line.removeprefix("- ").split(". ")[0] for line in lines if line.startswith("- ")), lines[0] if lines else ""
    )
    return f"{type(error).__name__}: {gist}".rstrip(": ")
