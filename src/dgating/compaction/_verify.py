"""Compare two models: on the examples, on fresh random inputs, and module by module to find the culprit."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dgating.gating import evaluating
from dgating.structure import Args, random_like, tensors_of

LARGE = 2**28  # bytes of weights beyond which a copy in float64 would cost too much memory


def run(model: nn.Module, args: Args, kwargs: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    with evaluating(model), torch.no_grad(), preserved(model):
        return tensors_of(model(*args, **kwargs))


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back the buffers that a forward changes."""
    before = {name: b.clone() for name, b in model.named_buffers()}
    try:
        yield
    finally:
        for name, b in model.named_buffers():
            if name in before and not torch.equal(b, before[name]):
                b.copy_(before[name])


def difference(a: list[tuple[str, Tensor]], b: list[tuple[str, Tensor]]) -> float:
    """Largest absolute difference; infinite where shapes or numbers of outputs differ, or one is not finite alone."""
    if len(a) != len(b):
        return float("inf")
    worst = 0.0
    for (_, x), (_, y) in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if x.numel() == 0 or not (x.is_floating_point() or x.is_complex()):
            worst = max(worst, 0.0 if torch.equal(x, y) else float("inf"))
            continue
        full, small = _real(x), _real(y)
        gap = (full - small).abs()
        gap = gap[~(full == small) & ~(full.isnan() & small.isnan())]  # equal infinities and nans are equal
        if gap.numel():
            worst = max(worst, float("inf") if bool(gap.isnan().any()) else float(gap.max()))
    return worst


def scale_of(outputs: list[tuple[str, Tensor]]) -> float:
    numbers = [_real(x) for _, x in outputs if x.is_floating_point() or x.is_complex()]
    return max([1.0, *(float(x[x.isfinite()].abs().max()) for x in numbers if x.isfinite().any())])


def _real(x: Tensor) -> Tensor:
    """In float64; a complex number as two."""
    return torch.view_as_real(x.resolve_conj()).double() if x.is_complex() else x.double()


def tolerance(dtype: torch.dtype) -> float:
    """What rounding alone may do, relative to the largest output."""
    return {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 5e-2)


def inputs_to_check(args: Args, kwargs: Mapping[str, Any], fresh: int = 2) -> list[tuple[Args, dict[str, Any]]]:
    """The example itself, and others of its sizes."""
    generator = torch.Generator().manual_seed(20230923)  # not a seed that made the examples
    return [(args, dict(kwargs)), *(random_like(args, kwargs, generator) for _ in range(fresh))]


def other_sizes(args: Args, kwargs: Mapping[str, Any]) -> list[tuple[Args, dict[str, Any]]]:
    """The example with one row more, with one row, and with one position more where it looks like sequences."""
    leaves = [x for x in pytree.tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor) and x.numel() > 0]
    rows = [x.shape[0] for x in leaves if x.ndim > 0]
    long = [x.shape[1] for x in leaves if x.ndim == (3 if x.is_floating_point() else 2)]
    found = []
    for axis, sizes, single in ((0, rows, False), (0, rows, True), (1, long, False)):
        if sizes:
            n = max(set(sizes), key=sizes.count)
            order = (torch.arange(1 if single else n + 1) + 1) % n

            def longer(x: Any, axis: int = axis, n: int = n, order: Tensor = order) -> Any:
                fits = isinstance(x, Tensor) and x.ndim > axis and x.shape[axis] == n
                return x.index_select(axis, order.to(x.device)) if fits else x

            found.append(pytree.tree_map(longer, (args, dict(kwargs))))
    return found


def weight_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def main_dtype(model: nn.Module) -> torch.dtype:
    kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return max(set(kinds), key=kinds.count) if kinds else torch.float32


def part_of(small: Tensor, full: Tensor) -> bool:
    """Whether ``small`` can be ``full`` without some indices of one axis, the others in their order."""
    if small.shape == full.shape:
        return True
    axes = [a for a, (n, m) in enumerate(zip(small.shape, full.shape, strict=False)) if n != m]
    if small.ndim != full.ndim or len(axes) != 1 or small.shape[axes[0]] > full.shape[axes[0]]:
        return False
    x, y = (_real(t).movedim(axes[0], 0).flatten(1) for t in (small, full))
    noise = torch.randn(x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(x.device)
    left = iter((y @ noise).tolist())  # one number stands for an index: equal rows have equal numbers
    limit = 1e-4 * max(1.0, float((y @ noise).abs().max()))
    return all(any(abs(a - b) <= limit for b in left) for a in (x @ noise).tolist())


def quiet_copy(module: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """``deepcopy``; torch warns about its own containers when a graph is copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(module, memo)


def to_double(x: Any) -> Any:
    return pytree.tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, x)
