"""Parameter groups, optimizer state and penalties against sums on paper and hand-written lists."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dgating as dg
from dgating.gating._trial import decay_of

LAM = 0.3


def _vector(weights: list[float], depth: int = 3, dtype: torch.dtype = torch.float64) -> nn.Module:
    """One tensor, every weight a group, and nothing else."""
    net = nn.Module()
    net.w = nn.Parameter(torch.tensor(weights, dtype=dtype))
    return dg.gate_(net, dg.by_dim(net, 0, name="w", group_name="w"), depth=depth)


def test_collapsing_everything_keeps_the_number_of_parameter_groups() -> None:
    """A scheduler counts them. The weight goes on with the decay that the user has asked for."""
    net = _vector([1.0, 2.0])
    optimizer = torch.optim.SGD(dg.param_groups(net, LAM, weight_decay=0.01), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    dg.collapse_(net, optimizer)
    held = [([id(p) for p in g["params"]], g["weight_decay"], g["dgating"]) for g in optimizer.param_groups]
    assert held == [([id(net.w)], 0.01, "rest"), ([], 2 * LAM / 3, "gates")]
    net.w.sum().backward()
    optimizer.step()
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.05]


def test_collapsing_one_of_two_leaves_the_decay_of_the_other() -> None:
    net = nn.ModuleList([_vector([1.0, 2.0]), _vector([3.0])])
    optimizer = torch.optim.SGD(dg.param_groups(net, LAM, weight_decay=0.01), lr=0.1)
    dg.collapse_(net[0], optimizer)
    held = [([id(p) for p in g["params"]], g["weight_decay"], g["dgating"]) for g in optimizer.param_groups]
    site, decay = net[1].parametrizations.w, 2 * LAM / 3
    others = [([id(site.original)], decay, "omega"), ([id(site[0].gamma)], decay, "gates")]
    assert held == [*others, ([id(net[0].w)], 0.01, "rest")]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adagrad])
def test_zeroed_weights_are_not_kicked_after_collapsing(kind: type[torch.optim.Optimizer]) -> None:
    """They have no second moment of their own: divided by nothing, their first step would be several step sizes."""
    net = _vector([1.0, 2.0, 3.0])
    lr = 1e-3
    optimizer = kind(dg.param_groups(net, LAM), lr=lr)  # type: ignore[call-arg]

    def step() -> None:
        optimizer.zero_grad()
        (net.w * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)).sum().backward()
        optimizer.step()

    for _ in range(200):
        step()
    dg.zero_(net, {"w": torch.tensor([True, False, True])}, optimizer)
    dg.collapse_(net, optimizer)
    assert net.w[0] == net.w[2] == 0
    step()
    assert 0 < float(net.w[[0, 2]].detach().abs().max()) <= 1.1 * lr


@pytest.mark.parametrize("tol", [0.0, 1.0, 1.5, -0.1])
def test_a_norm_that_is_no_fraction_of_one_cannot_count_as_zero(tol: float) -> None:
    with pytest.raises(ValueError, match="tol: expected a"):
        dg.time_budget(0.1, 0.1, 100, tol=tol)


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 1, 1)])
def test_an_optimizer_that_takes_large_tensors_only_is_tried_on_one(shape: tuple[int, ...]) -> None:
    """Eight-bit optimizers leave tensors below 4,096 numbers alone, or refuse them; a scalar is never large."""

    class Large(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[override]
            if any(p.ndim and p.numel() < 4096 for group in self.param_groups for p in group["params"]):
                raise RuntimeError("too small")
            return super().step(closure)

    p = nn.Parameter(torch.ones(shape))
    optimizer = Large([p], lr=0.1, weight_decay=0.1)
    assert decay_of(optimizer, optimizer.param_groups[0], p) == "coupled"


def test_an_optimizer_that_asks_for_the_loss_gets_a_number() -> None:
    class Watchful(torch.optim.SGD):
        def step(self, closure):  # type: ignore[override]
            with torch.enable_grad():
                loss = float(closure())
            assert loss > 0
            super().step()
            return loss

    p = nn.Parameter(torch.ones(2, 3))
    optimizer = Watchful([p], lr=0.1, weight_decay=0.1)
    assert decay_of(optimizer, optimizer.param_groups[0], p) == "coupled"


def test_steps_that_grow_with_the_weight_are_no_hidden_decay() -> None:
    """Trust ratios scale the step of the gradient; where there is none, nothing shrinks."""

    class Trust(torch.optim.Optimizer):
        def __init__(self, params, lr: float = 0.1) -> None:
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * p.norm() * p.grad / p.grad.norm().clamp_min(1e-12))

    p = nn.Parameter(torch.ones(2, 3))
    optimizer = Trust([p])
    assert decay_of(optimizer, optimizer.param_groups[0], p) == "ignored"
