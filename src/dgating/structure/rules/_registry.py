"""The registry of op rules: one function an operation, found by the name in its schema (``aten::linear``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dgating.structure._engine import Rule

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations; a name without a namespace is ATen's."""

    def register(f: Rule) -> Rule:
        for name in names:
            full = name if "::" in name else f"aten::{name}"
            if full in RULES:
                raise ValueError(f"rule: {full} has a rule already.")
            RULES[full] = f
        return f

    return register


def fallback(op: Any) -> Rule | None:
    """The rule of operations that torch itself declares elementwise."""
    return RULES["aten::relu"] if torch.Tag.pointwise in getattr(op, "tags", ()) else None


# Recurrent layers would unroll into one subgraph a time step: they stay whole, without a rule.
WHOLE = ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")


def keeps(op: Any) -> bool:
    """Whether an operation should stay whole in the graph, because a rule reads it."""
    name = op._schema.name
    return name in RULES or name in WHOLE or fallback(op) is not None
