"""Gating changes nothing, collapsing gives the ordinary model back: every kind of layer, depth and dtype."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, DEPTHS, DTYPES, Case, cast
from torch import nn

import dgating as dg

by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def _gated(case: Case, depth: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = case.model().to(dtype)
    return dg.gate_(model, case.groups(model), depth=depth)


@by_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gating_changes_no_output_bit(case: Case, dtype: torch.dtype) -> None:
    model, x = case.model().to(dtype), cast(case.inputs(), dtype)
    before = model(x)
    for depth in DEPTHS:
        gated = copy.deepcopy(model)
        dg.gate_(gated, case.groups(gated), depth=depth)
        assert dg.is_gated(gated)
        assert torch.equal(gated(x), before)


@by_case
def test_round_trip_restores_class_names_order_and_ids(case: Case) -> None:
    model = case.model()
    names = [n for n, _ in model.named_parameters()]
    kinds = [type(m) for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    dg.gate_(model, case.groups(model), depth=4)
    dg.collapse_(model)
    assert not dg.is_gated(model)
    assert [n for n, _ in model.named_parameters()] == names
    assert [type(m) for m in model.modules()] == kinds
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad for p in model.parameters())


@by_case
@pytest.mark.parametrize("depth", [2, 4])
def test_steps_then_collapse_keep_the_function(case: Case, depth: int) -> None:
    model, x = _gated(case, depth), case.inputs()
    optimizer = torch.optim.SGD(dg.param_groups(model, lam=0.02), lr=0.05, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        before = model(x)
        dg.collapse_(model)
        torch.testing.assert_close(model(x), before, atol=1e-6, rtol=1e-6)
    model(x).sum().backward()  # an ordinary model: it trains on


@by_case
def test_zeroed_groups_are_exactly_zero_and_stay(case: Case) -> None:
    model, x = _gated(case), case.inputs()
    optimizer = torch.optim.Adam(dg.param_groups(model, lam=0.01), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    ((name, norms),) = dg.group_norms(model).items()
    mask = torch.zeros(len(norms), dtype=torch.bool)
    mask[0] = True
    dg.zero_(model, {name: mask}, optimizer)
    for _ in range(3):
        step()
    norms = dg.group_norms(model)[name]
    assert norms[0] == 0
    assert (norms[1:] > 0).all()
    assert dg.sparsity(model, tol=0)[name] == pytest.approx(1 / len(norms))


@by_case
def test_norms_are_those_of_the_collapsed_weights(case: Case) -> None:
    model = _gated(case, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(torch.rand_like(p) + 0.5)
    (norms,) = dg.group_norms(model).values()
    dg.collapse_(model)
    again = case.groups(model)
    expected = torch.zeros(len(again), dtype=torch.float64)
    for part in again.parts:
        for m in part.members:
            labels = m.partition.labels.expand(m.partition.shape).reshape(-1)
            gated = labels >= 0
            expected.index_add_(0, labels[gated], m.parameter.detach().reshape(-1)[gated].square())
    torch.testing.assert_close(norms, expected.sqrt(), rtol=1e-12, atol=0)


@by_case
def test_gradcheck(case: Case) -> None:
    model, x = _gated(case, depth=4, dtype=torch.float64), cast(case.inputs(), torch.float64)
    model.eval()
    gates = [p for n, p in model.named_parameters() if n.endswith("gamma")]
    with torch.no_grad():
        for g in gates:
            g.mul_(torch.rand_like(g) + 0.5)
    names = [n for n, p in model.named_parameters() if p.requires_grad]

    def loss(*values: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))
        return out.sigmoid().mean()

    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


def test_second_derivatives() -> None:
    model = nn.Linear(3, 2).double()
    dg.gate_(model, dg.features(model), depth=4)
    omega, gamma = model.parametrizations.weight.original, model.parametrizations.weight[0].gamma
    gate = model.parametrizations.weight[0]

    def weight(w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(gate, {"gamma": g}, (w,)).tanh()

    assert torch.autograd.gradgradcheck(weight, (omega, gamma))


@pytest.mark.parametrize("depth", [3, 4, 5, 8])
def test_gates_at_exactly_zero_have_finite_gradients(depth: int) -> None:
    model = nn.Linear(3, 2)
    dg.gate_(model, dg.features(model), depth=depth)
    gate = model.parametrizations.weight[0]
    with torch.no_grad():
        gate.gamma[0, 0] = 0
    model(torch.randn(4, 3)).sum().backward()
    assert torch.isfinite(gate.gamma.grad).all()
    assert gate.gamma.grad[0, 0] != 0  # the other gates are one, so this one still feels the data
    assert (gate.gamma.grad[1:, 0] == 0).all()


def test_many_layers_in_one_groups_share_a_name_not_their_gates() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    groups = dg.filters(model)
    dg.gate_(model, groups, depth=3)
    assert len(groups) == 9
    assert dg.group_norms(model)["filters"].shape == (9,)
    shapes = [tuple(p.shape) for n, p in model.named_parameters() if n.endswith("gamma")]
    assert shapes == [(2, 4), (2, 5)]
    dg.zero_(model, {"filters": torch.arange(9) >= 4})
    dg.collapse_(model)
    assert (model[2].weight == 0).all()
    assert (model[0].weight != 0).any()


def test_assigning_a_weight_keeps_the_gates() -> None:
    model = nn.Linear(3, 2)
    dg.gate_(model, dg.features(model))
    with torch.no_grad():
        model.parametrizations.weight[0].gamma.fill_(0.5)
        new = torch.randn(2, 3)
        model.weight = new
    torch.testing.assert_close(model.weight, new)
    assert (model.parametrizations.weight[0].gamma == 0.5).all()


def test_different_depths_in_one_model() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    dg.gate_(model, dg.features(model[0]), depth=2)
    dg.gate_(model, dg.features(model[2]), depth=4)
    decays = {g["weight_decay"] for g in dg.param_groups(model, lam=0.4) if g["dgating"] != "rest"}
    assert decays == {0.4, 0.2}


def test_collapse_returns_the_map_of_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    dg.gate_(model, [dg.features(model[0]), dg.by_labels(model[1], torch.tensor([0, -1, 1]))])
    omega0 = model[0].parametrizations.weight.original
    omega1, rest1 = model[1].parametrizations.weight.original0, model[1].parametrizations.weight.original1
    gates = [p for n, p in model.named_parameters() if n.endswith("gamma")]
    moved = dg.collapse_(model)
    assert moved[omega0] is model[0].weight
    assert moved[omega1] is moved[rest1] is model[1].weight
    assert [moved[g] for g in gates] == [None, None]
    assert len(moved) == 5
