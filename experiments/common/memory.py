"""The memory that one step holds at its peak, counted from allocations, not sampled from the system."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

LOOKS = 3  # the profiler of the CPU sometimes loses allocations, and then sees too low a peak


def peak_bytes(
    step: Callable[[], object], device: str = "cpu", before: Callable[[], object] = lambda: None
) -> int:  # fmt: skip
    """Bytes alive at once during ``step()``, at most, above what was alive before it.

    Memory that was allocated before and is freed by the step would be counted as negative: ``before()`` should drop
    gradients. On the CPU both are called several times, and the highest peak counts.
    """
    if not device.startswith("cuda"):
        return max(_seen_by_profiler(step, before) for _ in range(LOOKS))
    before()
    torch.cuda.synchronize()
    allocated = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - allocated


def _seen_by_profiler(step: Callable[[], object], before: Callable[[], object]) -> int:
    before()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    results: Any = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(0, *itertools.accumulate(e.nbytes() for e in events))
