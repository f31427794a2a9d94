"""VGG and ResNet-18 of the paper (section 9.4 of the protocol), at any width, and pictures for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RESNET18 = (64, 128, 256, 512)


def vgg(blocks: Sequence[Sequence[int]], hidden: int, classes: int, inputs: int, side: int) -> nn.Sequential:
    """Convolutions 3 × 3, batch norm right before each ReLU, 2 × 2 max-pooling after each block, one hidden layer."""
    layers: list[nn.Module] = []
    for block in blocks:
        for outputs in block:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
        side //= 2
    net = nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(inputs * side**2, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )
    return _started(net)


class Block(nn.Module):
    """Two convolutions 3 × 3 and the identity, or a 1 × 1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        h = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(h)) + self.shortcut(x)).relu()


def resnet18(widths: Sequence[int], classes: int, inputs: int) -> nn.Sequential:
    """ResNet-18 for small pictures: one 3 × 3 convolution instead of 7 × 7 and pooling, global average pooling."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(),
    ]  # fmt: skip
    before = widths[0]
    for i, width in enumerate(widths):
        layers += [Block(before, width, 1 if i == 0 else 2), Block(width, width, 1)]
        before = width
    return _started(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)))


def _started(net: nn.Sequential) -> nn.Sequential:
    """Kaiming normal weights; biases of linear layers are zero."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


def channels(net: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution with the batch norm behind it: in both networks the next layer that is registered."""
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    convolutions, norms = layers[::2], layers[1::2]
    pairs = list(zip(convolutions, norms, strict=True))
    assert all(isinstance(c, nn.Conv2d) and isinstance(n, nn.BatchNorm2d) for c, n in pairs)
    return pairs  # type: ignore[return-value]


def as_tensor(pictures: Tensor, pool: int = 1) -> Tensor:
    """Bytes, grey or coloured, as float32 (n, channels, height, width) from 0 to 1; squares of ``pool`` averaged."""
    x = pictures.float() / 255
    x = x[:, None] if x.dim() == 3 else x
    return F.avg_pool2d(x, pool) if pool > 1 else x


def augmented(x: Tensor, generator: torch.Generator, flip: bool = True) -> Tensor:
    """Every picture flipped or not, shifted by up to 12.5 % of its side and turned by up to 15 degrees, at random.

    One resampling for the whole batch. What comes in at the border is zero, the mean of normalised pictures.
    """
    u = (2 * torch.rand(4, len(x), generator=generator) - 1).to(x.device, non_blocking=True)
    angle = u[0] * math.radians(15)
    side = torch.where(u[1] < 0, -1.0, 1.0) if flip else torch.ones_like(u[1])
    theta = torch.stack([
        torch.stack([side * angle.cos(), -angle.sin(), 0.25 * u[2]], 1),
        torch.stack([side * angle.sin(), angle.cos(), 0.25 * u[3]], 1),
    ], 1)  # fmt: skip
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.dtype), align_corners=False)
