"""``profile``: size, FLOPs, latency and memory of a model, and of two models side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dgating.deploy._measure import Subject, times_of
from dgating.gating import evaluating
from dgating.structure import split_inputs

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Profile:
    """Made by :func:`profile`; ``print`` it, or use :meth:`to_dict`. Ratios above one say that the model is better.

    Attributes:
        parameters: numbers in the parameters, a shared one counted once.
        buffers: numbers in the buffers.
        bytes: memory of both.
        flops: floating-point operations of a call, two for each multiply-add.
        latency_ms: median time of a call, in milliseconds.
        latency_quartiles_ms: first and third quartile of that time.
        peak_bytes: memory that a call holds at its peak besides parameters, buffers and inputs; ``None`` if unknown.
        device: where it ran, for example ``"cpu"``.
        threads: CPU threads of torch.
        repeats: timed calls.
        backward: whether a call is forward and backward.
        reference: the same of the reference model, if one was given.
        latency_speedup: median, over the repeats, of the reference's time over the model's.
    """

    parameters: int
    buffers: int
    bytes: int
    flops: int
    latency_ms: float
    latency_quartiles_ms: tuple[float, float]
    peak_bytes: int | None
    device: str
    threads: int
    repeats: int
    backward: bool
    reference: Profile | None = None
    latency_speedup: float | None = None

    @property
    def size_ratio(self) -> float | None:
        """Parameters of the reference over parameters of the model."""
        return _ratio(self.reference and self.reference.parameters, self.parameters)

    @property
    def flop_speedup(self) -> float | None:
        """FLOPs of the reference over FLOPs of the model."""
        return _ratio(self.reference and self.reference.flops, self.flops)

    @property
    def memory_ratio(self) -> float | None:
        """Peak memory of the reference over peak memory of the model."""
        return _ratio(self.reference and self.reference.peak_bytes, self.peak_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON, ratios included."""
        out = asdict(self)
        out["latency_quartiles_ms"] = list(self.latency_quartiles_ms)
        out["reference"] = None
        if self.reference is not None:
            out["reference"] = self.reference.to_dict()
            out |= {name: getattr(self, name) for name in ("size_ratio", "flop_speedup", "memory_ratio")}
        return out

    def __rich__(self) -> Table:
        from rich.table import Table

        was = self.reference
        call = "forward and backward" if self.backward else "forward"
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if "cpu" in self.device else ""
        table = Table(title=f"{call} on {self.device}{threads}")
        table.add_column("")
        for head in ("before", "after", "ratio") if was else ("model",):
            table.add_column(head, justify="right")
        for name, show, ratio in (
            ("parameters", lambda p: f"{p.parameters:,}", self.size_ratio),
            ("buffers", lambda p: f"{p.buffers:,}", _ratio(was and was.buffers, self.buffers)),
            ("size", lambda p: _bytes(p.bytes), _ratio(was and was.bytes, self.bytes)),
            ("FLOPs", lambda p: f"{p.flops:,}", self.flop_speedup),
            ("latency", _time, self.latency_speedup),
            ("peak memory", lambda p: _bytes(p.peak_bytes), self.memory_ratio),
        ):
            last = (f"{ratio:.2f}x" if ratio is not None else "-",) if was else ()
            table.add_row(name, *((show(was),) if was else ()), show(self), *last)
        table.caption = f"latency: median and quartiles of {self.repeats} calls; memory: besides weights and inputs"
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None, legacy_windows=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    __repr__ = __str__


def profile(
    model: nn.Module,
    inputs: object,
    reference: nn.Module | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    repeats: int = 20,
    warmup: int = 3,
    backward: bool = False,
) -> Profile:
    r"""Measure a model, alone or beside the model it came from.

    Both are run in evaluation mode on the same inputs and left as they were: training flags, weights, gradients and
    the random state. With a reference the timed calls alternate and swap order every time, so that a machine that
    gets slower or faster meanwhile slows both alike; the speed-up is the median of the paired ratios
    :math:`t_{\mathrm{reference}} / t_{\mathrm{model}}`.

    What the numbers mean: FLOPs are those of matrix products, convolutions, attention and recurrent layers, two for a
    multiply-add; element-wise operators, norms and pooling count nothing. Peak memory is, on CUDA, the most that
    torch's allocator held during a call above what it held before; on the CPU, the most bytes of tensors that
    operators had made and that were alive together (scratch space inside an operator is not seen). FLOPs and CPU memory
    of a compiled model are those of the module that was compiled; its latency is its own.

    Args:
        model: any module, gated or not.
        inputs: a tuple of positional arguments, a tensor, or a dict of keyword arguments.
        reference: a model that takes the same inputs, usually the one before compaction.
        kwargs: further keyword arguments.
        repeats: timed calls of each model.
        warmup: calls before the timed ones.
        backward: measure forward and backward, with the sum of all outputs as the loss.

    Returns:
        A :class:`Profile`.

    Raises:
        ValueError: ``repeats < 1``, ``warmup < 0``, inputs on another device than the model, a lazy model or one on
            ``meta``, ``backward`` without a trainable parameter or without a differentiable output.
        TypeError: not a module, not inputs, not an integer.

    Example:
        >>> import torch, dgating as dg
        >>> from dgating.deploy._profile import profile
        >>> big = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> small = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> p = profile(small, torch.randn(5, 8), reference=big)
        >>> p.parameters, p.flops, p.flop_speedup
        (178, 1600, 4.0)
    """
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, received {type(value).__name__}.")
        if value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, received {value}.")
    args, named = split_inputs(inputs, kwargs)
    given = [model] if reference is None else [model, reference]
    subjects = [Subject(m, args, named, backward, name) for m, name in zip(given, ("model", "reference"), strict=False)]
    cuda = sorted({d for s in subjects for d in s.devices if d.type == "cuda"}, key=str)
    with torch.random.fork_rng(devices=cuda), evaluating(*given):
        static = [(s.flops(), s.peak_bytes(cuda)) for s in subjects]
        times = times_of(subjects, repeats, warmup)
    made = [
        Profile(
            parameters=sum(p.numel() for p in s.model.parameters()),
            buffers=sum(b.numel() for b in s.model.buffers()),
            bytes=sum(t.numel() * t.element_size() for t in (*s.model.parameters(), *s.model.buffers())),
            flops=flops,
            latency_ms=statistics.median(ms),
            latency_quartiles_ms=_quartiles(ms),
            peak_bytes=peak,
            device=", ".join(sorted(map(str, s.devices))),
            threads=torch.get_num_threads(),
            repeats=repeats,
            backward=backward,
        )
        for s, (flops, peak), ms in zip(subjects, static, times, strict=True)
    ]
    if reference is None:
        return made[0]
    speedup = statistics.median(r / m for m, r in zip(*times, strict=True))
    return replace(made[0], reference=made[1], latency_speedup=speedup)


def _ratio(before: int | None, after: int | None) -> float | None:
    return before / after if before is not None and after else None


def _quartiles(ms: list[float]) -> tuple[float, float]:
    if len(ms) == 1:
        return ms[0], ms[0]
    first, _, third = statistics.quantiles(ms, n=4, method="inclusive")
    return first, third


def _bytes(n: int | None) -> str:
    if n is None:
        return "-"
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def _time(p: Profile) -> str:
    low, high = p.latency_quartiles_ms
    return f"{p.latency_ms:.3g} ms ({low:.3g} .. {high:.3g})"
