"""A checksum inside the file it is of: the SHA-256 of all bytes, taken while its own field holds zeros.

It finds what changes by accident or by hand: a flipped bit, an edited number, tensors that were swapped. It is no
signature: whoever can write the file can compute it again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

FIELD, BLANK = "sha256", "0" * 64
_PATTERN = re.compile(rb'"sha256": ?"([0-9a-f]{64})"')  # a quote inside a JSON string is escaped: no name can match


def seal(head: bytes, rest: bytes | memoryview = b"") -> bytes:
    """Head and rest with their checksum in place of :data:`BLANK`.

    Args:
        head: bytes whose JSON has a field ``"sha256"`` of 64 zeros.
        rest: what comes behind them.

    Example:
        >>> text = seal(b'{"a": 1, "sha256": "' + BLANK.encode() + b'"}')
        >>> is_sealed(text), is_sealed(text.replace(b"1", b"2", 1))
        (True, False)
    """
    ((start, stop),) = _places(head)
    digest = hashlib.sha256(head)
    digest.update(rest)
    return b"".join([head[:start], digest.hexdigest().encode(), head[stop:], rest])


def seal_json(value: dict[str, Any]) -> bytes:
    """A JSON text of an object with a checksum."""
    return seal(json.dumps({**value, FIELD: BLANK}, indent=1, allow_nan=False).encode() + b"\n")


def seal_safetensors(content: bytes, manifest: str) -> bytes:
    """A safetensors file without metadata becomes one with a manifest and a checksum; the same bytes every time."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": {"dgating": manifest, FIELD: BLANK}, **json.loads(content[8:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    head = len(text).to_bytes(8, "little") + text
    return seal(head, memoryview(content)[start:])


def has_seal(head: bytes) -> bool:
    """Whether the JSON has a field for a checksum."""
    return bool(_places(head))


def is_sealed(head: bytes, rest: Iterable[bytes] = ()) -> bool:
    """Whether the checksum in the JSON ``head`` is that of head and rest."""
    places = _places(head)
    if len(places) != 1:
        return False
    start, stop = places[0]
    digest = hashlib.sha256(head[:start] + BLANK.encode() + head[stop:])
    for part in rest:
        digest.update(part)
    return digest.hexdigest().encode() == head[start:stop]


def _places(head: bytes) -> list[tuple[int, int]]:
    return [found.span(1) for found in _PATTERN.finditer(head)]
