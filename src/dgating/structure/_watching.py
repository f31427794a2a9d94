"""A mode that sees every operation of a run, those in the regions of ``torch.cond`` and its kin included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):
    """Calls :meth:`before` and :meth:`after` each operation on tensors while the mode is on."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._eager: list[Any] = []  # one for each time that the mode is entered

    def __enter__(self) -> Any:
        # torch.cond compiles itself, and what was compiled under a mode breaks later calls that have none
        self._eager.append(torch.compiler.set_stance("force_eager"))
        self._eager[-1].__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._eager.pop().__exit__(*error)

    def before(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What to do before an operation runs; an error keeps it from running."""

    def after(self, out: Any) -> None:
        """What to do with the result of an operation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation between the two methods above."""
        kwargs = kwargs or {}
        # the mode is off in here: the regions of a control-flow operator put it on again
        args, kwargs = pytree.tree_map(lambda x: self._watched(x) if _is_region(x) else x, (args, kwargs))
        self.before(func, args, kwargs)
        out = func(*args, **kwargs)
        self.after(out)
        return out

    def _watched(self, region: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return region(*args, **kwargs)

        return run


def _is_region(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)
