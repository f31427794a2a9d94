"""Traps of torch's parametrisations and of real models, each pinned down: pickling, deepcopy, sharing, removal."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn.utils import parametrize

import dgating as dg


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))


def _unit(net: nn.Sequential) -> dg.Groups:
    """Filter, norm scale and norm shift with one set of gates."""
    return dg.tie(dg.filters(net[0]), dg.by_dim(net[1], 0), dg.by_dim(net[1], 0, name="bias"), name="channels")


def test_a_gated_module_refuses_pickling_its_state_dict_does_not() -> None:
    """Trap (a)."""
    net = _net()
    dg.gate_(net, _unit(net))
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(net)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh = _net()
    dg.gate_(fresh, _unit(fresh))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(x), net.eval()(x))
    dg.collapse_(fresh)
    pickle.dumps(fresh)


def test_collapsing_a_deepcopy_leaves_the_original_gated() -> None:
    """Trap (b): a copy shares the dynamic class of the original."""
    net, x = _net().eval(), torch.randn(2, 3, 8, 8)
    dg.gate_(net, _unit(net))
    before = net(x)
    twin = copy.deepcopy(net)
    dg.collapse_(twin)
    assert not dg.is_gated(twin)
    assert dg.is_gated(net)
    assert torch.equal(net(x), before)
    assert torch.equal(twin(x), before)
    dg.collapse_(net)
    assert torch.equal(net(x), before)
    assert type(net[0]) is nn.Conv2d


def test_gating_more_on_a_deepcopy_leaves_the_original_alone() -> None:
    """Trap (b), the other way: a property injected into the shared class would break the original's bias."""
    layer = nn.Linear(4, 3)
    dg.gate_(layer, dg.features(layer))
    twin = copy.deepcopy(layer)
    dg.gate_(twin, dg.by_dim(twin, 0, name="bias"))
    x = torch.randn(2, 4)
    assert torch.equal(layer(x), twin(x))
    assert isinstance(layer.bias, nn.Parameter)
    assert dg.is_gated(twin, "bias")
    assert not dg.is_gated(layer, "bias")


def test_gates_stay_shared_in_a_deepcopy() -> None:
    net = _net()
    dg.gate_(net, _unit(net))
    twin = copy.deepcopy(net)
    gates = {id(m.gamma) for m in twin.modules() if hasattr(m, "gamma")}
    assert len(gates) == 1
    assert gates != {id(m.gamma) for m in net.modules() if hasattr(m, "gamma")}


def test_one_gate_is_one_parameter_but_several_keys() -> None:
    """Trap (c)."""
    net = _net()
    dg.gate_(net, _unit(net))
    assert sum(n.endswith("gamma") for n, _ in net.named_parameters()) == 1
    assert sum(k.endswith("gamma") for k in net.state_dict()) == 3
    groups = dg.param_groups(net, 0.1)
    held = [id(p) for g in groups for p in g["params"]]
    assert len(held) == len(set(held)) == len(list(net.parameters()))
    assert len([p for g in groups if g["dgating"] == "gates" for p in g["params"]]) == 1


def test_safetensors_store_shared_gates_once(tmp_path) -> None:
    net = _net()
    dg.gate_(net, _unit(net))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    save_model(net, str(tmp_path / "net.safetensors"))
    fresh = _net()
    dg.gate_(fresh, _unit(fresh))
    load_model(fresh, str(tmp_path / "net.safetensors"))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(x), net.eval()(x))


def test_fully_gated_tensors_keep_their_parameter_object() -> None:
    """Trap (d): with one original the parameter survives, with two (partial labels) it is new and the map says so."""
    layer = nn.Linear(4, 3)
    weight = layer.weight
    dg.gate_(layer, dg.features(layer))
    assert layer.parametrizations.weight.original is weight
    assert dg.collapse_(layer)[weight] is layer.weight is weight
    dg.gate_(layer, dg.by_labels(layer, torch.tensor([0, 1, -1, 2])))
    omega, rest = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    moved = dg.collapse_(layer)
    assert moved[omega] is moved[rest] is layer.weight
    assert layer.weight is not weight


def test_stale_gradients_do_not_survive_the_collapse() -> None:
    layer = nn.Linear(4, 3)
    dg.gate_(layer, dg.features(layer))
    layer(torch.randn(2, 4)).sum().backward()
    dg.collapse_(layer)
    assert layer.weight.grad is None


def test_recurrent_layers_train_copy_and_collapse() -> None:
    """RNNs keep a private list of their weights; the effective ones in it must not outlive a step."""
    rnn = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    dg.gate_(rnn, dg.features(rnn))
    optimizer = torch.optim.SGD(dg.param_groups(rnn, 0.1), lr=0.1)
    x = torch.randn(2, 5, 3)
    outputs = []
    for _ in range(3):
        optimizer.zero_grad()
        out = rnn(x)[0]
        out.square().sum().backward()
        optimizer.step()
        outputs.append(out.detach())
    assert not torch.equal(outputs[0], outputs[-1])
    with torch.no_grad():
        before = rnn(x)[0]
    dg.collapse_(rnn)
    torch.testing.assert_close(rnn(x)[0], before)
    rnn(x)[0].sum().backward()
    assert rnn.weight_ih_l0.grad is not None
    copy.deepcopy(rnn)


def test_a_failure_half_way_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _net()
    state, kinds = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    real, calls = parametrize.register_parametrization, []

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("no memory left")
        return real(*args, **options)

    monkeypatch.setattr(parametrize, "register_parametrization", failing)
    with pytest.raises(MemoryError):
        dg.gate_(net, _unit(net))
    assert not dg.is_gated(net)
    assert [type(m) for m in net.modules()] == kinds
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert list(net.state_dict()) == list(state)


def test_modules_used_twice_are_gated_once() -> None:
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    dg.gate_(net, dg.features(layer))
    assert len(dg.report(net).rows) == 1
    net(torch.randn(2, 4)).sum().backward()
    dg.collapse_(net)
    assert net[0] is net[2]


def test_to_and_half_move_the_gates_along() -> None:
    net = _net()
    dg.gate_(net, _unit(net))
    net.double()
    assert all(p.dtype == torch.float64 for p in net.parameters())
    net(torch.randn(2, 3, 8, 8, dtype=torch.float64)).sum().backward()


def test_mixed_precision_members_share_wide_gates() -> None:
    net = _net()
    net[0].to(torch.bfloat16)
    dg.gate_(net, _unit(net))
    assert net[0].parametrizations.weight[0].gamma.dtype == torch.float32
    assert net[0].weight.dtype == torch.bfloat16
    dg.collapse_(net)
    assert net[0].weight.dtype == torch.bfloat16


def test_export_and_compile_of_a_gated_model() -> None:
    net, x = _net().eval(), torch.randn(2, 3, 8, 8)
    dg.gate_(net, _unit(net))
    expected = net(x)
    exported = torch.export.export(net, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), expected)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    assert net[0].parametrizations.weight[0].gamma.grad is not None
    torch._dynamo.reset()


def test_vmap_and_functional_gradients() -> None:
    layer = nn.Linear(4, 3)
    dg.gate_(layer, dg.features(layer))
    params = dict(layer.named_parameters())

    def loss(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, params, (x,)).square().sum()

    x = torch.randn(5, 4)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)
    whole = torch.func.grad(loss)(params, x)
    for name, value in each.items():
        torch.testing.assert_close(value.sum(0), whole[name], rtol=1e-4, atol=1e-5)


def test_sparse_embeddings_are_refused() -> None:
    layer = nn.Embedding(5, 3, sparse=True)
    with pytest.raises(ValueError, match="sparse gradients"):
        dg.gate_(layer, dg.features(layer))
    assert not dg.is_gated(layer)


def test_printing_groups_after_gating_shows_their_paths() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    groups = dg.tie(dg.neurons(net[0]), dg.features(net[1]))
    dg.gate_(net, groups)
    assert str(groups).splitlines()[1:] == [
        "  0.weight (4, 4): dim 0, 4 x 4 weights",
        "  & 1.weight (4, 4): dim 1, 4 x 4 weights",
    ]


def test_factors_cannot_be_gated_again() -> None:
    """Neither through a sub-network nor as bare parameters."""
    net = _net()
    dg.gate_(net, dg.filters(net))
    keys = list(net.state_dict())
    for groups in (lambda: dg.whole(net[0]), lambda: dg.by_dim(net[0].parametrizations.weight.original, 0)):
        with pytest.raises(ValueError, match="parametrised"):
            dg.gate_(net, groups())
    assert list(net.state_dict()) == keys


def test_a_step_after_zero_does_not_use_the_old_gradient() -> None:
    layer = nn.Linear(4, 3)
    dg.gate_(layer, dg.features(layer))
    optimizer = torch.optim.Adam(dg.param_groups(layer, 0.1), lr=0.1)
    layer(torch.randn(2, 4)).sum().backward()
    dg.zero_(layer, {"weight": torch.ones(4, dtype=torch.bool)}, optimizer)
    optimizer.step()
    assert (dg.group_norms(layer)["weight"] == 0).all()


def test_indices_survive_meta_and_to_empty() -> None:
    def build() -> nn.Linear:
        layer = nn.Linear(6, 2)
        return dg.gate_(layer, dg.by_labels(layer, torch.tensor([2, -1, 0, 1, 2, -1])))

    full, x = build(), torch.randn(3, 6)
    fresh = build().to("meta").to_empty(device="cpu")
    fresh.load_state_dict(full.state_dict())
    assert torch.equal(fresh(x), full(x))


def test_depth_may_be_positional() -> None:
    layer = nn.Linear(4, 3)
    dg.gate_(layer, dg.features(layer), 4)
    assert dg.report(layer).rows[0].depth == 4
