"""The example inputs in a ``.pt2`` file: read without unpickling, as tensors, numbers, texts, tuples, lists, dicts."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from typing import Any, cast

import torch
from torch import Tensor

from dgating.cli.listing import numel
from dgating.cli.pt2_archive import Archive, directory
from dgating.files import MOST_DEPTH

MEMBERS = re.compile(
    r"data\.pkl|data/\d{1,9}|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)
INSTRUCTIONS, VALUES = 2**20, 100_000  # bytes of the instructions; values in the inputs
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
TENSOR, ORDERED, PARAMETER = (
    "torch._utils _rebuild_tensor_v2",
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
)
MARK = object()


def example_inputs(archive: Archive) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The inputs that the file stores, ``None`` where it stores none.

    Raises:
        ValueError: it stores anything but plain data.
    """
    name = "data/sample_inputs/model.pt"
    content = archive.read(name) if name in archive else b""
    if not content:
        return None
    try:
        file = f"{archive.file}/{name}"
        with directory(io.BytesIO(content), file) as inner:
            stored = Archive(inner, file, MEMBERS)
            inputs = _run(stored.read("data.pkl", INSTRUCTIONS), stored)
        if inputs is None:
            return None
        args, kwargs = inputs
        if not isinstance(args, tuple | list) or not isinstance(kwargs, dict):
            raise TypeError("no arguments")
        _count(inputs)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{archive.file!r} holds pickled objects ({name}), which are not opened: only tensors, numbers, texts, "
            f"tuples, lists and dicts are read ({str(error)[:200]})."
        ) from None
    return tuple(args), {str(k): v for k, v in kwargs.items()}


def _run(instructions: bytes, stored: Archive) -> Any:
    """Follow the instructions by which ``torch.save`` describes data. There is none here that calls a function."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Tensor] = {}
    for opcode, argument, _ in pickletools.genops(instructions):
        name, value = opcode.name, cast(Any, argument)
        if name == "STOP":
            return stack.pop()
        if name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in NUMBERS:
            stack.append(value)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name in ("APPEND", "APPENDS"):
            items = _since_mark(stack) if name == "APPENDS" else [stack.pop()]
            _of(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = _since_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _set(_of(stack[-1], dict), items)
        elif name == "GLOBAL":
            stack.append(_Name(value))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), stored, storages))
        elif name == "REDUCE":
            arguments = _of(stack.pop(), tuple)
            stack.append(_make(_of(stack.pop(), _Name), arguments))
        elif name != "PROTO":
            raise ValueError(f"instruction {name}")
    raise ValueError("no end")


class _Name(str):
    """The name of what torch would import."""


def _make(name: _Name, arguments: tuple[Any, ...]) -> Any:
    if name == ORDERED and not arguments:
        return {}
    if name == PARAMETER:
        return _of(arguments[0], Tensor)
    if name != TENSOR:
        raise ValueError(f"an object made by {name}")
    flat, offset, shape, strides = arguments[:4]
    numbers = [offset, *_of(shape, tuple), *_of(strides, tuple)]
    if len(shape) != len(strides) or len(shape) > 64 or not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        raise ValueError("the sizes of a tensor")
    if numel(shape) > 4 * _of(flat, Tensor).numel() + 2**20:
        raise ValueError("a tensor larger than what is stored of it")
    return flat.as_strided(shape, strides, offset)  # checks that it stays within the numbers


def _storage(what: Any, stored: Archive, known: dict[str, Tensor]) -> Tensor:
    kind, type_, key, _, _ = _of(what, tuple)
    dtype = STORAGES.get(str(type_).removeprefix("torch ")) if isinstance(type_, _Name) else None
    if kind != "storage" or dtype is None or not isinstance(key, str) or not key.isdecimal():
        raise ValueError("a storage of another kind")
    if key not in known:
        content = stored.numbers(f"data/{key}")
        known[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return known[key]


def _set(values: dict[Any, Any], items: list[Any]) -> None:
    """Names or numbers as keys: Python would follow a tuple to its end to hash it, however deep it is."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int):
            raise TypeError(f"expected names or numbers as keys, received {type(key).__name__}")
        values[key] = value


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not MARK:
        items.append(item)
    return items[::-1]


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, received {type(value).__name__}")
    return value


def _count(inputs: Any) -> None:
    """Raise where values hold each other so often, or so deep, that they cannot be walked through."""
    level, n = [inputs], 0
    for _ in range(MOST_DEPTH):
        holders = [x.values() if isinstance(x, dict) else x for x in level if isinstance(x, tuple | list | dict)]
        if not holders:
            return
        n += sum(len(x) for x in holders)
        if n > VALUES:
            break
        level = [y for x in holders for y in x]
        if any(x is MARK or isinstance(x, _Name) for x in level):
            raise ValueError("objects among the values")
    raise ValueError("too many values, or too deep")
