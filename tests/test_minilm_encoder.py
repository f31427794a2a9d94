"""The pretrained encoder's experiment, on a small encoder that nobody trained: likeness, what goes, what stays."""

from __future__ import annotations

import pytest
import torch

import dgating as dg
from experiments.common.experiment import Place, Record
from experiments.minilm_encoder import EXPERIMENT
from experiments.minilm_encoder.judge import smallest, summarise, verdicts
from experiments.minilm_encoder.measure import Configuration, _smallest, embeddings, measure, original, similarity, task

pytest.importorskip("transformers")
SMOKE: Configuration = EXPERIMENT.configurations["smoke"]


def test_the_original_is_like_itself() -> None:
    rows = task(SMOKE, Place())
    found = similarity(original(SMOKE), rows)
    assert found["cosine"] == pytest.approx(1)
    assert found["spearman"] == pytest.approx(1)
    torch.testing.assert_close(rows.wanted_test.norm(dim=1), torch.ones(len(rows.wanted_test)))


def test_held_out_sentences_are_not_trained_on() -> None:
    rows = task(SMOKE, Place())
    trained = {tuple(row.tolist()) for row in rows.train["input_ids"]}
    assert not any(tuple(row.tolist()) in trained for row in rows.test["input_ids"])


def _gated() -> torch.nn.Module:
    rows, net = task(SMOKE, Place()), original(SMOKE)
    example = {name: part[:2] for name, part in rows.test.items()}
    for g in (*dg.heads(net, example), *dg.neurons(net, example)):
        dg.gate_(net, g, depth=2)
    return net


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_magnitude_takes_the_same_share_of_heads_and_of_neurons(ratio: float) -> None:
    net = _gated()
    norms, masks = dg.group_norms(net), _smallest(net, ratio)
    assert masks.keys() == norms.keys()
    for size, layers in ((4, 2), (64, 2)):
        chosen = [masks[name] for name, v in norms.items() if len(v) == size]
        assert len(chosen) == layers
        assert sum(int(m.sum()) for m in chosen) == min(round(ratio * layers * size), layers * (size - 1))
    for name, mask in masks.items():
        assert not mask[norms[name].argmax()]
        if 0 < int(mask.sum()) < len(mask):
            assert norms[name][mask].max() <= norms[name][~mask].min()


@pytest.mark.parametrize(("method", "at"), [("magnitude", 0.5), ("D = 3", 1e-3)])
def test_what_is_taken_out_is_gone_and_nothing_else_changes(method: str, at: float) -> None:
    found = measure(SMOKE, {"method": method, "at": at, "seed": 0}, Place())
    assert found["difference"] < 1e-5
    assert found["layers"][1] < found["layers"][0]
    assert found["parameters"][0] - found["parameters"][1] == found["layers"][0] - found["layers"][1]
    assert found["cosine"] >= found["before"]["cosine"] - 0.01


def test_embeddings_do_not_depend_on_the_batch() -> None:
    rows, net = task(SMOKE, Place()), original(SMOKE)
    torch.testing.assert_close(embeddings(net, rows.test, 3), embeddings(net, rows.test, 64))


def _records(**points: list[tuple[float, int]]) -> list[Record]:
    return [
        Record(cell={"method": method.replace("_", " = "), "at": i, "seed": 0}, seconds=1.0, environment={},
               found={"spearman": s, "layers": [100, left]})
        for method, of in points.items() for i, (s, left) in enumerate(of)
    ]  # fmt: skip


def test_smallest_reads_between_points() -> None:
    summary = summarise(SMOKE, _records(D_3=[(0.9, 20), (0.98, 60)]))
    assert smallest(summary["D = 3"], 0.94) == pytest.approx(0.4)
    assert smallest(summary["D = 3"], 0.99) == pytest.approx(0.8)  # towards the original
    assert smallest(summary["D = 3"], 0.5) == pytest.approx(0.2)  # nothing smaller was measured


@pytest.mark.parametrize(
    ("ours", "status"),
    [([(0.9, 10), (0.98, 50)], "reproduced"), ([(0.9, 30), (0.98, 70)], "not reproduced")],
)
def test_verdict_by_hand(ours: list[tuple[float, int]], status: str) -> None:
    summary = summarise(SMOKE, _records(D_3=ours, magnitude=[(0.9, 20), (0.98, 60)]))
    (verdict,) = verdicts(SMOKE, summary)
    assert verdict.status == status
