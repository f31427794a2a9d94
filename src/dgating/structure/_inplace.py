"""Operations in place become ordinary ones where nothing else can see the difference.

``torch.export`` can do so for any graph, by tracing it again, which takes as long as the export. Most in-place
operations are plain, though: an activation or a sum on a tensor that was just made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node


def without_inplace(graph: Graph) -> None:
    """Rewrite ``y = op_(x, ...)`` as ``y = op(x, ...)`` where ``x`` is an intermediate tensor that shares no memory.

    Whatever reads ``x`` later reads ``y``. Anything else is left as it is.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        plain = _plain(node)
        if plain is None:
            continue
        source = node.args[0]
        later = [user for user in source.users if order[user] > order[node]]
        node.target = plain
        for user in later:
            user.replace_input_with(source, node)


def _plain(node: Node) -> Any:
    """The operation that does the same on a tensor of its own; ``None`` where that could be seen."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    name, overload = node.target._schema.name, node.target._overloadname
    if not (name.startswith("aten::") and name.endswith("_") and not name.endswith("__")):
        return None
    packet = getattr(torch.ops.aten, name.removeprefix("aten::").removesuffix("_"), None)
    plain = getattr(packet, overload, None)
    source = node.args[0] if node.args else None
    if plain is None or not isinstance(source, Node) or source.op != "call_function" or _aliases(source):
        return None
    if any(_aliases(user) for user in source.users if user is not node):
        return None
    tensors = [t for a in node.all_input_nodes if isinstance(t := a.meta.get("val"), Tensor)]
    return plain if len({t.dtype for t in tensors}) == 1 else None  # of several the plain operation would promote


def _aliases(node: Node) -> bool:
    """Whether a node may share memory with what it reads."""
    schema = getattr(node.target, "_schema", None)
    if node.op == "output":
        return False
    return schema is None or any(r.alias_info is not None for r in schema.returns)
