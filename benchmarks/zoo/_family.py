"""What a family of the zoo is: a tiny model, its inputs, and the tasks with an oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.zoo._randomise import randomise_
from benchmarks.zoo._zero import Task

Inputs = dict[str, Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class Family:
    """A tiny model in eval mode and float32, example inputs of batch 2, and ways to zero its units."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    tasks: dict[str, Task]


def family(
    name: str, make: Callable[[], nn.Module], inputs: Callable[[torch.Generator], Inputs], **tasks: Task
) -> Family:
    """A family whose model and inputs come out the same on every call."""

    def build() -> nn.Module:
        torch.manual_seed(0)  # some models draw buffers when they are made
        return randomise_(make(), seed=0).eval()

    return Family(name, build, lambda: inputs(torch.Generator().manual_seed(1)), tasks)


def tokens(generator: torch.Generator, length: int = 7, batch: int = 2, vocab: int = 99) -> Tensor:
    """Random token numbers; the smallest few are left out because models give them a meaning (padding, end)."""
    return torch.randint(5, vocab, (batch, length), generator=generator)


def images(generator: torch.Generator, size: int = 32, channels: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=generator)
