"""Fig. 8: the tree ensemble against slow oracles, gated, cut, and the experiment's smoke run."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dgating as dg
from experiments.common import store
from experiments.common.experiment import Record
from experiments.fig08_trees import EXPERIMENT
from experiments.fig08_trees.judge import plots, summarise, tables, verdicts
from experiments.fig08_trees.measure import Configuration, cells
from experiments.fig08_trees.node import Ensemble, entmax, entmoid, leaves


def _bisected(logits: Tensor) -> Tensor:
    """Entmax-1.5 over the last axis by bisection on the threshold, in float64."""
    half = logits.double() / 2
    high = half.amax(-1, keepdim=True)
    low = high - 1
    for _ in range(60):
        tau = (low + high) / 2
        inside = (half - tau).clamp_min(0).square().sum(-1, keepdim=True) >= 1
        low, high = torch.where(inside, tau, low), torch.where(inside, high, tau)
    return (half - low).clamp_min(0).square()


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0, 100.0])
def test_entmax_is_the_root_that_bisection_finds(spread: float) -> None:
    logits = spread * torch.randn(40, 7, dtype=torch.double)
    logits[::3] = logits[::3].round(decimals=1)  # ties
    found = entmax(logits)
    torch.testing.assert_close(found, _bisected(logits), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.sum(-1), torch.ones(40, dtype=torch.double))
    torch.testing.assert_close(entmax(logits.float()), found.float(), rtol=0, atol=1e-4)


def test_entmax_is_sparse_and_keeps_the_order() -> None:
    found = entmax(torch.tensor([3.0, 2.9, 0.0, -50.0]))
    assert (found > 0).tolist() == [True, True, False, False]
    assert found[0] > found[1]
    torch.testing.assert_close(entmax(torch.zeros(3, 4)), torch.full((3, 4), 0.25))


def test_not_a_number_goes_through() -> None:
    assert entmax(torch.tensor([[math.nan, 1.0], [0.0, 0.0]])).isnan().any(-1).tolist() == [True, False]


def test_gradients() -> None:
    logits = torch.randn(6, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(entmax, logits)
    assert torch.autograd.gradcheck(entmoid, torch.linspace(-3, 3, 20, dtype=torch.double, requires_grad=True))


def test_entmoid_is_entmax_of_two() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.double)
    both = entmax(torch.stack([x, torch.zeros_like(x)], -1))
    torch.testing.assert_close(entmoid(x), both[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(entmoid(x) + entmoid(-x), torch.ones_like(x))
    assert entmoid(torch.tensor([-2.0, 2.0])).tolist() == [0, 1]


def test_weights_of_leaves_sum_to_one() -> None:
    bits = torch.rand(4, 5, 9).unbind(1)
    torch.testing.assert_close(leaves(bits).sum(1), torch.ones(4, 9))
    assert leaves([torch.ones(1, 1), torch.zeros(1, 1)]).flatten().tolist() == [0, 1, 0, 0]


def _ensemble(trees: int = 6, depth: int = 4, tree_dim: int = 1, outputs: int = 1, features: int = 5) -> Ensemble:
    made = Ensemble(features, trees, depth, tree_dim, outputs, scale=0.3)
    with torch.no_grad():
        made.thresholds.normal_()
        made.log_temperatures.normal_(0, 0.3)
    return made


def _slow(ensemble: Ensemble, rows: Tensor) -> Tensor:
    """Row by row, tree by tree, leaf by leaf."""
    out = torch.zeros(len(rows), ensemble.outputs)
    for n, row in enumerate(rows):
        for t, logits in enumerate(ensemble.logits):
            bits = []
            for d, choice in enumerate(logits):
                distance = row @ _bisected(choice).float() - ensemble.thresholds[t, d]
                x = distance / ensemble.log_temperatures[t, d].exp()
                bits.append(_bisected(torch.stack([x, torch.zeros(())]))[0].float())
            for leaf, setting in enumerate(itertools.product((0, 1), repeat=len(bits))):
                weight = torch.ones(())
                for bit, on in zip(bits, reversed(setting), strict=True):  # the first bit is the least significant
                    weight = weight * (bit if on else 1 - bit)
                out[n] += ensemble.scale * weight * ensemble.response[t, : ensemble.outputs, leaf]
    return out


@pytest.mark.parametrize(("depth", "tree_dim", "outputs"), [(2, 1, 1), (3, 1, 1), (4, 3, 2)])
def test_ensemble_is_the_slow_loop(depth: int, tree_dim: int, outputs: int) -> None:
    ensemble, rows = _ensemble(3, depth, tree_dim, outputs), torch.randn(4, 5)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(rows), _slow(ensemble, rows), rtol=0, atol=1e-5)


def test_gradient_of_the_whole() -> None:
    ensemble, rows = _ensemble(2, 3).double(), torch.randn(3, 5, dtype=torch.double)
    names = [name for name, _ in ensemble.named_parameters()]

    def f(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(ensemble, dict(zip(names, parameters, strict=True)), (rows,))

    assert torch.autograd.gradcheck(f, tuple(ensemble.parameters()))


@pytest.mark.parametrize("change", [{"depth": 1}, {"trees": 0}, {"tree_dim": 1, "outputs": 2}])
def test_impossible_sizes(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Ensemble(**{"features": 3, "trees": 4, **change})


def test_start_follows_the_data() -> None:
    rows, ensemble = 3 + 2 * torch.randn(2000, 5), Ensemble(5, 200, 3, generator=torch.Generator().manual_seed(1))
    ensemble.initialise(rows, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        values = ensemble.values(rows)
        below = (values < ensemble.thresholds.unsqueeze(-1)).float().mean(-1).flatten()
        # Beta(1, 1): thresholds are quantiles of even height
        torch.testing.assert_close(below.sort().values, torch.linspace(0, 1, 600), rtol=0, atol=0.08)
        widest = (values - ensemble.thresholds.unsqueeze(-1)).abs().amax(-1)
    torch.testing.assert_close(ensemble.log_temperatures.exp(), widest, rtol=1e-4, atol=1e-5)
    again = Ensemble(5, 200, 3, generator=torch.Generator().manual_seed(1))
    again.initialise(rows, generator=torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(ensemble.parameters(), again.parameters(), strict=True))
    ensemble.initialise(rows, beta=10.0, cutoff=0.5)
    with torch.no_grad():
        distance = (ensemble.values(rows) - ensemble.thresholds.unsqueeze(-1)).abs()
        far = distance > ensemble.log_temperatures.exp().unsqueeze(-1)
    assert far.float().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("depth", [2, 3])
def test_gating_changes_no_bit_of_the_output(depth: int) -> None:
    ensemble, rows = _ensemble(), torch.randn(20, 5)
    before = ensemble(rows)
    dg.gate_(ensemble, dg.by_dim(ensemble, 0, name="response"), depth=depth)
    assert [len(v) for v in dg.group_norms(ensemble).values()] == [6]
    assert torch.equal(ensemble(rows), before)


@pytest.mark.parametrize(("alive", "left"), [((1, 4), 2), ((), 1), (tuple(range(6)), 6)])
def test_dead_trees_leave(alive: tuple[int, ...], left: int) -> None:
    ensemble, rows = _ensemble(tree_dim=2, outputs=2), torch.randn(20, 5)
    dg.gate_(ensemble, dg.by_dim(ensemble, 0, name="response", group_name="trees"), depth=2)
    dead = torch.ones(6, dtype=torch.bool)
    dead[list(alive)] = False
    dg.zero_(ensemble, {"trees": dead})
    dg.collapse_(ensemble)
    full = copy.deepcopy(ensemble)
    small = dg.compact(ensemble, (rows,))
    assert isinstance(small, Ensemble)
    assert {len(p) for p in small.parameters()} == {left}  # one dead tree stays where no other is left
    fresh = torch.randn(33, 5)
    torch.testing.assert_close(small(fresh), full(fresh), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def smoke(smoke_file: Callable[[str], Path]) -> list[Record]:
    return store.read(smoke_file("fig08_trees"), EXPERIMENT.settings("smoke"))


def test_smoke_run(smoke: list[Record]) -> None:
    c: Configuration = EXPERIMENT.configurations["smoke"]
    assert [r.cell for r in smoke] == cells(c)
    found = {r.cell["method"]: r.found for r in smoke if r.cell["scale"] == c.scale}
    gated = found["D = 2"]
    assert gated["compact"]["trees"] == max(gated["left"], 1)
    assert gated["compact"]["difference"] < 1e-5
    assert gated["monitor"]["violators"] >= 0
    assert "violators" not in found["D = 3"]["monitor"]
    assert any("diverged" in r.found for r in smoke)  # the plain sum is out of reach of this step size
    summary = summarise(c, smoke)
    assert len(verdicts(c, summary)) == 2
    assert {"trees", "epochs"} == set(plots(c, summary))
    assert "diverged" in tables(c, summary)


def test_incomplete_records(smoke: list[Record]) -> None:
    c: Configuration = EXPERIMENT.configurations["smoke"]
    for some in ([], smoke[:1], smoke[1:2], smoke[2:3], smoke[-1:], smoke[1:4]):
        summary = summarise(c, some)
        verdicts(c, summary)
        tables(c, summary)
        plots(c, summary)


@pytest.mark.parametrize(("left", "rmse", "status"), [(3, 0.70, "reproduced"), (7, 0.70, "not reproduced")])
def test_verdict(smoke: list[Record], left: int, rmse: float, status: str) -> None:
    c: Configuration = EXPERIMENT.configurations["smoke"]
    records = []
    for r in smoke:
        found = r.found | ({"rmse": 0.7} if r.cell["method"] == "dense" else {})
        if "compact" in found:
            found |= {"left": left, "compact": found["compact"] | {"rmse": rmse}}
        records.append(replace(r, found=found))
    assert verdicts(c, summarise(c, records))[0].status == status


def test_claim_comes_first() -> None:
    c = Configuration()
    first = [cell for cell in cells(c) if cell["method"].startswith("D")][: len(c.splits)]
    assert all(cell["lam"] == c.claim and cell["method"] == "D = 2" for cell in first)
    assert len({store.key(cell) for cell in cells(c)}) == len(cells(c))
