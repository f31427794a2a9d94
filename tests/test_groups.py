"""``Groups`` as the user sees them: how many, how large, what they are called, and what ``print`` shows."""

import pytest
import torch
from torch import nn

import dgating as dg


def mlp(width=3):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def channel():
    conv, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    return conv, norm, dg.tie(dg.filters(conv), dg.by_dim(norm, 0), dg.by_dim(norm, 0, name="bias"))


def test_sizes_of_a_tie_add_up():
    _, _, unit = channel()
    assert len(unit) == 8
    assert unit.sizes.tolist() == [27 + 1 + 1] * 8


def test_the_norm_of_a_tie_is_taken_over_all_its_slices():
    conv, norm, unit = channel()
    nn.init.normal_(norm.bias)
    net = nn.Sequential(conv, norm)
    expected = torch.cat([conv.weight.flatten(1), norm.weight[:, None], norm.bias[:, None]], 1).norm(dim=1)
    dg.gate_(net, unit)
    torch.testing.assert_close(dg.group_norms(net)[unit.name], expected.detach())


def test_a_tie_has_one_set_of_gates_and_a_concat_one_a_part():
    net = mlp()
    dg.gate_(net, dg.tie(dg.neurons(net[0]), dg.features(net[2])), depth=4)
    assert len({id(m.gamma) for m in net.modules() if hasattr(m, "gamma")}) == 1
    net = mlp()
    dg.gate_(net, dg.concat(dg.neurons(net[0]), dg.features(net[2])), depth=4)
    assert [tuple(m.gamma.shape) for m in net.modules() if hasattr(m, "gamma")] == [(3, 3), (3, 3)]


def test_a_tie_of_concats_ties_part_by_part():
    a, b = mlp(), mlp()
    tied = dg.tie(*[dg.concat(dg.features(net[0]), dg.neurons(net[2])) for net in (a, b)])
    assert len(tied.parts) == 2
    assert tied.sizes.tolist() == [2 * 3] * 4 + [2 * 3] * 2
    with pytest.raises(ValueError, match=r"same number of groups.*\[6, 6\].*parts: \[\(4, 2\), \(2, 4\)\]"):
        dg.tie(dg.concat(dg.features(a[0]), dg.neurons(a[2])), dg.concat(dg.neurons(b[2]), dg.features(b[0])))


def test_concat_keeps_the_order():
    net = mlp()
    groups = dg.concat(dg.whole(net[2]), dg.features(net[0]), name="both")
    assert groups.sizes.tolist() == [8, 3, 3, 3, 3]
    dg.zero_(dg.gate_(net, groups), {"both": torch.arange(5) == 1})
    assert (net[0].weight == 0).all(0).tolist() == [True, False, False, False]
    assert net[2].weight.all()


def test_parts_of_different_groups_may_differ_in_size():
    net = mlp()
    groups = dg.by_labels(net[0], torch.tensor([0, 0, 0, 1]))
    assert groups.sizes.tolist() == [9, 3]
    assert groups.sizes.dtype == torch.int64


@pytest.mark.parametrize(
    ("make", "before", "after"),
    [
        (lambda net: dg.features(net[0]), "Linear.weight", "0.weight"),
        (lambda net: dg.features(net[0], name="inputs"), "inputs", "inputs"),
        (lambda net: dg.by_dim(net[0].weight, 0), "Parameter", "0.weight"),
        (lambda net: dg.by_dim(net, 0, name="2.bias"), "Linear.bias", "2.bias"),
        (lambda net: dg.by_labels(net[0], torch.arange(4), group_name="columns"), "columns", "columns"),
        (lambda net: dg.tie(dg.neurons(net[0], name="a"), dg.features(net[2], name="b")), "a", "a"),
        (lambda net: dg.tie(dg.neurons(net[0]), dg.features(net[2]), name="units"), "units", "units"),
        (lambda net: dg.tie(dg.neurons(net[0]), dg.features(net[2])), "Linear.weight", "0.weight"),
        (lambda net: dg.concat(dg.whole(net[0], name="a"), dg.whole(net[2], name="b")), "a", "a"),
        (lambda net: dg.concat(dg.whole(net[2]), dg.whole(net[0]), name="layers"), "layers", "layers"),
        (lambda net: dg.neurons(net, include=nn.Linear), "neurons", "neurons"),
        (dg.whole, "Linear.weight", "0.weight"),
    ],
)
def test_the_name_is_the_given_one_or_the_path_once_gated(make, before, after):
    net = mlp()
    groups = make(net)
    assert groups.name == before
    dg.gate_(net, groups)
    assert groups.name == after
    assert list(dg.group_norms(net)) == [after]


def test_a_bare_layer_is_named_by_its_tensor():
    layer = nn.Linear(4, 3)
    dg.gate_(layer, groups := dg.neurons(layer))
    assert groups.name == "weight"


def test_a_refused_gating_names_nothing():
    net = mlp()
    groups = dg.features(net[0])
    with pytest.raises(ValueError, match="in two groups"):
        dg.gate_(net, [groups, dg.neurons(net[0])])
    assert groups.name == "Linear.weight"


def test_repr_of_one_tensor():
    groups = dg.by_labels(nn.Linear(6, 2), torch.tensor([0, 0, 0, 1, 2, -1]), group_name="columns")
    assert repr(groups) == (
        "Groups 'columns': 3 groups of 2 to 6 weights\n  Linear.weight (2, 6): dim 1, 3 x 2 to 6 weights, 2 ungated"
    )


def test_repr_of_several_tensors():
    conv, norm, unit = channel()
    net = nn.Sequential(conv, norm, nn.Flatten(), nn.Linear(8, 2))
    groups = dg.concat(unit, dg.whole(net[3], name="head"), name="parts")
    assert repr(groups) == (
        "Groups 'parts': 9 groups of 18 to 29 weights\n"
        "  Conv2d.weight (8, 3, 3, 3): dim 0, 8 x 27 weights\n"
        "  & BatchNorm2d.weight (8,): dim 0, 8 x 1 weights\n"
        "  & BatchNorm2d.bias (8,): dim 0, 8 x 1 weights\n"
        "  head (2, 8): whole, 1 x 16 weights\n"
        "  & Linear.bias (2,): whole, 1 x 2 weights"
    )
    assert str(groups) == repr(groups)


def test_repr_of_labels_over_two_axes():
    layer = nn.Linear(3, 2)
    assert "labels over dims 0, 1, 2 x 3 weights" in repr(dg.by_labels(layer, torch.arange(6).view(2, 3) % 2))


@pytest.mark.parametrize(("n_layers", "n_lines"), [(1, 2), (12, 13), (13, 13), (40, 13)])
def test_a_long_repr_is_cut_in_the_middle(n_layers, n_lines):
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(n_layers)])
    lines = repr(dg.neurons(net, include=nn.Linear)).splitlines()
    assert len(lines) == n_lines
    assert lines[0] == f"Groups 'neurons': {2 * n_layers} groups of 2 weights"
    assert lines[-1] == f"  {n_layers - 1}.weight (2, 2): dim 0, 2 x 2 weights"
    hidden = [int(line.split()[1]) for line in lines if line.startswith("  ... ")]
    assert sum(hidden) + sum("weight (" in line for line in lines) == n_layers
    assert bool(hidden) == (n_layers > 12)
