"""Ready-made group finders, one file each."""

from dgating.select._axes import is_transposed_linear
from dgating.select._blocks import blocks
from dgating.select._by_dim import by_dim
from dgating.select._by_labels import by_labels
from dgating.select._coupled import coupled
from dgating.select._experts import experts
from dgating.select._features import features
from dgating.select._filters import filters
from dgating.select._heads import heads
from dgating.select._layers import layers
from dgating.select._neurons import neurons
from dgating.select._whole import whole

__all__ = [
    "blocks",
    "by_dim",
    "by_labels",
    "coupled",
    "experts",
    "features",
    "filters",
    "heads",
    "is_transposed_linear",
    "layers",
    "neurons",
    "whole",
]
