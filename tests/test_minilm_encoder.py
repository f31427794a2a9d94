"""The pretrained encoder's experiment, on a small encoder that nobody trained: likeness, what goes, what stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dgating as dg
from experiments.common.experiment import Place, Record
from experiments.common.units import Units
from experiments.minilm_encoder import EXPERIMENT
from experiments.minilm_encoder.judge import at_level, summarise, verdicts
from experiments.minilm_encoder.measure import (
    Configuration,
    Distillation,
    choose,
    embeddings,
    gated,
    lines,
    measure,
    original,
    parted,
    similarity,
    task,
)

pytest.importorskip("transformers")
SMOKE: Configuration = EXPERIMENT.configurations["smoke"]
HEADS, NEURONS = 2 * 4, 2 * 64


def _units(depth: int | None) -> Units:
    rows = task(SMOKE, Place())
    return gated(original(SMOKE), {name: part[:2] for name, part in rows.train.items()}, depth)


def _distillation(**changes: Any) -> Distillation:
    c = Configuration(**{**{k: getattr(SMOKE, k) for k in Configuration.__dataclass_fields__}, **changes})
    return Distillation(c, task(SMOKE, Place()), torch.Generator().manual_seed(0))


# the task


def test_lines_once_and_long_enough() -> None:
    assert lines("a b c d\nshort\nb c d e\na b c d\n") == ["a b c d", "b c d e"]


@pytest.mark.parametrize(("rows", "most", "held"), [(200, 8000, 256), (20000, 8000, 256), (21668, 100, 10)])
def test_no_sentence_is_in_two_parts(rows: int, most: int, held: int) -> None:
    train, validation, test = (set(part.tolist()) for part in parted(rows, most, held))
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    assert max(train) < min(validation | test)
    assert len(train) <= most
    assert len(validation) == len(test) <= held


def test_the_original_is_like_itself() -> None:
    rows = task(SMOKE, Place())
    for part in rows.parts.values():
        found = similarity(original(SMOKE), *part)
        assert found["cosine"] == pytest.approx(1)
        assert found["spearman"] == pytest.approx(1)


def test_embeddings_do_not_depend_on_the_batch() -> None:
    rows, net = task(SMOKE, Place()), original(SMOKE)
    torch.testing.assert_close(embeddings(net, rows.train, 7), embeddings(net, rows.train, 64))


# choosing


def test_prices_are_parameters() -> None:
    """A head of width 8 in 32: three times (32 + 1) x 8 and 32 x 8 of the output; a neuron: 32 + 1 and 32."""
    units = _units(None)
    assert sorted(set(units.price.values())) == [32 + 1 + 32, 4 * 32 * 8 + 3 * 8]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_the_smallest_of_heads_and_of_neurons(ratio: float, relative: bool) -> None:
    units = _units(None)
    with torch.no_grad():
        units.net.encoder.layer[0].intermediate.dense.parametrizations.weight.original.mul_(3)  # type: ignore[union-attr,index]
    norms, masks = dg.group_norms(units.net), units.smallest(ratio, relative)
    for names in units.names.values():
        gone = torch.cat([masks[name] for name in names])
        sizes = torch.cat([norms[name] / (units.scale[name] if relative else 1) for name in names])
        assert int(gone.sum()) == round(ratio * len(sizes))
        if 0 < ratio < 1:
            assert sizes[gone].max() <= sizes[~gone].min()


@pytest.mark.parametrize("method", SMOKE.methods)
def test_what_was_removed_stays_zero(method: str) -> None:
    distil, units = _distillation(), _units(3 if method == "D = 3" else None)
    choose(distil.c, units, distil, {"lr": 1e-3, "ratio": 0.5, "method": method})
    left = units.left()
    assert sum(left["heads"]) == HEADS // 2
    assert sum(left["neurons"]) == NEURONS // 2
    assert distil.step == (0 if method == "magnitude" else round(0.6 * distil.c.steps))


def test_lam_takes_part_in_the_choice() -> None:
    """With a large λ other units go than by magnitude alone, heads and neurons as many."""
    found = []
    for lam in (1e-9, 1.0):
        distil, units = _distillation(lam=lam, gate_lr=0.02), _units(3)
        choose(distil.c, units, distil, {"lr": 1e-3, "ratio": 0.5, "method": "D = 3"})
        found.append({name: norms == 0 for name, norms in dg.group_norms(units.net).items()})
    assert any(not torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))


@pytest.mark.parametrize("method", SMOKE.methods)
def test_every_method_takes_as_many_steps_and_compacts_exactly(method: str) -> None:
    steps = 0
    before = Distillation.run

    def counted(self: Distillation, *args: Any, **kwargs: Any) -> None:
        nonlocal steps
        start = self.step
        before(self, *args, **kwargs)
        steps += self.step - start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distillation, "run", counted)
        found = measure(SMOKE, {"method": method, "ratio": 0.5, "lr": 1e-3, "seed": 0}, Place())
    assert steps == SMOKE.steps
    assert found["difference"] < 1e-5
    assert found["layers"][1] < 0.7 * found["layers"][0]
    assert found["parameters"][0] - found["parameters"][1] == found["layers"][0] - found["layers"][1]


# verdicts


def _records(**points: list[tuple[float, float, int]]) -> list[Record]:
    """Correlation to choose by, correlation to report, parameters left of 100."""
    return [
        Record(
            {"method": method.replace("_", " = "), "ratio": 0.1 * i, "lr": 1e-3, "seed": 0},
            {
                "validation": {"spearman": v}, "test": {"spearman": t, "cosine": 1.0}, "layers": [100, left],
                "flops": [100, left], "speedup": 100 / left,
            },
            1.0,
        )
        for method, of in points.items() for i, (v, t, left) in enumerate(of)
    ]  # fmt: skip


def test_the_step_size_is_chosen_by_other_sentences_than_those_reported() -> None:
    good, bad = _records(D_3=[(0.9, 0.7, 50)])[0], _records(D_3=[(0.8, 0.99, 40)])[0]
    other = Record({**bad.cell, "lr": 1e-4}, bad.found, 1.0)
    (point,) = summarise(SMOKE, [good, other])["D = 3"]
    assert point["test"]["spearman"] == 0.7
    assert point["trials"] == 2


def test_a_level_is_met_between_the_encoders_that_no_cheaper_one_reaches() -> None:
    points = summarise(SMOKE, _records(D_3=[(0.93, 0, 80), (0.94, 0, 30), (0.7, 0, 10)]))["D = 3"]

    def left(p: Any) -> float:
        return p["layers"][1] / p["layers"][0]

    assert at_level(points, 0.94, left) == pytest.approx(0.3)  # the larger one is no better
    assert at_level(points, 0.82, left) == pytest.approx(0.2)  # half of the way from .7 to .94
    assert at_level(points, 0.97, left) == pytest.approx(0.65)  # half of the way to the original
    assert at_level(points, 0.5, left) == pytest.approx(0.1)  # nothing smaller was measured


@pytest.mark.parametrize(
    ("ours", "more_alike", "smaller"),
    [
        ([(0.99, 0.99, 70), (0.9, 0.95, 10)], "reproduced", "reproduced"),
        ([(0.99, 0.99, 70), (0.9, 0.9, 30)], "partly", "partly"),
        ([(0.99, 0.98, 90), (0.9, 0.9, 30)], "not reproduced", "not reproduced"),
        ([(0.7, 0.7, 80)], "not reproduced", "not reproduced"),
    ],
)
def test_verdicts_by_hand(ours: list[tuple[float, float, int]], more_alike: str, smaller: str) -> None:
    """Smaller and faster: by the one and the other end of the lines through the points (levels .98 and .9)."""
    summary = summarise(SMOKE, _records(D_3=ours, magnitude=[(0.99, 0.98, 80), (0.9, 0.9, 20)]))
    at_shares, *at_levels = verdicts(SMOKE, summary)
    assert at_shares.status == more_alike
    assert {v.status for v in at_levels} == {smaller}
