"""Compact models that hold rewritten graphs: copies are whole, and nothing is pickled that torch cannot load."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import dgating as dg


class Written(nn.Module):
    """A forward with sizes that no attribute holds."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.b(self.a(x).relu().reshape(-1, 3, 4).reshape(-1, 12))


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.written, self.last = nn.Linear(6, 6), Written(), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.written(self.first(x)))


def full():
    model = Holder().eval()
    with torch.no_grad():
        model.written.a.weight[:6] = 0
        model.written.a.bias[:6] = 0
    return model


@pytest.fixture(params=["module", "graph"])
def small(request):
    made = dg.compact(full(), torch.randn(5, 6), target=request.param)
    assert any(isinstance(m, GraphModule) for m in made.modules())
    return made


def graph_of(model):
    return next(m for m in model.modules() if isinstance(m, GraphModule))


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda m: copy.deepcopy(copy.deepcopy(m))])
def test_a_copy_is_whole(small, how):
    made, x = how(small), torch.randn(3, 6)
    assert torch.equal(made(x), small(x))
    assert str(made.compaction) == str(small.compaction)
    assert len(made._compaction_records) == len(small._compaction_records)
    width = graph_of(small)(torch.randn(3, 6)).shape[-1]
    assert graph_of(made)(torch.randn(3, 6)).shape[-1] == width
    for model in (small, made):  # a copy without its check would multiply, or fail somewhere inside
        with pytest.raises(ValueError, match="this graph holds the sizes"):
            graph_of(model)(torch.randn(3, 7))


def test_a_deep_copy_shares_nothing(small):
    made, x = copy.deepcopy(small), torch.randn(3, 6)
    before = small(x)
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    assert torch.equal(small(x), before)
    assert not made(x).any()


def test_a_copy_is_saved_exported_and_compacted_like_the_model(small, tmp_path):
    made, x = copy.deepcopy(small), torch.randn(5, 6)
    dg.save_compact(made, tmp_path / "small.safetensors")
    torch.testing.assert_close(dg.load_compact(full(), tmp_path / "small.safetensors")(x), small(x))
    assert dg.export(made, x, tmp_path / "small.pt2").max_difference == 0
    assert dg.compact(made, x).compaction.parameters[1] == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("write", [torch.save, pickle.dump])
def test_a_graph_is_not_pickled_and_says_how_it_is_saved(small, write):
    with pytest.raises(TypeError, match=r"save_compact\(model, path\), or with dg\.export"):
        write(small, io.BytesIO())


def test_its_numbers_are_saved(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "numbers.pt")
    made = copy.deepcopy(small)
    with torch.no_grad():
        for p in made.parameters():
            p.zero_()
    made.load_state_dict(torch.load(tmp_path / "numbers.pt", weights_only=True))
    x = torch.randn(3, 6)
    assert torch.equal(made(x), small(x))
