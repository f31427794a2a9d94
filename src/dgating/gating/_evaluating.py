"""Evaluation mode for a while, whatever a model makes of ``eval()``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dgating.gating._transaction import to_the_end


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, each flag put back at the end.

    The flags are set one by one: ``eval()`` may be overridden to change weights, and exported modules refuse it.
    """
    flags = {module: module.training for model in models for module in model.modules()}

    def put_back() -> None:
        for module, flag in flags.items():
            module.training = flag

    try:
        for module in flags:
            module.training = False
        yield
        put_back()
    except BaseException:
        to_the_end(put_back)
        raise
