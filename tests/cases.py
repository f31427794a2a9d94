"""The table of cases: kinds of layer, their inputs and ways to group them. A new kind is one more row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import dgating as dg


class Experts(nn.Module):
    """Bare three-dimensional parameters, as in mixture-of-experts layers."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(4, 6, 5))
        self.w2 = nn.ParameterList([nn.Parameter(torch.randn(5, 3)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eio->beo", x, self.w1).relu() @ self.w2[0]


class Attention(nn.Module):
    """Self-attention, so that one tensor comes in and one goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool) -> None:
        super().__init__()
        self.rnn = kind(5, 4, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Channel(nn.Module):
    """Convolution, batch norm, ReLU: one unit is a filter with its norm's scale and shift."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


@dataclass(frozen=True)
class Case:
    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    groups: Callable[[nn.Module], dg.Groups]


def _checkerboard(m: nn.Module) -> dg.Groups:
    rows, cols = m.weight.shape
    labels = (torch.arange(rows)[:, None] + torch.arange(cols)[None]) % 3
    return dg.by_labels(m, labels)


def _partial(m: nn.Module) -> dg.Groups:
    return dg.by_labels(m, torch.tensor([0, -1, 1, 1, 2, -1]))


def _partial_entries(m: nn.Module) -> dg.Groups:
    labels = torch.arange(m.weight.numel()).view_as(m.weight) % 4 - 1
    return dg.by_labels(m, labels)


def _value_heads() -> Tensor:
    """Rows of a fused query-key-value projection: only the values are gated, four rows a head."""
    return torch.cat([torch.full((16,), -1), torch.arange(8) // 4])


def linear() -> nn.Module:
    return nn.Linear(6, 5)


def vectors(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


CASES = [
    Case("linear columns", linear, vectors(7, 6), dg.features),
    Case("linear rows", linear, vectors(7, 6), dg.neurons),
    Case("linear rows with bias", linear, vectors(7, 6), lambda m: dg.neurons(m, bias=True)),
    Case("linear blocks", linear, vectors(7, 6), lambda m: dg.by_dim(m, 1, block=3)),
    Case("linear labels", linear, vectors(7, 6), _checkerboard),
    Case("linear partial columns", linear, vectors(7, 6), _partial),
    Case("linear partial entries", linear, vectors(7, 6), _partial_entries),
    Case("linear whole", linear, vectors(7, 6), dg.whole),
    Case("conv1d filters", lambda: nn.Conv1d(4, 6, 3), vectors(2, 4, 9), dg.filters),
    Case("conv2d filters", lambda: nn.Conv2d(3, 6, 3), vectors(2, 3, 8, 8), dg.filters),
    Case("conv2d inputs", lambda: nn.Conv2d(3, 6, 3), vectors(2, 3, 8, 8), dg.features),
    Case("conv3d filters", lambda: nn.Conv3d(2, 4, 2), vectors(1, 2, 4, 4, 4), dg.filters),
    Case("grouped conv filters", lambda: nn.Conv2d(4, 6, 3, groups=2), vectors(2, 4, 8, 8), dg.filters),
    Case("grouped conv inputs", lambda: nn.Conv2d(4, 6, 3, groups=2), vectors(2, 4, 8, 8), dg.features),
    Case("depthwise inputs", lambda: nn.Conv2d(4, 4, 3, groups=4), vectors(2, 4, 8, 8), dg.features),
    Case("transposed conv filters", lambda: nn.ConvTranspose2d(3, 4, 3), vectors(2, 3, 5, 5), dg.filters),
    Case("transposed grouped filters", lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), vectors(2, 4, 5, 5), dg.filters),
    Case("embedding rows", lambda: nn.Embedding(9, 4), lambda: torch.arange(9), dg.features),
    Case("Conv1D of transformers", lambda: Conv1D(5, 6), vectors(7, 6), dg.features),
    Case("attention inputs", Attention, vectors(2, 5, 8), lambda m: dg.features(m.mha)),
    Case("attention value heads", Attention, vectors(2, 5, 8),
         lambda m: dg.by_labels(m.mha, _value_heads()[:, None], "in_proj_weight")),
    Case("lstm inputs", lambda: Recurrent(nn.LSTM, False), vectors(2, 6, 5), lambda m: dg.features(m.rnn)),
    Case("gru inputs, both ways", lambda: Recurrent(nn.GRU, True), vectors(2, 6, 5), lambda m: dg.features(m.rnn)),
    Case("expert tensor", Experts, vectors(7, 6), lambda m: dg.by_dim(m, 0, name="w1")),
    Case("parameter list", Experts, vectors(7, 6), lambda m: dg.by_dim(m, 0, name="w2.0")),
    Case("bare parameter", Experts, vectors(7, 6), lambda m: dg.by_dim(m.w1, 1)),
    Case("channel with its norm", Channel, vectors(4, 3, 8, 8),
         lambda m: dg.tie(dg.filters(m.conv), dg.by_dim(m.norm, 0), dg.by_dim(m.norm, 0, name="bias"))),
]  # fmt: skip

DEPTHS = [2, 3, 4, 7]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
