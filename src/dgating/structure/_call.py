"""One operation of the graph as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from dgating.structure._capture import module_of
from dgating.structure._factors import Shape
from dgating.structure._info import Info, listlike, shape_of


class Call:
    """One node with its arguments by the names of the operation's schema; tensors are :class:`Info`.

    Args:
        resolve: gives for a node in the arguments, also within lists, what is known of its tensor.
        node: the node.
    """

    def __init__(self, resolve: Callable[[Any], Any], node: Node) -> None:
        self.resolve, self.node = resolve, node
        schema = node.target._schema  # type: ignore[union-attr]
        self.name: str = schema.name
        self.args: dict[str, Any] = {}
        for i, a in enumerate(schema.arguments):
            raw = node.args[i] if i < len(node.args) else node.kwargs.get(a.name, a.default_value)
            self.args[a.name] = resolve(raw)
        self.first = next(iter(self.args)) if self.args else ""

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.args.get(name, default)

    def replace(self, old: Info, new: Info) -> None:
        """Let the rule see another tensor in the place of one."""
        for name, a in self.args.items():
            self.args[name] = [new if x is old else x for x in a] if listlike(a) else new if a is old else a

    @property
    def where(self) -> str:
        """What to call this node in a report."""
        path, _ = module_of(self.node)
        return f"{self.name.split('::')[-1]}{f' in {path}' if path else ''}"

    @property
    def out(self) -> Shape:
        return shape_of(self.node.meta["val"])

    @property
    def outs(self) -> list[Shape]:
        return [shape_of(v) for v in self.node.meta["val"]]

    @property
    def tensors(self) -> list[Info]:
        """Every tensor argument, those in lists too."""
        found: list[Info] = []
        for a in self.args.values():
            found += [a] if isinstance(a, Info) else [x for x in a if isinstance(x, Info)] if listlike(a) else []
        return found


def is_convolution(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.startswith(("aten::conv", "aten::_conv"))


def is_row_index(node: Node, table: Node) -> bool:
    """Whether a node picks rows of a table, as experts pick their biases."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.name != "aten::index" or node.args[0] is not table:
        return False
    rows = node.args[1]
    return isinstance(rows, list | tuple) and len(rows) == 1 and isinstance(rows[0], Node)
