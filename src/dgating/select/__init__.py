"""Ready-made group finders, one file each."""

from dgating.select.blocks import blocks
from dgating.select.by_dim import by_dim
from dgating.select.by_labels import by_labels
from dgating.select.coupled import coupled
from dgating.select.experts import experts
from dgating.select.features import features
from dgating.select.filters import filters
from dgating.select.heads import heads
from dgating.select.layers import layers
from dgating.select.neurons import neurons
from dgating.select.whole import whole

__all__ = [
    "blocks",
    "by_dim",
    "by_labels",
    "coupled",
    "experts",
    "features",
    "filters",
    "heads",
    "layers",
    "neurons",
    "whole",
]
