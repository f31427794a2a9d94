"""Fig. 13 and Table 5: more parameters as the paper counts them, equal starts for all depths, ratios by hand."""

from __future__ import annotations

import pytest
import torch

import dgating as dg
from experiments.common.experiment import Place, Record
from experiments.fig13_overhead.judge import RATES, summarise, verdicts
from experiments.fig13_overhead.measure import DECAY, LAM, MODELS, Configuration, Training, measure


@pytest.mark.parametrize("name", MODELS)
def test_table_5(name: str) -> None:
    model = MODELS[name]
    net = model.build()
    before = sum(p.numel() for p in net.parameters())
    for groups in model.groups(net):
        dg.gate_(net, groups, depth=4)
    added = sum(p.numel() for p in net.parameters()) - before
    assert added / before == pytest.approx(RATES[name], rel=0.03)


def test_all_depths_start_as_one_function_on_one_batch() -> None:
    model = MODELS["LeNet-300-100"]
    plain, *gated = (Training(model, 8, depth, "cpu", compiled=False) for depth in (1, 2, 3, 4))
    for run in gated:
        assert torch.equal(run.x, plain.x)
        assert torch.equal(run.net(run.x), plain.net(plain.x))
    assert not dg.is_gated(plain.net)


def test_a_step_is_one_of_the_usual_loop() -> None:
    model = MODELS["linear"]
    plain, gated = (Training(model, 16, depth, "cpu", compiled=False) for depth in (1, 3))
    weight = plain.net.weight.detach().clone()  # type: ignore[union-attr]
    gradient = torch.autograd.grad(plain.loss(plain.x @ weight.requires_grad_().T, plain.y), weight)[0]
    before = dg.penalty(gated.net, LAM).item()
    plain.step()
    gated.step()
    expected = weight - 1e-4 * (gradient + DECAY * weight)
    torch.testing.assert_close(plain.net.weight, expected)  # type: ignore[union-attr]
    assert dg.penalty(gated.net, LAM).item() != before
    assert plain.milliseconds() > 0


def test_every_depth_is_measured_against_its_neighbour() -> None:
    c = Configuration(batches=(("linear", 16, 4),), depths=(2, 3))
    cell = {"model": "linear", "batch": 16, "repeats": 4, "compiled": False}
    depths = measure(c, cell, Place())["depths"]
    assert [d["depth"] for d in depths] == [1, 2, 3]
    assert [d["parameters"] for d in depths] == [200, 240, 280]
    assert depths[0]["ratio"] == [1.0, 1.0, 1.0]
    assert all(low <= middle <= high for low, middle, high in (d["ratio"] for d in depths))
    # parameters, momentum and gradients of all factors come on top of each other
    assert depths[0]["peak_bytes"] < depths[1]["peak_bytes"] < depths[2]["peak_bytes"]


def _record(ratio: float, parameters: int, peak: int) -> Record:
    found = [
        {"depth": 1, "parameters": 200, "ms": 1.0, "ratio": [1, 1, 1], "peak_bytes": 100},
        {"depth": 4, "parameters": parameters, "ms": ratio, "ratio": [ratio] * 3, "peak_bytes": peak},
    ]
    cell = {"model": "linear", "batch": 16, "repeats": 1, "compiled": False}
    return Record(cell=cell, found={"depths": found}, seconds=1.0, environment={})


@pytest.mark.parametrize(
    ("record", "statuses"),
    [
        (_record(1.2, 320, 101), ["reproduced"] * 3),
        (_record(1.4, 400, 120), ["not reproduced"] * 3),
    ],
)
def test_verdicts_by_hand(record: Record, statuses: list[str]) -> None:
    c = Configuration(batches=(("linear", 16, 1),), depths=(4,))
    assert [v.status for v in verdicts(c, summarise(c, [record]))] == statuses
