"""Operations in place: rewritten where nobody can tell, left to torch elsewhere, and the same function in any case."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dgating as dg
from dgating.structure._inplace import without_inplace
from tests.test_compaction_sizes import Body


def between(f) -> nn.Module:
    """``f`` of the hidden units and the input."""
    return Body(lambda net, x: net.b(f(net.a(x), x))).eval()


def reused(h, x):
    h.relu_()
    return h + h.exp_().log()  # both read what the first one left


def through_a_view(h, x):
    h.unsqueeze(0).mul_(2)
    return h


def viewed_before(h, x):
    v = h[:, :4]
    h.mul_(2)
    return torch.cat([v, h[:, 4:]], 1)


def promoted(h, x):
    return h.add_(x[:, :1].double().sum())


PLAIN = {
    "relu_": lambda h, x: h.relu_(),
    "several": lambda h, x: h.mul_(2).add_(h).clamp_(min=0),
    "module": lambda h, x: nn.functional.hardswish(h, inplace=True),
    "reused": reused,
}
LEFT = {"through a view": through_a_view, "viewed before": viewed_before, "promoted": promoted}


def program(f):
    net = between(f)
    with torch.no_grad():
        return net, torch.export.export(net, (torch.randn(4, 6),), strict=False)


def writes(graph) -> int:
    return sum(getattr(getattr(n.target, "_schema", None), "is_mutable", False) for n in graph.nodes)


@pytest.mark.parametrize("f", PLAIN.values(), ids=PLAIN.keys())
def test_plain_ones_are_rewritten(f):
    net, exported = program(f)
    assert writes(exported.graph)
    without_inplace(exported.graph)
    assert not writes(exported.graph)
    exported.graph_module.recompile()
    x = torch.randn(4, 6)
    assert torch.equal(exported.module()(x), net(x))


@pytest.mark.parametrize("f", LEFT.values(), ids=LEFT.keys())
def test_others_are_left(f):
    _, exported = program(f)
    before = writes(exported.graph)
    without_inplace(exported.graph)
    assert writes(exported.graph) == before > 0


@pytest.mark.parametrize("target", ["module", "graph"])
@pytest.mark.parametrize("f", [*PLAIN.values(), *LEFT.values()], ids=[*PLAIN, *LEFT])
def test_the_same_function(f, target):
    net = between(f)
    small = dg.compact(net, (torch.randn(4, 6),), target=target)
    x = torch.randn(4, 6)
    assert torch.allclose(small(x), net(x), atol=1e-6)
    if f in (PLAIN["relu_"], PLAIN["several"]):
        assert small.compaction.removed == 3
