"""The list of tensors at the start of a safetensors file, before the whole of it is read."""

from __future__ import annotations

import struct
from pathlib import Path

from dgating.cli.json_limits import BYTES, parse


def check_header(path: Path) -> None:
    """Raise where the list is longer, deeper or fuller than any honest one.

    Raises:
        ValueError: it is; a file that has no such list passes, since whoever reads it will say so.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if 8 + length > path.stat().st_size:
            return
        if length > BYTES:
            raise ValueError(f"{path.name!r}: expected at most {BYTES:,} bytes of header, received {length:,}.")
        parse(file.read(length), f"{path.name!r}")
