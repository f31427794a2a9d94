"""A model that has diverged is called that: in the report, in the shares, and by compaction."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import dgating as dg
from benchmarks.zoo import FAMILIES
from dgating.compaction._finite import check_finite

WRONG = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def gated(depth: int = 3) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2))
    labels = torch.tensor([0, 1, 2, 3, -1, 4, 5])
    return dg.gate_(net, [dg.by_labels(net[0], labels, group_name="inputs"), dg.neurons(net[2], name="out")], depth)


def spoil(net: nn.Module, factor: str, groups: list[int], value: float) -> None:
    path = {"omega": "0.parametrizations.weight.original0", "gamma": "0.parametrizations.weight.0.gamma"}[factor]
    with torch.no_grad():
        net.get_parameter(path)[1, groups] = value


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("factor", ["omega", "gamma"])
def test_the_report_names_the_groups(factor: str, value: str) -> None:
    net = gated()
    spoil(net, factor, [1, 4], WRONG[value])
    report = dg.report(net)
    assert [(r.groups, r.nonfinite, r.first_nonfinite) for r in report.rows] == [("inputs", 2, (1, 4)), ("out", 0, ())]
    assert "DIVERGED: nan or infinite factors in 2 of 6 groups of 0.weight: 1, 4" in " ".join(str(report).split())
    assert report.to_dict()["rows"][0]["nonfinite"] == 2


def test_the_report_names_the_first_of_many() -> None:
    net = gated()
    spoil(net, "gamma", [0, 1, 2, 3, 4, 5], math.nan)
    assert dg.report(net).rows[0].first_nonfinite == (0, 1, 2, 3, 4)
    assert "in 6 of 6 groups of 0.weight: 0, 1, 2, 3, 4, ..." in " ".join(str(dg.report(net)).split())


def test_a_sound_model_has_not_diverged() -> None:
    net = gated()
    with torch.no_grad():
        net.get_parameter("0.parametrizations.weight.original0").fill_(1e30)  # its squares are infinite, it is not
        net.get_parameter("0.parametrizations.weight.original1").fill_(math.nan)  # not gated
    report = dg.report(net)
    assert [r.nonfinite for r in report.rows] == [0, 0]
    assert "DIVERGED" not in str(report)


@pytest.mark.parametrize("factor", ["omega", "gamma"])
def test_diagnostics_do_not_hide_nan(factor: str) -> None:
    net = gated()
    spoil(net, factor, [1], math.nan)
    assert dg.group_norms(net)["inputs"].isnan().tolist() == [False, True, False, False, False, False]
    assert dg.imbalance(net)["inputs"].isnan().tolist() == [False, True, False, False, False, False]
    assert math.isnan(dg.sparsity(net)["inputs"])
    assert dg.sparsity(net)["out"] == 0.0
    for value in (dg.misalignment(net), dg.effective_penalty(net), dg.penalty(net)):
        assert value.isnan()


@pytest.mark.parametrize("factor", ["omega", "gamma"])
def test_infinite_groups_are_not_sparse(factor: str) -> None:
    net = gated()
    spoil(net, factor, [1], math.inf)
    assert dg.group_norms(net)["inputs"][1] == math.inf
    assert dg.sparsity(net)["inputs"] == 0.0


def test_zeroing_heals_a_diverged_group() -> None:
    net = gated()
    spoil(net, "omega", [1], math.nan)
    dg.zero_(net, {n: ~norms.isfinite() for n, norms in dg.group_norms(net).items()})
    assert dg.sparsity(net)["inputs"] == 1 / 6
    assert dg.report(net).rows[0].nonfinite == 0


@pytest.mark.parametrize("name", ["lam", "lr", "steps", "tol", "momentum"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_time_budget_takes_no_nan(name: str, value: float) -> None:
    arguments: dict[str, Any] = {"lam": 0.1, "lr": 0.1, "steps": 10, "tol": 0.1, "momentum": 0.0, name: value}
    with pytest.raises(ValueError, match=name):
        dg.time_budget(**arguments)


# compaction


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("mask", torch.full((6,), -math.inf))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.maximum(self.norm(self.first(x)), self.mask))


@pytest.mark.parametrize("call", [dg.compact, dg.plan_compaction])
@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("place", ["first.weight", "first.bias", "last.weight", "norm.weight"])
def test_compaction_refuses_weights_that_are_not_finite(place: str, value: str, call: Any) -> None:
    net = Masked()
    with torch.no_grad():
        net.get_parameter(place).view(-1)[0] = WRONG[value]
    with pytest.raises(dg.CompactionError, match=rf"nan or infinity in '{place}': the training has diverged"):
        call(net, (torch.ones(3, 4),))


@pytest.mark.parametrize("call", [dg.compact, dg.plan_compaction])
def test_compaction_refuses_nan_in_buffers(call: Any) -> None:
    net = Masked()
    net.norm.running_var[2] = math.nan
    with pytest.raises(dg.CompactionError, match=r"'norm\.running_var'"):
        call(net, (torch.ones(3, 4),))


def test_it_is_refused_before_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
    for p in net.parameters():
        nn.init.constant_(p, math.nan)
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: pytest.fail("exported"))
    with pytest.raises(dg.CompactionError, match=r"'0\.weight', '0\.bias', '1\.weight' and 7 more"):
        dg.compact(net, (torch.ones(3, 4),))


def test_infinite_buffers_are_compacted() -> None:
    dg.compact(Masked().eval(), (torch.ones(3, 4),))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_no_model_of_the_zoo_is_called_diverged(name: str) -> None:
    check_finite(FAMILIES[name].build())
