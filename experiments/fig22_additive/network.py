"""Neural additive models, many at once: a small network for each column, all in one batched matrix product a layer."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import dgating as dg


class Stacked(nn.Module):
    """``count`` linear layers of one size: (count, inputs, rows) to (count, outputs, rows). Starts as ``nn.Linear``."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        reach = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.empty(count, outputs, 1).uniform_(-reach, reach))

    def forward(self, h: Tensor) -> Tensor:
        """All layers in one call."""
        return torch.baddbmm(self.bias, self.weight, h)


class AdditiveNetworks(nn.Module):
    """``runs`` additive models ŷ = b + Σ_k f_k(x_k), one for each fold, that share nothing.

    f_k is a network of its own for column k: linear, batch norm, ReLU for every hidden layer, then linear.

    Args:
        runs: models.
        columns: of each model.
        hidden: widths of the hidden layers of every f_k.
        norm: with batch norm.
    """

    def __init__(self, runs: int, columns: int, hidden: Sequence[int], norm: bool = True) -> None:
        super().__init__()
        self.runs, self.columns = runs, columns
        count, sizes = runs * columns, (1, *hidden)
        self.layers = nn.ModuleList(Stacked(count, a, b) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(count * width) if norm else nn.Identity() for width in hidden)
        self.last = Stacked(count, sizes[-1], 1)
        self.bias = nn.Parameter(torch.zeros(runs))

    def shapes(self, x: Tensor) -> Tensor:
        """f_k(x_k): (rows, runs, columns) to (runs, columns, rows)."""
        h = x.permute(1, 2, 0).reshape(self.runs * self.columns, 1, len(x))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = layer(h)
            # one row with a channel for each unit of each network: statistics over the last axis, the rows of the data
            h = norm(h.reshape(1, -1, len(x))).reshape(h.shape).relu()
        return self.last(h).reshape(self.runs, self.columns, len(x))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, runs, columns) to (rows, runs)."""
        return self.shapes(x).sum(1).T + self.bias

    @property
    def entrance(self) -> Stacked:
        """The layer whose weights leave the columns: the one that is gated or penalised."""
        layer = self.layers[0]
        assert isinstance(layer, Stacked)
        return layer

    def norms_of_columns(self) -> Tensor:
        """(runs, columns): the norm of the weights that leave each column."""
        return self.entrance.weight.detach().flatten(1).norm(dim=1).reshape(self.runs, self.columns)


def by_column(net: AdditiveNetworks) -> dg.Groups:
    """A group for each column of each model: the weights that leave it."""
    return dg.by_dim(net.entrance, 0, group_name="columns")


@torch.no_grad()
def recalibrated(net: AdditiveNetworks, X: Tensor, y: Tensor) -> AdditiveNetworks:
    """A copy in eval mode, with statistics of batch norm and an intercept that belong to its weights.

    The statistics are those of all these rows instead of running ones, b is the mean of y - Σ_k f_k(x_k).
    """
    fresh = copy.deepcopy(net).train()
    for norm in fresh.norms:
        if isinstance(norm, nn.BatchNorm1d):
            norm.reset_running_stats()
            norm.momentum = None  # the average over calls, and there is one
    fresh(X)
    fresh.eval()
    fresh.bias += (y - fresh(X)).mean(0)
    return fresh


class Separate(nn.Module):
    """One additive model with ordinary layers, of the columns ``columns`` of its rows: ŷ = b + Σ_k f_k(x_k)."""

    def __init__(self, shapes: Sequence[nn.Module], columns: Sequence[int], bias: Tensor) -> None:
        super().__init__()
        self.shapes, self.columns = nn.ModuleList(shapes), tuple(columns)
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(rows, all columns) to (rows,)."""
        y = self.bias.expand(len(x))
        for shape, k in zip(self.shapes, self.columns, strict=True):
            y = y + shape(x[:, k : k + 1]).squeeze(1)
        return y


@torch.no_grad()
def separated(net: AdditiveNetworks, run: int) -> Separate:
    """One of the models (ungated) with ordinary layers: the same function, and one that ``dgating.compact`` can cut."""
    shapes = []
    for at in range(run * net.columns, (run + 1) * net.columns):
        parts: list[nn.Module] = []
        for layer, norm in zip([*net.layers, net.last], [*net.norms, None], strict=True):
            weight, bias = layer.weight[at], layer.bias[at, :, 0]  # type: ignore[index]
            linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
            parts.append(linear)
            if isinstance(norm, nn.BatchNorm1d):
                parts.append(_channels(norm, slice(at * len(bias), (at + 1) * len(bias))))
            if norm is not None:
                parts.append(nn.ReLU())
        shapes.append(nn.Sequential(*parts))
    return Separate(shapes, range(net.columns), net.bias[run]).train(net.training)


def _channels(norm: nn.BatchNorm1d, which: slice) -> nn.BatchNorm1d:
    own = nn.BatchNorm1d(which.stop - which.start, norm.eps, norm.momentum, device=norm.weight.device)
    state = {key: value if value.dim() == 0 else value[which] for key, value in norm.state_dict().items()}
    own.load_state_dict(state)
    return own


@torch.no_grad()
def without_dead_columns(model: Separate) -> Separate:
    """A copy that reads only the columns with a weight that is not zero; the functions of the others must be zero.

    ``dgating.compact`` keeps what a model takes in, and every width at one or more. Who feeds the model can leave the
    dead columns out.
    """
    kept = [i for i, shape in enumerate(model.shapes) if bool((shape[0].weight != 0).any())]  # type: ignore[index]
    small = Separate([model.shapes[i] for i in kept], [model.columns[i] for i in kept], model.bias)
    return copy.deepcopy(small).train(model.training)
