"""Sizes: what a graph holds is refused elsewhere, what was seen at one size is not believed of others."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dgating as dg


class Body(nn.Module):
    """Two layers whose first three hidden units are dead; ``f`` makes an output of both and the input."""

    def __init__(self, f) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Linear(6, 8), nn.Linear(8, 3), f
        with torch.no_grad():
            self.a.weight[:3] = 0
            self.a.bias[:3] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


def loop(net, x):
    h = net.a(x).relu()
    for t in range(x.shape[1]):
        h = h + 0.1 * x[:, t : t + 1, :1]
    return net.b(h)


HOLDS = {
    "a length as a number": lambda net, x: net.b(net.a(x).relu()) / math.sqrt(int(x.shape[1])),
    "a number of rows": lambda net, x: net.b(net.a(x).relu()) / len(x),
    "a branch": lambda net, x: net.b(net.a(x).relu()) * (1 if x.shape[0] < 5 else 2),
    "a loop": loop,
}


@pytest.mark.parametrize("f", HOLDS.values(), ids=HOLDS.keys())
def test_a_graph_refuses_sizes_that_it_does_not_know(f):
    net = Body(f).eval()
    x, y = torch.randn(4, 5, 6), torch.randn(9, 11, 6)
    small = dg.compact(net, (x,), target="graph")
    assert torch.allclose(small(x), net(x), atol=1e-6)
    with pytest.raises(ValueError, match=r"input 0: expected a tensor of shape \[.*\], received \[9, 11, 6\]"):
        small(y)


def test_free_sizes_are_free_and_equal_ones_stay_equal():
    net = Body(lambda net, x: net.b(net.a(x).relu())).eval()
    small = dg.compact(net, (torch.randn(4, 5, 6),), target="graph")
    for rows, length in ((1, 5), (4, 1), (9, 11)):
        x = torch.randn(rows, length, 6)
        assert torch.allclose(small(x), net(x), atol=1e-6)

    class Two(Body):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.b(self.a(x).relu()) + y

    two = dg.compact(Two(None).eval(), (torch.randn(4, 6), torch.randn(4, 3)), target="graph")
    with pytest.raises(ValueError, match="input 1: expected"):
        two(torch.randn(5, 6), torch.randn(7, 3))


def test_a_graph_refuses_another_constant():
    net = Body(None).eval()
    net.forward = lambda x, scale: net.b(net.a(x).relu()) * scale
    small = dg.compact(net, (torch.randn(4, 6), 2), target="graph")
    with pytest.raises(ValueError, match=r"input 1: expected 2, .* received 3"):
        small(torch.randn(4, 6), 3)


@pytest.mark.parametrize("star", [False, True])
def test_positional_arguments_of_any_number_have_free_sizes(star):
    class Any(Body):
        def forward(self, *xs: Tensor) -> Tensor:
            return self.b(self.a(sum(xs)).relu())

    net = Any(None).eval()
    xs = (torch.randn(4, 6),) * (2 if star else 1)
    small = dg.compact(net, tuple(x.clone() for x in xs), target="graph")
    ys = tuple(torch.randn(7, 6) for _ in xs)
    assert torch.allclose(small(*ys), net(*ys), atol=1e-6)


class Half(nn.Module):
    """Halves written down as numbers, and a scale by a length: only its own graph can be compact."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(32, 32), nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return x + self.down(h[..., :16] * h[..., 16:].sigmoid()) / math.sqrt(int(x.shape[1]))


def test_a_module_that_became_a_graph_refuses_them_too():
    net = nn.Sequential(Half(), nn.Linear(32, 5)).eval()
    with torch.no_grad():
        net[0].up.weight[:6] = 0
        net[0].up.bias[:6] = 0
    small = dg.compact(net, (torch.randn(2, 6, 32),))
    assert small.get_parameter("0.up.weight").shape == (20, 32)
    assert torch.allclose(small(y := torch.randn(3, 6, 32)), net(y), atol=1e-6)
    with pytest.raises(ValueError, match="expected a tensor of shape"):
        small(torch.randn(2, 11, 32))


class Table(nn.Module):
    """A table of which only the first rows are read."""

    def __init__(self, times: bool) -> None:
        super().__init__()
        self.a, self.b, self.times = nn.Linear(6, 8), nn.Linear(8, 3), times
        self.table = nn.Parameter(torch.randn(16, 8))
        with torch.no_grad():
            if times:
                self.table[:6, :3] = 0
            else:
                self.a.weight[:3] = 0
                self.a.bias[:3] = 0
                self.table[:6, :3] = 0

    def forward(self, x: Tensor) -> Tensor:
        h, rows = self.a(x), self.table[: x.shape[1]]
        return self.b((h * rows if self.times else h + rows).relu())


@pytest.mark.parametrize("target", ["module", "graph"])
@pytest.mark.parametrize("times", [False, True])
def test_the_rows_that_the_example_reads_do_not_speak_for_the_table(times, target):
    net = Table(times).eval()
    small = dg.compact(net, (torch.randn(2, 5, 6),), target=target)
    x = torch.randn(2, 9, 6)
    assert torch.allclose(small(x), net(x), atol=1e-6)
    with torch.no_grad():
        net.table[:, :3] = 0
    assert dg.compact(net, (torch.randn(2, 5, 6),), target=target).compaction.removed == 3


def test_parts_that_cover_a_weight_are_known_exactly():
    """Halves of one fused weight, sliced by hand: nothing of it is unread."""

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.out = nn.Parameter(torch.randn(16, 6)), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.linear(x, self.w[:8]).relu() * F.linear(x, self.w[8:]))

    net = Fused().eval()
    with torch.no_grad():
        net.w[:3] = 0
    small = dg.compact(net, (torch.randn(4, 6),), target="graph")
    assert small.compaction.removed == 3
    assert torch.allclose(small(x := torch.randn(5, 6)), net(x), atol=1e-6)


class Attention(nn.Module):
    """Its scale is read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 16), nn.Linear(6, 16)
        self.v, self.o = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        return x + self.o((q @ self.k(x).transpose(1, 2) / math.sqrt(q.size(-1))).softmax(-1) @ self.v(x))


def test_a_module_that_reads_a_size_from_a_tensor_is_replaced_by_its_graph(tmp_path):
    def build() -> nn.Module:
        return nn.Sequential(Attention(), Attention(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()

    net, x = build(), torch.randn(2, 5, 6)
    with torch.no_grad():
        for block in (net[0], net[1]):
            block.q.weight[:4] = 0
            block.q.bias[:4] = 0
    small = dg.compact(net, (x,))
    assert [type(m) for m in small][2:] == [nn.Linear, nn.ReLU, nn.Linear]
    assert small.get_parameter("0.q.weight").shape == small.get_parameter("1.q.weight").shape == (12, 6)
    dg.save_compact(small, tmp_path / "small.safetensors")
    again = dg.load_compact(build(), tmp_path / "small.safetensors")
    for y in (x, torch.randn(3, 7, 6)):
        assert torch.allclose(small(y), net(y), atol=1e-6)
        assert torch.allclose(again(y), small(y), atol=1e-6)


def test_attention_with_keys_of_its_own_becomes_a_graph(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 4, add_bias_kv=True, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.mha(x, x, x, need_weights=False)[0]

    net, x = Net().eval(), torch.randn(2, 3, 8)
    dg.gate_(net, groups := dg.heads(net, (x,)))
    dg.zero_(net, {g.name: torch.arange(4) == 1 for g in groups})
    dg.collapse_(net)
    small = dg.compact(net, (x,))
    assert small.compaction.removed > 0
    assert torch.allclose(small(x), net(x), atol=1e-6)
    dg.save_compact(small, tmp_path / "small.safetensors")
    assert torch.allclose(dg.load_compact(Net().eval(), tmp_path / "small.safetensors")(x), small(x), atol=1e-6)


@pytest.mark.parametrize("target", ["module", "graph"])
def test_a_computed_weight_keeps_its_bias(target):
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g, self.o = nn.Linear(6, 1), nn.Linear(8, 3)
            self.w, self.b = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.linear(x, self.w * self.g(x).mean().sigmoid(), self.b).relu())

    net = Computed().eval()
    with torch.no_grad():
        net.w[:3] = 0
        net.b[:3] = torch.tensor([1.0, 2.0, 0.0])
    small = dg.compact(net, (torch.randn(4, 6),), target=target)
    assert small.w.shape == (5, 6)
    assert small.b.shape == (5,)
    assert torch.allclose(small(x := torch.randn(4, 6)), net(x), atol=1e-6)


@pytest.mark.parametrize("target", ["module", "graph"])
def test_half_precision_inside(target):
    class Cast(Body):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.b(self.a(x).relu())

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16).bfloat16(), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.bfloat16()).sigmoid().float())

    x = torch.randn(4, 6)
    cast = Cast(None).eval()
    assert torch.equal(dg.compact(cast, (x,), target=target)(x), cast(x))
    mixed = Mixed().eval()
    with torch.no_grad():
        mixed.a.weight[:5] = 0
    small = dg.compact(mixed, (x,), target=target)
    assert small.a.weight.shape[0] == 11
    assert torch.allclose(small(x), mixed(x), atol=1e-6)  # what is folded was rounded to half precision first


def test_with_an_optimizer_a_constant_must_be_one_in_training_too():
    """Behind a batch norm a dead filter puts out a number in eval mode and another one in training."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        net[0].weight[:3] = 0
        net[0].bias[:3] = 0
        net[1].running_mean[:2] = -1.0
        net[1].bias[:3] = 0.1
        net[1].bias[2] = 0.0
    x = torch.randn(2, 3, 8, 8)
    assert dg.compact(net, (x,))[0].out_channels == 5
    small = dg.compact(net, (x,), optimizer=torch.optim.SGD(net.parameters(), lr=0.1))
    assert small[0].out_channels == 7  # the third: its mean is zero in both modes, its shift, too
    y = torch.randn(5, 3, 8, 8)
    assert torch.allclose(net.train()(y), small.train()(y), atol=1e-6)


def test_exported_programs_as_modules():
    net = Body(lambda net, x: net.b(net.a(x).relu())).eval()
    program = torch.export.export(net, (torch.randn(4, 6),))
    assert sum(p.numel() for p in dg.compact(program.module(), (torch.randn(4, 6),)).parameters()) == 53


def test_an_error_names_the_module_and_torch_writes_no_log(capfd):
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x

    with pytest.raises(dg.CompactionError, match="cannot read"):
        dg.compact(Nothing(), (torch.randn(2, 3),))
    assert capfd.readouterr().err == ""


def test_what_a_module_computed_before_from_its_full_weights_is_dropped():
    """Modules with a ``train`` of their own keep such things in evaluation mode and drop them there."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale, self.cache = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(8)), None

        def train(self, mode: bool = True) -> nn.Module:
            self.cache = None
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            if self.training or self.cache is None:
                self.cache = self.scale * 2
            return self.b(self.a(x).relu() * self.cache)

    net, x = Cached().eval(), torch.randn(4, 6)
    with torch.no_grad():
        net.a.weight[:3] = 0
        net.a.bias[:3] = 0
        assert dg.compact(net, (x,)).a.out_features == 5
        before, cached = net(x), net.cache
    small = dg.compact(net, (x,))  # what is cached already is a constant of full size, and safe
    assert torch.allclose(small(x), before, atol=1e-6)
    assert net.cache is cached
