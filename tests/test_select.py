"""Group finders against what the layer computes: a group owns an input or an output exactly when zeroing it says so."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import dgating as dg


@dataclass(frozen=True)
class Kind:
    """A layer, an input for it, the axis of its inputs and of its outputs, and what is perturbed or read there."""

    make: object
    shape: tuple[int, ...]
    n_in: int
    n_out: int | None = None
    in_axis: int = 1
    out_axis: int = 1


class Own(nn.Module):
    """A layer of somebody's own: one matrix per expert in a bare three-dimensional parameter, biases in a list."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 5))
        self.b = nn.ParameterList([nn.Parameter(torch.randn(5)) for _ in range(3)])

    def forward(self, x):
        return torch.stack([x @ self.w[e] + self.b[e] for e in range(3)], 1)


LINEAR = {
    "linear": Kind(lambda: nn.Linear(4, 3), (5, 4), 4, 3),
    "linear without bias": Kind(lambda: nn.Linear(4, 3, bias=False), (5, 4), 4, 3),
    "transformers Conv1D": Kind(lambda: Conv1D(3, 4), (5, 4), 4, 3),
}
CONV = {
    "conv1d": Kind(lambda: nn.Conv1d(3, 4, 3), (2, 3, 7), 3, 4),
    "conv2d": Kind(lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 5), 3, 4),
    "conv2d without bias": Kind(lambda: nn.Conv2d(3, 4, 3, bias=False), (2, 3, 5, 5), 3, 4),
    "conv3d": Kind(lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4), 2, 3),
    "grouped conv": Kind(lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5), 6, 4),
    "depthwise conv": Kind(lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5), 4, 4),
    "depthwise, two filters a channel": Kind(lambda: nn.Conv1d(3, 6, 3, groups=3), (2, 3, 7), 3, 6),
    "transposed 1d": Kind(lambda: nn.ConvTranspose1d(3, 4, 3), (2, 3, 5), 3, 4),
    "transposed 2d": Kind(lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), (2, 3, 4, 4), 3, 4),
    "transposed, grouped": Kind(lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 4, 4), 4, 6),
    "transposed, depthwise": Kind(lambda: nn.ConvTranspose1d(3, 3, 3, groups=3), (2, 3, 5), 3, 3),
    "transposed 3d, grouped": Kind(lambda: nn.ConvTranspose3d(4, 2, 2, groups=2), (1, 4, 3, 3, 3), 4, 2),
}
RECURRENT = {
    "lstm": Kind(lambda: nn.LSTM(4, 3), (6, 2, 4), 4, in_axis=2),
    "lstm, both directions": Kind(lambda: nn.LSTM(4, 3, bidirectional=True, num_layers=2), (6, 2, 4), 4, in_axis=2),
    "lstm with projection": Kind(lambda: nn.LSTM(4, 3, proj_size=2), (6, 2, 4), 4, in_axis=2),
    "gru": Kind(lambda: nn.GRU(4, 3, batch_first=True), (2, 6, 4), 4, in_axis=2),
    "gru, both directions": Kind(lambda: nn.GRU(4, 3, bidirectional=True), (6, 2, 4), 4, in_axis=2),
    "rnn": Kind(lambda: nn.RNN(4, 3, bias=False), (6, 2, 4), 4, in_axis=2),
}
ATTENTION = {
    "attention": Kind(lambda: nn.MultiheadAttention(4, 2), (5, 2, 4), 4, in_axis=2),
    "attention, batch first": Kind(lambda: nn.MultiheadAttention(4, 2, batch_first=True), (2, 5, 4), 4, in_axis=2),
}
INPUTS = LINEAR | CONV | RECURRENT | ATTENTION
OUTPUTS = LINEAR | CONV


def output(layer, x):
    y = layer(x, x, x) if isinstance(layer, nn.MultiheadAttention) else layer(x)
    return y[0] if isinstance(y, tuple) else y


def names_of(table):
    return [pytest.param(kind, id=name) for name, kind in table.items()]


def moved(x, axis, j):
    """``x`` with its ``j``-th slice along ``axis`` perturbed."""
    out = x.clone()
    out.select(axis, j).add_(torch.randn_like(out.select(axis, j)))
    return out


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's, about speed
@pytest.mark.parametrize("collapse", [False, True], ids=["gated", "collapsed"])
@pytest.mark.parametrize("kind", names_of(INPUTS))
def test_a_dead_feature_is_an_input_that_does_not_matter(kind, collapse):
    layer, x = kind.make().eval(), torch.randn(kind.shape)
    dg.gate_(layer, dg.features(layer, name="inputs"), depth=3)
    dead = torch.zeros(kind.n_in, dtype=torch.bool)
    dead[1] = True
    dg.zero_(layer, {"inputs": dead})
    if collapse:
        dg.collapse_(layer)
    with torch.no_grad():
        before = output(layer, x)
        for j in range(kind.n_in):
            assert torch.equal(output(layer, moved(x, kind.in_axis, j)), before) == bool(dead[j]), f"input {j}"


@pytest.mark.parametrize("kind", names_of(INPUTS))
def test_features_cover_every_weight_that_meets_an_input(kind):
    layer = kind.make()
    groups = dg.features(layer)
    assert len(groups) == kind.n_in
    assert groups.sizes.unique().numel() == 1
    tensors = [m.parameter for part in groups.parts for m in part.members]
    assert int(groups.sizes.sum()) == sum(p.numel() for p in tensors)


@pytest.mark.parametrize("collapse", [False, True], ids=["gated", "collapsed"])
@pytest.mark.parametrize("kind", names_of(OUTPUTS))
def test_a_dead_output_is_constant(kind, collapse):
    layer, x = kind.make(), torch.randn(kind.shape)
    groups = (dg.filters if hasattr(layer, "kernel_size") else dg.neurons)(layer, name="units")
    assert len(groups) == kind.n_out
    dg.gate_(layer, groups, depth=2)
    dead = torch.zeros(kind.n_out, dtype=torch.bool)
    dead[kind.n_out - 2] = True
    dg.zero_(layer, {"units": dead})
    if collapse:
        dg.collapse_(layer)
    with torch.no_grad():
        y = layer(x)
    for j in range(kind.n_out):
        unit = y.select(kind.out_axis, j)
        bias = torch.zeros(()) if layer.bias is None else layer.bias[j]
        assert torch.equal(unit, bias.expand_as(unit)) == bool(dead[j]), f"output {j}"


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: Conv1D(3, 4)], ids=["linear", "transformers Conv1D"])
def test_a_dead_neuron_with_its_bias_puts_out_zero(make):
    layer = make()
    nn.init.normal_(layer.bias)
    groups = dg.neurons(layer, bias=True, name="units")
    assert groups.sizes.tolist() == [5, 5, 5]
    dg.zero_(dg.gate_(layer, groups), {"units": torch.tensor([False, True, False])})
    y = layer(torch.randn(6, 4))
    assert (y == 0).all(0).tolist() == [False, True, False]


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_a_dead_row_of_an_embedding_embeds_nothing(kind):
    layer = kind(5, 3)
    dg.zero_(dg.gate_(layer, dg.features(layer, name="tokens")), {"tokens": torch.arange(5) == 2})
    rows = layer(torch.arange(5)) if kind is nn.Embedding else layer(torch.arange(5)[:, None])
    assert (rows == 0).all(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(("dim", "block"), [(0, 1), (1, 1), (1, 2), (2, 1), (-1, 5), (-3, 3)])
def test_slices_of_a_bare_parameter(dim, block):
    layer = Own()
    groups = dg.by_dim(layer, dim, block, name="w", group_name="slices")
    n = layer.w.shape[dim] // block
    dead = torch.arange(n) == n - 1
    dg.zero_(dg.gate_(layer, groups), {"slices": dead})
    gone = layer.w.movedim(dim, 0).unflatten(0, (n, block)).flatten(1).abs().amax(1) == 0
    assert gone.tolist() == dead.tolist()


def test_an_expert_of_a_bare_parameter_is_dead_with_its_bias_from_a_list():
    layer, x = Own(), torch.randn(6, 4)
    experts = dg.concat(*[dg.by_dim(layer, 0, block=5, name=f"b.{e}") for e in range(3)], name="experts")
    dg.gate_(layer, [dg.by_dim(layer, 0, name="w", group_name="matrices"), experts])
    dead = torch.tensor([False, True, False])
    dg.zero_(layer, {"matrices": dead, "experts": dead})
    assert (layer(x) == 0).flatten(2).all(2).all(0).tolist() == [False, True, False]
    dg.collapse_(layer)
    assert (layer(x) == 0).flatten(2).all(2).all(0).tolist() == [False, True, False]
    assert [type(b) for b in layer.b] == [nn.Parameter] * 3


def test_a_parameter_may_be_given_itself():
    layer = Own()
    dg.gate_(layer, [dg.by_dim(layer.w, 0), dg.whole(layer.b, name="biases")])
    assert {name: len(norms) for name, norms in dg.group_norms(layer).items()} == {"w": 3, "biases": 1}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.tensor([0, 0, -1, 1]), [[0, 0, -1, 1]] * 3),
        (torch.tensor([[0], [-1], [1]]), [[0] * 4, [-1] * 4, [1] * 4]),
        (torch.arange(12).view(3, 4) % 5 - 1, (torch.arange(12).view(3, 4) % 5 - 1).tolist()),
        (torch.tensor([[0]]), [[0] * 4] * 3),
    ],
    ids=["columns", "rows", "entries", "all"],
)
def test_labels_own_the_entries_that_bear_them(labels, expected):
    layer = nn.Linear(4, 3)
    before, expected = layer.weight.detach().clone(), torch.tensor(expected)
    dg.gate_(layer, dg.by_labels(layer, labels, group_name="g"))
    for j in range(int(labels.max()) + 1):
        dg.zero_(layer, {"g": torch.arange(int(labels.max()) + 1) == j})
        dead = (expected >= 0) & (expected <= j)
        assert torch.equal(layer.weight, before.masked_fill(dead, 0))


def test_whole_takes_everything_trainable_once():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    net.append(net[0].requires_grad_(False))
    net[1].weight = None
    groups = dg.whole([net, net[2]], name="branch")
    assert (len(groups), groups.sizes.tolist(), groups.name) == (1, [4 + 20], "branch")
    dg.zero_(dg.gate_(net, groups), {"branch": torch.tensor([True])})
    dg.collapse_(net)
    assert [n for n, p in net.named_parameters() if not p.any()] == ["1.bias", "2.weight", "2.bias"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3), "up": nn.ConvTranspose2d(4, 2, 3)}) for _ in range(2)]
        )
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)


CONVS = ["stem", "blocks.0.conv", "blocks.0.up", "blocks.1.conv", "blocks.1.up"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (lambda net: net.stem, (), ["stem"]),
        (lambda net: [net.head, net.stem], (), ["stem", "head"]),
        (lambda _: nn.Linear, (), ["hidden", "head"]),
        (lambda _: (nn.Linear, nn.ConvTranspose2d), (), ["blocks.0.up", "blocks.1.up", "hidden", "head"]),
        (lambda _: "blocks.*.conv", (), ["blocks.0.conv", "blocks.1.conv"]),
        (lambda _: "h*", "head", ["hidden"]),
        (lambda _: lambda _, m: getattr(m, "out_channels", 0) == 4, "stem", ["blocks.0.conv", "blocks.1.conv"]),
        (lambda _: lambda path, m: path == "hidden", (), ["hidden"]),
        (lambda _: [nn.Linear, "stem"], [lambda path, m: path == "head"], ["stem", "hidden"]),
        (lambda _: nn.Conv2d, ["blocks.0.*", "stem"], ["blocks.1.conv"]),
    ],
)
def test_layers_by_instance_type_glob_and_predicate(include, exclude, expected):
    net = Net()
    found = dg.layers(net, include(net), exclude)
    assert list(found) == expected
    assert all(found[path] is net.get_submodule(path) for path in expected)


@pytest.mark.parametrize(
    ("include", "near"),
    [
        ("hiden", "hidden"),
        ("blocks.0.cnv", "blocks.0.conv"),
        ("blocks.7.up", "blocks.0.up"),
        (nn.LSTM, "stem (Conv2d)"),
    ],
)
def test_nothing_found_names_what_is_near(include, near):
    with pytest.raises(ValueError, match="matches include") as caught:
        dg.layers(Net(), include)
    assert near in str(caught.value).split("Near names: ")[1]


def test_near_names_of_a_tensor():
    with pytest.raises(ValueError, match=r"no parameter 'hidden\.wait'.*'hidden\.weight'"):
        dg.by_dim(Net(), 0, name="hidden.wait")


def test_filters_of_a_model_are_those_of_all_its_convolutions():
    net = Net()
    groups = dg.filters(net)
    assert groups.name == "filters"
    assert [part.label for part in groups.parts] == [f"{path}.weight" for path in CONVS]
    assert groups.sizes.tolist() == [9] * 4 + ([36] * 4 + [36] * 2) * 2
    assert len(dg.filters(net, include="blocks.*", exclude=["*.conv", "blocks.?"], name="up")) == 4
    assert len(dg.filters(net, exclude=nn.ConvTranspose2d)) == 12


def test_neurons_of_a_model_leave_the_last_layer_out():
    net = Net()
    assert [part.label for part in dg.neurons(net).parts] == ["hidden.weight"]
    assert len(dg.neurons(net, include=nn.Linear)) == 9
    assert dg.neurons(net, include="head", name="out").name == "out"
    deep = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2))
    assert [p.label for p in dg.neurons(deep).parts] == ["0.weight", "1.weight"]
    assert [p.label for p in dg.neurons(deep, exclude="0").parts] == ["1.weight"]
    assert [p.label for p in dg.neurons(deep, exclude="2").parts] == ["0.weight", "1.weight"]


def test_no_hidden_layer_left_says_so():
    deep = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2))
    with pytest.raises(ValueError, match="hidden linear layer"):
        dg.neurons(deep, exclude=["0", "1"])
    with pytest.raises(ValueError, match=r"(nothing|hidden linear layer)"):
        dg.neurons(deep, exclude=nn.Linear)


def test_attention_with_separate_widths_has_no_one_input():
    with pytest.raises(TypeError, match="MultiheadAttention"):
        dg.features(nn.MultiheadAttention(4, 2, kdim=3, vdim=5))
    layer = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
    assert len(dg.by_dim(layer, 1, name="k_proj_weight")) == 3
    assert len(dg.by_dim(layer, 1, name="out_proj.weight", block=2)) == 2


def test_a_head_is_a_tie_of_its_slices():
    layer = nn.MultiheadAttention(4, 2, bias=False)
    # rows 0-3 of the fused projection are the queries, 4-7 the keys, 8-11 the values: two rows a head
    fused = dg.by_labels(layer, (torch.arange(12) % 4 // 2)[:, None], name="in_proj_weight")
    heads = dg.tie(fused, dg.by_dim(layer, 1, block=2, name="out_proj.weight"), name="heads")
    assert heads.sizes.tolist() == [24 + 8] * 2
    dg.zero_(dg.gate_(layer, heads), {"heads": torch.tensor([False, True])})
    assert (layer.in_proj_weight == 0).all(1).tolist() == [False, False, True, True] * 3
    assert (layer.out_proj.weight == 0).all(0).tolist() == [False, False, True, True]
