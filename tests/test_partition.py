"""Any integer partition of any tensor, against loops over its entries: sums, spreads, sizes, and what gating keeps."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dgating as dg
from dgating.gating._gate import Gate, Place
from dgating.gating._partition import partition_by_dim, partition_by_labels

quick = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def partitions(draw, ungated=None):
    """A shape of one to four axes and labels that broadcast to it, with every number from 0 to J-1 among them."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    left_out = draw(st.integers(0, len(shape) - 1))  # leading axes may be missing
    labelled = tuple(n if draw(st.booleans()) else 1 for n in shape[left_out:])
    low = -1 if (draw(st.booleans()) if ungated is None else ungated) else 0
    n = math.prod(labelled)
    values = torch.tensor(draw(st.lists(st.integers(low, 5), min_size=n, max_size=n)))
    values[draw(st.integers(0, n - 1))] = 5  # at least one entry is gated
    gated = values >= 0
    values[gated] = torch.unique(values[gated], return_inverse=True)[1]
    return shape, values.view(labelled)


def entries(shape, labels):
    """Every index of the tensor with its label, one by one."""
    spread = labels.expand(shape)
    return [(index, int(spread[index])) for index in itertools.product(*map(range, shape))]


def gated_weight(shape, labels, depth=3):
    net = nn.Module()
    net.w = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    return net, dg.by_labels(net, labels, name="w", group_name="g"), depth


@quick
@given(partitions())
def test_sizes_count_entries(case):
    shape, labels = case
    partition = partition_by_labels(shape, labels)
    counted = [0] * partition.n_groups
    for _, j in entries(shape, labels):
        if j >= 0:
            counted[j] += 1
    assert partition.sizes.tolist() == counted
    assert partition.partial == (sum(counted) < math.prod(shape))
    assert partition.n_groups == int(labels.max()) + 1


@quick
@given(partitions(ungated=False))
def test_expand_and_reduce_against_loops(case):
    shape, labels = case
    partition = partition_by_labels(shape, labels)
    layout, index = partition.layout()
    values = torch.randn(partition.n_groups, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    spread = layout.expand(values, index).expand(shape)
    sums = layout.reduce(x, index)
    expected = torch.zeros(partition.n_groups, dtype=torch.float64)
    for i, j in entries(shape, labels):
        assert spread[i] == values[j]
        expected[j] += x[i]
    torch.testing.assert_close(sums, expected)


@quick
@given(partitions())
def test_gate_sums_and_scales_against_loops(case):
    shape, labels = case
    partition = partition_by_labels(shape, labels)
    gamma = nn.Parameter(torch.rand(2, partition.n_groups, dtype=torch.float64) + 0.5)
    gate = Gate(gamma, partition, Place("g", 0, "w", 1))
    x = torch.randn(shape, dtype=torch.float64)
    gated, rest = gate.cut(x)
    weight = gate(gated) if rest is None else gate(gated, rest)
    norms = torch.zeros(partition.n_groups, dtype=torch.float64)
    assert weight.shape == x.shape
    for i, j in entries(shape, labels):
        if j < 0:
            assert weight[i] == x[i]
        else:
            torch.testing.assert_close(weight[i], x[i] * gamma[0, j] * gamma[1, j])
            norms[j] += x[i] ** 2
    torch.testing.assert_close(gate.group_sums(gated.square()), norms)


@quick
@given(partitions())
def test_cut_and_merge_are_a_round_trip(case):
    shape, labels = case
    partition = partition_by_labels(shape, labels)
    gate = Gate(nn.Parameter(torch.ones(1, partition.n_groups)), partition, Place("g", 0, "w", 1))
    x = torch.randn(shape)
    gated, rest = gate.cut(x)
    if rest is None:
        assert gated is x
        return
    assert gated.numel() == int(partition.sizes.sum())
    assert gated.numel() + rest.numel() == x.numel()
    assert torch.equal(gate.merge(gated, rest), x)


@quick
@given(partitions(), st.integers(2, 5))
def test_gate_and_collapse_give_back_every_bit(case, depth):
    net, groups, _ = gated_weight(*case)
    before = net.w.detach().clone()
    dg.gate_(net, groups, depth=depth)
    assert torch.equal(net.w, before)
    dg.collapse_(net)
    assert torch.equal(net.w, before)
    assert isinstance(net.w, nn.Parameter)


@quick
@given(partitions())
def test_norms_and_penalty_against_loops(case):
    shape, labels = case
    net, groups, depth = gated_weight(shape, labels)
    squares = torch.zeros(len(groups), dtype=torch.float64)
    for i, j in entries(shape, labels):
        if j >= 0:
            squares[j] += net.w.detach()[i] ** 2
    dg.gate_(net, groups, depth=depth)
    torch.testing.assert_close(dg.group_norms(net)["g"], squares.sqrt())
    torch.testing.assert_close(dg.penalty(net).detach(), (squares.sum() + 2 * len(groups)) / 3)
    torch.testing.assert_close(dg.effective_penalty(net), squares.pow(1 / 3).sum())


@quick
@given(partitions())
def test_zeroing_a_group_zeroes_its_entries_and_no_others(case):
    shape, labels = case
    net, groups, depth = gated_weight(shape, labels)
    before = net.w.detach().clone()
    dg.gate_(net, groups, depth=depth)
    dead = len(groups) - 1
    dg.zero_(net, {"g": torch.arange(len(groups)) == dead})
    assert torch.equal(net.w, before.masked_fill(labels.expand(shape) == dead, 0))


@quick
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_slices_are_labels_along_one_axis(shape, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    n = shape[dim]
    block = data.draw(st.sampled_from([b for b in range(1, n + 1) if n % b == 0]))
    partition = partition_by_dim(tuple(shape), dim, block)
    for i, j in entries(tuple(shape), partition.labels):
        assert j == i[dim] // block
    assert partition.sizes.tolist() == [math.prod(shape) // (n // block)] * (n // block)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    partition = partition_by_labels((2, 3), torch.tensor([0, 1, 1], dtype=dtype))
    assert partition.sizes.tolist() == [2, 4]


def test_labels_are_read_once():
    """Changing the labels later must not change the groups made from them."""
    labels = torch.tensor([0, 1, 1])
    partition = partition_by_labels((2, 3), labels)
    labels[2] = 0
    assert partition.sizes.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("labels", "stored"),
    [
        (torch.arange(6), 0),  # one a column: no index
        (torch.arange(6) // 2, 0),  # blocks: no index
        (torch.tensor([0, 1, 0, 1, 2, 2]), 6),
        (torch.tensor([[0], [1], [2]]), 0),
    ],
)
def test_regular_groups_need_no_index(labels, stored):
    partition = partition_by_labels((3, 6), labels)
    gate = Gate(nn.Parameter(torch.ones(1, partition.n_groups)), partition, Place("g", 0, "w", 1))
    assert sum(b.numel() for b in gate.buffers()) == stored
