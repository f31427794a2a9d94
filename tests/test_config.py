"""``GateConfig``: the gating of a model through JSON and files, so that a state_dict loads into a fresh model."""

import copy
import json
import os

import pytest
import torch
from torch import nn

import dgating as dg


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, groups=1)
        self.norm = nn.BatchNorm2d(6)
        self.mix = nn.ConvTranspose2d(6, 4, 3, groups=2)
        self.hidden = nn.Linear(16, 6)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.experts = nn.ParameterList([nn.Parameter(torch.randn(6, 3)) for _ in range(2)])

    def forward(self, x):
        h = self.mix(self.norm(self.conv(x)).relu()).flatten(2).mean(2)
        h = self.hidden(torch.cat([h, h, h, h], 1)).relu() * self.scale
        return h @ self.experts[0] + h @ self.experts[1]


def entries(net):
    return dg.by_labels(net.hidden, torch.arange(96).view(6, 16) % 4 - 1)


GATINGS = {
    "dim": lambda net: [(dg.features(net.hidden), 3)],
    "dim of a transposed grouped convolution": lambda net: [(dg.filters(net.mix), 3)],
    "block": lambda net: [(dg.by_dim(net.hidden, 1, block=4), 2)],
    "labels": lambda net: [(dg.by_labels(net.hidden, torch.tensor([2, 0, 1, 1, 0, 2])[:, None], group_name="l"), 4)],
    "labels with ungated columns": lambda net: [(dg.by_labels(net.hidden, torch.arange(16) % 3 - 1), 3)],
    "labels with ungated entries": lambda net: [(entries(net), 5)],
    "one label": lambda net: [(dg.by_labels(net.hidden, torch.tensor(0)), 3)],
    "one row of all": lambda net: [(dg.by_labels(net.hidden, torch.tensor([-1, -1, 0, -1, -1, -1])[:, None]), 3)],
    "whole": lambda net: [(dg.whole(net.hidden, name="layer"), 3)],
    "whole with a scalar": lambda net: [(dg.whole(net), 2)],
    "list of parameters": lambda net: [(dg.concat(*[dg.by_dim(net.experts, 0, name=str(e)) for e in (1, 0)]), 3)],
    "tied": lambda net: [
        (dg.tie(dg.filters(net.conv), dg.by_dim(net.norm, 0), dg.by_dim(net.norm, 0, name="bias"), name="channels"), 3)
    ],
    "tied, one tensor partial": lambda net: [
        (dg.tie(dg.by_dim(net.norm, 0, block=2), dg.by_labels(net.hidden, torch.arange(6)[:, None] % 4 - 1)), 3)
    ],
    "several parts": lambda net: [(dg.filters(net), 4)],
    "several groups": lambda net: [
        ([dg.filters(net, exclude="mix"), dg.whole(net.experts, name="e"), entries(net)], 3),
    ],
    "several depths": lambda net: [
        (dg.features(net.hidden, name="first"), 2),
        (dg.filters(net, name="convolutions"), 5),
        (dg.whole(net.experts, name="Ωμέγα\n\"'"), 3),
    ],
}


@pytest.fixture(params=GATINGS.values(), ids=GATINGS.keys())
def gated(request):
    """A gated model with factors as after training."""
    net = Net()
    for groups, depth in request.param(net):
        dg.gate_(net, groups, depth=depth)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(torch.rand_like(p) + 0.5)
    return net.eval()


def depths(net):
    return {(row.groups, row.label): (row.depth, row.n_groups) for row in dg.report(net).rows}


def test_a_fresh_model_takes_the_state_and_gives_the_same_bits(gated):
    text = dg.GateConfig.from_model(gated).to_json()
    torch.manual_seed(1)
    fresh = Net().eval()
    assert dg.GateConfig.from_json(text).apply_(fresh) is fresh
    fresh.load_state_dict(gated.state_dict())
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(fresh(x), gated(x))
    assert depths(fresh) == depths(gated)
    assert list(fresh.state_dict()) == list(gated.state_dict())
    for name, norms in dg.group_norms(gated).items():
        assert torch.equal(dg.group_norms(fresh)[name], norms)
    assert torch.equal(dg.penalty(fresh), dg.penalty(gated))


def test_gates_that_were_shared_are_shared_again(gated):
    fresh = dg.GateConfig.from_model(gated).apply_(Net())
    assert [n for n, _ in fresh.named_parameters()] == [n for n, _ in gated.named_parameters()]
    dg.collapse_(fresh)
    assert [n for n, _ in fresh.named_parameters()] == [n for n, _ in Net().named_parameters()]


def test_json_is_plain_and_stable(gated):
    config = dg.GateConfig.from_model(gated)
    again = dg.GateConfig.from_json(config.to_json())
    assert again.to_json() == config.to_json()
    assert dg.GateConfig.from_model(again.apply_(Net())).to_json() == config.to_json()
    assert json.loads(config.to_json())["format"] == "dgating/gates/1"


def test_config_of_a_copy_is_that_of_the_original(gated):
    assert dg.GateConfig.from_model(copy.deepcopy(gated)).to_json() == dg.GateConfig.from_model(gated).to_json()


def test_regular_labels_are_stored_short():
    net = nn.Linear(5000, 2)
    assert len(dg.GateConfig.from_model(dg.gate_(net, dg.features(net))).to_json()) < 1000


def test_save_and_load(tmp_path, gated):
    config = dg.GateConfig.from_model(gated)
    path = tmp_path / "new folder" / "gates.json"
    config.save(path)
    assert dg.GateConfig.load(str(path)) == dg.GateConfig.from_json(config.to_json())
    assert os.listdir(path.parent) == ["gates.json"]


def test_a_saved_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "gates.json"
    path.write_text("old and much longer " * 1000)
    net = nn.Linear(4, 2)
    dg.GateConfig.from_model(dg.gate_(net, dg.features(net))).save(path)
    assert dg.GateConfig.load(path).groups[0]["name"] == "weight"


@pytest.mark.parametrize(("where", "failing"), [(os, "replace"), (os, "fsync")])
def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, where, failing):
    path = tmp_path / "gates.json"
    path.write_text("old")
    net = nn.Linear(4, 2)
    config = dg.GateConfig.from_model(dg.gate_(net, dg.features(net)))

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, failing, full_disk)
        with pytest.raises(OSError, match="no space"):
            config.save(path)
    assert os.listdir(tmp_path) == ["gates.json"]
    assert path.read_text() == "old"


def test_a_saved_file_has_the_usual_permissions(tmp_path):
    """Other users of the machine can read what is saved, as with every other file."""
    net = nn.Linear(4, 2)
    dg.GateConfig.from_model(dg.gate_(net, dg.features(net))).save(tmp_path / "gates.json")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "gates.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "content", [b"\x80\x04\x95 pickle", b"\xff\xfe\x00", b"", b'{"format": "dgating/gates/1", "gro']
)
def test_a_foreign_or_truncated_file_is_an_error_that_says_so(tmp_path, content):
    path = tmp_path / "gates.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="GateConfig: expected") as caught:
        dg.GateConfig.load(path)
    assert caught.type is ValueError


def test_any_truncation_of_a_config_is_refused():
    net = nn.Linear(4, 2)
    text = dg.GateConfig.from_model(dg.gate_(net, entries_of(net), depth=4)).to_json()
    for end in range(0, len(text) - 1, 7):
        with pytest.raises(ValueError, match="GateConfig: expected JSON"):
            dg.GateConfig.from_json(text[:end])


def entries_of(net):
    return dg.by_labels(net, torch.arange(8).view(2, 4) % 3 - 1)


def test_a_missing_key_at_any_depth_is_refused_before_the_model_is_touched():
    net = nn.Linear(4, 2)
    whole = json.loads(dg.GateConfig.from_model(dg.gate_(net, entries_of(net))).to_json())

    def without(data, route):
        data = copy.deepcopy(data)
        place = data
        for key in route[:-1]:
            place = place[key]
        del place[route[-1]]
        return json.dumps(data)

    part = ("groups", 0, "parts", 0)
    member = (*part, "members", 0)
    routes = [(key,) for key in whole]
    routes += [("groups", 0, key) for key in whole["groups"][0]]
    routes += [(*part, key) for key in whole["groups"][0]["parts"][0]]
    routes += [(*member, key) for key in whole["groups"][0]["parts"][0]["members"][0]]
    assert len(routes) == 2 + 3 + 3 + 7
    for route in routes:
        fresh = nn.Linear(4, 2)
        with pytest.raises(ValueError, match="GateConfig"):
            dg.GateConfig.from_json(without(whole, route)).apply_(fresh)
        assert not dg.is_gated(fresh), route
