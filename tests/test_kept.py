"""Units that look removable and are not, one by one, each with the reason in the plan; and some that look alive."""

from __future__ import annotations

import contextlib
import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dgating as dg
from dgating.structure import _analyse
from tests.rule_cases import Once


class Net(nn.Module):
    """A forward written out where it is used: ``f(net, x, ...)`` on the modules and tensors given by name."""

    def __init__(self, f: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)
        self.double().eval()

    def forward(self, *xs: Tensor) -> Any:
        return self.f(self, *xs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


@torch.no_grad()
def silent(layer: nn.Module, *units: int, value: float = 0.0) -> None:
    """The output of these units of a layer is a constant."""
    layer.weight[list(units)] = 0
    if layer.bias is not None:
        layer.bias[list(units)] = value


@torch.no_grad()
def unread(layer: nn.Module, *units: int) -> None:
    layer.weight[:, list(units)] = 0


def rows(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(*shape, dtype=torch.float64),)


def same_function(net: nn.Module, small: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    fresh = tuple(torch.randn_like(x) if x.is_floating_point() else x.flip(0) for x in inputs)
    for given in (inputs, fresh):
        torch.testing.assert_close(small(*given), net(*given), rtol=0, atol=1e-10, equal_nan=True)


def reasons_of(plan: dg.CompactionPlan, name: str) -> list[str]:
    fixed = [why for n, _, why in plan.fixed if n == name]
    return fixed + [why for u in plan.units if name in [n for n, _ in u.sites] for why in u.kept_because]


@contextlib.contextmanager
def exported_once(net: nn.Module, inputs: tuple[Tensor, ...]):
    """Plan and both targets from one export, which is what takes the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_analyse, "capture", Once(net, (inputs, {})).capture)
        yield


def check_same(net: nn.Module, inputs: tuple[Tensor, ...]) -> dg.CompactionPlan:
    """Whatever leaves, the function is the same."""
    with exported_once(net, inputs):
        for target in ("graph", "module"):
            small = dg.compact(net, inputs, target=target, verify=False)
            same_function(net, small, inputs)
    return small.compaction


def check_kept(net: nn.Module, inputs: tuple[Tensor, ...], name: str, why: str, axis: int = 0) -> dg.CompactionPlan:
    """No index of this axis of a weight leaves, the function is the same, and the plan says why."""
    plan = check_same(net, inputs)
    stays(plan, name, why, axis)
    return plan


def stays(plan: dg.CompactionPlan, name: str, why: str, axis: int = 0) -> None:
    assert [s for s in plan.slices.get(name, []) if s.axis == axis] == []
    found = reasons_of(plan, name)
    assert any(re.search(why, reason) for reason in found), found


def check_gone(net: nn.Module, inputs: tuple[Tensor, ...], **left: int) -> None:
    """How many rows are left of each weight, in both targets."""
    with exported_once(net, inputs):
        for target in ("module", "graph"):
            small = dg.compact(net, inputs, target=target)
            same_function(net, small, inputs)
            shapes = {n.replace(".", "_"): len(p) for n, p in small.named_parameters()}
            assert {n: shapes[n] for n in left} == left


# --- constants that cannot move into a bias ---


def test_constant_under_zero_padding():
    net = Net(lambda s, x: s.b(s.a(x)), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 3, padding=1))
    silent(net.a, 0, 1, value=1.0)
    check_kept(net, rows(2, 3, 5, 5), "a.weight", "constant under zero padding")


def test_dead_filter_that_batch_norm_brings_back():
    """Weights and bias are zero, but the norm's shift is not, and the next convolution pads."""
    net = Net(
        lambda s, x: s.b(s.n(s.a(x)).relu()), a=nn.Conv2d(3, 6, 1), n=nn.BatchNorm2d(6), b=nn.Conv2d(6, 2, 3, padding=1)
    )
    silent(net.a, 0, 1)
    with torch.no_grad():
        net.n.bias.fill_(0.5)
    check_kept(net, rows(2, 3, 5, 5), "a.weight", "constant under zero padding")


def test_constant_under_a_pad_of_its_own():
    net = Net(lambda s, x: s.b(F.pad(s.a(x), (1, 1))), a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 2, 3))
    silent(net.a, 0, 1, value=1.0)
    check_kept(net, rows(2, 3, 7), "a.weight", "conv1d in b reads it")


def test_constant_without_a_bias_to_take_it():
    """A bare weight in the forward has no module that could be given a bias."""
    net = Net(lambda s, x: F.linear(s.a(x), s.w), a=nn.Linear(4, 6), w=parameter(2, 6))
    silent(net.a, 0, 1, value=1.0)
    check_kept(net, rows(3, 4), "a.weight", "linear reads it")


def test_constant_in_a_layer_that_is_called_twice():
    """Folding would add the constant in both calls."""
    net = Net(lambda s, x: s.b(s.a(x)) + s.b(s.c(x)), a=nn.Linear(4, 6), b=nn.Linear(6, 2), c=nn.Linear(4, 6))
    silent(net.a, 0, 1, value=1.0)
    silent(net.c, 0, 1)
    check_kept(net, rows(3, 4), "a.weight", "linear in b reads it")


def test_constant_whose_bias_serves_something_else():
    net = Net(lambda s, x: s.b(s.a(x)) + s.b.bias * x.sum(), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1, value=1.0)
    check_kept(net, rows(3, 4), "a.weight", "linear in b reads it")


def test_constant_whose_bias_is_shared_with_a_padded_convolution():
    net = Net(
        lambda s, x: s.b(s.a(x)) + s.c(s.a(x) - s.ones),
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1), c=nn.Conv2d(6, 2, 3, padding=1), ones=torch.ones(6, 1, 1),
    )  # fmt: skip
    net.c.bias = net.b.bias
    silent(net.a, 0, 1, value=1.0)
    check_kept(net, rows(2, 3, 5, 5), "a.weight", "conv2d in b reads it")


def test_constant_through_dropout_that_never_stops():
    net = Net(lambda s, x: s.b(F.dropout(s.a(x), 0.5, training=True)), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1, value=1.0)
    plan = dg.plan_compaction(net, rows(3, 4))
    assert plan.removed == 0


def test_zero_through_alpha_dropout_that_never_stops():
    net = Net(lambda s, x: s.b(F.alpha_dropout(s.a(x), 0.5, training=True)), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1)
    assert dg.plan_compaction(net, rows(3, 4)).removed == 0


def test_constants_stay_when_folding_is_switched_off():
    net = Net(lambda s, x: s.b(s.a(x)), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1, value=1.0)
    silent(net.a, 2)
    plan = dg.plan_compaction(net, rows(3, 4), fold_constants=False)
    assert (plan.removed, plan.folded) == (1, {})


# --- axes that are normalised, reduced or ordered ---

OVER_UNITS = {
    "softmax": (lambda x: x.softmax(-1), "softmax"),
    "layer norm": (lambda x: F.layer_norm(x, (6,)), "layer_norm"),
    "RMS norm": (lambda x: F.rms_norm(x, (6,)), "rms_norm"),
    "cumsum": (lambda x: x.cumsum(-1), "cumsum"),
    "max": (lambda x: x.amax(-1, keepdim=True) + x, "amax"),
    "argmax": (lambda x: x.argmax(-1, keepdim=True) + x, "argmax"),
    "mean": (lambda x: x.mean(-1, keepdim=True) + x, "mean"),
    "variance": (lambda x: x.var(-1, keepdim=True) + x, "var"),
    "norm": (lambda x: x / (x.norm(dim=-1, keepdim=True) + 1), "norm"),
    "L2 normalisation": (lambda x: F.normalize(x, dim=-1), "norm"),
    "sort": (lambda x: x.sort(-1)[0], "sort"),
    "top k": (lambda x: torch.cat([x.topk(2)[0], x], -1), "topk"),
    "roll": (lambda x: x.roll(1, -1), "roll"),
    "flip": (lambda x: x.flip(-1), "flip"),
    "differences": (lambda x: F.pad(x.diff(), (1, 0)), "slice|diff|pad|it meets"),
    "positions": (lambda x: x * torch.arange(6), "it meets mul"),
    "never zero in a sum": (lambda x: x + x.exp().sum(-1, keepdim=True), "sum"),
    "one hot": (lambda x: F.one_hot((x > 0).long(), 2).double().sum(-1) * x, "one_hot"),
    "outer product": (lambda x: (x.unsqueeze(-1) * x.unsqueeze(-2)).mean(-1), "mean|mul"),
    "Fourier": (lambda x: torch.fft.fft(x).real, "no rule for"),
}


@functools.cache
def over_units() -> dg.CompactionPlan:
    """All of them side by side in one model, for an export is what takes the time."""
    torch.manual_seed(0)
    nets = nn.ModuleList()
    for f, _ in OVER_UNITS.values():
        wide = 8 if f is OVER_UNITS["top k"][0] else 6
        net = Net(lambda s, x, f=f: s.b(f(s.a(x))), a=nn.Linear(4, 6), b=nn.Linear(wide, 2))
        silent(net.a, 0, 1)
        unread(net.b, 2, 3)
        nets.append(net)
    return check_same(Net(lambda s, x: torch.cat([net(x) for net in s.nets], -1), nets=nets), rows(3, 4))


@pytest.mark.parametrize("name", OVER_UNITS)
def test_units_that_share_an_axis(name):
    """Zero units and unread units: each of the others depends on how many there are, or on all of them."""
    stays(over_units(), f"nets.{list(OVER_UNITS).index(name)}.a.weight", OVER_UNITS[name][1])


def test_mean_over_channels_spoils_them_all():
    net = Net(lambda s, x: s.b(s.a(x)) * s.a(x).mean(1, keepdim=True), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1))
    silent(net.a, 0, 1)
    check_kept(net, rows(2, 3, 5, 5), "a.weight", "mean")


def test_channel_inside_a_norm_group():
    """The two channels of a group share their statistics; only whole groups can leave."""
    net = Net(lambda s, x: s.b(s.n(s.a(x))), a=nn.Conv2d(3, 6, 1), n=nn.GroupNorm(3, 6), b=nn.Conv2d(6, 2, 1))
    silent(net.a, 0, 3, 5)
    check_kept(net, rows(2, 3, 5, 5), "a.weight", "conv2d in b reads it")
    silent(net.a, 4)
    check_gone(net, rows(2, 3, 5, 5), a_weight=4, n_weight=4)


@pytest.mark.parametrize("f", [lambda x: x.tril(), lambda x: x.triu(1)], ids=["tril", "triu"])
def test_positions_of_a_triangle(f):
    net = Net(lambda s, x: s.b(f(s.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1)
    check_kept(net, rows(2, 5, 4), "a.weight", "tri[lu] uses its positions")


def test_positions_that_are_read_by_a_number_from_the_input():
    net = Net(lambda s, x, i: s.b(s.a(x)[:, i]), a=nn.Linear(4, 6), b=nn.Linear(3, 2))
    silent(net.a, 0, 1)
    check_kept(net, (*rows(3, 4), torch.tensor([2, 3, 5])), "a.weight", "addresses its axis by index")


def test_units_that_are_an_index():
    """Which rows of the table are averaged depends on every unit, the zero ones too."""

    def f(s, x):
        h = s.a(x).relu()
        return s.b(h) + s.e(h.long().clamp(0, 4)).mean(1)

    net = Net(f, a=nn.Linear(4, 6), b=nn.Linear(6, 2), e=nn.Embedding(5, 2))
    silent(net.a, 0, 2)
    check_kept(net, rows(3, 4), "a.weight", "index")


def test_every_other_unit():
    """Were unit 1 to leave, a step of two would take other units."""
    net = Net(lambda s, x: s.b(torch.cat([s.a(x), s.a(x)[:, ::2]], -1)), a=nn.Linear(4, 6), b=nn.Linear(9, 2))
    silent(net.a, 1)
    check_kept(net, rows(3, 4), "a.weight", "positions along its axis")


# --- the border of the model ---


def test_outputs_stay():
    net = Net(lambda s, x: s.a(x), a=nn.Linear(4, 6))
    silent(net.a, 0, 1)
    check_kept(net, rows(3, 4), "a.weight", "output of the model")


def test_inputs_stay():
    net = Net(lambda s, x: s.a(x), a=nn.Linear(4, 6))
    unread(net.a, 0, 1)
    check_kept(net, rows(3, 4), "a.weight", "reads an axis that is fixed", axis=1)


def test_hidden_units_that_are_returned_as_well():
    def f(s, x):
        h = s.a(x).relu()
        return {"logits": s.b(h), "hidden": [h]}

    net = Net(f, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1)
    check_kept(net, rows(3, 4), "a.weight", "output of the model")


def test_tied_embeddings():
    """A column that the embedding leaves zero is read by nobody, but the rows are the words."""
    net = Net(lambda s, i: s.head(s.emb(i)), emb=nn.Embedding(7, 4), head=nn.Linear(4, 7, bias=False))
    net.head.weight = net.emb.weight
    with torch.no_grad():
        net.emb.weight[[1, 2]] = 0
    check_kept(net, (torch.randint(0, 7, (2, 3)),), "emb.weight", "output of the model|by index")


def test_tied_embeddings_with_a_constant_column():
    """The head has no bias; the constant may move into a new one of the head, and nowhere else."""
    net = Net(lambda s, i: s.head(s.emb(i)), emb=nn.Embedding(7, 4), head=nn.Linear(4, 7, bias=False))
    net.head.weight = net.emb.weight
    with torch.no_grad():
        net.emb.weight[:, 1] = 0.3
    check_same(net, (torch.randint(0, 7, (2, 3)),))


# --- weights and branches that serve two ends ---


def test_weight_shared_by_two_calls_of_which_one_needs_the_unit():
    net = Net(
        lambda s, x: s.b(s.a(x).relu()) + s.c(s.a(-x).relu()), a=nn.Linear(4, 6), b=nn.Linear(6, 2), c=nn.Linear(6, 2)
    )
    unread(net.b, 0, 1)
    unread(net.c, 2, 3)
    check_kept(net, rows(3, 4), "a.weight", "linear in [bc] reads it")


def test_residual_of_which_one_branch_is_zero():
    net = Net(lambda s, x: s.c(s.a(x) + s.b(x)), a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 2))
    silent(net.a, 0, 1, 2)
    silent(net.b, 3, 4, 5)
    check_kept(net, rows(3, 4), "a.weight", "linear in c reads it")


def test_residual_around_the_inputs():
    net = Net(lambda s, x: s.c(x + s.b(s.a(x).relu())), a=nn.Linear(4, 6), b=nn.Linear(6, 4), c=nn.Linear(4, 2))
    silent(net.b, 0, 1)
    unread(net.c, 2)
    check_kept(net, rows(3, 4), "b.weight", "it meets add|fixed")


def test_parts_of_a_concat_that_are_addressed_later():
    """Zero in the first half; but the halves are added up again, so a place is needed on both sides."""

    def f(s, x):
        h = torch.cat([s.a(x), s.b(x)], -1)
        return s.c(h[:, :6] + h[:, 6:])

    net = Net(f, a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 2))
    silent(net.a, 0, 1)
    check_kept(net, rows(3, 4), "a.weight", "linear in c reads it")


def test_slice_across_two_parts_of_a_concat():
    def f(s, x):
        return s.c(torch.cat([s.a(x), s.b(x)], -1)[:, 2:8].roll(1, -1))

    net = Net(f, a=nn.Linear(4, 5), b=nn.Linear(4, 5), c=nn.Linear(6, 2))
    silent(net.a, 3)
    silent(net.b, 0)
    check_kept(net, rows(3, 4), "a.weight", "roll")


def test_last_unit_stays():
    """All of them are zero; a layer of nothing is no layer."""
    net = Net(lambda s, x: s.b(s.a(x)), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, *range(6))
    check_gone(net, rows(3, 4), a_weight=1)


def test_blocks_of_a_grouped_convolution_keep_as_many():
    net = Net(lambda s, x: s.c(s.b(s.a(x))), a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 6, 1, groups=2), c=nn.Conv1d(6, 2, 1))
    silent(net.a, 0, 1)
    check_kept(net, rows(2, 3, 7), "a.weight", "keeps as many|rectangular")


@pytest.mark.parametrize("written_out", [False, True])
def test_shuffled_channels_stay_in_order(written_out):
    """Channels 0 and 3 of two by two leave one channel in every row and in every column, but not in the same order."""

    def shuffle(x):
        if not written_out:
            return F.channel_shuffle(x, 2)
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)

    net = Net(lambda s, x: s.b(shuffle(s.a(x))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
    silent(net.a, 0, 3)
    check_same(net, rows(2, 3, 5, 5))


# --- attention ---


class Attention(nn.Module):
    """Two heads of width three."""

    def __init__(self, mask: bool = False, softmax: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)
        self.mask, self.softmax = mask, softmax
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).view(*x.shape[:2], -1, 3).transpose(1, 2) for p in (self.q, self.k, self.v))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(-1) if self.mask else None
        by_hand = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        y = by_hand if self.softmax else F.scaled_dot_product_attention(q, k, v, mask)
        return self.o(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("mask", [False, True])
def test_head_whose_value_bias_is_not_zero(mask):
    """Its output is that bias, except where the mask hides every key."""
    net = Attention(mask)
    silent(net.v, 0, 1, 2, value=1.0)
    check_kept(net, rows(2, 5, 4), "v.weight", "linear in o reads it")


@pytest.mark.parametrize("softmax", [False, True])
def test_head_with_a_live_entry(softmax):
    """Two of three entries are zero: the head stays, with all of its width."""
    net = Attention(softmax=softmax)
    silent(net.v, 0, 1)
    check_kept(net, rows(2, 5, 4), "v.weight", "")


def test_head_without_a_query():
    """Scores of zero are a mean over the keys."""
    net = Attention()
    silent(net.q, 0, 1, 2)
    check_kept(net, rows(2, 5, 4), "q.weight", "linear in o reads it")


@pytest.mark.parametrize("softmax", [False, True])
def test_dead_heads_leave(softmax):
    net = Attention(softmax=softmax)
    silent(net.v, 0, 1, 2)
    check_gone(net, rows(2, 5, 4), q_weight=3, k_weight=3, v_weight=3)


# --- what the engine cannot read ---

library = torch.library.Library("dgating_kept", "DEF")
library.define("twist(Tensor x, Tensor y) -> Tensor")
library.impl("twist", lambda x, y: x * (1 + y.sum()), "CompositeExplicitAutograd")
torch.library.register_fake("dgating_kept::twist", lambda x, y: torch.empty_like(x), lib=library)


def test_unknown_operation():
    """Nothing that it touches may leave, and the plan names it and the module it is in."""
    net = Net(
        lambda s, x: s.b(torch.ops.dgating_kept.twist(s.a(x), s.w)),
        a=nn.Linear(4, 6),
        b=nn.Linear(6, 2),
        w=parameter(5),
    )
    silent(net.a, 0, 1)
    unread(net.b, 2)
    with torch.no_grad():
        net.w[0] = 0
    plan = check_kept(net, rows(3, 4), "a.weight", "no rule for twist")
    check_kept(net, rows(3, 4), "b.weight", "fixed", axis=1)
    check_kept(net, rows(3, 4), "w", "no rule for twist")
    assert list(plan.unknown) == ["dgating_kept::twist"]
    assert "no rule for dgating_kept::twist" in str(plan)


def test_unknown_operation_is_named_with_its_module():
    class Twist(nn.Module):
        def forward(self, x):
            return torch.ops.dgating_kept.twist(x, x)

    net = nn.Sequential(nn.Linear(4, 6), Twist(), nn.Linear(6, 2)).double().eval()
    silent(net[0], 0, 1)
    assert dg.plan_compaction(net, rows(3, 4)).unknown == {"dgating_kept::twist": ["1"]}


def test_unknown_operation_on_inputs_only_blocks_nothing():
    net = Net(lambda s, x: s.b(s.a(torch.ops.dgating_kept.twist(x, x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1)
    assert dg.plan_compaction(net, rows(3, 4)).unknown == {}
    check_gone(net, rows(3, 4), a_weight=4)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_stay(kind):
    net = Net(lambda s, x: s.b(s.r(s.a(x))[0]), a=nn.Linear(4, 6), r=kind(6, 5, batch_first=True), b=nn.Linear(5, 2))
    silent(net.a, 0, 1)
    with torch.no_grad():
        net.r.weight_ih_l0.zero_()
        net.r.weight_hh_l0.zero_()
        net.r.bias_ih_l0.zero_()
        net.r.bias_hh_l0.zero_()
    plan = check_kept(net, rows(2, 5, 4), "a.weight", f"no rule for {kind.__name__.lower()}")
    assert len(plan.unknown) == 1


def test_bits_of_a_number():
    """Read as an integer, a constant is another one."""
    net = Net(lambda s, x: s.b(s.a(x).view(torch.int64).double() * 1e-18), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1, value=1.0)
    check_same(net, rows(3, 4))


def test_buffer_that_the_forward_writes():
    """Zero now, and not any more after the first call."""

    def f(s, x):
        out = s.b(s.a(x) * s.ema)
        s.ema.add_(1.0)
        return out

    net = Net(f, a=nn.Linear(4, 6), b=nn.Linear(6, 2), ema=torch.zeros(6))
    before = copy.deepcopy(net.state_dict())
    for target in ("module", "graph"):
        small = dg.compact(net, rows(3, 4), target=target)
        torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
        twin = copy.deepcopy(net)
        for x in (*rows(3, 4), *rows(3, 4)):
            torch.testing.assert_close(small(x), twin(x), rtol=0, atol=1e-10)


# --- values that are computed from the input, where a rule could take them for absent ---

COMPUTED = {
    "bias of a linear layer": lambda s, h, x: F.linear(h, s.w, s.v * x.sum()),
    "scale of a batch norm": lambda s, h, x: F.batch_norm(h, s.m, s.m + 1, s.v * x.sum(), None),
    "shift of a batch norm": lambda s, h, x: F.batch_norm(h, s.m, s.m + 1, None, s.v * x.sum()),
    "mean of a batch norm": lambda s, h, x: F.batch_norm(h, s.m * x.sum(), s.m + 1),
    "shift of a group norm": lambda s, h, x: F.group_norm(h, 6, None, s.v * x.sum()),
    "scale of a group norm": lambda s, h, x: F.group_norm(h, 6, s.v * x.sum(), s.v),
}


def test_values_that_are_computed():
    nets = nn.ModuleList()
    for f in COMPUTED.values():
        net = Net(
            lambda s, x, f=f: s.b(f(s, s.a(x), x)),
            a=nn.Linear(4, 6), b=nn.Linear(6, 2), w=parameter(6, 6), v=parameter(6), m=torch.rand(6),
        )  # fmt: skip
        silent(net.a, 0, 1, value=1.0)
        with torch.no_grad():
            net.w[:3] = 0
        nets.append(net)
    check_same(Net(lambda s, x: torch.cat([net(x) for net in s.nets], -1), nets=nets), rows(3, 4))


# --- units that look alive and can go ---


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.gate(x)) * self.value(x))


@pytest.mark.parametrize("part", ["gate", "value"])
def test_gated_unit_dies_with_either_side(part):
    net = Gated()
    silent(getattr(net, part), 0, 4)
    check_gone(net, rows(3, 4), gate_weight=4, value_weight=4)


def test_gated_unit_with_an_open_gate_stays():
    """A constant gate scales the value; it does not end it."""
    net = Gated()
    silent(net.gate, 0, 4, value=1.0)
    check_kept(net, rows(3, 4), "value.weight", "linear in out reads it")


def test_dead_filter_with_a_shift_before_an_unpadded_convolution():
    net = Net(lambda s, x: s.b(s.n(s.a(x)).relu()), a=nn.Conv2d(3, 6, 3), n=nn.BatchNorm2d(6), b=nn.Conv2d(6, 2, 3))
    silent(net.a, 0, 1)
    with torch.no_grad():
        net.n.bias.uniform_(-1, 1)
        net.n.running_mean.uniform_(-1, 1)
    check_gone(net, rows(2, 3, 7, 7), a_weight=4, n_weight=4)


def test_live_filter_whose_norm_is_switched_off():
    """Scale zero: the filter varies, what comes out of the norm is its shift."""
    net = Net(
        lambda s, x: s.b(s.n(s.a(x))), a=nn.Conv2d(3, 6, 3, bias=False), n=nn.BatchNorm2d(6), b=nn.Conv2d(6, 2, 3)
    )
    with torch.no_grad():
        net.n.weight[:2] = 0
        net.n.bias.uniform_(-1, 1)
    check_gone(net, rows(2, 3, 7, 7), a_weight=4, n_weight=4)


def test_dead_filter_whose_shift_the_relu_removes():
    """A negative shift before a ReLU is zero after it: even under padding."""
    net = Net(
        lambda s, x: s.b(s.n(s.a(x)).relu()), a=nn.Conv2d(3, 6, 1), n=nn.BatchNorm2d(6), b=nn.Conv2d(6, 2, 3, padding=1)
    )
    silent(net.a, 0, 1)
    with torch.no_grad():
        net.n.bias[:2] = -0.5
    check_gone(net, rows(2, 3, 7, 7), a_weight=4, n_weight=4)


def test_constant_under_a_border_of_itself():
    net = Net(lambda s, x: s.b(s.a(x)), a=nn.Conv1d(3, 6, 1), b=nn.Conv1d(6, 2, 3, padding=1, padding_mode="replicate"))
    silent(net.a, 0, 1, value=1.0)
    check_gone(net, rows(2, 3, 7), a_weight=4)


def test_chain_of_units_that_nobody_needs_in_the_end():
    """Only the last layer is silent; what feeds it alone is dead, all the way up."""
    net = Net(
        lambda s, x: s.d(s.c(s.b(s.a(x).relu()).relu()).relu()),
        a=nn.Linear(4, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 6), d=nn.Linear(6, 2),
    )  # fmt: skip
    unread(net.d, 0, 1)
    with torch.no_grad():  # two halves that meet nowhere
        for layer in (net.b, net.c):
            layer.weight[:2, 2:] = 0
            layer.weight[2:, :2] = 0
    check_gone(net, rows(3, 4), a_weight=4, b_weight=4, c_weight=4)


def test_chain_of_units_that_nothing_reaches_from_the_front():
    net = Net(lambda s, x: s.c(s.b(s.a(x).relu()).relu()), a=nn.Linear(4, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2))
    silent(net.a, 0, 1, value=-1.0)
    with torch.no_grad():
        net.b.weight[:2, 2:] = 0  # these read nothing but the silent ones
    check_gone(net, rows(3, 4), a_weight=4, b_weight=4)


def test_constant_through_a_sigmoid():
    net = Net(lambda s, x: s.b(s.a(x).sigmoid()), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1, value=-2.0)
    check_gone(net, rows(3, 4), a_weight=4)


def test_constant_into_a_layer_that_gets_a_bias_for_it():
    net = Net(lambda s, x: s.b(s.a(x).sigmoid()), a=nn.Linear(4, 6), b=nn.Linear(6, 2, bias=False))
    silent(net.a, 0, 1)
    small = dg.compact(net, rows(3, 4))
    assert (len(small.a.weight), small.b.bias.shape) == (4, (2,))
    same_function(net, small, rows(3, 4))


def test_zero_times_a_value_that_may_overflow():
    """A zero side ends a product; that the other one might be infinite on some input is not held against it."""
    net = Net(lambda s, x: s.b(s.a(x) * (5 * s.c(x)).exp()), a=nn.Linear(4, 6), b=nn.Linear(6, 2), c=nn.Linear(4, 6))
    silent(net.a, 0, 1)
    check_gone(net, rows(3, 4), a_weight=4, c_weight=4)


def test_zero_in_a_sum():
    net = Net(lambda s, x: s.b(s.a(x)) + s.a(x).sum(-1, keepdim=True), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1)
    check_gone(net, rows(3, 4), a_weight=4)


def test_unit_between_a_zero_weight_and_a_zero_activation():
    """Read with a weight only where it is zero, and alive only where nobody reads it."""

    def f(s, x):
        h = s.a(x).relu()
        return s.b(h) + s.c(h * s.m)

    net = Net(f, a=nn.Linear(4, 6), b=nn.Linear(6, 2), c=nn.Linear(6, 2), m=torch.tensor([0.0, 0, 1, 1, 1, 1]))
    unread(net.b, 0, 1)
    check_gone(net, rows(3, 4), a_weight=4)


def test_uneven_parts_of_a_concat():
    net = Net(
        lambda s, x: s.c(torch.cat([s.a(x), x, s.b(x)], -1)), a=nn.Linear(4, 6), b=nn.Linear(4, 5), c=nn.Linear(15, 2)
    )
    silent(net.a, 0, 1, 2)
    silent(net.b, 4)
    check_gone(net, rows(3, 4), a_weight=3, b_weight=4)


def test_constant_rounded_on_its_way():
    net = Net(lambda s, x: s.b(s.a(x).half().double()), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    silent(net.a, 0, 1, value=0.1)
    check_gone(net, rows(3, 4), a_weight=4)


def test_embedding_columns():
    net = Net(lambda s, i: s.b(s.e(i)), e=nn.Embedding(7, 6), b=nn.Linear(6, 2))
    with torch.no_grad():
        net.e.weight[:, 0] = 0
        net.e.weight[:, 1] = 0.5
    small = dg.compact(net, (torch.randint(0, 7, (2, 3)),))
    assert small.e.embedding_dim == 4
    same_function(net, small, (torch.randint(0, 7, (2, 3)),))
