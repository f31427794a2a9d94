"""The parts of compaction against small arrays and models written by hand: nothing wrong, and nothing too much."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import dgating as dg
from dgating.compaction._verify import other_sizes, part_of, run, to_double
from dgating.structure._factors import reshape
from dgating.structure._solve import irregular


def test_a_row_that_leaves_anyway_asks_for_nothing() -> None:
    """Two heads of width three. The first leaves as a head, so that the second may be as narrow as it likes."""
    entries = np.arange(1, 7).reshape(1, 2, 3)
    heads = np.array([7, 8]).reshape(1, 2, 1)
    dead = np.zeros(9, dtype=bool)
    dead[[6, 7]] = True
    assert irregular([entries, heads], dead) == []
    dead[7] = False  # both stay: the narrow one gets its entry back
    ((revived, _),) = irregular([entries, heads], dead)
    assert revived.tolist() == [6]


def test_what_is_known_of_an_empty_tensor_broadcasts_to_its_view() -> None:
    assert reshape(np.arange(3).reshape(1, 3), (0, 3), (3, 0, 1)).shape == (1, 1, 1)
    assert reshape(np.zeros((0, 3)), (0, 3), (3, 0, 1)).shape == (3, 0, 1)


class Widened(nn.Module):
    """Reads the size of its view from a configuration that its siblings share."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(4, config.width), nn.Linear(config.width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu().view(x.shape[0], self.config.width))


def test_a_size_in_a_shared_configuration_follows_where_the_layer_has_changed() -> None:
    config = SimpleNamespace(width=6)
    model = nn.Sequential(Widened(config), Widened(config))
    with torch.no_grad():
        model[0].up.weight[:2] = 0
        model[0].up.bias[:2] = 0
    small = dg.compact(model, (torch.randn(3, 4),))
    assert [type(m) for m in small] == [Widened, Widened]  # no graph had to take its place
    assert [m.config.width for m in small] == [4, 6]
    assert config.width == 6


class Scaled(nn.Module):
    """Of two numbers that are six, one is the size of its view and the other is none."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.parts = 6, 6
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        with torch.no_grad():
            self.up.weight[:2] = 0
            self.up.bias[:2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu().view(x.shape[0], self.width)) / self.parts


def test_every_layer_takes_the_size_that_the_first_of_its_kind_took() -> None:
    model, x = nn.Sequential(Scaled(), Scaled(), Scaled()), torch.randn(3, 4)
    small = dg.compact(model, (x,))
    assert [(type(m), m.width, m.parts) for m in small] == [(Scaled, 4, 6)] * 3
    torch.testing.assert_close(small(x), model(x))


class Counting(nn.Module):
    """Counts its calls, and adds their number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.layer(x) + self.calls


def test_a_run_puts_back_what_the_forward_writes() -> None:
    model = Counting()
    model.calls.fill_(3)
    first, second = (run(model, (torch.ones(1, 4),), {})[0][1] for _ in range(2))
    assert torch.equal(first, second)
    assert model.calls == 3


class Cached(nn.Linear):
    """Turns its weight once, and drops what it turned when training begins."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.turned: Tensor | None = None

    def train(self, mode: bool = True) -> Cached:
        if mode:
            self.turned = None
        return super().train(mode)

    def forward(self, input: Tensor) -> Tensor:
        if self.turned is None:
            self.turned = self.weight.detach().t().clone()
        return input @ self.turned + self.bias


def test_what_was_computed_from_the_full_weights_is_dropped_as_training_would() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Cached(6, 2)).eval()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = 0
    x = torch.randn(3, 4)
    small = dg.compact(model, (x,))  # the model is run before it is copied
    assert type(small[1]) is Cached
    assert small[1].weight.shape == (2, 4)
    torch.testing.assert_close(small(x), model(x))
    assert not any(module.training for module in small.modules())


class Folded(nn.Module):
    """Attention of three heads of width two, each head of each row an entry of the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 6) for _ in range(3))
        self.o = nn.Linear(6, 4)
        with torch.no_grad():
            for layer in (self.q, self.k, self.v):
                layer.weight[2:4] = 0
                layer.bias[2:4] = 0

    def forward(self, x: Tensor) -> Tensor:
        rows, n, _ = x.shape
        q, k, v = (f(x).view(rows, n, 3, 2).transpose(1, 2).reshape(rows * 3, n, 2) for f in (self.q, self.k, self.v))
        heads = (q @ k.mT).softmax(-1) @ v
        return self.o(heads.view(rows, 3, n, 2).transpose(1, 2).reshape(rows, n, 6))


def test_a_graph_holds_the_sizes_that_it_cannot_compute_any_more() -> None:
    """Rows times heads: with free sizes the number of heads is inside of a product."""
    model, x = Folded(), torch.randn(2, 5, 4)
    small = dg.compact(model, (x,), target="graph")
    assert small.get_parameter("v.weight").shape == (4, 4)
    torch.testing.assert_close(small(x), model(x))
    with pytest.raises(ValueError, match="expected a tensor of shape"):
        small(torch.randn(3, 5, 4))


def test_the_check_in_float64_leaves_whole_numbers_and_plain_values_as_they_are() -> None:
    given = {"x": torch.ones(2), "half": torch.ones(2).half(), "index": torch.tensor([1, 2]), "on": torch.tensor(True)}
    found = to_double([given, 3, None, "causal"])
    assert found[1:] == [3, None, "causal"]
    kinds = {name: x.dtype for name, x in found[0].items()}
    assert kinds == {"x": torch.float64, "half": torch.float64, "index": torch.int64, "on": torch.bool}


FULL = torch.arange(12.0).reshape(3, 4)
PARTS = {
    "the same": (FULL, True),
    "two rows": (FULL[[0, 2]], True),
    "three columns": (FULL[:, [0, 1, 3]], True),
    "rows in another order": (FULL[[2, 0]], False),
    "other numbers": (FULL[[0, 2]] + 1, False),
    "rows and columns": (FULL[:2, :3], False),
    "more rows": (torch.cat([FULL, FULL[:1]]), False),
    "another number of axes": (FULL[:, 0], False),
    "one axis more": (FULL[None], False),
}


@pytest.mark.parametrize("name", PARTS)
def test_an_output_may_have_lost_indices_of_one_axis_only(name: str) -> None:
    small, expected = PARTS[name]
    assert part_of(small, FULL) is expected


def test_other_sizes_are_one_row_more_one_row_and_one_position_more() -> None:
    """A vector has no positions and a scalar no rows: they stay beside the rest."""
    given = (torch.randn(4, 5, 3), torch.randn(4), torch.tensor(2.0), "sum")
    found = other_sizes(given, {"mask": torch.ones(4, 5, dtype=torch.bool)})
    shapes = [[tuple(x.shape) for x in args[:3]] + [tuple(kwargs["mask"].shape)] for args, kwargs in found]
    assert shapes == [
        [(5, 5, 3), (5,), (), (5, 5)],
        [(1, 5, 3), (1,), (), (1, 5)],
        [(4, 6, 3), (4,), (), (4, 6)],
    ]
    assert [args[3] for args, _ in found] == ["sum"] * 3


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.InstanceNorm2d, (2, 3, 6, 6)), (nn.InstanceNorm2d, (3, 6, 6)), (nn.InstanceNorm1d, (2, 3, 6))],
    ids=["images", "one image", "signals"],
)
def test_a_norm_without_weights_counts_the_channels_that_are_left(
    norm: type[nn.Module], shape: tuple[int, ...]
) -> None:
    conv = nn.Conv2d if norm is nn.InstanceNorm2d else nn.Conv1d
    model = nn.Sequential(conv(3, 5, 3), norm(5), nn.ReLU(), conv(5, 2, 3))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = 0
    small = dg.compact(model, (torch.randn(shape),))
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels) == (3, 3, 3)


class Ends(nn.Module):
    """An operation between a layer that makes six channels and one that reads them."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op
        self.make = nn.Conv2d(2, 6, 1)
        self.read = nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.op(self.make(x)))


OPERATIONS = {
    "two positions by lists": lambda x: x[:, :, [0, 1, 2], [1, 0, 3]],
    "two positions by lists, from the end": lambda x: x[:, :, [-1, 0], [0, -1]],
    "the sum of an axis": lambda x: x.sum(2),
    "the mean of an axis": lambda x: x.mean(3),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_channels_leave_through(name: str) -> None:
    model = Ends(OPERATIONS[name])
    with torch.no_grad():
        model.make.weight[[1, 4]] = 0
        model.make.bias[[1, 4]] = 0
    small = dg.compact(model, (torch.randn(2, 2, 4, 4),))
    assert (small.make.out_channels, small.read.in_channels) == (4, 4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_constant_channel_is_no_zero_behind(name: str) -> None:
    """Nobody but the analysis looks: the function is the same without a check of it."""
    model = Ends(OPERATIONS[name])
    with torch.no_grad():
        model.make.weight[[1, 4]] = 0
        model.make.bias[1], model.make.bias[4] = 2.0, 0.0
    x = torch.randn(2, 2, 4, 4)
    small = dg.compact(model, (x,), verify=False)
    torch.testing.assert_close(small(x), model(x))


def _padded_pair(constant: float) -> nn.Sequential:
    """The first channel of the second convolution reads one of the first that is a constant."""
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].bias[0] = constant
        model[1].weight[0, 1:] = 0
        model[1].bias[0] = 0
    return model


def test_zeros_stay_zeros_under_padding() -> None:
    small = dg.compact(_padded_pair(0.0), (torch.randn(2, 2, 5, 5),))
    assert [m.out_channels for m in small] == [3, 2, 2]


@pytest.mark.parametrize("constant", [-1.0, 1.0, 2.5])
def test_a_constant_is_none_any_more_at_a_padded_border(constant: float) -> None:
    model, x = _padded_pair(constant), torch.randn(2, 2, 5, 5)
    small = dg.compact(model, (x,), verify=False)
    torch.testing.assert_close(small(x), model(x))
    assert small[1].out_channels == 3


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_transposed_convolution_may_have_one_output(outputs: int) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ConvTranspose2d(6, outputs, 2))
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = 0
    small = dg.compact(model, (torch.randn(2, 2, 4, 4),))
    assert (small[0].out_channels, small[1].in_channels, small[1].out_channels) == (4, 4, outputs)


class Body(nn.Module):
    """A function between a layer that makes six units, of which one is zero, and a layer that reads them."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f
        self.make, self.read = nn.Linear(4, 6), nn.Linear(6, 2)
        with torch.no_grad():
            self.make.weight[0] = 0
            self.make.bias[0] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.f(self.make(x)))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("target", ["module", "graph"])
def test_a_model_that_does_not_run_on_its_inputs_is_refused(target: Literal["module", "graph"], verify: bool) -> None:
    """Tracing sees no content of an index."""
    model = Body(lambda x: x[:, torch.tensor([0, 1, 2, 3, 4, 6])])
    with pytest.raises(dg.CompactionError, match=r"^Body does not run on these inputs \(IndexError: .* 6 "):
        dg.compact(model, (torch.randn(3, 4),), target=target, verify=verify)


def test_a_part_that_reads_a_size_from_a_tensor_becomes_a_graph_and_no_other() -> None:
    model = nn.Sequential(Body(lambda x: x / x.shape[-1]), Body(torch.relu))
    model[1].make = nn.Linear(2, 6)
    x = torch.randn(3, 4)
    small = dg.compact(model, (x,))
    assert isinstance(small[0], GraphModule)
    assert type(small[1]) is Body
    assert small[0].get_parameter("make.weight").shape == (5, 4)
    torch.testing.assert_close(small(x), model(x))


class Halves(nn.Module):
    """Two layers whose biases are the halves of one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(4, 3, bias=False) for _ in range(2))
        self.bias = nn.Parameter(torch.arange(1.0, 7.0))
        self.read = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.read((self.left(x) + self.bias[:3]).relu()) + (self.right(x) + self.bias[3:]).sum(-1, keepdim=True)


def test_what_is_known_of_a_vector_is_known_of_its_slices() -> None:
    model = Halves()
    with torch.no_grad():
        model.left.weight[1] = 0
        model.bias[1] = 0
    x = torch.randn(5, 4)
    small = dg.compact(model, (x,), target="graph")  # the forward holds the number three
    assert [u.removed for u in small.compaction.units] == [0, 1]
    torch.testing.assert_close(small(x), model(x))
