"""What is in an ``.onnx`` file: its graph and its initializers. Other files that it names are not opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dgating.cli.listing import Say, numel, shape_text
from dgating.cli.protobuf_limits import check_size

SIZE = 2**31  # of a protobuf file


def inspect_onnx(path: Path, say: Say) -> None:
    """Say how many operations, numbers, inputs and outputs a model has."""
    if find_spec("onnx") is None:
        raise ImportError("reading .onnx needs onnx: pip install 'dgating[onnx]'.")
    import onnx

    if path.stat().st_size > SIZE:
        raise ValueError(f"{path.name!r}: expected at most 2 GiB, received {path.stat().st_size:,} bytes.")
    content = path.read_bytes()
    model = onnx.ModelProto()
    try:
        check_size(memoryview(content), model.DESCRIPTOR)
        model.ParseFromString(content)
        del content
        elsewhere = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
        for tensor in elsewhere:
            _check_location(tensor)
        if not elsewhere:  # the checker would look for those files
            onnx.checker.check_model(model)
    except Exception as error:  # a damaged protobuf raises many kinds
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{path.name!r} is not a whole ONNX model ({type(error).__name__}: {first}).") from None
    numbers = sum(numel(t.dims) for t in model.graph.initializer)
    opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    say(f"{path.name}: {len(model.graph.node)} operations, opset {opsets}, {path.stat().st_size:,} bytes")
    say(f"{len(model.graph.initializer)} initializers, {numbers:,} numbers")
    if elsewhere:
        files = sorted({_location(t) for t in elsewhere})
        say(f"{len(elsewhere)} tensors are in other files, which are not read: {', '.join(files)}"[:1_000])
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            sizes = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
            say(f"{kind} {value.name}: {shape_text(sizes)} {_dtype(tensor.elem_type)}")
    common = Counter(node.op_type for node in model.graph.node).most_common(8)
    say(f"most common: {', '.join(f'{n} {op}' for op, n in common)}")


def _dtype(number: int) -> str:
    import onnx

    known = onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(number).lower() if number in known else "?"


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a message, however deep."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(item)


def _location(tensor: Any) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _check_location(tensor: Any) -> None:
    where = _location(tensor)
    for path in (PurePosixPath(where), PureWindowsPath(where)):
        if not where or "\0" in where or path.anchor or ".." in path.parts:
            raise ValueError(f"tensor {tensor.name!r} is in {where!r}, expected a file below the folder of the model")
