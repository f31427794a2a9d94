"""Networks of the paper."""

from __future__ import annotations

import itertools

import torch
from torch import nn


def lenet(inputs: int, classes: int, hidden: tuple[int, ...] = (300, 100)) -> nn.Sequential:
    """LeNet-300-100: ReLU, Kaiming normal weights, zero biases (section 9.3 of the paper's protocol)."""
    sizes = (inputs, *hidden)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(sizes[-1], classes))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return net


@torch.no_grad()
def accuracy(net: nn.Module, X: torch.Tensor, y: torch.Tensor, batch: int = 10_000) -> float:
    """Share of rows whose largest output is their class."""
    right = sum(int((net(X[rows]).argmax(1) == y[rows]).sum()) for rows in torch.arange(len(y)).split(batch))
    return right / len(y)
