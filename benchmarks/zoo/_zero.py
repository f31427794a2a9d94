"""Zero random units of a model in place, and count what an exact removal of them takes out (the oracle)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd


@dataclass(frozen=True)
class Zeroed:
    """What was zeroed, and what an exact compaction must therefore remove."""

    params: int  # elements of unique parameters that are gone afterwards
    units: int  # neurons, heads (or key-value groups), channels
    note: str = ""


@dataclass(frozen=True)
class Axis:
    """Where unit ``u`` lives in a parameter: the ``block`` indices from ``offset + u * stride`` on, along ``dim``.

    ``stride`` is ``block`` unless given. ``runs = (per, jump)``: units come in runs of ``per``, and runs start ``jump``
    apart. ``part`` restricts all this to ``param[part]``, one expert of a stack; ``dim`` counts in the whole parameter.
    """

    param: nn.Parameter
    dim: int
    offset: int = 0
    block: int = 1
    stride: int | None = None
    part: int | None = None
    runs: tuple[int, int] | None = None

    def mark(self, mask: Tensor, units: Tensor) -> None:
        """Set the entries of these units in a boolean mask of the parameter's shape."""
        stride = self.block if self.stride is None else self.stride
        per, jump = self.runs or (1, stride)
        starts = self.offset + (units // per) * jump + (units % per) * stride
        index = (starts[:, None] + torch.arange(self.block)).flatten()
        assert bool((index < self.param.shape[self.dim]).all()), f"{index} is beyond {tuple(self.param.shape)}"
        if self.part is None:
            mask.index_fill_(self.dim, index, True)
        else:
            mask[self.part].index_fill_(self.dim - 1, index, True)


@dataclass(frozen=True)
class Units:
    """``count`` interchangeable units, of which a random share is zeroed.

    ``ways`` are the alternative sets of slices that kill a unit, used in turn; ``gone`` is every slice that leaves with
    it. ``blocks`` > 1: the same number from each of that many equal blocks. ``each``: units counted for one index.
    """

    count: int
    ways: Sequence[Sequence[Axis]]
    gone: Sequence[Axis]
    blocks: int = 1
    each: int = 1


@dataclass(frozen=True)
class Marks:
    """Masks of what was set to zero and of what is gone, one pair for each parameter that is touched."""

    zero: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    gone: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    stacked: set[nn.Parameter] = field(default_factory=set)  # experts in one tensor, each with its own choice

    def params(self) -> int:
        return sum(int(mask.sum()) for mask in self.gone.values())


@dataclass(frozen=True)
class Task:
    """Zero a share of the units that ``find`` lists. ``exact`` is False where no slicing can remove them exactly.

    ``fold``: the dead units are constant, not zero, and removal folds them into the consumers' biases.
    ``reader``: the zeros are where a unit is read (query heads), or one tied weight both makes and reads it.
    """

    find: Callable[[nn.Module], Iterable[Units]]
    note: str = ""
    exact: bool = True
    fold: bool = False
    reader: bool = False

    def __call__(self, model: nn.Module, generator: torch.Generator, share: float = 0.3) -> Zeroed:
        marks, units = self.apply(model, generator, share)
        if self.exact:
            return Zeroed(marks.params(), units, self.note)
        return Zeroed(0, units, self.note)

    @torch.no_grad()
    def apply(self, model: nn.Module, generator: torch.Generator, share: float = 0.3) -> tuple[Marks, int]:
        """Zero in place; the masks, and how many units were zeroed."""
        marks, total = Marks(), 0
        for units in self.find(model):
            chosen = choose(units.count, units.blocks, share, generator)
            total += len(chosen) * units.each
            for i, way in enumerate(units.ways):
                for axis in way:
                    axis.mark(_mask(marks.zero, axis.param), chosen[i :: len(units.ways)])
            for axis in [*(axis for way in units.ways for axis in way), *units.gone]:
                axis.mark(_mask(marks.gone, axis.param), chosen)
                if axis.part is not None:
                    marks.stacked.add(axis.param)
        for param, mask in marks.zero.items():
            param.masked_fill_(mask, 0.0)
        return marks, total


def choose(count: int, blocks: int, share: float, generator: torch.Generator) -> Tensor:
    """A random share of ``range(count)``, the same number in each block: at least one, and never all of a block."""
    size = count // blocks
    assert size > 1, f"{count} units in {blocks} blocks: none can be spared"
    number = min(max(1, int(share * size)), size - 1)
    picks = [block * size + torch.randperm(size, generator=generator)[:number] for block in range(blocks)]
    return torch.cat(picks)


def _mask(masks: dict[nn.Parameter, Tensor], param: nn.Parameter) -> Tensor:
    return masks.setdefault(param, torch.zeros(param.shape, dtype=torch.bool))


def rows(
    *modules: nn.Module,
    offset: int = 0,
    block: int = 1,
    stride: int | None = None,
    runs: tuple[int, int] | None = None,
) -> list[Axis]:
    """The producing slices of linear layers, convolutions and norms: output rows with bias, scale and shift."""
    axes = []
    for module in modules:
        for name in ("weight", "bias"):
            param = getattr(module, name, None)
            if param is not None:
                axes.append(Axis(param, _out_dim(module) if name == "weight" else 0, offset, block, stride, None, runs))
    return axes


def cols(*modules: nn.Module, offset: int = 0, block: int = 1) -> list[Axis]:
    """The consuming slices of linear layers and convolutions. ``block`` pixels a channel after a flatten."""
    return [Axis(module.weight, 1 - _out_dim(module), offset, block) for module in modules]


def width(module: nn.Module) -> int:
    """Number of outputs of a linear layer, convolution or norm."""
    return module.weight.shape[_out_dim(module)]


def _out_dim(module: nn.Module) -> int:
    """0, but 1 for transposed weights: transposed convolutions and the ``Conv1D`` of GPT-2."""
    return int(isinstance(module, _ConvTransposeNd) or type(module).__name__ == "Conv1D")


def neurons(producer: nn.Module, *consumers: nn.Module) -> Units:
    """Hidden units of an MLP: rows and bias of the producer, columns of the consumers."""
    return Units(width(producer), [rows(producer)], cols(*consumers))


def gated(gate: list[Axis], up: list[Axis], down: list[Axis], count: int) -> Units:
    """Hidden units of a gated MLP with f(0) = 0: killed in turn through the gate, the value, or both."""
    return Units(count, [gate, up, gate + up], down)


def channels(
    producers: Sequence[nn.Module], consumers: Sequence[nn.Module] = (), extra: Sequence[Axis] = (), pixels: int = 1
) -> Units:
    """Channels made by all ``producers`` together (convolutions, depthwise ones, norms) and read by all ``consumers``.

    ``pixels`` is the block that one channel has in a linear consumer after a flatten.
    """
    read = [axis for m in consumers for axis in cols(m, block=pixels if isinstance(m, nn.Linear) else 1)]
    return Units(width(producers[0]), [rows(*producers)], [*read, *extra])
