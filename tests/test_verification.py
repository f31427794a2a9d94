"""What decides that a compact model is the same function, and what must stay for it to be."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dgating as dg
from dgating.compaction._check import check_same
from dgating.compaction._modules import size_attributes
from dgating.compaction._rules import ModuleChange
from dgating.compaction._verify import difference, scale_of, tolerance
from dgating.deploy import _export

INF, NAN = float("inf"), float("nan")

# --- how far two outputs are apart ---

APART = [
    ([1.0, 2.0], [1.0, 2.5], 0.5),
    ([1.0, 2.0], [1.5, 1.0], 1.0),
    ([NAN, 1.0], [NAN, 1.0], 0.0),
    ([NAN, 1.0], [NAN, 1.25], 0.25),
    ([NAN, 1.0], [0.0, 1.0], INF),
    ([0.0, 1.0], [NAN, 1.0], INF),
    ([INF, 1.0], [INF, 1.0], 0.0),
    ([INF, 1.0], [-INF, 1.0], INF),
    ([INF, 1.0], [1.0, 1.0], INF),
    ([INF, 1.0], [NAN, 1.0], INF),
    ([1, 2], [1, 2], 0.0),
    ([1, 2], [1, 3], INF),
    ([True], [False], INF),
    ([1 + 1j], [1 + 1j], 0.0),
    ([1 + 1j], [1 + 3j], 2.0),
    ([2 + 1j], [1 + 1j], 1.0),
    ([1 + 1j], [complex(1, NAN)], INF),
    ([], [], 0.0),
]


@pytest.mark.parametrize(("a", "b", "expected"), APART)
def test_difference(a, b, expected):
    x, y = torch.tensor(a), torch.tensor(b)
    assert difference([("x", x)], [("x", y)]) == expected
    assert difference([("x", y)], [("x", x)]) == expected
    assert difference([("x", x), ("y", y)], [("x", x), ("y", x)]) == expected


@pytest.mark.parametrize(("a", "b", "expected"), APART)
def test_difference_of_an_exported_file(a, b, expected):
    """The same, over the largest magnitude that is finite, and one."""
    x = torch.tensor(a)
    parts = torch.view_as_real(x).flatten().tolist() if x.is_complex() else x.tolist()
    scale = max([1.0, *(abs(n) for n in parts if abs(n) < INF)])
    assert _export._difference(x, torch.tensor(b)) == expected / scale


def test_scale_is_the_largest_finite_number():
    outputs = [[0.5, -3.0, INF, NAN], [1 + 7j], [99]]
    assert [scale_of([("x", torch.tensor(x))]) for x in outputs] == [3.0, 7.0, 1.0]
    assert scale_of([("x", torch.tensor(x)) for x in outputs]) == 7.0
    assert scale_of([]) == 1.0


def test_outputs_of_another_number_or_shape_are_not_the_same():
    x = torch.zeros(2, 3)
    assert difference([("x", x)], []) == INF
    assert difference([("x", x)], [("x", x.T)]) == INF
    assert difference([("x", x)], [("x", x[:1])]) == INF


# --- how far they may be ---


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.float16, 5e-2), (torch.bfloat16, 5e-2)],
)
def test_tolerance_is_what_rounding_may_do(dtype, expected):
    assert tolerance(dtype) == expected
    assert 4 * torch.finfo(dtype).eps < expected < 2_000_000 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("dtype", "same", "other"),
    [
        (torch.float64, 3e-11, 3e-10),
        (torch.float32, 1e-13, 1e-6),  # compared in float64, where a wrong weight shows at once
        (torch.bfloat16, 1e-2, 2e-1),
        (torch.float16, 1e-2, 2e-1),
    ],
)
def test_a_model_that_is_off_by_more_than_rounding_is_refused(dtype, same, other):
    """Outputs are one everywhere, so that the scale is one and the offset is the difference."""

    class Off(nn.Module):
        def __init__(self, offset):
            super().__init__()
            self.weight, self.offset = nn.Parameter(torch.zeros(3, 3, dtype=dtype)), offset

        def forward(self, x):
            return x @ self.weight + 1.0 + self.offset

    args = (torch.randn(2, 3, dtype=dtype),)
    check_same(Off(0.0), Off(same), args, {})
    with pytest.raises(dg.CompactionError, match="not the same"):
        check_same(Off(0.0), Off(other), args, {})


# --- which attributes are sizes ---

SIZES = ["hidden", "num_heads", "embed_dim", "out_features", "n_embd", "channels", "width"]
NOT = [
    "padding_idx", "layer_idx", "slot_idx", "expert_index", "layer_id", "eps", "stride", "padding", "output_padding",
    "dilation", "kernel_size", "num_tokens", "pad_token_id", "version", "seed", "num_layers", "num_hidden_layers",
    "n_layer",
]  # fmt: skip


@pytest.mark.parametrize("name", SIZES + NOT)
def test_attributes_that_happen_to_equal_a_size_are_left_alone(name):
    module = nn.Module()
    setattr(module, name, 8)
    module.config = SimpleNamespace(**{name: 8})
    change = ModuleChange("layer", {}, (("view", "size", 8, 5),))
    assert [found[1:] for found in size_attributes(module, change)] == ([(name, 8, 5)] * 2 if name in SIZES else [])


def test_other_attributes_are_no_sizes():
    module = nn.Module()
    module.flag, module.share, module.other, module.two = True, 8.0, 7, 6
    sizes = [(8, 5), (1, 0), (6, 3), (6, 2)]  # six becomes two numbers
    change = ModuleChange("layer", {}, tuple(("view", "size", old, new) for old, new in sizes))
    assert size_attributes(module, change) == []


# --- what must stay ---


def kept(net, x, where):
    """Units of a layer that stay; the compact model is compared with the full one on other inputs, too."""
    net = net.eval()
    small = dg.compact(net, (x,))
    for other in (x, torch.randn_like(x), 10 * torch.randn_like(x)):
        torch.testing.assert_close(small(other), net(other), rtol=1e-5, atol=1e-5)
    return small.get_submodule(where).weight.shape[0]


def constant(layer, unit, value):
    """A unit that gives a constant, whatever comes."""
    with torch.no_grad():
        layer.weight[unit] = 0
        layer.bias[unit] = value


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["linear", "conv", "grouped"])
def test_a_weight_below_zero_reads_as_much_as_one_above(kind, sign):
    """Every unit is read by weights of one sign alone; the second unit by none."""
    if kind == "linear":
        net, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(5, 4)
    else:
        last = nn.Conv2d(6, 4, 3, groups=2 if kind == "grouped" else 1)
        net, x = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), last), torch.randn(2, 2, 7, 7)
    with torch.no_grad():
        net[2].weight.copy_(sign * (net[2].weight.abs() + 0.1))
        if kind != "grouped":
            net[2].weight[:, 1] = 0
    assert kept(net, x, "0") == (6 if kind == "grouped" else 5)


def test_a_single_weight_below_zero_keeps_its_unit():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].weight[1, 2], net[2].weight[0, 4] = -1.0, 1.0
    assert kept(net, torch.randn(5, 4), "0") == 2


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_unit_that_reads_by_weights_below_zero_alone_is_no_constant(kind):
    if kind == "linear":
        net, x = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)), torch.randn(5, 4)
    else:
        net, x = nn.Sequential(nn.Conv1d(2, 6, 3), nn.Sigmoid(), nn.Conv1d(6, 3, 1)), torch.randn(2, 2, 7)
    with torch.no_grad():
        net[0].weight[2] = -net[0].weight[2].abs() - 0.1
    assert kept(net, x, "0") == 6


PADDINGS = [(0, True), ((0, 0), True), ("valid", True), (1, False), ((1, 0), False), ((0, 1), False), ("same", False)]


@pytest.mark.parametrize(("padding", "leaves"), PADDINGS)
def test_a_constant_channel_stays_where_zeros_surround_it_on_any_side(padding, leaves):
    net = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=padding))
    constant(net[0], 1, 0.7)
    assert kept(net, torch.randn(2, 2, 8, 8), "0") == (4 if leaves else 5)


@pytest.mark.parametrize(("padding", "counted", "leaves"), [
    ((0, 0), True, True), ((1, 0), True, False), ((0, 1), True, False), ((1, 1), True, False), ((1, 0), False, True),
])  # fmt: skip
def test_a_constant_channel_stays_where_an_average_counts_zeros(padding, counted, leaves):
    pool = nn.AvgPool2d(3, padding=padding, count_include_pad=counted)
    net = nn.Sequential(nn.Conv2d(2, 5, 1), pool, nn.Conv2d(5, 3, 1))
    constant(net[0], 1, 0.7)
    assert kept(net, torch.randn(2, 2, 8, 8), "0") == (4 if leaves else 5)


def test_a_kernel_that_sums_to_zero_still_reads_its_channel():
    """Beside a constant channel: the first output looks constant to the sums of the kernels, and is not."""
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 4, 2), nn.Conv1d(4, 2, 1))
    constant(net[0], 0, 0.7)
    with torch.no_grad():
        net[2].weight[0] = 0
        net[2].weight[0, 0] = 0.5
        net[2].weight[0, 1] = torch.tensor([1.0, -1.0])
    assert kept(net, torch.randn(3, 2, 9), "2") == 4


def test_a_kernel_of_zeros_does_not_read_its_channel():
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Conv1d(3, 4, 2), nn.Conv1d(4, 2, 1))
    constant(net[0], 0, 0.7)
    with torch.no_grad():
        net[2].weight[0] = 0
        net[2].weight[0, 0] = 0.5
    assert kept(net, torch.randn(3, 2, 9), "2") == 3


def test_the_original_is_never_touched():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    constant(net[0], 1, 0.7)
    before = copy.deepcopy(net.state_dict())
    dg.compact(net, (torch.randn(5, 4),))
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
