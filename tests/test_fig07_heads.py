"""Fig. 7: the character model, the text, dead heads, scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dgating as dg
from experiments.common.experiment import Place
from experiments.common.gpt import GPT, Attention, encoded, excerpts
from experiments.fig07_heads import EXPERIMENT
from experiments.fig07_heads.measure import Configuration, Corpus, _lowest, corpus, gate, parsed, scores, value_norms

LENGTH = 12


def _net() -> GPT:
    return GPT(7, LENGTH, width=12, layers=2, heads=3, dropout=0.1).eval()


def test_size_of_the_paper() -> None:
    assert sum(p.numel() for p in GPT(91, 256, 384, 6, 12, 0.2).parameters()) == 10_808_923


def test_attention_by_hand() -> None:
    layer, x = Attention(6, 2, 0.0).eval(), torch.randn(2, 5, 6)
    outputs = []
    for rows in (slice(0, 3), slice(3, 6)):
        q, k, v = (x @ m.weight[rows].T for m in (layer.query, layer.key, layer.value))
        scores_ = (q @ k.transpose(1, 2) / math.sqrt(3)).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        outputs.append(scores_.softmax(-1) @ v)
    torch.testing.assert_close(layer(x), layer.out(torch.cat(outputs, -1)))


def test_no_character_sees_a_later_one() -> None:
    net, text = _net(), torch.randint(7, (3, LENGTH))
    changed = text.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 7
    assert torch.equal(net(text)[:, :8], net(changed)[:, :8])
    assert not torch.equal(net(text)[:, 8:], net(changed)[:, 8:])


def test_text_and_excerpts() -> None:
    text, symbols = encoded("abcab")
    assert symbols == ["a", "b", "c"]
    assert text.tolist() == [0, 1, 2, 0, 1]
    X, y = excerpts(text, torch.tensor([0, 1]), 3)
    assert X.tolist() == [[0, 1, 2], [1, 2, 0]]
    assert y.tolist() == [[1, 2, 0], [2, 0, 1]]


def test_held_out_text_is_the_last_part() -> None:
    c: Configuration = EXPERIMENT.configurations["smoke"]
    found = corpus(c, Place())
    assert len(found.X) == c.test_excerpts
    whole, _ = encoded(" ".join(str(i * i) for i in range(3000)))
    assert torch.equal(found.train, whole[: len(found.train)])
    assert len(found.train) == int((1 - c.held_out) * len(whole))


@pytest.mark.parametrize("kind", ["values", "heads", "heads and neurons"])
def test_a_dead_group_is_a_dead_unit(kind: str) -> None:
    net, text = _net(), torch.randint(7, (2, LENGTH))
    gate(net, text, kind, 3)
    norms = dg.group_norms(net)
    heads = [name for name, v in norms.items() if len(v) == 3]
    assert len(heads) == 2
    assert sum(len(v) for v in norms.values()) == 6 + (96 if kind == "heads and neurons" else 0)
    dg.zero_(net, {heads[1]: torch.tensor([True, False, True])})
    dg.collapse_(net)
    assert value_norms(net).gt(0).tolist() == [[True] * 3, [False, True, False]]
    small = dg.compact(net, (text,))
    torch.testing.assert_close(small(text), net(text), rtol=0, atol=1e-5)
    assert [b.attention.value.out_features for b in small.blocks] == [12, 4]  # type: ignore[union-attr]


def test_lowest_takes_the_smallest_of_all_layers() -> None:
    net = _net()
    with torch.no_grad():
        for block, sizes in zip(net.blocks, ([3.0, 1.0, 2.0], [0.5, 4.0, 5.0]), strict=True):
            for rows, size in zip(block.attention.value.weight.split(4), sizes, strict=True):  # type: ignore[union-attr]
                rows.mul_(size / rows.norm())
    small = _lowest(net, 0.5)
    assert value_norms(small).gt(0).tolist() == [[True, False, False], [False, True, True]]  # type: ignore[arg-type]
    assert bool(value_norms(net).gt(0).all())


def test_scores_by_hand() -> None:
    class Fixed(nn.Module):
        def forward(self, X: torch.Tensor) -> torch.Tensor:
            return F.one_hot(X, 3).float() * 2  # the next character is guessed to be the same

    X, y = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0, 0], [2, 1]])
    loss, right = scores(Fixed(), Corpus(X, X, y, 3))
    sure, unsure = -math.log(math.e**2 / (math.e**2 + 2)), -math.log(1 / (math.e**2 + 2))
    assert loss == pytest.approx((2 * sure + 2 * unsure) / 4)
    assert right == 0.5


def test_names_of_methods() -> None:
    assert parsed("heads and neurons, D = 3") == ("heads and neurons", 3)
    assert parsed("direct") == ("direct", None)
    with pytest.raises(ValueError, match="expected a kind"):
        parsed("neurons, D = 3")
