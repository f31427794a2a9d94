"""Find the channels of chains of convolutions and of grouped convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import nn

from benchmarks.zoo._zero import Units, channels, cols, rows


def chain(*steps: list[nn.Module]) -> Iterator[Units]:
    """The channels between consecutive steps. A step begins with the layer that reads; norms and the like follow."""
    for makers, readers in itertools.pairwise(steps):
        yield channels(makers, readers[:1])


def around_groups(
    conv: nn.Module,
    makers: list[nn.Module],
    norm: nn.Module,
    readers: list[nn.Module],
    partners: list[nn.Module] | None = None,
) -> Iterator[Units]:
    """Inputs, then outputs of a grouped convolution. A unit is one position, the same in every group.

    ``partners`` make a factor of the outputs: their rows go, too.
    """
    groups, inputs, outputs = conv.groups, conv.in_channels // conv.groups, conv.out_channels // conv.groups
    made = [axis for g in range(groups) for axis in rows(*makers, offset=g * inputs)]
    yield Units(inputs, [made], cols(conv), each=groups)
    made = [axis for g in range(groups) for axis in rows(conv, norm, offset=g * outputs)]
    read = [axis for g in range(groups) for axis in cols(*readers, offset=g * outputs)]
    factor = [axis for g in range(groups) for axis in rows(*(partners or []), offset=g * outputs)]
    yield Units(outputs, [made], [*read, *factor], each=groups)
