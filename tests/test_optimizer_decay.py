"""How an optimizer decays weights is found by what it does, and what does not fit is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

import dgating as dg
from dgating.gating._trial import decay_of
from tests.test_wrapped_optimizers import Lookahead, Passing, Proxy

optim = torch.optim


class Innocent(optim.SGD):
    """Decoupled decay under the name and the settings of SGD."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            for p in group["params"]:
                p.mul_(1 - group["lr"] * decay)
            group["weight_decay"] = 0.0
        out = super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        return out


class Holder(optim.Optimizer):
    """Makes an AdamW of its own."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        params = list(params)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.inner = optim.AdamW(self.param_groups, lr=lr, weight_decay=weight_decay)

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class Switch(optim.Optimizer):
    """Coupled or not by an attribute, as AdaBelief and others have it."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, *, decouple: bool = True) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.decouple = decouple

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                decay = group["weight_decay"] * p
                p.sub_(group["lr"] * ((p.grad.sign() + decay) if self.decouple else (p.grad + decay).sign()))


class OnlyLarge(Switch):
    """Refuses small tensors, as optimizers with a state of eight bits do."""

    def step(self) -> None:  # type: ignore[override]
        if any(p.numel() < 1024 or p.dtype != torch.float32 for g in self.param_groups for p in g["params"]):
            raise RuntimeError("too small")
        super().step()


class OtherDevice(optim.Adam):
    """Refuses what is not on its device."""

    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("expected tensors of an accelerator")


class NeedsClosure(optim.SGD):
    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise RuntimeError("needs a closure")
        return super().step(closure)


class Required(optim.SGD):
    """An argument that is kept, one that is not."""

    def __init__(self, params: Any, factor: float, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.factor = factor


class Lost(optim.SGD):
    def __init__(self, params: Any, secret: float, **settings: Any) -> None:
        super().__init__(params, **settings)


class Noisy(optim.SGD):
    """Draws random numbers in a step, and has a coupled decay."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(0.1 * torch.randn_like(p))


class Ignoring(optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)


class OtherName(optim.Optimizer):
    """A decay that is not called weight_decay."""

    def __init__(self, params: Any, lr: float = 0.1, shrink: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "shrink": shrink})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["shrink"]).sub_(group["lr"] * p.grad)


class Still(optim.SGD):
    def step(self, closure: Any = None) -> None:
        return None


class NormClipped(optim.SGD):
    """Decays what is left of a clipped gradient: coupled, as when the user clips before the step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 100.0)
        return super().step(closure)


def lr_tensor(params: Any) -> optim.Optimizer:
    return optim.Adam(params, lr=torch.tensor(1e-3), foreach=False)


CASES: dict[str, tuple[Callable[[Any], optim.Optimizer], str]] = {
    "Adadelta": (optim.Adadelta, "coupled"),
    "Adafactor": (optim.Adafactor, "decoupled"),
    "Adagrad": (optim.Adagrad, "coupled"),
    "Adam": (optim.Adam, "coupled"),
    "AdamW": (optim.AdamW, "decoupled"),
    "Adamax": (optim.Adamax, "coupled"),
    "ASGD": (optim.ASGD, "coupled"),
    "LBFGS": (optim.LBFGS, "ignored"),
    "Muon": (optim.Muon, "decoupled") if hasattr(optim, "Muon") else (optim.AdamW, "decoupled"),
    "NAdam": (optim.NAdam, "coupled"),
    "RAdam": (optim.RAdam, "coupled"),
    "RMSprop": (optim.RMSprop, "coupled"),
    "Rprop": (optim.Rprop, "ignored"),
    "SGD": (lambda p: optim.SGD(p, lr=0.1), "coupled"),
    "SparseAdam": (optim.SparseAdam, "ignored"),
    "Adam, tiny step": (lambda p: optim.Adam(p, lr=1e-9, weight_decay=1e-9), "coupled"),
    "AdamW, tiny step": (lambda p: optim.AdamW(p, lr=1e-9, weight_decay=1e-9), "decoupled"),
    "Adam, amsgrad": (lambda p: optim.Adam(p, amsgrad=True), "coupled"),
    "Adam, fused": (lambda p: optim.Adam(p, fused=True), "coupled"),
    "AdamW, fused": (lambda p: optim.AdamW(p, fused=True), "decoupled"),
    "Adam, foreach": (lambda p: optim.Adam(p, foreach=True), "coupled"),
    "Adam, capturable": (lambda p: optim.Adam(p, capturable=True), "coupled"),
    "Adam, differentiable": (lambda p: optim.Adam(p, differentiable=True), "coupled"),
    "Adam, step size a tensor": (lr_tensor, "coupled"),
    "Adam, step size zero": (lambda p: optim.Adam(p, lr=0.0), "coupled"),
    "Adam, decoupled": (lambda p: optim.Adam(p, decoupled_weight_decay=True), "decoupled"),
    "NAdam, decoupled": (lambda p: optim.NAdam(p, decoupled_weight_decay=True), "decoupled"),
    "RAdam, decoupled": (lambda p: optim.RAdam(p, decoupled_weight_decay=True), "decoupled"),
    "SGD, Nesterov": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "coupled"),
    "SGD, dampening": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), "coupled"),
    "SGD, maximize": (lambda p: optim.SGD(p, lr=0.1, maximize=True), "coupled"),
    "AdamW, maximize": (lambda p: optim.AdamW(p, maximize=True), "decoupled"),
    "RMSprop, centered": (lambda p: optim.RMSprop(p, momentum=0.9, centered=True), "coupled"),
    "subclass that decouples": (lambda p: Innocent(p, lr=0.1, momentum=0.9), "decoupled"),
    "decoupled without momentum, which is coupled": (lambda p: Innocent(p, lr=0.1), "coupled"),
    "holds an AdamW": (Holder, "decoupled"),
    "switch on": (lambda p: Switch(p, decouple=True), "decoupled"),
    "switch off": (lambda p: Switch(p, decouple=False), "coupled"),
    "only large": (OnlyLarge, "decoupled"),
    "only large, coupled": (lambda p: OnlyLarge(p, decouple=False), "coupled"),
    "another device": (OtherDevice, "unknown"),
    "needs a closure": (lambda p: NeedsClosure(p, lr=0.1), "coupled"),
    "required argument": (lambda p: Required(p, 2.0, lr=0.1), "coupled"),
    "lost argument": (lambda p: Lost(p, 2.0, lr=0.1), "unknown"),
    "noisy": (lambda p: Noisy(p, lr=0.1), "coupled"),
    "ignores it": (lambda p: Ignoring(p, lr=0.1), "ignored"),
    "another name": (OtherName, "hidden"),
    "does not move": (lambda p: Still(p, lr=0.1), "unknown"),
    "clips": (lambda p: NormClipped(p, lr=0.1), "coupled"),
    "Lookahead": (lambda p: Lookahead(optim.SGD(p, lr=0.1)), "unknown"),
}


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.randn(3, 4))


def every_class() -> list[str]:
    kinds = {name: getattr(optim, name) for name in dir(optim)}
    return [n for n, k in kinds.items() if isinstance(k, type) and issubclass(k, optim.Optimizer) and n != "Optimizer"]


def test_the_table_has_every_optimizer_of_torch() -> None:
    assert set(every_class()) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_how_it_decays(name: str) -> None:
    make, want = CASES[name]
    optimizer = make([parameter()])
    group = optimizer.param_groups[0]
    assert decay_of(optimizer, group, group["params"][0]) == want


@pytest.mark.parametrize("shape", [(), (5,), (5, 1), (2, 3, 4), (2, 3, 1, 1)])
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.Adafactor])
def test_the_shape_does_not_matter(shape: tuple[int, ...], kind: Any) -> None:
    optimizer = kind([nn.Parameter(torch.ones(shape))], lr=0.1)
    want = "coupled" if kind in (optim.SGD, optim.Adam) else "decoupled"
    assert decay_of(optimizer, optimizer.param_groups[0], optimizer.param_groups[0]["params"][0]) == want


def test_a_rule_by_shape_is_seen() -> None:
    class NotVectors(optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * (p.grad + (group["weight_decay"] * p if p.ndim > 1 else 0)))

    matrix, vector = parameter(), nn.Parameter(torch.ones(3))
    optimizer = NotVectors([matrix, vector], lr=0.1)
    assert decay_of(optimizer, optimizer.param_groups[0], matrix) == "coupled"
    assert decay_of(optimizer, optimizer.param_groups[0], vector) == "ignored"


def test_settings_are_those_of_the_group() -> None:
    optimizer = optim.Adam([{"params": [parameter()]}, {"params": [parameter()], "decoupled_weight_decay": True}])
    assert [decay_of(optimizer, g, g["params"][0]) for g in optimizer.param_groups] == ["coupled", "decoupled"]
    optimizer.param_groups[0]["decoupled_weight_decay"] = True  # by hand, after it was tried
    assert decay_of(optimizer, optimizer.param_groups[0], parameter()) == "decoupled"


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
        lambda o: lr_scheduler.LambdaLR(o, lambda t: t / 10),
        lr_scheduler.ReduceLROnPlateau,
    ],
    ids=["OneCycle", "Cyclic", "warm-up from zero", "plateau"],
)
def test_what_schedulers_add_does_no_harm(schedule: Any) -> None:
    optimizer = optim.Adam([parameter()], lr=0.01)
    schedule(optimizer)
    assert decay_of(optimizer, optimizer.param_groups[0], parameter()) == "coupled"


def test_nothing_of_the_user_is_touched() -> None:
    """Random numbers, the optimizer, its hooks, its parameters and gradients."""
    p = parameter()
    optimizer = Noisy([p], lr=0.1, momentum=0.9)
    p.grad = torch.ones_like(p)
    optimizer.step()
    calls: list[object] = []
    optimizer.register_step_post_hook(lambda *args: calls.append(args))
    before = (p.tolist(), p.grad.tolist(), optimizer.state[p]["momentum_buffer"].tolist())
    settings, numbers, python = dict(optimizer.param_groups[0]), torch.get_rng_state(), random.getstate()
    assert decay_of(optimizer, optimizer.param_groups[0], p) == "coupled"
    assert torch.equal(numbers, torch.get_rng_state())
    assert python == random.getstate()
    assert not calls
    assert before == (p.tolist(), p.grad.tolist(), optimizer.state[p]["momentum_buffer"].tolist())
    assert settings == dict(optimizer.param_groups[0])


def test_hooks_on_all_optimizers_are_not_called() -> None:
    optimizer = optim.SGD([parameter()], lr=0.1, momentum=0.123, nesterov=True, dampening=0.0)
    calls: list[object] = []
    handle = register_optimizer_step_post_hook(lambda *args: calls.append(args))
    try:
        assert decay_of(optimizer, {**optimizer.param_groups[0], "not": "seen before"}, parameter()) == "coupled"
    finally:
        handle.remove()
    assert not calls


def test_a_second_look_costs_no_trial() -> None:
    made: list[object] = []

    class Counted(optim.Adam):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            made.append(args)
            super().__init__(*args, **kwargs)

    net, groups = gated(0.1)
    optimizer = Counted(groups, lr=0.01)
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, 100)
    optimizer.step()  # the schedule notes that it was called
    dg.check_optimizer(net, optimizer, 0.1)
    n = len(made)
    for _ in range(20):  # step sizes and momenta change
        optimizer.step()
        schedule.step()
        dg.check_optimizer(net, optimizer, 0.1)
    assert len(made) == n


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_tried_in_any_mode(mode: Any) -> None:
    class Fresh(optim.AdamW):
        """Not tried before."""

    with mode():
        optimizer = Fresh([parameter()])
        assert decay_of(optimizer, optimizer.param_groups[0], parameter()) == "decoupled"


def gated(lam: float) -> tuple[nn.Module, list[dict[str, Any]]]:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    dg.gate_(net, [dg.features(net[0], name="inputs"), dg.features(net[2], name="hidden")])
    return net, dg.param_groups(net, lam)


REFUSED = {
    "decoupled": (lambda g: Innocent(g, lr=0.1, momentum=0.9), "Innocent decays weights apart"),
    "AdamW inside": (Holder, "Holder decays weights apart"),
    "passed on": (lambda g: Passing(optim.AdamW(g)), "AdamW decays weights apart"),
    "proxy": (lambda g: Proxy(optim.AdamW(g)), "AdamW decays weights apart"),
    "ignored": (lambda g: Ignoring(g, lr=0.1), "Ignoring has no weight decay"),
    "unknown": (lambda g: Lost(g, 1.0, lr=0.1), "Lost cannot be tried out"),
    "more than passed on": (lambda g: Lookahead(optim.SGD(g, lr=0.1)), "Lookahead cannot be tried out"),
    "another name": (OtherName, "OtherName shrinks weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_way_out(name: str) -> None:
    make, message = REFUSED[name]
    net, groups = gated(0.1)
    with pytest.raises(ValueError, match=rf"{message}.*weight_decay=0.*add_penalty_grad_\(model, lam\)"):
        dg.check_optimizer(net, make(groups), 0.1)


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"another name"}))
def test_the_way_out_is_accepted(name: str) -> None:
    net, groups = gated(0.0)
    dg.check_optimizer(net, REFUSED[name][0](groups), 0.1, penalty_in_loss=True)


def test_a_hidden_decay_is_refused_beside_the_penalty() -> None:
    net, groups = gated(0.0)
    with pytest.raises(ValueError, match="OtherName shrinks weights"):
        dg.check_optimizer(net, OtherName(groups), 0.1, penalty_in_loss=True)
    dg.check_optimizer(net, OtherName(dg.param_groups(net, 0.0), shrink=0.0), 0.1, penalty_in_loss=True)


def test_passed_on_sgd_is_accepted() -> None:
    net, groups = gated(0.1)
    dg.check_optimizer(net, Passing(optim.SGD(groups, lr=0.1)), 0.1)


FROZEN = {
    "gates": ("0.parametrizations.weight.0.gamma", "inputs"),
    "primary weights": ("2.parametrizations.weight.original", "hidden"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_factors_are_refused_by_name(name: str) -> None:
    path, _ = FROZEN[name]
    net, groups = gated(0.1)
    optimizer = optim.SGD(groups, lr=0.1)
    net.get_parameter(path).requires_grad_(False)
    for call in (
        lambda: dg.check_optimizer(net, optimizer, 0.1),
        lambda: dg.param_groups(net, 0.1),
        lambda: dg.add_penalty_grad_(net, 0.1),
    ):
        with pytest.raises(ValueError, match=rf"frozen ones: {path}\. "):
            call()


def test_the_names_of_frozen_factors_are_those_of_the_model() -> None:
    net = nn.Linear(4, 2)
    dg.gate_(net, dg.by_labels(net, torch.tensor([0, -1, 1, 1])))
    groups = dg.param_groups(net, 0.1)
    net.requires_grad_(False)
    names = [n for n, _ in net.named_parameters() if "original1" not in n and n != "bias"]
    with pytest.raises(ValueError, match="frozen ones") as error:
        dg.check_optimizer(net, optim.SGD(groups, lr=0.1), 0.1)
    assert all(name in str(error.value) for name in names)


def test_gates_that_never_move_are_refused() -> None:
    net, _ = gated(0.1)
    optimizer = optim.SGD(dg.param_groups(net, 0.1, gate_lr=0.1), lr=0.0)
    with pytest.raises(ValueError, match=r"lr 0 on 0\.parametrizations\.weight\.original and not on the others"):
        dg.check_optimizer(net, optimizer, 0.1)


@pytest.mark.parametrize("start", ["all at rest", "warm-up"])
def test_a_step_size_of_zero_that_is_meant(start: str) -> None:
    net, _ = gated(0.1)
    if start == "all at rest":
        optimizer = optim.SGD(dg.param_groups(net, 0.1), lr=0.0)
    else:
        optimizer = optim.SGD(dg.param_groups(net, 0.1, gate_lr=0.2), lr=0.1)
        lr_scheduler.LambdaLR(optimizer, [lambda t: t / 10, *[lambda t: 1 + t / 10] * 2])
        assert optimizer.param_groups[0]["lr"] == 0
    dg.check_optimizer(net, optimizer, 0.1)


@pytest.mark.parametrize("depth", range(2, 13))
def test_the_decay_is_two_lam_over_depth(depth: int) -> None:
    """With it the penalty has the gradient of the weight decay, whatever the depth."""
    net = nn.Linear(4, 2)
    dg.gate_(net, dg.features(net), depth=depth)
    groups = dg.param_groups(net, 0.6)
    assert [g["weight_decay"] for g in groups if g["dgating"] != "rest"] == pytest.approx([1.2 / depth] * 2)
    dg.penalty(net, 0.6).backward()
    for group in groups[:2]:
        for p in group["params"]:
            torch.testing.assert_close(p.grad, group["weight_decay"] * p.detach())
    dg.check_optimizer(net, optim.SGD(groups, lr=0.1), 0.6)


# groups that are zero, and momentum from before


STATEFUL = {
    "SGD": lambda g: optim.SGD(g, lr=0.05, momentum=0.9),
    "Adam": lambda g: optim.Adam(g, lr=0.01),
    "RMSprop with momentum": lambda g: optim.RMSprop(g, lr=0.01, momentum=0.9),
    "fused Adam": lambda g: optim.Adam(g, lr=0.01, fused=True),
}


def train(net: nn.Module, optimizer: optim.Optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def half(net: nn.Module) -> dict[str, Tensor]:
    return {"inputs": torch.tensor([True, False, True, False])}


@pytest.mark.parametrize("wrap", [lambda o: o, Passing], ids=["bare", "wrapped"])
@pytest.mark.parametrize("name", STATEFUL)
def test_momentum_from_before_zeroing_is_caught(name: str, wrap: Any) -> None:
    net, groups = gated(0.1)
    optimizer = STATEFUL[name](groups)
    train(net, optimizer)
    old = optimizer.state_dict()
    old = {"state": {k: {n: v.clone() for n, v in s.items()} for k, s in old["state"].items()}, **old_groups(old)}
    dg.zero_(net, half(net), wrap(optimizer))
    dg.check_optimizer(net, wrap(optimizer), 0.1)
    optimizer.load_state_dict(old)
    with pytest.raises(ValueError, match=r"2 groups of 'inputs' are exactly zero, but its state would move them"):
        dg.check_optimizer(net, wrap(optimizer), 0.1)
    dg.zero_(net, {n: norms == 0 for n, norms in dg.group_norms(net).items()}, wrap(optimizer))  # as it says
    dg.check_optimizer(net, wrap(optimizer), 0.1)
    train(net, optimizer)
    assert (dg.group_norms(net)["inputs"] == 0).tolist() == half(net)["inputs"].tolist()


def old_groups(state: dict[str, Any]) -> dict[str, Any]:
    return {"param_groups": state["param_groups"]}


def test_zeroing_without_the_optimizer_is_caught() -> None:
    net, groups = gated(0.1)
    optimizer = optim.Adam(groups, lr=0.01)
    train(net, optimizer)
    dg.zero_(net, half(net))
    with pytest.raises(ValueError, match="are exactly zero, but its state"):
        dg.check_optimizer(net, optimizer, 0.1)
    train(net, optimizer, 1)
    assert (dg.group_norms(net)["inputs"] > 0).all()  # it would have come back


@pytest.mark.parametrize("kind", [optim.Adagrad, optim.RMSprop, optim.ASGD, optim.Adadelta])
def test_state_that_moves_nothing_is_no_fault(kind: Any) -> None:
    """Sums of squares and averages do not move a weight without a gradient."""
    net, groups = gated(0.1)
    optimizer = kind(groups, lr=0.01)
    train(net, optimizer)
    dg.zero_(net, half(net))
    dg.check_optimizer(net, optimizer, 0.1)
    train(net, optimizer)
    assert (dg.group_norms(net)["inputs"] == 0).tolist() == half(net)["inputs"].tolist()


def test_small_groups_are_not_zero() -> None:
    """Squares of their factors are; momentum may move them."""
    net, groups = gated(0.1)
    optimizer = optim.SGD(groups, lr=0.05, momentum=0.9)
    train(net, optimizer)
    with torch.no_grad():
        net[0].parametrizations.weight.original.mul_(1e-30)
        net[0].parametrizations.weight[0].gamma.zero_()
    dg.check_optimizer(net, optimizer, 0.1)
