"""Numbers too small for the full precision of their type, with which processors compute many times slower.

A group that dies falls without end. Long before its own weights pass 1e-38, the smallest normal number of float32,
products of several dying layers do, and each of them costs a processor a hundred cycles and more
(``benchmarks/subnormals.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushing_subnormals() -> Iterator[None]:
    """Subnormal numbers are zeros inside, and outside what they were before.

    It holds for the calling thread and for those that it starts: threads of torch that wait already are not reached.
    """
    before = flushes_subnormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def flushes_subnormals() -> bool:
    """Whether this thread takes subnormal numbers for zeros."""
    return not bool(torch.tensor(1e-40) * 1)
