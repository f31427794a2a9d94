"""Attention heads, found by what the model computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import nn

from dgating.gating import Groups
from dgating.select._units import discover, groups_of


def heads(
    model: nn.Module,
    example_inputs: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    which: Literal["head", "query", "value"] = "head",
) -> list[Groups]:
    r"""The attention heads of every layer, whatever the layout of the projections.

    Separate, fused and interleaved projections are told apart by following the data through the exported graph.

    Args:
        model: an ordinary model.
        example_inputs: a tuple of positional or a dict of keyword arguments.
        kwargs: further keyword arguments.
        which: ``"head"``: the query, key and value rows of a head with its columns of the output projection; under
            grouped queries a key-value head with all the query heads that use it. ``"query"``: single query heads,
            their rows and their columns of the output projection (under grouped queries they can leave when the same
            number leaves every group). ``"value"``: the rows of the value projection only, as in the paper.

    Returns:
        One :class:`Groups` for every attention layer (layers that share something by head, such as position biases,
        come together), ready for :func:`gate_`.

    Raises:
        ValueError: another ``which``, or no attention whose heads can leave.
        CompactionError: ``torch.export`` cannot read the model.

    Example:
        >>> import torch, dgating as dg
        >>> layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        >>> [len(g) for g in dg.heads(layer, (torch.randn(2, 5, 16),))]
        [4]
        >>> dg.heads(layer, (torch.randn(2, 5, 16),), which="value")[0].sizes.tolist()
        [68, 68, 68, 68]

    Reference: arXiv 2509.23898, attention heads (Fig. 7).
    """
    if which not in ("head", "query", "value"):
        raise ValueError(f"which: expected 'head', 'query' or 'value', received {which!r}.")
    found = discover(model, example_inputs, kwargs, shared=which != "query")
    chosen = []
    values = [h.values for h in found.engine.heads]
    of_values = np.unique(np.concatenate(values)) if values else np.zeros(0, dtype=np.int64)
    for family in found.families:
        if not found.is_heads(family):
            continue
        only = of_values if which == "value" else None
        sites = [(s, only) for s in (family.producers if which == "value" else family.sites)]
        if all(found.gateable(s) for s, _ in sites):
            chosen.append((family, sites))
    groups = groups_of(model, found, chosen)
    if not groups:
        raise ValueError(
            "heads: expected a model with attention heads that can leave, found none. dg.plan_compaction(model, "
            "example_inputs) says why heads stay."
        )
    return groups
