"""Late fusion: a branch for each modality, and one linear layer on what both say."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import dgating as dg
from experiments.fig20_modalities.simulation import FUNCTIONS

MODALITIES = ("image", "table")


class LateFusion(nn.Module):
    """ŷ = w_img · h_img(picture) + w_tab · h_tab(table) + b.

    The picture goes through four convolutions in the style of VGG (two, pooling, two, pooling), the table through one
    hidden layer; both branches end in ``width`` units after a ReLU. A branch may be missing (``None``).
    """

    def __init__(self, side: int, channels: tuple[int, int], hidden: int, width: int) -> None:
        super().__init__()
        first, second = channels
        self.image: nn.Module | None = nn.Sequential(
            *_block(1, first), *_block(first, second), nn.Flatten(),
            nn.Linear(second * (side // 4) ** 2, width), nn.ReLU(),
        )  # fmt: skip
        self.table: nn.Module | None = nn.Sequential(
            nn.Linear(len(FUNCTIONS), hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU()
        )
        self.head = nn.Linear(2 * width, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is self.head else "relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, table: Tensor) -> Tensor:
        """``(n, 1, side, side)`` and ``(n, 6)`` to ``(n,)``."""
        parts = [
            branch(rows) for branch, rows in ((self.image, images), (self.table, table)) if branch is not None
        ]  # fmt: skip
        return self.head(torch.cat(parts, 1) if parts else images.new_zeros(len(images), 0)).squeeze(1)


def _block(before: int, after: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2),
    ]  # fmt: skip


def by_modality(net: LateFusion) -> dg.Groups:
    """Two groups: the weights of the last layer that read the picture, and those that read the table."""
    width = net.head.in_features // len(MODALITIES)
    labels = torch.arange(net.head.in_features, device=net.head.weight.device) // width
    return dg.by_labels(net.head, labels, group_name="modalities")


def without_dead_branches(net: LateFusion) -> LateFusion:
    """A copy that does not compute a branch whose weights in the last layer are all zero.

    ``dgating.compact`` keeps the classes and the forward of a model, in which every width is at least one: it leaves a
    branch with one unit. Who owns the forward can leave the branch out.
    """
    small = copy.deepcopy(net)
    head, width = small.head, small.head.in_features // len(MODALITIES)
    alive = [bool((part != 0).any()) for part in head.weight.split(width, 1)]
    for name, lives in zip(MODALITIES, alive, strict=True):
        if not lives:
            setattr(small, name, None)
    kept = torch.tensor(alive, device=head.weight.device).repeat_interleave(width)
    head.weight = nn.Parameter(head.weight.detach()[:, kept])
    head.in_features = int(kept.sum())
    return small
