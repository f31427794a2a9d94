"""The registry of op rules: one function an operation, found by the name in its schema (``aten::linear``)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from dgating.structure._call import Call
from dgating.structure._engine import Engine, Rule
from dgating.structure._info import Info
from dgating.structure.rules._rows import for_every_row, in_place, routed

RULES: dict[str, Rule] = {}


def rule(*names: str, by_row: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operations; a name without a namespace is ATen's.

    What is known of rows that were routed to experts differs from row to row. A rule sees it so where its operation
    leaves all rows in their places (``by_row``), else as what holds for the rows of every expert.
    """

    def register(f: Rule) -> Rule:
        @functools.wraps(f)
        def on_rows(e: Engine, call: Call) -> Info | list[Info] | None:
            for t in call.tensors:
                if routed(t) and not (by_row and in_place(call, t)):
                    call.replace(t, for_every_row(e, t))
            return f(e, call)

        for name in names:
            full = name if "::" in name else f"aten::{name}"
            if full in RULES:
                raise ValueError(f"rule: {full} has a rule already.")
            RULES[full] = on_rows
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
