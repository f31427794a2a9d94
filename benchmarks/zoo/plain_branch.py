"""Hand-written convolution nets whose branches meet: residual, dense, split and shuffle, skip, squeeze-and-excite."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo._family import Family, family
from benchmarks.zoo._zero import Task, Units, channels, cols, neurons, rows
from benchmarks.zoo.plain_conv import conv_norm, picture


class Basic(nn.Module):
    """Residual block of two convolutions; the shortcut has one where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, _ = conv_norm(inputs, width, stride=stride)
        self.conv2, self.bn2, _ = conv_norm(width, width)
        self.shortcut = nn.Sequential(*conv_norm(inputs, width, 1, stride=stride)[:2]) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for small pictures, narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 8))
        sizes = [(8, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1)]
        self.blocks = nn.Sequential(*(Basic(*size) for size in sizes))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.blocks(self.stem(x)), 2)
        return self.fc(x.view(x.size(0), -1))


def resnet18_channels(m: ResNet18) -> Iterator[Units]:
    makers: list[nn.Module] = [m.stem[0], m.stem[1]]
    readers: list[nn.Module] = []
    for block in m.blocks:
        yield channels([block.conv1, block.bn1], [block.conv2])
        readers.append(block.conv1)
        if isinstance(block.shortcut, nn.Sequential):
            yield channels(makers, [*readers, block.shortcut[0]])
            makers, readers = [*block.shortcut], []
        makers = [*makers, block.conv2, block.bn2]
    yield channels(makers, [*readers, m.fc])


class DenseLayer(nn.Module):
    """Norm first; what it makes is appended to what it read."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 16))
        self.first = nn.ModuleList(DenseLayer(16 + i * growth, growth) for i in range(3))
        self.norm, self.conv = nn.BatchNorm2d(40), nn.Conv2d(40, 20, 1, bias=False)
        self.second = nn.ModuleList(DenseLayer(20 + i * growth, growth) for i in range(3))
        self.last, self.fc = nn.BatchNorm2d(44), nn.Linear(44, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.first, self.stem(x))
        x = F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)
        x = F.relu(self.last(self.block(self.second, x)))
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))

    @staticmethod
    def block(layers: nn.ModuleList, x: Tensor) -> Tensor:
        features = [x]
        for layer in layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet_channels(m: DenseNet) -> Iterator[Units]:
    """A feature is zero for a reader only if its own norm there is zero, too: those belong to the unit."""
    blocks = [(m.first, [m.stem[0], m.stem[1]], m.norm, m.conv), (m.second, [m.conv], m.last, m.fc)]
    for layers, makers, norm, conv in blocks:
        norms, convs = [*(x.norm1 for x in layers), norm], [*(x.conv1 for x in layers), conv]
        offset = 0
        for i, made in enumerate([makers, *([x.conv2] for x in layers)]):
            zero = rows(*made) + rows(*norms[i:], offset=offset)
            yield Units(made[0].out_channels, [zero], cols(*convs[i:], offset=offset))
            offset += made[0].out_channels
        for layer in layers:
            yield channels([layer.conv1, layer.norm2], [layer.conv2])


class ShuffleUnit(nn.Module):
    """ShuffleNet v2: half of the channels pass, or with ``stride`` 2 both branches read all; then the halves mix."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        if stride > 1:
            self.branch1 = nn.Sequential(
                *conv_norm(inputs, inputs, groups=inputs, stride=stride)[:2], *conv_norm(inputs, half, 1)
            )
        first = conv_norm(inputs if stride > 1 else half, half, 1)
        self.branch2 = nn.Sequential(
            *first, *conv_norm(half, half, groups=half, stride=stride)[:2], *conv_norm(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = torch.cat((self.branch1(x), self.branch2(x)), 1)
        else:
            kept, x = x.chunk(2, dim=1)
            x = torch.cat((kept, self.branch2(x)), 1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleNet(nn.Module):
    """Two stages of two units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 8), nn.MaxPool2d(3, 2, 1))
        self.units = nn.Sequential(
            *(ShuffleUnit(*size) for size in ((8, 16, 2), (16, 16, 1), (16, 32, 2), (32, 32, 1)))
        )
        self.last, self.fc = nn.Sequential(*conv_norm(32, 48, 1)), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.units(self.stem(x))).mean([2, 3]))


def shufflenet_channels(m: ShuffleNet) -> Iterator[Units]:
    first = m.units[0]
    yield channels([m.stem[0], m.stem[1], *first.branch1[:2]], [first.branch1[2], first.branch2[0]])
    for unit in m.units:
        yield channels([unit.branch2[0], unit.branch2[1], unit.branch2[3], unit.branch2[4]], [unit.branch2[5]])
    yield channels([m.last[0], m.last[1]], [m.fc])


class UNet(nn.Module):
    """Two levels; each skip is appended to what comes up."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"down1": (3, 8), "down2": (8, 16), "middle": (16, 24), "merge2": (32, 16), "merge1": (16, 8)}
        for name, (inputs, width) in sizes.items():
            self.add_module(name, nn.Sequential(*conv_norm(inputs, width), *conv_norm(width, width)))
        self.up2, self.up1 = nn.ConvTranspose2d(24, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.up2(self.middle(F.max_pool2d(two, 2)))
        x = self.up1(self.merge2(torch.cat([x, two], dim=1)))
        return self.out(self.merge1(torch.cat([x, one], dim=1)))


def unet_channels(m: UNet) -> Iterator[Units]:
    for block in (m.down1, m.down2, m.middle, m.merge2, m.merge1):
        yield channels([block[0], block[1]], [block[3]])
    yield channels([m.down1[3], m.down1[4]], [m.down2[0]], cols(m.merge1[0], offset=8))
    yield channels([m.down2[3], m.down2[4]], [m.middle[0]], cols(m.merge2[0], offset=16))
    yield channels([m.middle[3], m.middle[4]], [m.up2])
    yield channels([m.up2], [m.merge2[0]])
    yield channels([m.merge2[3], m.merge2[4]], [m.up1])
    yield channels([m.up1], [m.merge1[0]])
    yield channels([m.merge1[3], m.merge1[4]], [m.out])


class Excite(nn.Module):
    """Residual block whose second convolution is scaled channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_norm(width, 12), *conv_norm(12, width)[:2])
        self.fc1, self.fc2 = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(y.mean(dim=(2, 3))))))
        return F.relu(x + y * scale.view(*scale.shape, 1, 1))


class SqueezeExcite(nn.Module):
    """Stem, two blocks, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 16))
        self.blocks, self.fc = nn.Sequential(Excite(16), Excite(16)), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).amax(dim=(2, 3)))


def squeeze_excite_channels(m: SqueezeExcite) -> Iterator[Units]:
    makers = [m.stem[0], m.stem[1], *(x for block in m.blocks for x in block.body[3:])]
    readers = [x for block in m.blocks for x in (block.body[0], block.fc1)]
    yield channels(makers, [*readers, m.fc], rows(*(block.fc2 for block in m.blocks)))
    for block in m.blocks:
        yield channels([block.body[0], block.body[1]], [block.body[3]])
        yield neurons(block.fc1, block.fc2)


FAMILIES: list[Family] = [
    family("resnet18", ResNet18, picture, channels=Task(resnet18_channels)),
    family("densenet", DenseNet, picture, channels=Task(densenet_channels)),
    family(
        "shufflenet_v2",
        ShuffleNet,
        picture,
        channels=Task(shufflenet_channels, note="inside the branches, stem and head; not the shuffled stream"),
    ),
    family("unet", UNet, picture, channels=Task(unet_channels)),
    family("squeeze_excite", SqueezeExcite, picture, channels=Task(squeeze_excite_channels)),
]
