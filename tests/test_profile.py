"""Example inputs and the profile: numbers worked out by hand, honest comparison, and a model left as it was."""

import json
import warnings
from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dgating as dg
from dgating.deploy._measure import LiveBytes
from dgating.deploy._profile import Profile, profile
from dgating.gating._evaluating import evaluating
from dgating.structure._inputs import call_kwargs, random_like, split_inputs, tensors_of

Pair = namedtuple("Pair", "left right")


@dataclass
class Out:
    y: torch.Tensor
    more: object = None


def mlp(width=16):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))


# ---- inputs


X = torch.zeros(2, 3)
NESTED = {"x": X}


@pytest.mark.parametrize(
    ("given", "kwargs", "expected"),
    [
        (X, None, ((X,), {})),
        ((X, 1), None, ((X, 1), {})),
        ([X], {"flag": True}, ((X,), {"flag": True})),
        ({"x": X}, {"flag": None}, ((), {"x": X, "flag": None})),
        (UserDict(x=X), None, ((), {"x": X})),  # what a tokenizer gives is a UserDict
        ((), {"x": X}, ((), {"x": X})),
        ((NESTED,), None, ((NESTED,), {})),
    ],
)
def test_split_inputs(given, kwargs, expected):
    args, named = split_inputs(given, kwargs)
    assert isinstance(args, tuple)
    assert list(named) == list(expected[1])
    assert all(a is b for a, b in zip([*args, *named.values()], [*expected[0], *expected[1].values()], strict=True))


def test_split_inputs_leaves_the_dicts_alone():
    inputs, kwargs = {"x": X}, {"flag": True}
    split_inputs(inputs, kwargs)
    assert list(inputs) == ["x"]
    assert list(kwargs) == ["flag"]


@pytest.mark.parametrize(
    ("given", "kwargs", "error", "message"),
    [
        ({"x": X}, {"x": X}, ValueError, r"\['x'\] given twice"),
        (3, None, TypeError, r"example_inputs: expected a tuple.*received int"),
        (None, None, TypeError, r"received NoneType"),
        ({3: X}, None, TypeError, r"names of arguments.*received 3.*\(inputs,\)"),
        (X, [1], TypeError, r"kwargs: expected a dict.*received list"),
        ((), None, ValueError, r"at least one input"),
        ({}, {}, ValueError, r"at least one input"),
    ],
)
def test_inputs_refused(given, kwargs, error, message):
    with pytest.raises(error, match=message):
        split_inputs(given, kwargs)


def test_tensors_of_every_kind_of_output():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert tensors_of(a) == [("", a)]
    assert tensors_of(None) == tensors_of(3) == tensors_of(object()) == []
    assert [p for p, _ in tensors_of((a, None, [b, {"c": c}]))] == ["0", "2.0", "2.1.c"]
    assert [p for p, _ in tensors_of(Pair(a, Out(b, (c,))))] == ["left", "right.y", "right.more.0"]


def test_tensors_of_a_model_output():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    out = outputs.BaseModelOutput(last_hidden_state=torch.zeros(1), hidden_states=(torch.zeros(2), torch.zeros(3)))
    assert [p for p, _ in tensors_of(out)] == ["last_hidden_state", "hidden_states.0", "hidden_states.1"]


def test_random_like():
    x = torch.randn(50, 40) * 3 + 7
    ids = torch.randint(5, 90, (50, 40))
    args, kwargs = random_like((x, (x, ids)), {"mask": ids > 9, "n": 3, "c": torch.ones(60, 50)}, generator(7))
    y, (same, other) = args
    assert y is same
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    assert not torch.equal(y, x)
    assert float(y.mean()) == pytest.approx(7, abs=0.3)
    assert float(y.std()) == pytest.approx(3, abs=0.2)
    assert (int(other.min()), int(other.max())) == (int(ids.min()), int(ids.max()))
    assert not torch.equal(other, ids)
    assert torch.equal(kwargs["mask"], ids > 9)
    assert kwargs["n"] == 3
    assert float(kwargs["c"].std()) == pytest.approx(1, abs=0.1)  # constant: standard normal
    again, _ = random_like((x,), {}, generator(7))
    assert torch.equal(again[0], y)
    assert not torch.equal(random_like((x,), {}, generator(1))[0][0], y)


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([True, False]),
        torch.tensor([[1, 1, 0]]),  # a mask, and so is the next
        torch.tensor([0.0, -float("inf")]),
        torch.zeros(0, 3),
    ],
)
def test_random_like_keeps_masks(x):
    assert torch.equal(random_like((x,), {}, generator(0))[0][0], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64, torch.int8, torch.uint8])
def test_random_like_keeps_the_dtype(dtype):
    x = (torch.randn(30, 4).abs() * 20).to(dtype)
    y = random_like((x,), {}, generator(0))[0][0]
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert not torch.equal(x, y)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_a_cache_is_switched_off_unless_asked_for():
    class Cached(nn.Module):
        def forward(self, x, use_cache=None):
            return x

    assert call_kwargs(Cached(), {"a": 1}) == {"a": 1, "use_cache": False}
    assert call_kwargs(Cached(), {"use_cache": True}) == {"use_cache": True}
    assert call_kwargs(nn.Linear(1, 1), {}) == {}


def test_evaluating_puts_every_flag_back_even_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout()))
    net[1].eval()
    with pytest.raises(KeyError), evaluating(net):
        assert not any(m.training for m in net.modules())
        raise KeyError
    assert [m.training for m in net.modules()] == [True, True, False, False]


# ---- profile


def test_numbers_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    p = profile(net, torch.randn(2, 3, 8, 8), repeats=2, warmup=0)
    assert p.parameters == 6 * 3 * 9 + 12
    assert p.buffers == 6 + 6 + 1
    assert p.bytes == 4 * (p.parameters + 12) + 8  # the counter of batches is an int64
    assert p.flops == 2 * (2 * 6 * 6 * 6) * (3 * 9)
    assert p.peak_bytes >= 4 * 2 * 6 * 6 * 6  # at least one map
    assert p.reference is p.size_ratio is p.flop_speedup is p.latency_speedup is p.memory_ratio is None
    assert (p.device, p.repeats, p.backward, p.threads) == ("cpu", 2, False, torch.get_num_threads())
    assert 0 < p.latency_quartiles_ms[0] <= p.latency_ms <= p.latency_quartiles_ms[1]


def test_shared_parameters_count_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    p = profile(net, torch.randn(3, 4), repeats=1)
    assert (p.parameters, p.bytes, p.flops) == (16, 64, 2 * 2 * 3 * 16)


def lstm_flops(t, b, i, h):
    return 2 * t * b * (i + h) * 4 * h


class Attention(nn.Module):
    """Two query heads for each key-value head."""

    def forward(self, x):
        q = x.unflatten(-1, (4, 2)).transpose(1, 2)
        k = v = q[:, :2]
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


@pytest.mark.parametrize(
    ("net", "x", "flops"),
    [
        (nn.Linear(8, 3), torch.randn(2, 5, 8), 2 * 10 * 24),
        (nn.Linear(8, 3), torch.randn(8), 2 * 24),
        (nn.Linear(8, 1), torch.randn(8), 2 * 8),
        (nn.LSTM(8, 16, batch_first=True), torch.randn(2, 5, 8), lstm_flops(5, 2, 8, 16)),
        (Attention(), torch.randn(3, 7, 8), 2 * 2 * 3 * 4 * 7 * 7 * 2),
        # q, k, v, out: 4 products of 8x8; the feed-forward pair; scores and values
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            torch.randn(2, 5, 8),
            2 * 10 * (4 * 64 + 2 * 128) + 2 * 2 * 2 * 2 * 25 * 4,
        ),
        (nn.ReLU(), torch.randn(4), 0),
    ],
    ids=["linear", "vector", "vector to number", "lstm", "gqa", "encoder layer", "elementwise"],
)
def test_flops_that_torch_alone_would_miss(net, x, flops):
    fast = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    assert profile(net, x, repeats=1, warmup=0).flops == flops
    assert fast == (
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled,
    )


def test_flops_of_a_forward_that_returns_a_view_of_a_parameter():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.bias.expand(len(x))

    net = Constant()
    assert profile(net, torch.randn(4, 2), repeats=1, warmup=0).flops == 0
    assert net.bias.requires_grad


def test_flops_of_the_backward_pass():
    net = mlp(16)
    forward, both = (profile(net, torch.randn(5, 8), repeats=1, backward=b).flops for b in (False, True))
    first, second = 2 * 5 * 8 * 16, 2 * 5 * 16 * 2
    assert forward == first + second
    assert both == 2 * first + 3 * second  # the input needs no gradient


def test_backward_pass_of_a_gated_model():
    """The parametrizations take parameters in as inputs of modules."""
    net = mlp(16)
    plain = profile(net, torch.randn(5, 8), repeats=1, warmup=0, backward=True)
    dg.gate_(net, dg.features(net[0]))
    gated = profile(net, torch.randn(5, 8), repeats=1, warmup=0, backward=True)
    assert gated.flops == plain.flops
    assert gated.parameters == plain.parameters + 2 * 8


def test_peak_counts_what_is_alive_together():
    x = torch.ones(256)
    with LiveBytes() as live:
        a = x + 1
        b = a * 2
        a.add_(1)  # no new memory, nor does a view make any
        c = b.view(16, 16)[3]
        del a
        d = b + 1
        del b, d
    assert live.peak == 2 * 1024
    assert live.now == 1024  # the view holds its storage
    assert c.numel() == 16


def test_peak_of_a_chain_and_of_one_that_keeps_everything():
    class Keep(nn.Module):
        def forward(self, x):
            return [x := x + 1 for _ in range(10)]

    class Chain(nn.Module):
        def forward(self, x):
            for _ in range(10):
                x = x + 1
            return x

    x = torch.zeros(100)
    assert profile(Keep(), x, repeats=1).peak_bytes == 10 * 400
    assert profile(Chain(), x, repeats=1).peak_bytes == 2 * 400


def test_backward_holds_the_activations():
    net = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)])
    x = torch.randn(32, 64)
    forward, both = (profile(net, x, repeats=1, backward=b).peak_bytes for b in (False, True))
    assert both >= 6 * 4 * 32 * 64 > forward


def test_beside_a_reference():
    p = profile(mlp(16), torch.randn(5, 8), reference=mlp(64), repeats=5)
    assert isinstance(p.reference, Profile)
    assert p.reference.reference is None
    assert (p.parameters, p.reference.parameters) == (16 * 11 + 2, 64 * 11 + 2)
    assert p.size_ratio == pytest.approx((64 * 11 + 2) / (16 * 11 + 2))
    assert p.flop_speedup == 4.0
    assert p.memory_ratio > 1
    assert p.latency_speedup > 0


def test_a_slower_reference_is_slower():
    """Ten times the work is more than noise, whichever of the two is called the reference."""
    wide, narrow, x = mlp(4096), mlp(16), torch.randn(64, 8)
    assert profile(narrow, x, wide, repeats=9).latency_speedup > 1.5
    assert profile(wide, x, narrow, repeats=9).latency_speedup < 0.7


def test_calls_alternate_and_swap_order():
    order = []

    class Noted(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            if torch.is_inference_mode_enabled():
                order.append(self.name)
            return x

    profile(Noted("m"), X, Noted("r"), repeats=4, warmup=1)
    assert "".join(order) in ("rmmrrmmrrm", "mrrmmrrmmr")


def test_nothing_about_the_model_changes():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    net[1].eval()
    net(torch.randn(4, 8)).sum().backward()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    grads = [p.grad.clone() for p in net.parameters()]
    flags = [m.training for m in net.modules()]
    random = torch.random.get_rng_state()
    profile(net, torch.ones(4, 8), net, repeats=2, backward=True)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    assert [m.training for m in net.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), random)
    net(torch.randn(4, 8)).sum().backward()  # nothing of inference mode is left behind


def test_a_gated_model_can_be_measured():
    net = mlp()
    plain = profile(net, torch.randn(5, 8), repeats=1)
    gated = profile(dg.gate_(net, dg.features(net[0]), depth=3), torch.randn(5, 8), repeats=1)
    assert gated.parameters == plain.parameters + 2 * 8
    assert gated.flops == plain.flops


def test_a_compiled_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's first import touches deprecated parts of torch
        net = torch.compile(mlp(), backend="eager")
        net(torch.randn(5, 8))
    p = profile(net, torch.randn(5, 8), mlp(), repeats=2)
    assert (p.size_ratio, p.flop_speedup, p.memory_ratio) == (1, 1, 1)


def test_a_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    ids = torch.randint(0, 32, (2, 7))
    p = profile(transformers.LlamaForCausalLM(config), {"input_ids": ids}, repeats=1)
    weights = 16 * (16 + 8 + 8 + 16) + 3 * 16 * 24 + 16 * 32
    assert p.flops == 2 * 14 * weights + 2 * 2 * 2 * 4 * 49 * 4  # and scores and values of four heads


@pytest.mark.parametrize("reference", [None, mlp(32)], ids=["alone", "compared"])
@pytest.mark.parametrize("backward", [False, True])
def test_print_and_dict(reference, backward):
    p = profile(mlp(), torch.randn(5, 8), reference, repeats=3, backward=backward)
    data = json.loads(json.dumps(p.to_dict(), allow_nan=False))
    assert data["parameters"] == p.parameters
    assert data["latency_quartiles_ms"] == list(p.latency_quartiles_ms)
    text = str(p)
    assert repr(p) == text
    assert all(len(line) <= 100 for line in text.splitlines())
    for word in ("parameters", "FLOPs", "latency", "peak memory", "cpu", f"{p.flops:,}"):
        assert word in text
    assert ("backward" in text) == backward
    assert ("before" in text) == ("after" in text) == ("ratio" in text) == (reference is not None)
    if reference is not None:
        assert data["reference"]["parameters"] == p.reference.parameters
        assert data["flop_speedup"] == p.flop_speedup == 2.0
        assert "2.00x" in text


def test_ratios_without_a_divisor_are_none():
    p = profile(nn.ReLU(), torch.randn(4), nn.Linear(4, 4), repeats=1)
    assert p.size_ratio is p.flop_speedup is None
    json.dumps(p.to_dict(), allow_nan=False)
    assert "-" in str(p)


def test_sparse_tensors_have_no_peak():
    class Sparse(nn.Module):
        def forward(self, x):
            return x.to_sparse().to_dense()

    assert profile(Sparse(), torch.eye(3), repeats=1).peak_bytes is None


class NoGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        return self.layer(x).argmax(-1)


INPUT = torch.randn(5, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: profile({"a": 1}, INPUT), TypeError, r"model: expected a torch\.nn\.Module, received dict"),
        (lambda: profile(mlp(), INPUT, "big"), TypeError, r"reference: expected a torch\.nn\.Module, received str"),
        (lambda: profile(mlp(), 3), TypeError, r"example_inputs: expected"),
        (lambda: profile(mlp(), INPUT, repeats=0), ValueError, r"repeats: expected an integer >= 1, received 0"),
        (lambda: profile(mlp(), INPUT, repeats=2.0), TypeError, r"repeats: expected an integer, received float"),
        (lambda: profile(mlp(), INPUT, warmup=-1), ValueError, r"warmup: expected an integer >= 0, received -1"),
        (lambda: profile(mlp(), INPUT, warmup=True), TypeError, r"warmup: expected an integer, received bool"),
        (lambda: profile(nn.LazyLinear(3), INPUT), ValueError, r"'weight', which is lazy"),
        (lambda: profile(nn.Linear(8, 2, device="meta"), INPUT), ValueError, r"'weight', which is on 'meta'"),
        (lambda: profile(mlp(), INPUT.to("meta")), ValueError, r"expected tensors on \['cpu'\].*on meta"),
        (lambda: profile(nn.ReLU(), INPUT, backward=True), ValueError, r"backward: expected a model with trainable"),
        (lambda: profile(mlp(), INPUT, nn.ReLU(), backward=True), ValueError, r"a reference with trainable"),
        (lambda: profile(NoGradient(), INPUT, backward=True), ValueError, r"output with a gradient"),
    ],
)
def test_profile_refused(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert caught.type is error


def test_a_failing_model_is_put_back():
    net = mlp()
    with pytest.raises(RuntimeError, match="shape"):
        profile(net, torch.randn(5, 7))
    assert all(m.training for m in net.modules())
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.gpu
def test_on_cuda():
    net, x = mlp(64).cuda(), torch.randn(32, 8, device="cuda")
    p = profile(net, x, mlp(256).cuda(), repeats=5)
    assert p.device.startswith("cuda")
    assert p.flops == 2 * 32 * 64 * 10
    assert p.reference.peak_bytes > p.peak_bytes > 0
