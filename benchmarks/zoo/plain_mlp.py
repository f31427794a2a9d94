"""Hand-written nets of linear layers: plain, gated, tied, reused, a mixture of experts, two inputs, constants."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.zoo._family import Family, family
from benchmarks.zoo._zero import Axis, Task, Units, channels, cols, gated, neurons, rows


def vector(width: int, batch: int = 3):
    return lambda generator: (torch.randn(batch, width, generator=generator),)


def lenet300() -> nn.Module:
    hidden = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def sigmoid() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.Sigmoid(), nn.Linear(32, 16), nn.Softplus(), nn.Linear(16, 4))


class Glu(nn.Module):
    """Three residual blocks: SwiGLU from one layer, `F.glu` (a sigmoid gate), a product without an activation."""

    def __init__(self, width: int = 24, hidden: int = 40) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.both, self.down1 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.pair, self.down2 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.left, self.right, self.down3 = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(self.norms[0](x)).chunk(2, dim=-1)
        x = x + self.down1(F.silu(gate) * up)
        x = x + self.down2(F.glu(self.pair(self.norms[1](x)), dim=-1))
        y = self.norms[2](x)
        return x + self.down3(self.left(y) * self.right(y))


def glu_neurons(m: Glu) -> Iterator[Units]:
    """The sigmoid of a zero gate is a half, so in the second block only a zero value kills."""
    n = m.down1.in_features
    yield gated(rows(m.both), rows(m.both, offset=n), cols(m.down1), n)
    yield Units(n, [rows(m.pair)], [*rows(m.pair, offset=n), *cols(m.down2)])
    yield gated(rows(m.left), rows(m.right), cols(m.down3), n)


class Mixture(nn.Module):
    """A soft mixture: every expert runs, a softmax weighs them."""

    def __init__(self, width: int = 16, hidden: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        bodies = ((nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)) for _ in range(experts))
        self.experts, self.head = nn.ModuleList(nn.Sequential(*body) for body in bodies), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return self.head(torch.einsum("be,bed->bd", self.gate(x).softmax(dim=-1), outputs))


class TiedAutoencoder(nn.Module):
    """The decoder uses the encoder's weights transposed, with biases of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.outer, self.inner = nn.Linear(32, 40), nn.Linear(40, 12)
        self.inner_back, self.outer_back = nn.Parameter(torch.zeros(40)), nn.Parameter(torch.zeros(32))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.relu(self.inner(torch.relu(self.outer(x))))
        hidden = torch.relu(F.linear(code, self.inner.weight.t(), self.inner_back))
        return F.linear(hidden, self.outer.weight.t(), self.outer_back)


def tied_neurons(m: TiedAutoencoder) -> Iterator[Units]:
    """Rows of a tied weight are columns on the way back: dead on one way means unread on the other."""
    yield Units(40, [rows(m.outer)], [*cols(m.inner), Axis(m.inner_back, 0)])
    yield Units(12, [rows(m.inner)], [])


class Reuse(nn.Module):
    """One square layer called twice, so its inputs and outputs are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(16, 24), nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.shared(x))
        return self.last(torch.relu(self.shared(x)))


def reuse_neurons(m: Reuse) -> list[Units]:
    return [Units(24, [rows(m.first, m.shared)], cols(m.shared, m.last))]


class TwoTower(nn.Module):
    """A picture and a vector, joined late."""

    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.Conv2d(12, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        self.picture = nn.Sequential(*convs, nn.Flatten())
        self.vector = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU())
        self.joint = nn.Sequential(nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        return self.joint(torch.cat([self.picture(picture), self.vector(vector)], dim=-1))


def two_tower_inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 10, generator=generator)


def two_tower_channels(m: TwoTower) -> list[Units]:
    return [channels([m.picture[0]], [m.picture[2]]), channels([m.picture[2]], [m.joint[0]])]


def two_tower_neurons(m: TwoTower) -> list[Units]:
    second = Units(20, [rows(m.vector[2])], cols(m.joint[0], offset=16))
    return [neurons(m.vector[0], m.vector[2]), second, neurons(m.joint[0], m.joint[2])]


FAMILIES: list[Family] = [
    family(
        "lenet300",
        lenet300,
        lambda g: (torch.randn(2, 1, 28, 28, generator=g),),
        neurons=Task(lambda m: [neurons(m[1], m[3]), neurons(m[3], m[5])]),
    ),
    family(
        "mlp_sigmoid",
        sigmoid,
        vector(20),
        neurons=Task(
            lambda m: [neurons(m[0], m[2]), neurons(m[2], m[4])],
            note="dead neurons are 0.5 and log 2, folded into the next bias",
            fold=True,
        ),
    ),
    family("glu", Glu, vector(24), neurons=Task(glu_neurons)),
    family(
        "soft_moe",
        Mixture,
        vector(16),
        neurons=Task(lambda m: [neurons(expert[0], expert[2]) for expert in m.experts]),
    ),
    family("tied_autoencoder", TiedAutoencoder, vector(32), neurons=Task(tied_neurons, reader=True)),
    family("weight_reuse", Reuse, vector(16), neurons=Task(reuse_neurons)),
    family("two_tower", TwoTower, two_tower_inputs, neurons=Task(two_tower_neurons), channels=Task(two_tower_channels)),
]
