"""Export a model and run the op rules on its graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from dgating.structure._capture import capture
from dgating.structure._engine import Engine
from dgating.structure.rules import RULES, fallback, keeps


def analyse(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any = None,
    loose: bool = True,
    training: bool = False,
) -> Engine:
    """Export the model and run every op rule on it; ``training``: what is known holds in training mode, too.

    Twice: axes of a weight that the first walk sees merged get joint labels in the second, and what it finds fixed is
    plain from the start, so that it cannot stand in the way of what comes before it in the graph.
    """
    captured = capture(model, args, dict(kwargs), keeps, dynamic_shapes)
    first = Engine(captured, RULES, fallback, values=False, loose=loose).run()
    if first.merged:
        first = Engine(captured, RULES, fallback, values=False, loose=loose, layouts=first.merged).run()
    second = Engine(
        captured, RULES, fallback, first.fixed_axes(), loose=loose, layouts=first.layouts, training=training
    ).run()
    second.unknown = first.unknown | second.unknown
    return second
