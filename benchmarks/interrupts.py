"""Interrupts at any line inside the calls that change a model: what is left must be as before or as after.

Each call is made again and again on fresh copies; a trace function raises ``KeyboardInterrupt`` at the k-th line that
Python runs inside it, in this library, in torch or in the standard library, for k spread over the whole call. Then the
whole state of model and optimizer is compared with that before and that after an undisturbed call, and a training step
is made.

    python -m benchmarks.interrupts [--quick]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import dgating as dg
from benchmarks._common import environment, store

HERE = str(Path(__file__).resolve())


@dataclass
class Case:
    """A model, its optimizer, groups whose names are kept in them, and the call."""

    model: nn.Module
    optimizer: Optimizer | None
    groups: tuple[dg.Groups, ...]
    call: Callable[[], object]


class Net(nn.Module):
    """Linear, normalisation with buffers, convolution and a recurrent layer: one of each kind of owner."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x)).relu()
        h = self.conv(h.unsqueeze(1)).transpose(1, 2)
        return self.last(self.rnn(h)[0][:, -1])


def groups_of(net: Net) -> tuple[dg.Groups, ...]:
    """A tensor gated in part, three tied tensors, two tensors of one recurrent layer, and a filter a part."""
    return (
        dg.by_labels(net.last, torch.tensor([0, -1, 1, 1]), group_name="hidden"),
        dg.tie(dg.neurons(net.first), dg.by_dim(net.norm, 0), dg.by_dim(net.norm, 0, name="bias"), name="units"),
        dg.concat(dg.by_dim(net.rnn, 1, name="weight_ih_l0"), dg.by_dim(net.rnn, 1, name="weight_hh_l0"), name="rnn"),
        dg.filters(net.conv),
    )


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


def step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.linspace(-1, 1, 30).view(5, 6)).square().mean().backward()
    optimizer.step()


def trained(optimizer: str) -> tuple[Net, Optimizer]:
    torch.manual_seed(0)
    net = Net()
    dg.gate_(net, groups_of(net), depth=3)
    made = OPTIMIZERS[optimizer](dg.param_groups(net, 0.05, weight_decay=0.01))
    for _ in range(3):
        step(net, made)
    return net, made


def gating() -> Case:
    torch.manual_seed(0)
    net = Net()
    groups = groups_of(net)
    return Case(net, None, groups, lambda: dg.gate_(net, groups))


def gating_more() -> Case:
    """Two tensors of modules in which another one is gated already."""
    torch.manual_seed(0)
    net = Net()
    first = (dg.neurons(net.first), dg.by_dim(net.rnn, 1, name="weight_ih_l0"))
    dg.gate_(net, first)
    more = (dg.by_dim(net.first, 0, name="bias"), dg.by_dim(net.rnn, 1, name="weight_hh_l0"))
    return Case(net, None, (*first, *more), lambda: dg.gate_(net, more, depth=4))


def applying() -> Case:
    torch.manual_seed(0)
    other, net = Net(), Net()
    hidden, units, *_ = groups_of(other)
    dg.gate_(other, hidden, depth=2)
    config = dg.GateConfig.from_model(dg.gate_(other, units, depth=4))
    return Case(net, None, (), lambda: config.apply_(net))


def zeroing(optimizer: str) -> Case:
    net, made = trained(optimizer)
    masks = {name: torch.arange(len(norms)) % 2 == 0 for name, norms in dg.group_norms(net).items()}
    return Case(net, made, (), lambda: dg.zero_(net, masks, made))


def collapsing(optimizer: str | None) -> Case:
    net, made = trained(optimizer or "SGD")
    if optimizer is None:
        return Case(net, None, (), lambda: dg.collapse_(net))
    return Case(net, made, (), lambda: dg.collapse_(net, made))


def compacting(optimizer: str) -> Case:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 2))
    made = OPTIMIZERS[optimizer](net.parameters())
    for _ in range(3):
        step(net, made)
    with torch.no_grad():
        for p in (net[0].weight, net[0].bias):
            for x in (p, *(v for v in made.state[p].values() if isinstance(v, Tensor) and v.ndim)):
                x[:3] = 0
    return Case(net, made, (), lambda: dg.compact(net, (torch.ones(5, 6),), optimizer=made))


CASES: dict[str, Callable[[], Case]] = {
    "gate_": gating,
    "gate_, second tensors": gating_more,
    "GateConfig.apply_": applying,
    "zero_, SGD": lambda: zeroing("SGD"),
    "zero_, Adam": lambda: zeroing("Adam"),
    "collapse_": lambda: collapsing(None),
    "collapse_, SGD": lambda: collapsing("SGD"),
    "collapse_, Adam": lambda: collapsing("Adam"),
    "compact, SGD": lambda: compacting("SGD"),
    "compact, Adam": lambda: compacting("Adam"),
}


def fingerprint(case: Case) -> list[object]:
    """All that can be seen of a case, as values: equal means the same."""
    model, names = case.model, {id(p): name for name, p in case.model.named_parameters()}
    out: list[object] = [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), dg.is_gated(model)]
    for path, module in model.named_modules():
        out += [path, type(module).__name__, type(module).__mro__[1].__name__, module.training]
        flat = getattr(module, "_flat_weights", None)
        if flat is not None and not dg.is_gated(module):
            out.append([names.get(id(p)) for p in flat])
    for name, p in model.named_parameters():
        out += [name, p.requires_grad, p.dtype, p.tolist(), None if p.grad is None else p.grad.tolist()]
    out += [(name, b.tolist()) for name, b in model.named_buffers()]
    out += [(g.name, sorted(g._paths.values())) for g in case.groups]
    if case.optimizer is not None:
        out.append(_optimizer(case.optimizer, names))
    return out


def _optimizer(optimizer: Optimizer, names: dict[int, str]) -> list[object]:
    """Settings, members and state; what is not of the model is named by its shape and numbers."""

    def title(p: Tensor) -> object:
        return names.get(id(p)) or (tuple(p.shape), p.tolist())

    groups = [{**g, "params": [title(p) for p in g["params"]]} for g in optimizer.param_groups]
    state = [
        (title(p), {k: v.tolist() if isinstance(v, Tensor) else v for k, v in kept.items()})
        for p, kept in optimizer.state.items()
    ]
    return [groups, state]


def identity(case: Case) -> list[object]:
    """The very objects and memory, for the comparison with before."""
    modules = [(id(m), type(m)) for m in case.model.modules()]
    held = [] if case.optimizer is None else [id(p) for g in case.optimizer.param_groups for p in g["params"]]
    return [modules, held, [(id(p), p.data_ptr()) for p in case.model.parameters()]]


class Interrupt:
    """A trace function that raises at the line number ``at`` of all that run in files that hold ``only`` (0: never)."""

    def __init__(self, at: int = 0, only: str = "") -> None:
        self.at, self.only = at, only
        self.lines = 0

    def __call__(self, frame: Any, event: str, arg: object) -> Any:
        file = frame.f_code.co_filename
        if file == HERE or self.only not in file:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self


def interrupted(case: Case, tracer: Interrupt) -> bool:
    """Make the call under a tracer."""
    before = sys.gettrace()
    try:
        sys.settrace(tracer)
        case.call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def outcome(build: Callable[[], Case], at: int, only: str, after: list[object]) -> str:
    """What an interrupt at one line leaves: "before", "after", or what is wrong."""
    case = build()
    before, same = fingerprint(case), identity(case)
    if not interrupted(case, Interrupt(at, only)):
        return "not interrupted"
    now = fingerprint(case)
    torch.set_grad_enabled(True)
    if now == before:
        state = "before" if identity(case) == same else "other objects"
    else:
        state = "after" if now == after else "half"
    try:
        step(case.model, case.optimizer or torch.optim.SGD(case.model.parameters(), lr=0.1))
    except Exception as error:
        return f"no training: {type(error).__name__}"
    return state


def measure(build: Callable[[], Case], times: int, only: str = "") -> dict[str, int]:
    """How many interrupts, spread evenly over a call, had which outcome; ``lines`` is how many lines it runs."""
    build().call()  # what is imported at the first call is no part of it
    done = build()
    tracer = Interrupt(only=only)
    interrupted(done, tracer)
    after = fingerprint(done)
    places = sorted({1 + tracer.lines * k // times for k in range(times)})
    found = Counter(outcome(build, at, only, after) for at in places)
    return {"lines": tracer.lines, **dict(sorted(found.items()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the interrupts; nothing is stored")
    quick = parser.parse_args().quick
    results = {}
    for name, build in CASES.items():
        exported = name.startswith("compact")  # torch.export runs millions of lines: those of this library only
        times = (40 if exported else 400) // (10 if quick else 1)
        results[name] = measure(build, times, "dgating" if exported else "")
        print(f"{name:24}", results[name], flush=True)
    if not quick:
        print(store("interrupts", {"environment": environment(), "results": results}))


if __name__ == "__main__":
    main()
