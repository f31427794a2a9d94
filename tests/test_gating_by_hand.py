"""Gating, collapsing and zeroing of single tensors against lists written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dgating as dg


def test_a_sharded_model_is_not_collapsed() -> None:
    """A shard has ``full_tensor``; the model stays gated."""
    net = nn.Linear(3, 2)
    dg.gate_(net, dg.features(net))
    gamma = net.parametrizations.weight[0].gamma
    gamma.full_tensor = gamma.detach
    with pytest.raises(ValueError, match=r"is sharded \(FSDP\)"):
        dg.collapse_(net)
    assert dg.is_gated(net)
