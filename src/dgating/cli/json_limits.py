"""JSON from files that nobody vouches for: how long, how deep and how full it may be."""

from __future__ import annotations

import json
from typing import Any

BYTES = 2**25  # the graph of a language model of 80 layers takes 8 MB
VALUES = 500_000  # of such a graph: 300,000; each takes up to 230 bytes of memory
DEPTH = 100
BITS = 64  # of an integer


def parse(content: bytes, what: str) -> Any:
    """What the JSON says.

    Args:
        content: UTF-8 text.
        what: how an error names it.

    Raises:
        ValueError: not JSON, or JSON that is too long, too deep or too full, or an integer of more than 64 bits.
    """
    if len(content) > BYTES:
        raise ValueError(f"{what}: expected at most {BYTES:,} bytes of JSON, received {len(content):,}.")
    values = content.count(b",") + content.count(b"[") + content.count(b"{")
    if values > VALUES:
        raise ValueError(f"{what}: expected at most {VALUES:,} values of JSON, received {values:,}.")
    try:
        parsed = json.loads(content.decode(), parse_int=_integer)
    except RecursionError:
        raise ValueError(f"{what}: expected JSON at most {DEPTH} levels deep.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} is not JSON as expected ({error}).") from None
    if depth(parsed) > DEPTH:
        raise ValueError(f"{what}: expected JSON at most {DEPTH} levels deep.")
    return parsed


def depth(value: Any) -> int:
    """Levels of lists and dicts, without recursion."""
    level, n = [value], 0
    while level := [x for x in level if isinstance(x, dict | list)]:
        n += 1
        level = [y for x in level for y in (x.values() if isinstance(x, dict) else x)]
    return n


def _integer(text: str) -> int:
    if len(text) > 21 or abs(int(text)) >= 2**BITS:
        raise ValueError(f"an integer of more than {BITS} bits")
    return int(text)
