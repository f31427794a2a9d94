"""Gating, collapsing and zeroing of single tensors against lists written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dgating as dg
from dgating.gating._gated_tensors import units
from dgating.gating._partition import partition_by_labels
from dgating.gating._zeros import zero_groups


def test_a_sharded_model_is_not_collapsed() -> None:
    """A shard has ``full_tensor``; the model stays gated."""
    net = nn.Linear(3, 2)
    dg.gate_(net, dg.features(net))
    gamma = net.parametrizations.weight[0].gamma
    gamma.full_tensor = gamma.detach
    with pytest.raises(ValueError, match=r"is sharded \(FSDP\)"):
        dg.collapse_(net)
    assert dg.is_gated(net)


def test_a_group_is_zero_where_every_entry_of_every_factor_is() -> None:
    net = nn.Linear(3, 5, bias=False)
    dg.gate_(net, dg.by_dim(net, 0))
    (unit,) = units(net)
    site = net.parametrizations.weight
    with torch.no_grad():
        site.original.zero_()
        site[0].gamma.zero_()
        site.original[1, 2] = 1e-30  # its square is not a number above zero
        site[0].gamma[0, 2] = 1e-30
        site[0].gamma[1, 3] = -1.0
    expected = [True, False, False, False, True]
    assert unit.zero_in(list(unit.factors)).tolist() == expected
    assert zero_groups(unit).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "rest_first", "permuted"),
    [
        ([0, 1, -1, -1], False, False),
        ([-1, 0, 1, 1], True, False),
        ([0, -1, 1, -1], False, True),
        ([-1, 0, -1, 1], True, True),
        ([0, -1, -1, 0], False, True),
    ],
)
def test_gated_entries_at_either_end_need_no_permutation(labels: list[int], rest_first: bool, permuted: bool) -> None:
    split, inner = partition_by_labels((4,), torch.tensor(labels)).split()
    assert (split.rest_first, split.merge is not None) == (rest_first, permuted)
    assert inner.labels.tolist() == [j for j in labels if j >= 0]
    parts = [split.rest, split.gated] if rest_first else [split.gated, split.rest]
    whole = torch.cat(parts)
    assert (whole if split.merge is None else whole[split.merge]).tolist() == [0, 1, 2, 3]
