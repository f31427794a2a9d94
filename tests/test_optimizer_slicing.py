"""Training goes on after ``compact(..., optimizer=...)`` as the full model would with its dead units held at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import dgating as dg
from benchmarks.zoo import FAMILIES
from benchmarks.zoo._zero import Task, channels, neurons

Make = Callable[[Any], Optimizer]
WARM_UP, STEPS = 10, 50
Masks = dict[nn.Parameter, Tensor]

OPTIMIZERS: dict[str, Make] = {
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=3e-3, amsgrad=True, foreach=False),
    "adam fused": lambda p: torch.optim.Adam(p, lr=3e-3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adadelta": torch.optim.Adadelta,
    "nadam": lambda p: torch.optim.NAdam(p, lr=3e-3),
    "radam": lambda p: torch.optim.RAdam(p, lr=3e-3),
    "adamax": lambda p: torch.optim.Adamax(p, lr=3e-3),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2, t0=5),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
}
MAIN = ["sgd momentum", "nesterov", "adam", "adamw", "adagrad", "rmsprop"]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 20), nn.GELU(), nn.Linear(20, 3))


def conv_net() -> nn.Module:
    def block(n: int, m: int) -> list[nn.Module]:
        return [nn.Conv2d(n, m, 3, padding=1, bias=False), nn.BatchNorm2d(m), nn.ReLU()]

    return nn.Sequential(*block(1, 8), *block(8, 12), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 3))


def llama() -> nn.Module:
    return FAMILIES["llama"].build()


def rows_of(x: Tensor) -> Callable[[int], tuple[Any, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(0, 3, (len(x),), generator=generator)

    def batch(step: int) -> tuple[Any, Tensor]:
        rows = torch.arange(16) * 3 + step
        return (x[rows % len(x)],), y[rows % len(x)]

    return batch


def texts(step: int) -> tuple[Any, Tensor]:
    ids = torch.randint(5, 99, (4, 9), generator=torch.Generator().manual_seed(step))
    return {"input_ids": ids}, ids


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Any, Tensor]]
    units: tuple[Task, ...]
    tolerance: float = 1e-9

    def loss(self, model: nn.Module, step: int) -> Tensor:
        inputs, y = self.batch(step)
        if isinstance(inputs, dict):
            logits = model(**inputs, use_cache=False).logits
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())
        return F.cross_entropy(model(*inputs), y)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


TASKS = FAMILIES["llama"].tasks
CASES = [
    Case("mlp", mlp, rows_of(noise(60, 12)), (Task(lambda m: [neurons(m[0], m[2]), neurons(m[2], m[4])]),)),
    Case(
        "conv with batch norm",
        conv_net,
        rows_of(noise(60, 1, 8, 8)),
        (Task(lambda m: [channels([m[0], m[1]], [m[3]]), channels([m[3], m[4]], [m[8]], pixels=4)]),),
    ),
    # its norms work in float32 whatever the weights are
    Case("llama", llama, texts, (TASKS["neurons"], TASKS["heads"]), 1e-5),
]


def step(case: Case, model: nn.Module, optimizer: Optimizer, i: int, dead: Masks | None = None) -> float:
    """One step of training; the dead entries stay at zero."""
    loss = case.loss(model, i)
    optimizer.zero_grad()
    loss.backward()
    with torch.no_grad():
        for p, mask in (dead or {}).items():
            assert p.grad is not None
            p.grad.masked_fill_(mask, 0)
        optimizer.step()
        for p, mask in (dead or {}).items():
            p.masked_fill_(mask, 0)
    return loss.item()


def zero(case: Case, model: nn.Module) -> Masks:
    """Zero units by hand; every entry that is gone with them, by parameter."""
    dead: Masks = {}
    generator = torch.Generator().manual_seed(0)
    for task in case.units:
        marks, _ = task.apply(model, generator, 0.5)
        for p, mask in marks.gone.items():
            dead[p] = dead.get(p, mask) | mask
    return dead


def twin(model: nn.Module, optimizer: Optimizer, dead: Masks) -> tuple[nn.Module, Optimizer, Masks]:
    """A copy of the model with an optimizer of its own in the same state."""
    other = copy.deepcopy(model)
    partner = dict(zip(model.parameters(), other.parameters(), strict=True))
    groups = [{**g, "params": [partner[p] for p in g["params"]]} for g in optimizer.param_groups]
    again = type(optimizer)(groups, lr=1e-3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other, again, {partner[p]: mask for p, mask in dead.items()}


def kept(p: Tensor, dead: Tensor | None, shape: torch.Size) -> Tensor:
    return p if dead is None else p[~dead].reshape(shape)


def assert_same_weights(full: nn.Module, dead: Masks, small: nn.Module, tolerance: float) -> None:
    mine = dict(small.named_parameters())
    for name, p in full.named_parameters():
        expected = kept(p.detach(), dead.get(p), mine[name].shape)
        torch.testing.assert_close(
            mine[name].detach(), expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def warm(case: Case, make: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer, Masks]:
    """A model in the middle of training whose units have just died: the state of their entries is not zero."""
    torch.manual_seed(0)
    model = case.build().double().train()
    optimizer = make(model)
    for i in range(WARM_UP):
        step(case, model, optimizer, i)
    return model, optimizer, zero(case, model)


def example(case: Case) -> Any:
    return case.batch(0)[0]


def go_on(
    case: Case, model: nn.Module, optimizer: Optimizer, dead: Masks, steps: int = STEPS, **options: Any
) -> nn.Module:
    """Compact, and train both; they must not part."""
    full, full_optimizer, full_dead = twin(model, optimizer, dead)
    small = dg.compact(model, example(case), optimizer=optimizer, **options)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    expected = [step(case, full, full_optimizer, WARM_UP + i, full_dead) for i in range(steps)]
    losses = [step(case, small, optimizer, WARM_UP + i) for i in range(steps)]
    assert losses == pytest.approx(expected, rel=case.tolerance, abs=case.tolerance)
    assert losses[-1] != losses[0]
    assert_same_weights(full, full_dead, small, case.tolerance)
    return small


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_same_trajectory(case, name):
    model, optimizer, dead = warm(case, lambda m: OPTIMIZERS[name](m.parameters()))
    go_on(case, model, optimizer, dead)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in MAIN])
def test_same_trajectory_of_the_other_optimizers(name):
    model, optimizer, dead = warm(CASES[0], lambda m: OPTIMIZERS[name](m.parameters()))
    go_on(CASES[0], model, optimizer, dead)


@pytest.mark.parametrize("name", ["sgd momentum", "adamw"])
def test_same_trajectory_of_a_graph(name):
    model, optimizer, dead = warm(CASES[0], lambda m: OPTIMIZERS[name](m.parameters()))
    go_on(CASES[0], model, optimizer, dead, target="graph")


def test_state_with_rows_and_columns_of_its_own():
    """Adafactor keeps one number a row and one a column."""
    case = CASES[0]
    model, optimizer, dead = warm(case, lambda m: torch.optim.Adafactor(m.parameters(), lr=1e-2))
    small = dg.compact(model, example(case), optimizer=optimizer)
    assert dead
    for i in range(3):
        step(case, small, optimizer, i)
    for p, state in optimizer.state.items():
        if "row_var" in state:
            assert (state["row_var"].shape, state["col_var"].shape) == ((p.shape[0], 1), (1, p.shape[1]))


def test_again_and_again():
    """Three compactions while training: the optimizer follows each time."""
    case = CASES[0]
    torch.manual_seed(0)
    model = case.build().double().train()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    for share in range(3):
        for i in range(5):
            step(case, model, optimizer, i)
        dead = zero(case, model)
        model = go_on(case, model, optimizer, dead, steps=10)
        assert len(optimizer.param_groups[0]["params"]) == 6, share
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [30 // 2 - 7 - 4, 20 // 2 - 5 - 2, 3]


# --- the whole flow: gate, train, certify or choose, zero, collapse, compact ---


def gated_units(name: str, model: Any) -> list[dg.Groups]:
    if name == "mlp":
        return [dg.neurons(model[0], bias=True, name="a"), dg.neurons(model[2], bias=True, name="b")]
    if name == "llama":
        mlps = [layer.mlp for layer in model.model.layers]
        return [
            dg.tie(dg.by_dim(m.gate_proj, 0), dg.by_dim(m.up_proj, 0), dg.by_dim(m.down_proj, 1), name=f"mlp {i}")
            for i, m in enumerate(mlps)
        ]

    def channel(conv: nn.Module, norm: nn.Module, name: str) -> dg.Groups:
        return dg.tie(dg.filters(conv), dg.by_dim(norm, 0), dg.by_dim(norm, 0, name="bias"), name=name)

    return [channel(model[0], model[1], "a"), channel(model[3], model[4], "b")]


@pytest.mark.parametrize("name", ["sgd momentum", "nesterov", "adam", "adagrad", "rmsprop"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_gate_train_zero_collapse_compact(case, name):
    torch.manual_seed(0)
    model = case.build().double().train()
    dg.gate_(model, gated_units(case.name, model))
    groups = dg.param_groups(model, lam=1e-3, weight_decay=1e-3)
    optimizer = OPTIMIZERS[name](groups)
    for i in range(WARM_UP):
        step(case, model, optimizer, i)
    weakest = {n: v <= v.quantile(0.4) for n, v in dg.group_norms(model).items()}
    dg.zero_(model, weakest, optimizer)
    dg.collapse_(model, optimizer)
    dead = {p: mask for p in model.parameters() if (mask := gone(case, model, p, weakest)) is not None}
    small = go_on(case, model, optimizer, dead)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}


def gone(case: Case, model: Any, p: nn.Parameter, weakest: dict[str, Tensor]) -> Tensor | None:
    """Entries of a parameter that belong to a group that was zeroed, or that read it."""
    rows, columns = [], []
    if case.name == "mlp":
        rows = [(model[0], "a"), (model[2], "b")]
        columns = [(model[2], "a", 1), (model[4], "b", 1)]
    elif case.name == "llama":
        for i, layer in enumerate(model.model.layers):
            rows += [(layer.mlp.gate_proj, f"mlp {i}"), (layer.mlp.up_proj, f"mlp {i}")]
            columns += [(layer.mlp.down_proj, f"mlp {i}", 1)]
    else:
        rows = [(model[0], "a"), (model[1], "a"), (model[3], "b"), (model[4], "b")]
        columns = [(model[3], "a", 1), (model[8], "b", 4)]
    mask = torch.zeros(p.shape, dtype=torch.bool)
    found = False
    for module, name in rows:
        if any(q is p for q in module.parameters(recurse=False)):
            mask[weakest[name]] = found = True
    for module, name, repeat in columns:
        if module.weight is p:
            mask[:, weakest[name].repeat_interleave(repeat)] = found = True
    return mask if found else None


# --- groups, schedulers, state dicts ---


def two_groups(model: nn.Module) -> Optimizer:
    weights = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": weights, "lr": 0.05, "weight_decay": 1e-2}, {"params": rest, "lr": 0.01}], lr=0.1, momentum=0.9
    )


def test_parameter_groups_stay_what_they_are():
    model, optimizer, dead = warm(CASES[1], two_groups)
    before = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    sizes = [len(g["params"]) for g in optimizer.param_groups]
    small = go_on(CASES[1], model, optimizer, dead)
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == before
    assert [len(g["params"]) for g in optimizer.param_groups] == sizes
    names = {id(p): n for n, p in small.named_parameters()}
    assert [names[id(p)] for p in optimizer.param_groups[0]["params"]] == ["0.weight", "3.weight", "8.weight"]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=100),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: 0.95**i),
    ],
    ids=["cosine", "one cycle", "lambda"],
)
def test_schedulers_go_on(schedule):
    """The scheduler made before compaction drives the optimizer after it (momentum, too, for one cycle)."""
    case = CASES[0]
    model, optimizer, dead = warm(case, lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9))
    full, full_optimizer, full_dead = twin(model, optimizer, dead)
    mine, other = schedule(optimizer), schedule(full_optimizer)
    small = dg.compact(model, example(case), optimizer=optimizer)
    for i in range(30):
        a, b = step(case, small, optimizer, i), step(case, full, full_optimizer, i, full_dead)
        assert a == pytest.approx(b, rel=1e-9)
        mine.step()
        other.step()
        assert mine.get_last_lr() == other.get_last_lr()
        assert [g["lr"] for g in optimizer.param_groups] == mine.get_last_lr()


def test_optimizer_state_is_saved_and_loaded(tmp_path):
    """Stop after compaction, go on in a new process: model from its file, optimizer from its state dict."""
    case = CASES[0]
    model, optimizer, _ = warm(case, lambda m: OPTIMIZERS["adam"](m.parameters()))
    small = dg.compact(model, example(case), optimizer=optimizer)
    step(case, small, optimizer, 0)
    dg.save_compact(small, tmp_path / "small.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")

    again = dg.load_compact(case.build().double().train(), tmp_path / "small.safetensors")
    resumed = OPTIMIZERS["adam"](again.parameters())
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for i in range(10):
        assert step(case, again, resumed, i) == step(case, small, optimizer, i)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), small.parameters(), strict=True))


def test_state_has_the_shapes_of_the_parameters():
    model, optimizer, _ = warm(CASES[2], lambda m: OPTIMIZERS["adam"](m.parameters()))
    steps = [s["step"].clone() for s in optimizer.state.values()]
    small = dg.compact(model, example(CASES[2]), optimizer=optimizer)
    assert set(map(id, optimizer.state)) == set(map(id, small.parameters()))
    for p, state in optimizer.state.items():
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == p.shape
    assert [s["step"] for s in optimizer.state.values()] == steps


def test_an_optimizer_that_holds_a_part():
    """The frozen or foreign rest is left alone."""
    model = mlp().double()
    other = nn.Linear(3, 3).double()
    optimizer = torch.optim.SGD([{"params": model[2].parameters()}, {"params": other.parameters()}], lr=0.1)
    zero(CASES[0], model)
    small = dg.compact(model, example(CASES[0]), optimizer=optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in small[2].parameters()]
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(p) for p in other.parameters()]


def test_frozen_weights_stay_frozen():
    model = mlp().double()
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    zero(CASES[0], model)
    small = dg.compact(model, example(CASES[0]), optimizer=optimizer)
    assert [p.requires_grad for p in small.parameters()] == [False] * 2 + [True] * 4
    step(CASES[0], small, optimizer, 0)


def test_a_bias_that_folding_created_is_trained():
    net = nn.Sequential(nn.Linear(6, 9), nn.Sigmoid(), nn.Linear(9, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        net[0].weight[:4] = 0
    groups = [{"params": net[0].parameters()}, {"params": [*net[2].parameters(), *net[4].parameters()]}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    small = dg.compact(net, (torch.randn(3, 6).double(),), optimizer=optimizer)
    bias = small[2].bias
    assert [p is bias for p in optimizer.param_groups[1]["params"]].count(True) == 1
    before = bias.detach().clone()
    small(torch.randn(3, 6).double()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(bias, before)


def test_a_refused_compaction_leaves_the_optimizer():
    model, optimizer, _ = warm(CASES[0], lambda m: OPTIMIZERS["adam"](m.parameters()))
    state = copy.deepcopy(optimizer.state_dict())
    params = [id(p) for p in optimizer.param_groups[0]["params"]]
    with pytest.raises(dg.CompactionError):
        dg.compact(model, (torch.randn(3, 5).double(),), optimizer=optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == params
    after = optimizer.state_dict()
    assert all(torch.equal(after["state"][i][k], v) for i, s in state["state"].items() for k, v in s.items())


def test_lbfgs_is_refused():
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="LBFGS keeps one flattened history"):
        dg.compact(model, (torch.randn(3, 12),), optimizer=optimizer)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer"):
        dg.compact(mlp(), (torch.randn(3, 12),), optimizer=list(mlp().parameters()))
