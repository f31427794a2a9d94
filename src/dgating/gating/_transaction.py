"""All or nothing: a change of modules and an optimizer that an interrupt leaves as before or as after.

Ctrl-C, the exit of the process and a device out of memory may arrive between any two lines. A change that exchanges
objects is undone (:func:`all_or_nothing`), a change that fills in values is finished (:func:`to_the_end`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")

TRIES = 8  # a second interrupt may arrive while the first is dealt with, and a third


def all_or_nothing(
    change: Callable[[], T],
    modules: Iterable[nn.Module] = (),
    optimizer: torch.optim.Optimizer | None = None,
    others: Iterable[object] = (),
) -> T:
    """Call ``change``; whatever ends it early, put everything it may have touched back.

    Only references are kept, so this costs no memory of the size of a weight. In exchange ``change`` must not write
    into tensors: it may replace them, and the storage of a parameter.

    Args:
        change: the change.
        modules: modules whose class, attributes, parameters and parametrisations it may exchange.
        optimizer: the optimizer whose parameter groups and state it may exchange.
        others: objects whose attributes it may exchange.
    """
    saved = _Saved(modules, optimizer, others)
    grad_mode = torch.is_grad_enabled()
    try:
        return change()
    except BaseException:
        _insist(saved.restore)
        torch.set_grad_enabled(grad_mode)  # it may have stopped on its way out of no_grad
        raise


def to_the_end(change: Callable[[], object]) -> None:
    """Call ``change``, which must be the same done twice as done once; an interrupt goes on when all of it is done."""
    grad_mode = torch.is_grad_enabled()
    try:
        change()
    except BaseException:
        _insist(change)
        torch.set_grad_enabled(grad_mode)
        raise


def _insist(work: Callable[[], object]) -> None:
    for _ in range(TRIES):
        try:
            work()
            return
        except BaseException:  # the first interrupt is raised again by who called
            continue
    work()


class _Saved:
    """References to everything that makes up modules and an optimizer, and the way back to it."""

    def __init__(
        self, modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None, others: Iterable[object]
    ) -> None:
        touched = list(dict.fromkeys(m for module in modules for m in _with_parametrizations(module)))
        self.classes = [(module, type(module)) for module in touched]
        self.containers: list[tuple[Any, Any]] = []
        for thing in [*touched, *others]:
            self._keep(vars(thing))
            for value in vars(thing).values():
                self._keep(value)
        if optimizer is not None:
            self._keep(optimizer.state)
            for group in optimizer.param_groups:
                self._keep(group)
            self._keep(optimizer.param_groups)
        parameters = dict.fromkeys(p for module in touched for p in module._parameters.values() if p is not None)
        self.parameters = [(p, p.data, p.grad) for p in parameters]

    def _keep(self, value: object) -> None:
        if isinstance(value, dict | list | set):
            self.containers.append((value, list(value.items() if isinstance(value, dict) else value)))

    def restore(self) -> None:
        """The same done twice as done once."""
        for module, cls in self.classes:
            object.__setattr__(module, "__class__", cls)
        for container, content in self.containers:
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
        for p, data, grad in self.parameters:
            p.data = data
            p.grad = grad


def _with_parametrizations(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    inner = module._modules.get("parametrizations")
    if inner is not None:
        yield from inner.modules()
