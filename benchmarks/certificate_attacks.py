"""Trainings that are made to fool the certificate: is a certified group ever alive later?

    python -m benchmarks.certificate_attacks

Each attack trains a small model with numbers drawn from its seed, asks the monitor every 20 steps, and goes on until a
group without signal is far below the threshold. *Alive* is a group that was certified at any time and is above the
threshold in the end; *bounds exceeded* counts groups with a gradient beyond the bound of their certificate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import dgating as dg
from benchmarks._common import environment, store

THRESHOLD = 1.1920929e-07
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass
class Attack:
    """A gated model, its data, and what is done to it.

    Attributes:
        net: gated, one set of groups.
        lam: strength.
        batches: endless.
        steps: of training.
        options: of SGD.
        monitor: of the monitor.
        before_update: called after backward, before ``update``.
        each_step: called with the number of the step, before it.
    """

    net: nn.Module
    lam: float
    batches: Batches
    steps: int
    options: dict[str, Any] = field(default_factory=lambda: {"lr": 0.02})
    monitor: dict[str, Any] = field(default_factory=dict)
    before_update: Callable[[nn.Module], Any] = lambda net: None
    each_step: Callable[[int, torch.optim.Optimizer], Any] = lambda step, optimizer: None


def _cycle(x: Tensor, y: Tensor, sizes: Callable[[int], int], g: torch.Generator) -> Batches:
    step = 0
    while True:
        order = torch.randperm(len(x), generator=g)
        start = 0
        while start < len(x):
            rows = order[start : start + sizes(step)]
            yield x[rows], y[rows]
            start += len(rows)
            step += 1


def _linear(x: Tensor, y: Tensor, start: Tensor | None = None, depth: int = 3) -> nn.Linear:
    net = nn.Linear(x.shape[1], 1, bias=False)
    if start is not None:
        with torch.no_grad():
            net.weight.copy_(start)
    return dg.gate_(net, dg.features(net, name="groups"), depth=depth)


def rare_features(g: torch.Generator) -> Attack:
    """Inputs that one row of thousands has, with the largest weights; the default window."""
    rows = int(torch.randint(1500, 4000, (), generator=g))
    rare = int(torch.randint(3, 7, (), generator=g))
    x = torch.randn(rows, 6 + rare, generator=g)
    x[:, 6:] = 0
    x[torch.arange(rare) * 3, torch.arange(6, 6 + rare)] = 3.0
    truth = torch.cat([torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 0.0]), 4 + torch.rand(rare, generator=g)])
    y = (x @ truth)[:, None]
    batch = int(torch.randint(16, 49, (), generator=g))
    lam = 0.02 + 0.02 * float(torch.rand((), generator=g))
    return Attack(_linear(x, y, truth), lam, _cycle(x, y, lambda _: batch, g), 12000, {"lr": 0.02})


def rare_words(g: torch.Generator) -> Attack:
    """Rows of an embedding, words with frequencies that fall as a power; a linear head on the sum."""
    words, width, rows = 60, 4, 2000
    frequency = 1 / torch.arange(1, words + 1).float() ** 1.5
    text = torch.multinomial(frequency, rows * 5, replacement=True, generator=g).view(rows, 5)
    value = torch.randn(words, generator=g) * (torch.rand(words, generator=g) < 0.3)
    y = value[text].sum(1, keepdim=True)

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(words, width), nn.Linear(width, 1)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids).sum(1))

    net = Bag()
    dg.gate_(net, dg.concat(dg.by_dim(net.table, 0), name="groups"))
    return Attack(net, 0.02, _cycle(text, y, lambda _: 16, g), 12000, {"lr": 0.02, "momentum": 0.5})


def routed_experts(g: torch.Generator) -> Attack:
    """Sub-networks that see only their own region of the inputs, one of them one row in 400."""
    rows, experts = 1600, 5
    x = torch.randn(rows, 4, generator=g)
    shares = torch.tensor([0.5, 0.3, 0.19, 0.0075, 0.0025])
    route = torch.multinomial(shares, rows, replacement=True, generator=g)
    route[:4] = experts - 1
    weights = torch.randn(experts, 4, generator=g) * torch.tensor([1.0, 0.0, 1.0, 3.0, 3.0])[:, None]
    y = (x * weights[route]).sum(1, keepdim=True)

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(experts, 4, generator=g))

        def forward(self, inputs: Tensor) -> Tensor:
            return (inputs[:, :4] * self.w[inputs[:, 4].long()]).sum(1, keepdim=True)

    net = Experts()
    dg.gate_(net, dg.concat(dg.by_dim(net, 0, name="w"), name="groups"))
    inputs = torch.cat([x, route[:, None].float()], 1)
    return Attack(net, 0.03, _cycle(inputs, y, lambda _: 16, g), 10000, {"lr": 0.05})


def _noisy(g: torch.Generator, rows: int = 1024, n: int = 12, real: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, n, generator=g)
    truth = torch.zeros(n)
    truth[:real] = torch.randn(real, generator=g).sign() * (0.5 + torch.rand(real, generator=g))
    return x, (x @ truth)[:, None] + 0.5 * torch.randn(rows, 1, generator=g)


def smaller_batches(g: torch.Generator) -> Attack:
    """Batches of 256 rows, later of 2 to 16: the noise of the gradients rises."""
    x, y = _noisy(g)
    late = int(torch.randint(2, 17, (), generator=g))
    sizes = _cycle(x, y, lambda step: 256 if step < 300 else late, g)
    return Attack(_linear(x, y), 0.05, sizes, 12000, {"lr": 0.02}, {"window": 4})


def low_precision(dtype: torch.dtype) -> Callable[[torch.Generator], Attack]:
    """Parameters in half precision, with steps that are lost in rounding, or nearly."""

    def make(g: torch.Generator) -> Attack:
        x, y = _noisy(g)
        lr = 10 ** (-3 + 2 * float(torch.rand((), generator=g)))
        x, y = x.to(dtype), y.to(dtype)
        net = _linear(x, y).to(dtype)
        return Attack(net, 0.05, _cycle(x, y, lambda _: 64, g), 12000, {"lr": lr, "momentum": 0.9})

    return make


def outliers(g: torch.Generator) -> Attack:
    """A few rows in which a useless-looking input is fifty times as large, and counts."""
    x, y = _noisy(g, rows=2048)
    rows = torch.randint(0, 2048, (6,), generator=g)
    x[:, -1] *= 0.02
    x[rows, -1] = 4.0
    y = y + x[:, -1:] * 2
    return Attack(_linear(x, y), 0.05, _cycle(x, y, lambda _: 16, g), 12000, {"lr": 0.02}, {"window": 128})


def clipped(g: torch.Generator) -> Attack:
    """``update`` after clipping to a small norm, until the clipping is switched off."""
    x, y = _noisy(g)
    limit = {"norm": 10 ** (-2 - float(torch.rand((), generator=g)))}

    def clip(net: nn.Module) -> None:
        if limit["norm"] < 1:
            nn.utils.clip_grad_norm_(net.parameters(), limit["norm"])

    def switch(step: int, _: torch.optim.Optimizer) -> None:
        if step == 400:
            limit["norm"] = 1e9

    batches = _cycle(x, y, lambda _: 64, g)
    return Attack(_linear(x, y), 0.05, batches, 12000, {"lr": 0.02}, {"window": 20}, clip, switch)


def rising_steps(g: torch.Generator) -> Attack:
    """A step size that cycles up to twenty times its first value, with momentum; ``max_lr`` is given."""
    x, y = _noisy(g)
    top = 0.02 * float(0.5 + torch.rand((), generator=g))

    def cycle(step: int, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = top / 20 + (top - top / 20) * abs((step / 200) % 2 - 1)

    options = {"lr": top / 20, "momentum": 0.9}
    batches = _cycle(x, y, lambda _: 64, g)
    return Attack(_linear(x, y), 0.05, batches, 8000, options, {"max_lr": top, "window": 16}, each_step=cycle)


def strength_schedule(g: torch.Generator) -> Attack:
    """λ rises from zero, and falls to a third at the end."""
    x, y = _noisy(g)

    def schedule(step: int, optimizer: torch.optim.Optimizer) -> None:
        lam = 0.1 * min(1.0, step / 1000) if step < 6000 else 0.033
        for group in optimizer.param_groups[:2]:
            group["weight_decay"] = 2 * lam / 3

    batches = _cycle(x, y, lambda _: 64, g)
    return Attack(_linear(x, y), 0.0, batches, 16000, {"lr": 0.02}, {"window": 16}, each_step=schedule)


def other_data(g: torch.Generator) -> Attack:
    """The last input does not matter, and later it does. The one attack that must succeed.

    No bound from past gradients can know of it, and the documentation says so. It is here so that the figure is known.
    """
    x, y = _noisy(g)
    before, after = _cycle(x, y, lambda _: 64, g), _cycle(x, y + 3 * x[:, -1:], lambda _: 64, g)

    def batches() -> Batches:
        for step in range(10**9):
            yield next(before if step < 5000 else after)

    return Attack(_linear(x, y), 0.05, batches(), 12000, {"lr": 0.02}, {"window": 16})


ATTACKS: dict[str, Callable[[torch.Generator], Attack]] = {
    "rare features": rare_features,
    "rare words": rare_words,
    "routed experts": routed_experts,
    "smaller batches": smaller_batches,
    "bfloat16": low_precision(torch.bfloat16),
    "float16": low_precision(torch.float16),
    "outliers": outliers,
    "clipped before update": clipped,
    "cyclic step size": rising_steps,
    "schedule of lam": strength_schedule,
    "other data": other_data,
}


def one_run(name: str, seed: int) -> dict[str, Any]:
    """Train under attack and compare what was certified at any time with what is alive in the end."""
    torch.manual_seed(seed)
    started = time.perf_counter()
    attack = ATTACKS[name](torch.Generator().manual_seed(seed))
    net = attack.net
    optimizer = torch.optim.SGD(dg.param_groups(net, attack.lam), **attack.options)
    monitor = dg.AbsorptionMonitor(net, attack.lam or None, optimizer, **attack.monitor)
    ever = torch.zeros(len(dg.group_norms(net)["groups"]), dtype=torch.bool)
    half = attack.steps // 2
    at_half = 0
    for step in range(attack.steps):
        x, y = next(attack.batches)
        attack.each_step(step, optimizer)
        optimizer.zero_grad()
        (net(x).float() - y.float()).square().mean().backward()
        attack.before_update(net)
        monitor.update()
        optimizer.step()
        if step % 20 == 19 and step < half:
            ever |= monitor.absorbed()["groups"]
        if step == half:
            at_half = int(ever.sum())
    alive = dg.group_norms(net)["groups"].float() > THRESHOLD
    return {
        "attack": name,
        "seed": seed,
        "coverage": monitor.coverage,
        "groups": len(ever),
        "certified in the first half": at_half,
        "alive in the end": int(alive.sum()),
        "certified and alive": int((ever & alive).sum()),
        "bounds exceeded": int(monitor.exceeded()["groups"].sum()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--name", default="certificate_attacks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    runs = []
    for name in arguments.only:
        for seed in range(arguments.seeds):
            runs.append(one_run(name, seed))
            print(*runs[-1].values(), flush=True)
    keys = ("groups", "certified in the first half", "alive in the end", "certified and alive", "bounds exceeded")
    summary = {n: {k: sum(r[k] for r in runs if r["attack"] == n) for k in keys} for n in arguments.only}
    print(store(arguments.name, {"environment": environment(), "summary": summary, "runs": runs}))


if __name__ == "__main__":
    main()
