"""One training of a character model, and every smaller model that it gives: perplexity, size, characters a second."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dgating as dg
from experiments import data
from experiments.common.experiment import Cell, Place
from experiments.common.gpt import GPT, encoded, excerpts
from experiments.common.watch import Watch

THRESHOLD = 1e-5  # the paper's
KINDS = ("values", "heads", "heads and neurons")


@dataclass(frozen=True)
class Configuration:
    """Section 9.5. Open there and ours: strengths between the ends, Adam's betas (the default), no warm-up.

    A method is a kind of unit with a depth (``"values, D = 3"``: the value matrix of each head, as in the paper;
    ``"heads"``: query, key and value rows with the columns of the output projection; ``"heads and neurons"``: those of
    the two-layer networks, too), or ``"direct"``: λ Σ ‖value matrix‖ in the loss.
    """

    text: str = "shakespeare"
    methods: tuple[str, ...] = ("values, D = 2", "values, D = 3", "values, D = 4", "heads, D = 3", "direct")
    lams: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0, 100.0)
    seeds: tuple[int, ...] = (0,)
    length: int = 256
    width: int = 384
    layers: int = 6
    heads: int = 12
    dropout: float = 0.2
    steps: int = 3000
    batch: int = 32
    lr: float = 1e-3
    held_out: float = 0.1
    test_excerpts: int = 256
    ratios: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    bfloat16: bool = False
    repeats: int = 20
    version: int = 1


def cells(c: Configuration) -> list[Cell]:
    """A dense model first, then strength by strength."""
    made: list[Cell] = []
    for seed in c.seeds:
        made.append({"method": "dense", "lam": 0.0, "seed": seed})
        made += [{"method": method, "lam": lam, "seed": seed} for lam in c.lams for method in c.methods]
    return made


@dataclass(frozen=True)
class Corpus:
    """Characters by number: those to train on, those held out, and the excerpts of these that are scored."""

    train: Tensor
    X: Tensor
    y: Tensor
    symbols: int


@functools.lru_cache(maxsize=1)
def corpus(c: Configuration, place: Place) -> Corpus:
    """The last part of the text is held out."""
    if c.text == "counting":
        words = " ".join(str(i * i) for i in range(3000))
    else:
        found = data.load(c.text, place.data)
        assert isinstance(found, data.Text)
        words = found.text
    text, symbols = encoded(words)
    text = text.to(place.device)
    cut = int((1 - c.held_out) * len(text))
    train, rest = text[:cut], text[cut:]
    starts = torch.linspace(0, len(rest) - c.length - 2, c.test_excerpts).long().to(place.device)
    return Corpus(train, *excerpts(rest, starts, c.length), len(symbols))


def parsed(method: str) -> tuple[str, int | None]:
    """``"heads, D = 3"`` to ``("heads", 3)``; a baseline to ``(name, None)``."""
    kind, _, depth = method.partition(", D = ")
    if depth and kind in KINDS:
        return kind, int(depth)
    if method in ("dense", "direct"):
        return method, None
    raise ValueError(f"method: expected a kind of {KINDS} with a depth, 'dense' or 'direct', received {method!r}.")


def gate(net: GPT, example: Tensor, kind: str, depth: int) -> None:
    """Gate the units of a kind."""
    units = dg.heads(net, (example,), which="value" if kind == "values" else "head")
    if kind == "heads and neurons":
        units += dg.neurons(net, (example,))
    for groups in units:
        dg.gate_(net, groups, depth=depth)


def measure(c: Configuration, cell: Cell, place: Place) -> dict[str, Any]:
    """Train once; then the model's own zeros, and one-shot pruning of value matrices at every ratio."""
    text, lam = corpus(c, place), cell["lam"]
    kind, depth = parsed(cell["method"])
    torch.manual_seed(cell["seed"])
    net = GPT(text.symbols, c.length, c.width, c.layers, c.heads, c.dropout).to(place.device)
    if depth:
        gate(net, text.X[:2], kind, depth)
    watch = _fit(c, net, text, lam, kind, place.generator(cell["seed"]))
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        return {"diverged": True}
    found: dict[str, Any] = {"norms": [float(f"{v:.3g}") for v in value_norms(net).flatten().tolist()]}
    found |= dict(zip(("loss", "accuracy"), scores(net, text), strict=True))
    if watch is not None:
        found |= watch.found()
        found["points"] = [_point(c, net, text, _own(net), own=True)]
    else:
        found["points"] = [_point(c, net, text, _lowest(net, r), ratio=r) for r in (0.0, *c.ratios)]
    return found


def _fit(
    c: Configuration, net: GPT, text: Corpus, lam: float, kind: str, generator: torch.Generator
) -> Watch | None:  # fmt: skip
    gated = dg.is_gated(net)
    optimizer = torch.optim.Adam(dg.param_groups(net, lam) if gated else net.parameters(), lr=c.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.steps)
    every = max(1, c.steps // 50)
    watch = Watch(net, lam, every=every, window=every, threshold=THRESHOLD) if gated else None
    net.train()
    for step in range(1, c.steps + 1):
        starts = torch.randint(len(text.train) - c.length - 1, (c.batch,), generator=generator).to(text.train.device)
        X, y = excerpts(text.train, starts, c.length)
        with torch.autocast(X.device.type, torch.bfloat16, enabled=c.bfloat16):
            loss = F.cross_entropy(net(X).flatten(0, 1), y.flatten())
        if kind == "direct":
            loss = loss + lam * value_norms(net).sum()
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


def value_norms(net: GPT) -> Tensor:
    """(layers, heads): norms of the value matrices."""
    return torch.stack([a.value.weight.unflatten(0, (a.heads, -1)).flatten(1).norm(dim=1) for a in net.attentions])


@torch.no_grad()
def scores(net: nn.Module, text: Corpus, batch: int = 32) -> tuple[float, float]:
    """Cross-entropy of the next character in nats (the perplexity is its exponential), share of right guesses."""
    net.eval()
    loss = right = 0.0
    for X, y in zip(text.X.split(batch), text.y.split(batch), strict=True):
        out = net(X)
        loss += float(F.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="sum"))
        right += float((out.argmax(-1) == y).sum())
    return loss / text.y.numel(), right / text.y.numel()


def _own(net: GPT) -> nn.Module:
    """The gated groups that are below the threshold are zero."""
    small = copy.deepcopy(net)
    dg.zero_(small, {name: norms <= THRESHOLD for name, norms in dg.group_norms(small).items()})
    dg.collapse_(small)
    return small


@torch.no_grad()
def _lowest(net: GPT, ratio: float) -> nn.Module:
    """The value matrices with the smallest norms are zero, over all layers."""
    small = copy.deepcopy(net)
    norms = value_norms(small)
    dead = torch.zeros(norms.numel(), dtype=torch.bool, device=norms.device)
    dead[norms.flatten().argsort()[: round(ratio * norms.numel())]] = True
    for attention, mask in zip(small.attentions, dead.view_as(norms), strict=True):
        attention.value.weight.unflatten(0, (attention.heads, -1))[mask] = 0
    return small


def _point(c: Configuration, net: GPT, text: Corpus, full: nn.Module, **words: Any) -> dict[str, Any]:
    """Scores of the model with zeros; size and speed of the compact one."""
    full.eval()
    left = value_norms(full).gt(0)  # type: ignore[arg-type]
    loss, accuracy = scores(full, text)
    example = (text.X[: min(c.batch, len(text.X))],)
    small = dg.compact(full, example)
    sizes = dg.profile(small, example, reference=full, repeats=c.repeats)
    assert sizes.reference is not None
    return {
        **words,
        "heads": int(left.sum()),
        "neurons": sum(b.up.out_features for b in small.blocks),  # type: ignore[union-attr]
        "loss": loss,
        "perplexity": math.exp(min(loss, 50)),
        "accuracy": accuracy,
        "parameters": [sizes.reference.parameters, sizes.parameters],
        "flops": [sizes.reference.flops, sizes.flops],
        "per_second": [round(example[0].numel() / (1e-3 * p.latency_ms)) for p in (sizes.reference, sizes)],
        "speedup": round(float(sizes.latency_speedup or 1), 3),
    }
