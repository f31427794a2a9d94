"""Op rules against small models whose units are known: the compact one computes the same, and is as small as it can be.

Nobody but the analysis looks: the models are compacted without the check of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations import moe  # registers transformers::grouped_mm_fallback

import dgating as dg

assert moe


class Net(nn.Module):
    """A forward written out where it is used: ``f(net, x)`` on the modules and tensors given by name."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


@torch.no_grad()
def silent(layer: Any, *units: int) -> None:
    layer.weight[list(units)] = 0
    layer.bias[list(units)] = 0


@torch.no_grad()
def unread(layer: Any, *units: int) -> None:
    layer.weight[:, list(units)] = 0


def sizes(model: nn.Module, *shape: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of the compact graph, which computes what the model does."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    small = dg.compact(model, (x,), target="graph", verify=False)
    torch.testing.assert_close(small(x), model(x))
    return {name: tuple(p.shape) for name, p in small.named_parameters() if p.ndim > 1 or "." not in name}


# --- copies ---


def test_copies_of_which_different_units_are_read_stay_whole() -> None:
    """Two of each copy are read, of the first the first two, of the second the others: no one ``repeat`` does so."""
    model = Net(lambda n, x: n.read(n.make(x).repeat(1, 2)), make=nn.Linear(3, 4), read=nn.Linear(8, 2))
    unread(model.read, 2, 3, 4, 5)
    assert sizes(model, 5, 3) == {"make.weight": (4, 3), "read.weight": (2, 8)}


COPIES: dict[str, tuple[list[int], tuple[int, int]]] = {
    "no copy of a unit that stays for another": ([2, 3], (4, 8)),
    "one copy of each": ([0, 3, 4, 7], (4, 4)),
    "one copy of some": ([0, 3], (4, 8)),
}


@pytest.mark.parametrize("name", COPIES)
def test_every_unit_keeps_as_many_copies(name: str) -> None:
    """A second layer reads the units themselves."""
    dead, (units, copies) = COPIES[name]
    model = Net(
        lambda n, x: n.read(n.make(x).repeat_interleave(2, 1)) + n.other(n.make(x)),
        make=nn.Linear(3, 4),
        read=nn.Linear(8, 2),
        other=nn.Linear(4, 2),
    )
    unread(model.read, *dead)
    assert sizes(model, 5, 3) == {
        "make.weight": (units, 3),
        "read.weight": (2, copies),
        "other.weight": (2, units),
    }


# --- convolutions ---


def test_taps_of_a_kernel_that_are_units_elsewhere_stay() -> None:
    """One vector scales the three taps of a kernel and three channels, of which one is zero and would leave."""
    model = Net(
        lambda n, x: n.read(n.make(F.conv1d(x, n.w * n.scale)).mT * n.scale),
        make=nn.Conv1d(4, 3, 1),
        read=nn.Linear(3, 2),
        w=torch.randn(4, 2, 3),
        scale=torch.randn(3),
    )
    silent(model.make, 1)
    assert sizes(model, 2, 2, 9) == {
        "w": (4, 2, 3),
        "scale": (3,),
        "make.weight": (3, 4, 1),
        "read.weight": (2, 3),
    }


def test_a_kernel_written_into_the_forward_fixes_its_channels() -> None:
    kernel = torch.randn(3, 2, 5, dtype=torch.float64)
    model = Net(lambda n, x: n.read(F.conv1d(n.make(x), kernel)), make=nn.Conv1d(4, 2, 1), read=nn.Conv1d(3, 2, 1))
    silent(model.make, 0)
    assert sizes(model, 2, 4, 9) == {"make.weight": (2, 4, 1), "read.weight": (2, 3, 1)}


def test_a_kernel_stored_as_a_matrix_loses_the_taps_of_a_channel_together() -> None:
    model = Net(lambda n, x: F.conv1d(n.make(x), n.w.view(3, 4, 5)), make=nn.Conv1d(2, 4, 1), w=torch.randn(3, 20))
    silent(model.make, 1, 2)
    assert sizes(model, 2, 2, 9) == {"make.weight": (2, 2, 1), "w": (3, 10)}


def test_a_stack_of_matrices_that_is_a_kernel_as_well_keeps_what_it_reads() -> None:
    """As a kernel it would lose the channel that is zero, as a stack of matrices it reads an input there."""
    model = Net(
        lambda n, x: torch.bmm(x[:3], n.w).sum() + F.conv1d(n.make(x.mT), n.w),
        make=nn.Conv1d(4, 4, 1),
        w=torch.randn(3, 4, 3),
    )
    silent(model.make, 1)
    assert sizes(model, 5, 6, 4) == {"make.weight": (4, 4, 1), "w": (3, 4, 3)}


@pytest.mark.parametrize("registered", [1, 2])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_kernel_that_is_used_twice(blocks: int, registered: int) -> None:
    """Of two blocks of two channels, the first loses its second and the second its first."""
    twice = nn.Conv1d(4, 4, 1, groups=blocks)
    model = Net(
        lambda n, x: n.read((n.again if registered == 2 else n.twice)(n.twice(n.make(x)).relu())),
        make=nn.Conv1d(3, 4, 1),
        twice=twice,
        read=nn.Conv1d(4, 2, 1),
        **({"again": twice} if registered == 2 else {}),
    )
    silent(model.make, 1, 2)
    silent(twice, 1, 2)
    assert sizes(model, 2, 3, 5) == {
        "make.weight": (2, 3, 1),
        "twice.weight": (2, 2 // blocks, 1),
        "read.weight": (2, 2, 1),
    }


def test_blocks_of_a_kernel_that_is_computed_lose_channels_of_their_own() -> None:
    model = Net(lambda n, x: F.conv1d(n.make(x), n.w.tanh(), groups=2), make=nn.Conv1d(3, 4, 1), w=torch.randn(6, 2, 3))
    silent(model.make, 0, 3)
    assert sizes(model, 2, 3, 5) == {"make.weight": (2, 3, 1), "w": (6, 1, 3)}


CONVOLUTIONS: dict[str, tuple[nn.Module, list[str]]] = {
    "plain": (nn.Conv1d(4, 6, 1), ["1.weight (6, 4, 1): dim 0", "Conv1d.bias (6,): dim 0"]),
    "transposed": (nn.ConvTranspose1d(4, 6, 1), ["1.weight (4, 6, 1): dim 1", "ConvTranspose1d.bias (6,): dim 0"]),
    "depthwise": (nn.Conv1d(4, 4, 1, groups=4), ["Conv1d.weight (4, 1, 1): dim 0", "Conv1d.bias (4,): dim 0"]),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_channel_is_gated_where_it_is_made_not_where_it_is_read(name: str) -> None:
    layer, expected = CONVOLUTIONS[name]
    width = layer(torch.randn(2, 4, 3)).shape[1]
    model = nn.Sequential(nn.Conv1d(3, 4, 1), layer, nn.Conv1d(width, 2, 1))
    lines = [line for groups in dg.coupled(model, (torch.randn(2, 3, 5),)) for line in str(groups).splitlines()]
    made = [line.strip(" &").rsplit(",", 1)[0] for line in lines if line.startswith(" ")]
    assert made == ["0.weight (4, 3, 1): dim 0", "Conv1d.bias (4,): dim 0", *expected]


# --- products ---


def experts(op: Callable[[Tensor], Tensor] = torch.relu, width: int = 4) -> Net:
    """Rows sorted by expert: two, three and one of them. ``op`` makes ``width`` of the four neurons."""
    ends = torch.tensor([2, 5, 6], dtype=torch.int32)

    def forward(n: Any, x: Tensor) -> Tensor:
        h = torch.ops.transformers.grouped_mm_fallback(n.make(x), n.up, ends)
        return torch.ops.transformers.grouped_mm_fallback(op(h), n.down, ends)

    return Net(forward, make=nn.Linear(3, 5), up=torch.randn(3, 5, 4), down=torch.randn(3, width, 2))


def test_units_that_all_experts_read_leave_all_of_them() -> None:
    model = experts()
    silent(model.make, 0, 3)
    assert sizes(model, 6, 3) == {"make.weight": (3, 3), "up": (3, 3, 4), "down": (3, 4, 2)}


def test_every_expert_loses_neurons_of_its_own() -> None:
    model = experts()
    with torch.no_grad():
        for expert, neuron in enumerate((2, 0, 3)):
            model.up[expert, :, neuron] = 0
    assert sizes(model, 6, 3) == {"make.weight": (5, 3), "up": (3, 5, 3), "down": (3, 3, 2)}


AFTER_EXPERTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int, int], int, int]] = {
    "a gate": (F.glu, (0, 1, 0), 2, 2),
    "a gate of halves": (lambda h: h.chunk(2, -1)[0] * h.chunk(2, -1)[1].sigmoid(), (0, 1, 0), 2, 2),
    "a function": (torch.sinh, (2, 0, 3), 4, 3),
}


@pytest.mark.parametrize("name", AFTER_EXPERTS)
def test_what_is_known_of_the_neurons_of_an_expert_is_known_behind(name: str) -> None:
    """One neuron of each expert is zero, of every other another one."""
    op, zero, width, left = AFTER_EXPERTS[name]
    model = experts(op, width)
    with torch.no_grad():
        for expert, neuron in enumerate(zero):
            model.up[expert, :, neuron] = 0
    assert sizes(model, 6, 3) == {"make.weight": (5, 3), "up": (3, 5, left), "down": (3, width - 1, 2)}


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "neurons in another order": lambda h: h.flip(1),
    "rows in another order": lambda h: h.flip(0),
    "rows by a list": lambda h: h[[5, 4, 3, 2, 1, 0]],
    "rows through a view": lambda h: h.view(2, 3, 4).transpose(0, 1).reshape(6, 4),
    "every other row first": lambda h: torch.cat([h[::2], h[1::2]]),
    "rows beside others": lambda h: h * h.flip(0),
    "rows by a matrix": lambda h: torch.eye(6, dtype=h.dtype).flip(0) @ h,
    "rows by a matrix of a batch": lambda h: torch.bmm(torch.eye(6, dtype=h.dtype).flip(0)[None], h[None])[0],
    "sums of the rows so far": lambda h: h.cumsum(0),
    "rows in each other's front": lambda h: (h * torch.ones(6, 1, 1, dtype=h.dtype)).transpose(0, 1).sum(1),
    "one row of each": lambda h: torch.stack([h, h.tanh()], 1).flip(0).select(1, 0),
}


@pytest.mark.parametrize("what", ["zero", "unread"])
@pytest.mark.parametrize("name", MOVED)
def test_neurons_of_experts_whose_rows_meet_another_expert_stay(name: str, what: str) -> None:
    model = experts(MOVED[name])
    with torch.no_grad():
        for expert, neuron in enumerate((2, 0, 3)):
            if what == "zero":
                model.up[expert, :, neuron] = 0
            else:
                model.down[expert, neuron] = 0
    assert sizes(model, 6, 3) == {"make.weight": (5, 3), "up": (3, 5, 4), "down": (3, 4, 2)}


@pytest.mark.parametrize("name", [name for name in MOVED if name != "neurons in another order"])
def test_a_neuron_that_is_zero_in_every_expert_leaves_wherever_its_rows_are(name: str) -> None:
    model = experts(MOVED[name])
    with torch.no_grad():
        model.up[:, :, 1] = 0
        model.down[:, 1] = 0
    assert sizes(model, 6, 3) == {"make.weight": (5, 3), "up": (3, 5, 3), "down": (3, 3, 2)}


def test_a_single_expert_is_a_layer() -> None:
    ends = torch.tensor([6], dtype=torch.int32)
    model = Net(
        lambda n, x: n.read(torch.ops.transformers.grouped_mm_fallback(n.make(x), n.up, ends).flip(0)),
        make=nn.Linear(3, 5),
        read=nn.Linear(4, 2),
        up=torch.randn(1, 5, 4),
    )
    with torch.no_grad():
        model.up[0, :, 1] = 0
    silent(model.make, 2)
    assert sizes(model, 6, 3) == {"make.weight": (4, 3), "up": (1, 4, 3), "read.weight": (2, 3)}


def test_experts_that_are_computed_keep_all_that_they_read() -> None:
    ends = torch.tensor([2, 5, 6], dtype=torch.int32)
    model = Net(
        lambda n, x: n.read(torch.ops.transformers.grouped_mm_fallback(n.make(x), n.w * x.sum(), ends)),
        make=nn.Linear(3, 5),
        read=nn.Linear(4, 2),
        w=torch.randn(3, 5, 4),
    )
    silent(model.make, 1)
    assert sizes(model, 6, 3) == {"make.weight": (5, 3), "w": (3, 5, 4), "read.weight": (2, 4)}


def test_a_matrix_from_the_left_reads_the_rows_of_a_transpose() -> None:
    model = Net(lambda n, x: n.w @ n.make(x).t(), make=nn.Linear(3, 6), w=torch.randn(2, 6))
    silent(model.make, 1, 4)
    assert sizes(model, 5, 3) == {"make.weight": (4, 3), "w": (2, 4)}


def test_a_matrix_from_the_left_reads_with_the_rows_that_stay() -> None:
    """Its first row is not read, and of the units the third is read by that row alone."""
    model = Net(
        lambda n, x: n.read((n.w @ n.make(x).t()).t()), make=nn.Linear(3, 6), read=nn.Linear(4, 2), w=torch.randn(4, 6)
    )
    unread(model.read, 0)
    with torch.no_grad():
        model.w[1:, 2] = 0
    assert sizes(model, 5, 3) == {"make.weight": (5, 3), "w": (3, 5), "read.weight": (2, 3)}


# --- reductions ---


def test_a_unit_that_is_zero_at_one_token_is_missed_by_a_sum() -> None:
    """Of the second unit every token is zero, of the first only one."""
    mask = torch.ones(4, 6, dtype=torch.float64)
    mask[2, 0] = 0
    mask[:, 1] = 0
    model = Net(lambda n, x: (n.make(x) * n.mask).sum(-1), make=nn.Linear(3, 6), mask=mask)
    assert sizes(model, 2, 4, 3) == {"make.weight": (5, 3), "mask": (4, 5)}


# --- movement ---


def shuffled() -> Net:
    """Two cells of two by two channels, of which every pixel is read on its own."""
    return Net(
        lambda n, x: n.read(F.pixel_shuffle(n.make(x), 2).flatten(1)), make=nn.Conv2d(2, 8, 1), read=nn.Linear(72, 2)
    )


@pytest.mark.parametrize("axis", [2, 3])
def test_channels_that_become_every_other_pixel_stay(axis: int) -> None:
    model = shuffled()
    with torch.no_grad():
        model.read.weight.view(2, 2, 6, 6).movedim(axis, 0)[::2] = 0
    assert sizes(model, 3, 2, 3, 3) == {"make.weight": (8, 2, 1, 1), "read.weight": (2, 72)}


def test_channels_of_a_whole_cell_leave() -> None:
    model = shuffled()
    unread(model.read, *range(36))
    assert sizes(model, 3, 2, 3, 3) == {"make.weight": (4, 2, 1, 1), "read.weight": (2, 36)}


# --- what is known of a vector is known wherever it is broadcast to ---

BEHIND: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "a gate": (F.glu, 3),
    "tokens in another order": (lambda h: h.roll(1, 1), 6),
    "the mean of the tokens": (lambda h: h.mean(1), 6),
    "the largest of the tokens": (lambda h: h.amax(1), 6),
    "tokens one after the other": (lambda h: torch.cat([h, h.tanh()], 1), 6),
    "a border of tokens": (lambda h: F.pad(h, (0, 0, 1, 1)), 6),
    "chosen tokens": (lambda h: h.index_select(1, torch.tensor([2, 0])), 6),
    "chosen tokens of chosen rows": (lambda h: h[[0, 1], [1, 2]], 6),
    "copies": (lambda h: h[:, None].expand(-1, 2, -1, -1), 6),
    "copies of it all": (lambda h: h.repeat(2, 1, 1, 1), 6),
    "written tokens": (lambda h: torch.slice_scatter(h, h[:, :2].tanh(), 1, 1, 3), 6),
    "averages of positions": (lambda h: F.avg_pool1d(h.mT, 2).mT, 6),
}


@pytest.mark.parametrize("name", BEHIND)
def test_units_leave_that_a_vector_switches_off_in_front_of(name: str) -> None:
    op, width = BEHIND[name]
    gate = torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0, 1.0])
    model = Net(lambda n, x: n.read(op(n.make(x) * n.gate)), make=nn.Linear(3, 6), read=nn.Linear(width, 2), gate=gate)
    assert sizes(model, 2, 4, 3) == {"make.weight": (4, 3), "gate": (4,), "read.weight": (2, width * 4 // 6)}


def test_a_sum_does_not_miss_units_that_a_vector_switches_off() -> None:
    gate = torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0, 1.0])
    model = Net(lambda n, x: (n.make(x) * n.gate).sum(-1), make=nn.Linear(3, 6), gate=gate)
    assert sizes(model, 2, 4, 3) == {"make.weight": (4, 3), "gate": (4,)}


# --- weights of several axes ---

DEAD = {
    "the same of every row": ([0, 4, 8, 12, 16, 20], (2, 3, 3)),
    "all of a column": ([0, 1, 2, 3, 12, 13, 14, 15], (2, 2, 4)),
    "one of every row, but another": ([0, 5, 10, 15, 16, 21], (2, 3, 4)),
    "one of some rows": ([0, 12], (2, 3, 4)),
}


@pytest.mark.parametrize("name", DEAD)
def test_a_vector_that_is_stored_with_three_axes(name: str) -> None:
    """A box can be cut out of it: rows along two axes cannot lose entries of their own."""
    dead, shape = DEAD[name]
    model = Net(
        lambda n, x: n.read(n.make(x) * n.scale.view(-1)),
        make=nn.Linear(3, 24),
        read=nn.Linear(24, 2),
        scale=torch.randn(2, 3, 4),
    )
    silent(model.make, *dead)
    units = shape[0] * shape[1] * shape[2]
    assert sizes(model, 5, 3) == {"scale": shape, "make.weight": (units, 3), "read.weight": (2, units)}
