"""One model under measurement: FLOPs, milliseconds, and bytes alive at the peak."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from dgating._checks import check_weights
from dgating.deploy._flops import FORMULAS, taken_apart
from dgating.structure import Args, Kwargs, call_kwargs, tensors_of, uncompiled


class _Whole(ModuleTracker):
    """Stands in for the counter's module tracker: only the total is wanted.

    The tracker hooks the gradients of what goes in and out of modules, and fails where that is a parameter: the input
    of a parametrization, an output that is a view of a bias.
    """

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Subject:
    """One model, its inputs, and the call that is measured."""

    def __init__(self, model: nn.Module, args: Args, kwargs: Kwargs, backward: bool, name: str) -> None:
        check_weights(model, name)
        self.model, self.args, self.kwargs = model, args, call_kwargs(model, kwargs)
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.backward = backward
        if backward and not self.trainable:
            raise ValueError(f"backward: expected a {name} with trainable parameters, received one without.")
        tensors = [t for _, t in tensors_of((args, kwargs))]
        homes = {t.device for t in (*model.parameters(), *model.buffers())}
        self.devices = homes or {t.device for t in tensors} or {torch.device("cpu")}
        for t in tensors:
            if t.device not in self.devices:
                raise ValueError(
                    f"inputs: expected tensors on {sorted(map(str, self.devices))}, where the {name} is, received one "
                    f"on {t.device}. Move it with .to()."
                )

    def call(self, model: nn.Module, grad: Callable[[], Any] = torch.no_grad) -> None:
        if not self.backward:
            with grad():
                model(*self.args, **self.kwargs)
            return
        with torch.enable_grad():
            outputs = [t for _, t in tensors_of(model(*self.args, **self.kwargs)) if t.requires_grad]
            if not outputs:
                raise ValueError("backward: expected an output with a gradient, received none.")
            # not backward(): the gradients of the model stay what they are
            torch.autograd.grad(outputs, self.trainable, [torch.ones_like(t) for t in outputs], allow_unused=True)

    def flops(self) -> int:
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        counter.mod_tracker = _Whole()
        with taken_apart(), counter:
            self.call(uncompiled(self.model))  # compiled code hides its operators
        return counter.get_total_flops()

    def peak_bytes(self, cuda: list[torch.device]) -> int | None:
        if cuda:
            self.synchronize()
            before = sum(torch.cuda.memory_allocated(d) for d in cuda)
            for d in cuda:
                torch.cuda.reset_peak_memory_stats(d)
            self.call(self.model)
            self.synchronize()
            return sum(torch.cuda.max_memory_allocated(d) for d in cuda) - before
        if any(d.type != "cpu" for d in self.devices):
            return None
        try:
            with LiveBytes() as live:
                self.call(uncompiled(self.model))
        except NotImplementedError:  # a tensor without a storage of its own, for example a sparse one
            return None
        return live.peak

    def synchronize(self) -> None:
        for d in self.devices:
            if d.type != "cpu":
                torch.accelerator.synchronize(d)

    def time_ms(self) -> float:
        self.synchronize()
        start = time.perf_counter()
        self.call(self.model, torch.inference_mode)
        self.synchronize()
        return 1e3 * (time.perf_counter() - start)


def times_of(subjects: list[Subject], repeats: int, warmup: int) -> list[list[float]]:
    """Milliseconds of every call, models in turn: neighbours in time are compared with each other."""
    out: list[list[float]] = [[] for _ in subjects]
    for i in range(warmup + repeats):
        order = list(range(len(subjects)))
        for j in order if i % 2 else reversed(order):
            ms = subjects[j].time_ms()
            if i >= warmup:
                out[j].append(ms)
    return out


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in pytree.tree_leaves((args, kwargs)):
            self._see(x, made=False)  # what an operator takes and none has made: weights, inputs, constants
        out = func(*args, **(kwargs or {}))
        for x in pytree.tree_leaves(out):
            self._see(x, made=True)
        return out

    def _see(self, x: object, made: bool) -> None:
        if not isinstance(x, Tensor):
            return
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if made else 0
        if key in self.alive:
            return

        def gone(_: object) -> None:
            del self.alive[key]
            self.now -= size

        self.alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
