"""Files of others: read under limits, and whatever is wrong with one becomes a single ``ValueError`` of one line.

Nothing here trusts a number in a file: sizes are compared with the length of the file before memory is asked for.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dgating.files._sealing import has_seal, is_sealed

MOST_BYTES = 2**25  # of JSON; the graph of a language model of 80 layers takes 8 MB
MOST_MEMORY = 150_000_000  # bytes that its values may take, by COST
MOST_DEPTH = 100  # of lists and objects in each other
COST = {b",": 70, b":": 150, b"[": 90, b"{": 90}  # bytes of a value, of a key and of what holds them
MOST_AXES = 32
CHUNK = 1 << 20
WIDTH = {  # bytes of a number
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
# what code that expects other content raises on it
MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, SafetensorError, TypeError, ValueError)


@contextmanager
def refusing(what: str, instead: str) -> Iterator[None]:
    """Errors of malformed content leave as one ``ValueError``: ``what``, the reason in brackets, ``instead``."""
    try:
        yield
    except MALFORMED as error:
        reason = " ".join(str(error).split())[:300]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{what} ({kind}{reason}). {instead}") from None


def read_json(text: str | bytes, *, nan: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: as ``str``, or as bytes of UTF-8.
        nan: whether ``NaN`` and ``Infinity`` are numbers.

    Raises:
        ValueError: not JSON, too long, too deep, a key twice, an integer beyond 64 bits, a number that is not finite.

    Example:
        >>> read_json('{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
        >>> read_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: the key 'a' is there twice
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    most = MOST_BYTES // _width(raw)
    if len(raw) > most:
        raise ValueError(f"expected at most {most:,} bytes of JSON, received {len(raw):,}")
    memory = sum(raw.count(mark) * cost for mark, cost in COST.items())
    if memory > MOST_MEMORY:
        raise ValueError(f"expected JSON that takes at most {MOST_MEMORY:,} bytes of memory, received {memory:,}")
    if _depth(raw) > MOST_DEPTH:
        raise ValueError(f"expected JSON of at most {MOST_DEPTH} levels, received more")
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_once, parse_int=_integer, parse_float=_finite,
            parse_constant=float if nan else _no_constant,
        )  # fmt: skip
        if b"\\ud" in raw.lower():  # half of a pair of surrogates is no text: it could not be printed
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeError, RecursionError) as error:
        raise ValueError(f"expected JSON in UTF-8, received something else ({error})") from None
    return value


def named_json(content: bytes, what: str) -> Any:
    """Like :func:`read_json`; ``NaN`` is a number, and errors begin with ``what``."""
    try:
        return read_json(content, nan=True)
    except ValueError as error:
        raise ValueError(f"{what} is not JSON as expected ({error}).") from None


def read_json_file(path: Path, *, nan: bool = False) -> Any:
    """The value of a JSON file. Raises ``ValueError`` like :func:`read_json`."""
    return read_json(read_bytes(path), nan=nan)


def read_sealed_json(path: Path) -> dict[str, Any]:
    """An object that :func:`seal_json` wrote. Raises ``ValueError`` if a byte is another one."""
    content = read_bytes(path)
    value = read_json(content)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name!r} holds no JSON object")
    if not is_sealed(content):
        raise ValueError(f"the checksum of {path.name!r} is another one: it was changed after it was written")
    return value


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The whole file, if it is not longer than ``most`` bytes (else ``ValueError``, before it is read)."""
    with path.open("rb") as file:
        content = file.read(most + 1) if path.stat().st_size <= most else None
    if content is None or len(content) > most:
        raise ValueError(f"expected at most {most:,} bytes, {path.name!r} has more")
    return content


@dataclass(frozen=True)
class Stored:
    """A safetensors file with a checked header; its tensors have not been read.

    Attributes:
        path: the file.
        metadata: texts of the header.
        shapes: by name.
        sealed: whether it has a checksum, which was right.
    """

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    sealed: bool

    def tensor(self, name: str) -> Tensor:
        """One of them."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(name)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by name."""
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in self.shapes}


def read_safetensors(path: Path) -> Stored:
    """Check header, lengths and, where there is one, the checksum of a safetensors file.

    Raises:
        ValueError: not a whole safetensors file, or a changed one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, MOST_BYTES):
            raise ValueError(f"its {size:,} bytes do not hold a header of {length:,}")
        head = file.read(length)
        header = read_json(head)
        metadata, shapes = _entries(header, size - 8 - length)
        sealed = has_seal(head)
        if sealed and not is_sealed(start + head, _chunks(file)):
            raise ValueError("its checksum is another one: it was changed after it was written")
    return Stored(path, metadata, shapes, sealed)


def warn_unsealed(caller: str, path: Path) -> None:
    """Say that a file of an earlier format has no checksum."""
    warnings.warn(
        f"{caller}: {path.name!r} was written by an earlier version and has no checksum, so that a change of its "
        "numbers would not be noticed; save it again.",
        UserWarning,
        stacklevel=3,
    )


def _entries(header: Any, body: int) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Metadata and shapes; the tensors must fill the ``body`` bytes behind the header, without gap or overlap."""
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are not texts")
    spans, shapes = [], {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the header says too little or too much of {name[:80]!r}")
        width = WIDTH.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        shape, offsets = whole_numbers(entry["shape"]), whole_numbers(entry["data_offsets"])
        if width is None or shape is None or offsets is None or len(offsets) != 2 or len(shape) > MOST_AXES:
            raise ValueError(f"{name[:80]!r} has no dtype, shape and offsets that can be read")
        # axes beside one of length zero count, too: torch multiplies all of them
        if offsets[1] - offsets[0] != width * math.prod(shape) or math.prod(max(n, 1) for n in shape) >= 1 << 60:
            raise ValueError(f"{name[:80]!r} has other bytes than its shape needs")
        spans.append(offsets)
        shapes[name] = tuple(shape)
    spans.sort()
    if any(a[1] != b[0] for a, b in zip([[0, 0], *spans], [*spans, [body, body]], strict=True)):
        raise ValueError("its tensors do not fill the file")
    return metadata, shapes


def whole_numbers(value: Any, low: int = 0) -> list[int] | None:
    """A list of integers of at least ``low``, or ``None`` for anything else."""
    if isinstance(value, list) and all(type(n) is int and n >= low for n in value):
        return value
    return None


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while part := file.read(CHUNK):
        yield part


def _width(raw: bytes) -> int:
    """Bytes that Python may take for each character: the widest one decides for the whole text.

    Characters beyond Latin-1 take two, those beyond 16 bits four. Escapes may stand for either.
    """
    codes = np.frombuffer(raw, dtype=np.uint8)
    widest = int(codes.max()) if len(codes) else 0
    if widest >= 0xF0 or re.search(rb"\\u[dD][89a-fA-F]", raw):
        return 4
    return 2 if widest >= 0xC4 or b"\\u" in raw else 1


def _depth(raw: bytes) -> int:
    """How deep brackets are in each other, outside strings."""
    deepest = level = quotes = 0
    codes = np.frombuffer(raw.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    for start in range(0, len(codes), CHUNK):
        part = codes[start : start + CHUNK]
        before = quotes + np.cumsum(part == ord('"'))
        steps = np.isin(part, list(b"[{")).astype(np.int64) - np.isin(part, list(b"]}"))
        levels = level + np.cumsum(np.where(before % 2, 0, steps))
        deepest, level, quotes = max(deepest, int(levels.max())), int(levels[-1]), int(before[-1])
    return deepest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key[:80]!r} is there twice")
        made[key] = value
    return made


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"expected integers of 64 bits, received one of {len(text)} digits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected finite numbers, received {text[:40]}")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"expected finite numbers, received {text}")


def existing(path: Path) -> Path:
    """The path, if there is a file."""
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r}.")
    return path
