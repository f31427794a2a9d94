"""Fig. 7: the character model, the text, dead heads, scores."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dgating as dg
from experiments.common.experiment import Place, Record
from experiments.common.gpt import GPT, Attention, encoded, excerpts
from experiments.fig07_heads import EXPERIMENT
from experiments.fig07_heads.judge import COSTS, chosen, summarise, verdicts
from experiments.fig07_heads.measure import (
    KINDS,
    Configuration,
    corpus,
    gated,
    optimizer_of,
    parsed,
    priced,
    scores,
)

SMOKE: Configuration = EXPERIMENT.configurations["smoke"]
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


def test_held_out_text_is_the_last_part_in_two_halves() -> None:
    found = corpus(SMOKE, Place())
    whole, _ = encoded(" ".join(str(i * i) for i in range(3000)))
    assert torch.equal(found.train, whole[: len(found.train)])
    assert len(found.train) == int((1 - SMOKE.held_out) * len(whole))
    middle = len(found.train) + (len(whole) - len(found.train)) // 2
    validation, test = found.parts["validation"][0], found.parts["test"][0]
    assert len(validation) == len(test) == SMOKE.excerpts
    assert torch.equal(validation[0], whole[len(found.train) :][: SMOKE.length].long())
    assert torch.equal(test[0], whole[middle:][: SMOKE.length].long())


@pytest.mark.parametrize("depth", [None, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_group_is_a_dead_unit(kind: str, depth: int | None) -> None:
    net, text = _net(), torch.randint(7, (2, LENGTH))
    units = gated(net, text, kind, depth)
    assert {k: [len(dg.group_norms(net)[n]) for n in names] for k, names in units.names.items()} == (
        {"heads": [3, 3]} | ({"neurons": [48, 48]} if kind == "heads and neurons" else {})
    )
    before = units.without({})(text)
    torch.testing.assert_close(before, net(text), rtol=0, atol=1e-6)
    full = units.without({units.names["heads"][1]: torch.tensor([True, False, True])})
    small = dg.compact(full, (text,))
    torch.testing.assert_close(small(text), full(text), rtol=0, atol=1e-5)
    assert [b.attention.value.out_features for b in small.blocks] == [12, 4]  # type: ignore[union-attr]
    gone = sum(p.numel() for p in full.parameters()) - sum(p.numel() for p in small.parameters())
    assert gone == 2 * units.price[units.names["heads"][1]]


def test_a_layer_can_lose_all_its_heads() -> None:
    net, text = _net(), torch.randint(7, (2, LENGTH))
    units = gated(net, text, "heads and neurons", None)
    full = units.without(units.smallest(1.0))
    small = dg.compact(full, (text,))
    torch.testing.assert_close(small(text), full(text), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in full.parameters())


def test_the_smallest_are_those_of_all_layers() -> None:
    net = _net()
    with torch.no_grad():
        for attention, sizes in zip(net.attentions, ([3.0, 1.0, 2.0], [0.5, 4.0, 5.0]), strict=True):
            for rows, size in zip(attention.value.weight.split(4), sizes, strict=True):
                rows.mul_(size / rows.norm())
    units = gated(net, torch.randint(7, (2, LENGTH)), "values", None)
    masks = units.smallest(0.5)
    assert [masks[name].tolist() for name in units.names["heads"]] == [[False, True, True], [True, False, False]]
    assert units.norms("heads") == [[3.0, 1.0, 2.0], [0.5, 4.0, 5.0]]


def test_fixed_gates_train_the_weights_alone() -> None:
    """A step of the model with fixed gates is the step of the model without; the direct penalty is that of weights."""
    text, plain = torch.randint(7, (4, LENGTH)), _net()
    net = copy.deepcopy(plain)
    units = gated(net, text, "values", None)
    lams = dict.fromkeys(units.price, 0.3)
    norms = [rows.norm() for a in plain.attentions for rows in a.value.weight.split(4)]
    torch.testing.assert_close(units.penalty(lams), 0.3 * torch.stack(norms).sum())
    for model, term in ((plain, 0.3 * torch.stack(norms).sum()), (net, units.penalty(lams))):
        own = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(own, lr=1e-2)
        (model(text).square().mean() + term).backward()
        optimizer.step()
    torch.testing.assert_close(units.without({})(text), plain(text))


def test_quick_gates_step_farther() -> None:
    units = gated(_net(), torch.randint(7, (2, LENGTH)), "heads and neurons", 3)
    c, lams = Configuration(grids=(), lr=0.25, quick=8.0), dict.fromkeys(units.price, 0.3)
    for way, expected in (("quick D = 3", 2.0), ("D = 3", 0.25)):
        groups = optimizer_of(c, units.net, lams, way).param_groups
        assert {g["lr"] for g in groups if g["dgating"] == "gates"} == {expected}
        assert {g["lr"] for g in groups if g["dgating"] != "gates"} == {0.25}
        assert {g["weight_decay"] for g in groups if g["dgating"] != "rest"} == {2 * 0.3 / 3}


def test_prices_are_the_same_for_a_parameter() -> None:
    units = gated(_net(), torch.randint(7, (2, LENGTH)), "heads and neurons", 3)
    lams = priced(units, 0.2)
    heads, neurons = units.names["heads"], units.names["neurons"]
    assert {lams[name] for name in heads} == {0.2}
    rate = [
        lams[of[0]] * sum(float(units.scale[n]) for n in of) ** (2 / 3) * 2 ** (-2 / 3) / units.price[of[0]]
        for of in (heads, neurons)
    ]
    assert rate[0] == pytest.approx(rate[1])


def test_scores_by_hand() -> None:
    class Fixed(nn.Module):
        def forward(self, X: torch.Tensor) -> torch.Tensor:
            return F.one_hot(X, 3).float() * 2  # the next character is guessed to be the same

    X, y = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0, 0], [2, 1]])
    loss, right = scores(Fixed(), (X, y))
    sure, unsure = -math.log(math.e**2 / (math.e**2 + 2)), -math.log(1 / (math.e**2 + 2))
    assert loss == pytest.approx((2 * sure + 2 * unsure) / 4)
    assert right == 0.5


def test_names_of_methods() -> None:
    assert parsed("heads and neurons, D = 3") == ("heads and neurons", "D = 3")
    assert parsed("values, direct") == ("values", "direct")
    assert parsed("values, quick D = 3") == ("values", "quick D = 3")
    for wrong in ("neurons, D = 3", "values", "values, magic", "values, quick direct", "values, D = 33"):
        with pytest.raises(ValueError, match="expected one of"):
            parsed(wrong)


# verdicts


def _record(method: str, lam: float, *points: tuple[int, float, float], norms: list[float] | None = None) -> Record:
    """Points of heads left of four, accuracy on both texts, share of parameters and time that is left."""
    kind = method.partition(", ")[0]
    return Record(
        {"method": method, "lam": lam, "seed": 0},
        {
            "norms": [norms or [1.0] * 4],
            "points": [
                {
                    "kind": kind if method != "dense" else k, "heads": heads, "own": i == 0, "ratio": 0.1 * i,
                    "accuracy": {"validation": right, "test": right}, "parameters": [100, round(100 * left)],
                    "speedup": 1 / left,
                }
                for i, (heads, right, left) in enumerate(points)
                for k in (("values", "heads and neurons") if method == "dense" else ("",))
            ],
        },
        1.0,
    )  # fmt: skip


def _statuses(records: list[Record]) -> list[str]:
    c = Configuration(
        grids=tuple((m, ()) for m in ("values, D = 3", "values, direct", "heads and neurons, quick D = 3")),
        layers=1, heads=4,
    )  # fmt: skip
    return [v.status for v in verdicts(c, summarise(c, records))]


def test_verdicts_by_hand() -> None:
    """Never, merge, more, fewer, smaller, faster."""
    dense = _record("dense", 0.0, (4, 0.60, 1.0), (2, 0.57, 0.7))
    direct = [
        _record("values, direct", 0.1, (4, 0.60, 1.0), (2, 0.54, 0.5), norms=[1.0, 2.0, 1.0, 2.0]),
        _record("values, direct", 9.0, (4, 0.30, 1.0), (2, 0.20, 0.5), norms=[1.0, 1.1, 1.0, 1.1]),
    ]
    gates = [
        _record("values, D = 3", 0.1, (3, 0.60, 0.9), norms=[1.0, 1.0, 1.0, 1e-6]),
        _record("values, D = 3", 1.0, (1, 0.58, 0.8), norms=[1.0, 1e-6, 1e-6, 1e-6]),
        _record("heads and neurons, quick D = 3", 0.1, (3, 0.595, 0.6)),
        _record("heads and neurons, quick D = 3", 1.0, (1, 0.56, 0.3)),
    ]
    assert _statuses([dense, *direct, *gates]) == ["reproduced"] * 6
    bad = [
        _record("values, D = 3", 0.1, (4, 0.60, 0.9)),
        _record("values, D = 3", 1.0, (4, 0.20, 0.8)),
        _record("heads and neurons, quick D = 3", 0.1, (3, 0.40, 0.6)),
        _record("heads and neurons, quick D = 3", 1.0, (3, 0.30, 0.6)),
    ]
    dead = [_record("values, direct", lam, (3, 0.59, 0.5), norms=[1.0, 1.0, 1.0, 1e-6]) for lam in (0.1, 9.0)]
    assert _statuses([dense, *dead, *bad]) == ["not reproduced"] * 6


def test_what_is_chosen_is_not_chosen_on_the_text_that_is_reported() -> None:
    dense = _record("dense", 0.0, (4, 0.60, 1.0))
    run = _record("values, D = 3", 0.1, (2, 0.60, 0.5), (1, 0.50, 0.3))
    run.found["points"][1]["accuracy"]["test"] = 0.60  # good where nobody may look
    c = Configuration(grids=(("values, D = 3", ()),), layers=1, heads=4)
    summary = summarise(c, [dense, run])
    point = chosen(summary, summary["points"]["values, D = 3"], 0.01, COSTS["smaller"])
    assert point is not None
    assert point["heads"] == 2
