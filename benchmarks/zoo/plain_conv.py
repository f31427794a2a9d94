"""Hand-written convolution nets without branches that meet: LeNet, VGG, depthwise, grouped, 1-d, 3-d, other norms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.zoo._conv import around_groups, chain
from benchmarks.zoo._family import Family, family, images
from benchmarks.zoo._zero import Task, Units, channels, cols, neurons, rows

VGG = (8, 8, "M", 16, 16, "M", 24, 24, 24, "M", 32, 32, 32, "M", 32, 32, 32, "M")


def picture(generator: torch.Generator) -> tuple[Tensor]:
    return (images(generator, size=16),)


def conv_norm(inputs: int, outputs: int, kernel: int = 3, **options: int) -> list[nn.Module]:
    """Convolution without bias, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def lenet_channels(m: nn.Sequential) -> list[Units]:
    return [channels([m[0]], [m[3]]), channels([m[3]], [m[7]], pixels=16)]


class Vgg(nn.Module):
    """VGG-16 with batch norm, as in torchvision but narrow."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for item in VGG:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU(inplace=True)]
                width = item
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d((2, 2))
        hidden = [nn.Linear(4 * width, 48), nn.ReLU(True), nn.Dropout(), nn.Linear(48, 48), nn.ReLU(True), nn.Dropout()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


def vgg_channels(m: Vgg) -> Iterator[Units]:
    convs = [x for x in m.features if isinstance(x, nn.Conv2d)]
    norms = [x for x in m.features if isinstance(x, nn.BatchNorm2d)]
    yield from chain(*([conv, norm] for conv, norm in zip(convs, norms, strict=True)))
    yield channels([convs[-1], norms[-1]], [m.classifier[0]], pixels=4)


def vgg_neurons(m: Vgg) -> list[Units]:
    return [neurons(m.classifier[0], m.classifier[3]), neurons(m.classifier[3], m.classifier[6])]


def pooled(*layers: nn.Module, width: int, dims: int = 2) -> nn.Sequential:
    """Layers, global average pooling, classifier."""
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
    return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(width, 5))


def depthwise() -> nn.Module:
    layers = conv_norm(3, 16)
    for inputs, outputs, stride in ((16, 24, 1), (24, 32, 2), (32, 40, 1)):
        layers += conv_norm(inputs, inputs, groups=inputs, stride=stride) + conv_norm(inputs, outputs, 1)
    return pooled(*layers, width=40)


def depthwise_channels(m: nn.Sequential) -> list[Units]:
    """Each dense convolution with the depthwise one behind it; the last one stands alone."""
    convs, norms = list(m[:-3:3]), list(m[1:-3:3])
    units = []
    for i in range(0, len(convs) - 1, 2):
        units.append(channels([convs[i], norms[i], convs[i + 1], norms[i + 1]], [convs[i + 2]]))
    return [*units, channels([convs[-1], norms[-1]], [m[-1]])]


def grouped() -> nn.Module:
    chain_ = conv_norm(3, 16, 1) + conv_norm(16, 32, groups=4) + conv_norm(32, 32, groups=4) + conv_norm(32, 24, 1)
    return pooled(*chain_, width=24)


def grouped_channels(m: nn.Sequential) -> Iterator[Units]:
    """One position in each of the four groups is a unit of four channels."""
    before, _ = around_groups(m[3], makers=[m[0], m[1]], norm=m[4], readers=[])
    yield before
    yield from around_groups(m[6], makers=[m[3], m[4]], norm=m[7], readers=[m[9]])
    yield channels([m[9], m[10]], [m[-1]])


def group_norm() -> nn.Module:
    first = [nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()]
    return pooled(*first, nn.Conv2d(16, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.ReLU(), width=24)


def norm_groups(m: nn.Sequential) -> list[Units]:
    """Whole groups of a group norm: nothing else shares their statistics."""
    triples = [(m[0], m[1], m[3]), (m[3], m[4], m[-1])]
    size = [norm.num_channels // norm.num_groups for _, norm, _ in triples]
    return [
        Units(norm.num_groups, [rows(conv, norm, block=n)], cols(reader, block=n), each=n)
        for (conv, norm, reader), n in zip(triples, size, strict=True)
    ]


def conv1d() -> nn.Module:
    first = [nn.Conv1d(4, 12, 5, stride=2), nn.BatchNorm1d(12), nn.ReLU()]
    second = [nn.Conv1d(12, 20, 3, dilation=2), nn.BatchNorm1d(20), nn.ELU(), nn.MaxPool1d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(20 * 4, 5))


def conv1d_channels(m: nn.Sequential) -> list[Units]:
    return [channels([m[0], m[1]], [m[3]]), channels([m[3], m[4]], [m[8]], pixels=4)]


def conv3d() -> nn.Module:
    first = [nn.Conv3d(2, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.LeakyReLU(), nn.AvgPool3d(2)]
    second = [nn.Conv3d(8, 12, 3, padding=1), nn.BatchNorm3d(12), nn.SiLU()]
    return pooled(*first, *second, width=12, dims=3)


def conv3d_channels(m: nn.Sequential) -> list[Units]:
    return [channels([m[0], m[1]], [m[4]]), channels([m[4], m[5]], [m[-1]])]


def sigmoid(padding: int) -> nn.Module:
    first = [nn.Conv2d(3, 12, 3, padding=1), nn.Sigmoid()]
    return pooled(*first, nn.Conv2d(12, 16, 3, padding=padding), nn.Sigmoid(), width=16)


def shifted() -> nn.Module:
    return pooled(*conv_norm(3, 12), nn.Conv2d(12, 16, 3), nn.ReLU(), width=16)


def shifted_channels(m: nn.Sequential) -> list[Units]:
    """Filters only: what is left of a channel is the constant that batch norm and ReLU make of it."""
    return [Units(12, [rows(m[0])], [*rows(m[1]), *cols(m[3])])]


FAMILIES: list[Family] = [
    family(
        "lenet",
        lenet,
        lambda g: (images(g, size=28, channels=1),),
        channels=Task(lenet_channels),
        neurons=Task(lambda m: [neurons(m[7], m[9]), neurons(m[9], m[11])]),
    ),
    family("vgg16_bn", Vgg, lambda g: (images(g, size=64),), channels=Task(vgg_channels), neurons=Task(vgg_neurons)),
    family("depthwise", depthwise, picture, channels=Task(depthwise_channels)),
    family("grouped_conv", grouped, picture, channels=Task(grouped_channels, note="same positions in each group")),
    family(
        "group_norm",
        group_norm,
        picture,
        channels=Task(
            lambda m: [channels([m[0], m[1]], [m[3]]), channels([m[3], m[4]], [m[-1]])],
            note="channels of a norm group share their statistics: none can go",
            exact=False,
        ),
        norm_groups=Task(norm_groups, note="whole norm groups"),
    ),
    family("conv1d", conv1d, lambda g: (torch.randn(2, 4, 29, generator=g),), channels=Task(conv1d_channels)),
    family("conv3d", conv3d, lambda g: (torch.randn(2, 2, 6, 6, 6, generator=g),), channels=Task(conv3d_channels)),
    family(
        "conv_sigmoid",
        lambda: sigmoid(padding=0),
        picture,
        channels=Task(
            lambda m: [channels([m[0]], [m[2]]), channels([m[2]], [m[-1]])],
            note="dead channels are 0.5, folded into the next bias",
            fold=True,
        ),
    ),
    family(
        "conv_sigmoid_padded",
        lambda: sigmoid(padding=1),
        picture,
        channels=Task(
            lambda m: [channels([m[0]], [m[2]])],
            note="a constant under zero padding cannot be folded: none can go",
            exact=False,
        ),
    ),
    family(
        "conv_bn_shift",
        shifted,
        picture,
        channels=Task(shifted_channels, note="filters only; the norm's constant is folded", fold=True),
    ),
]
