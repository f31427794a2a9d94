"""One training of a character model, and every smaller model that it gives: perplexity, size, characters a second."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dgating as dg
from experiments import data
from experiments.common.experiment import Cell, Place
from experiments.common.gpt import GPT, encoded, excerpts
from experiments.common.units import Units
from experiments.common.watch import Watch

THRESHOLD = 1e-5  # the paper's
KINDS = ("values", "heads", "heads and neurons")


@dataclass(frozen=True)
class Configuration:
    """Section 9.5. Open there and ours: strengths between the ends, Adam's betas (the default), no warm-up.

    A method is a kind of unit and a way to choose. Kinds: ``"values"``, the value matrix of each head, as in the paper;
    ``"heads"``, its query, key and value rows with its columns of the output projection; ``"heads and neurons"``, also
    those of the networks between. Ways: ``"D = 3"`` gates, ``"quick D = 3"`` gates with ``quick`` times the step size,
    ``"direct"`` adds λ Σ ‖unit‖ to the loss, ``"dense"`` does nothing. The smallest units of each can be set to zero at
    every one of ``ratios`` after training. Every method has its own grid of λ: with neurons in the network less of it
    is needed.
    """

    grids: tuple[tuple[str, tuple[float, ...]], ...]
    text: str = "shakespeare"
    seeds: tuple[int, ...] = (0,)
    length: int = 256
    width: int = 384
    layers: int = 6
    heads: int = 12
    dropout: float = 0.2
    steps: int = 3000
    batch: int = 32
    lr: float = 1e-3
    quick: float = 10.0
    held_out: float = 0.1
    excerpts: int = 256
    ratios: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    bfloat16: bool = False
    repeats: int = 20
    version: int = 3


def cells(c: Configuration) -> list[Cell]:
    """A dense model first, then method by method."""
    made: list[Cell] = []
    for seed in c.seeds:
        made.append({"method": "dense", "lam": 0.0, "seed": seed})
        made += [{"method": method, "lam": lam, "seed": seed} for method, lams in c.grids for lam in lams]
    return made


WAY = re.compile(r"direct|dense|(quick )?D = [2-9]")


def parsed(method: str) -> tuple[str, str]:
    """``"heads and neurons, D = 3"`` to its kind and its way."""
    kind, _, way = method.partition(", ")
    if kind in KINDS and WAY.fullmatch(way):
        return kind, way
    raise ValueError(
        f"method: expected one of {KINDS} with 'D = 3', 'quick D = 3' or the like, or 'direct', received {method!r}."
    )


def kinds_of(c: Configuration) -> list[str]:
    """The kinds of unit of all methods."""
    return list(dict.fromkeys(parsed(method)[0] for method, _ in c.grids))


@dataclass(frozen=True)
class Corpus:
    """Characters by number: those to train on, and excerpts of those held out, to choose by and to report."""

    train: Tensor
    parts: dict[str, tuple[Tensor, Tensor]]  # "validation" and "test"
    symbols: int


@functools.lru_cache(maxsize=1)
def corpus(c: Configuration, place: Place) -> Corpus:
    """The last part of the text is held out: its first half to choose by, its second half to report."""
    if c.text == "counting":
        words = " ".join(str(i * i) for i in range(3000))
    else:
        found = data.load(c.text, place.data)
        assert isinstance(found, data.Text)
        words = found.text
    text, symbols = encoded(words)
    text = text.to(place.device)
    cut = int((1 - c.held_out) * len(text))
    half = (len(text) - cut) // 2
    parts = {}
    for name, rest in (("validation", text[cut : cut + half]), ("test", text[cut + half :])):
        starts = torch.linspace(0, len(rest) - c.length - 2, c.excerpts).long().to(place.device)
        parts[name] = excerpts(rest, starts, c.length)
    return Corpus(text[:cut], parts, len(symbols))


def gated(net: GPT, example: Tensor, kind: str, depth: int | None) -> Units:
    """The units of a kind; with a neuron goes its column in the next layer, with a value matrix the whole head."""
    kinds = {"heads": dg.heads(net, (example,), which="value" if kind == "values" else "head")}
    width = net.attentions[0].out.in_features
    more = {"heads": 3 * width * (width // net.attentions[0].heads) if kind == "values" else 0, "neurons": width}
    if kind == "heads and neurons":
        kinds["neurons"] = dg.neurons(net, (example,))
    return Units(net, kinds, depth, more)


def priced(units: Units, lam: float) -> dict[str, float]:
    """λ for every layer's groups: λ for heads, and for neurons what makes the penalty of a parameter the same.

    A group holds ``price`` parameters and has the penalty ‖W‖^(2/D), both as it starts.
    """

    def rate(kind: str) -> float:
        names = units.names[kind]
        size = sum(float(units.scale[name]) for name in names) / len(names)
        return sum(units.price[name] for name in names) / len(names) / size ** (2 / units.depth)

    return {name: lam * rate(kind) / rate("heads") for kind, names in units.names.items() for name in names}


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """Train once; then the model's own zeros, and the smallest units set to zero at every ratio."""
    text = corpus(c, place)
    kinds = kinds_of(c) if cell["method"] == "dense" else ()
    kind, way = parsed(f"{next(iter(kinds))}, dense" if kinds else cell["method"])
    torch.manual_seed(cell["seed"])
    net = GPT(text.symbols, c.length, c.width, c.layers, c.heads, c.dropout).to(place.device)
    example = text.parts["test"][0][:2]
    units = gated(net, example, kind, int(way[-1]) if "D = " in way else None)
    watch = _fit(c, units, text, cell["lam"], way, place.generator(cell["seed"]))
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        return {"diverged": True}
    found: dict[str, Any] = {"norms": units.norms("heads")} | (watch.found() if watch else {})
    found["points"] = [_point(c, units, text, units.below(THRESHOLD), kind, own=True)]
    for of in kinds or (kind,):
        if of != kind:  # of one dense model the units of every kind
            dg.collapse_(net)
            units = gated(net, example, of, None)
        found["points"] += [_point(c, units, text, units.smallest(r), of, ratio=r) for r in c.ratios]
    return found


def optimizer_of(c: Configuration, net: nn.Module, lams: dict[str, float], way: str) -> torch.optim.Optimizer:
    """Adam; gates that are quick have a step size of their own."""
    if "D = " in way:
        gate_lr = c.quick * c.lr if way.startswith("quick") else None
        return torch.optim.Adam(dg.param_groups(net, lams, gate_lr=gate_lr), lr=c.lr)
    return torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=c.lr)


def _fit(
    c: Configuration, units: Units, text: Corpus, lam: float, way: str, generator: torch.Generator
) -> Watch | None:  # fmt: skip
    net, lams, gates = units.net, priced(units, lam), "D = " in way
    optimizer = optimizer_of(c, net, lams, way)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.steps)
    every = max(1, c.steps // 50)
    watch = Watch(net, lams, every=every, window=every, threshold=THRESHOLD) if gates else None
    net.train()
    for step in range(1, c.steps + 1):
        starts = torch.randint(len(text.train) - c.length - 1, (c.batch,), generator=generator).to(text.train.device)
        X, y = excerpts(text.train, starts, c.length)
        with torch.autocast(X.device.type, torch.bfloat16, enabled=c.bfloat16):
            loss = F.cross_entropy(net(X).flatten(0, 1), y.flatten())
        if way == "direct":
            loss = loss + units.penalty(lams)
        optimizer.zero_grad()
        loss.backward()
        if watch is not None:
            watch.before_step(optimizer)
        optimizer.step()
        schedule.step()
        if watch is not None and (step % every == 0 or step == c.steps):
            watch.look(step)
    net.eval()
    return watch


@torch.no_grad()
def scores(net: nn.Module, part: tuple[Tensor, Tensor], batch: int = 32) -> tuple[float, float]:
    """Cross-entropy of the next character in nats (the perplexity is its exponential), share of right guesses."""
    net.eval()
    loss = right = 0.0
    for X, y in zip(*(rows.split(batch) for rows in part), strict=True):
        out = net(X)
        loss += float(F.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="sum"))
        right += float((out.argmax(-1) == y).sum())
    return loss / part[1].numel(), right / part[1].numel()


def _point(
    c: Configuration, units: Units, text: Corpus, masks: dict[str, Tensor], kind: str, **words: Any
) -> dict[str, Any]:  # fmt: skip
    """Scores, size and speed of the compact model without these groups."""
    full = units.without(masks)
    example = (text.parts["test"][0][: c.batch],)
    small = dg.compact(full, example)
    sizes = dg.profile(small, example, reference=full, repeats=c.repeats)
    assert sizes.reference is not None
    found = {name: scores(small, part) for name, part in text.parts.items()}
    return {
        "kind": kind,
        **words,
        "heads": sum(int((~masks[name]).sum()) for name in units.names["heads"]),
        "neurons": sum(b.up.out_features for b in small.blocks),  # type: ignore[union-attr]
        "loss": {name: loss for name, (loss, _) in found.items()},
        "accuracy": {name: right for name, (_, right) in found.items()},
        "perplexity": math.exp(min(found["test"][0], 50)),
        "parameters": [sizes.reference.parameters, sizes.parameters],
        "flops": [sizes.reference.flops, sizes.flops],
        "per_second": [round(example[0].numel() / (1e-3 * p.latency_ms)) for p in (sizes.reference, sizes)],
        "speedup": round(float(sizes.latency_speedup or 1), 3),
    }
