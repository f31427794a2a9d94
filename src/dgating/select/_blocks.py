"""Residual branches: ``x + f(x)``, one group a branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from dgating.gating import Groups, Member, Part, partition_by_labels
from dgating.select._units import discover

THROUGH = {
    "clone", "contiguous", "alias", "dropout", "_to_copy", "view", "reshape", "_unsafe_view", "permute", "transpose",
    "unsqueeze", "squeeze", "flatten", "roll", "slice", "detach", "unflatten",
}  # fmt: skip
SCALES = {"mul", "batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"}
PRODUCTS = {"linear", "addmm", "matmul", "mm", "conv1d", "conv2d", "conv3d", "convolution"}


def blocks(model: nn.Module, example_inputs: Any, *, kwargs: Mapping[str, Any] | None = None) -> list[Groups]:
    r"""One group for every residual branch: the weights and biases of the layer that the branch ends in.

    A branch whose last layer is zero adds nothing: :func:`compact` then takes out all that only this branch needed,
    but for one unit (layers of width zero do not run everywhere).

    Args:
        model: an ordinary model.
        example_inputs: a tuple of positional or a dict of keyword arguments.
        kwargs: further keyword arguments.

    Returns:
        A list with one :class:`Groups`, one part a branch, in the order in which the model runs them.

    Raises:
        ValueError: the model has no residual branch that ends in a layer with weights of its own.
        CompactionError: ``torch.export`` cannot read the model.

    Example:
        >>> import torch, dgating as dg
        >>> layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        >>> groups = dg.blocks(layer, (torch.randn(2, 5, 16),))
        >>> [part.label for part in groups[0].parts]
        ['self_attn.out_proj', 'linear2']
    """
    found = discover(model, example_inputs, kwargs)
    engine = found.engine
    order = _Ancestors(engine.captured.program.graph.nodes)
    weights = {node: w.name for node, w in engine.captured.weights.items() if w.kind == "parameter"}
    parts: dict[str, Part] = {}
    taken: set[str] = set()
    for node in engine.captured.program.graph.nodes:
        if _name(node) not in ("add", "add_") or not all(isinstance(a, Node) for a in node.args[:2]):
            continue
        a, b = node.args[:2]
        if a.meta["val"].shape != b.meta["val"].shape:
            continue
        branch = b if order.precedes(a, b) else a if order.precedes(b, a) else None
        names = None if branch is None else _last_layer(branch, weights)
        if not names or taken & set(names) or not all(_trainable(model, n) and _single(found, model, n) for n in names):
            continue
        taken |= set(names)
        label = names[0].rpartition(".")[0] or names[0]
        parts[label] = Part(tuple(_whole(model, n) for n in names), label)
    if not parts:
        raise ValueError(
            "blocks: expected a model with residual branches (x + f(x)) that end in a layer with trainable weights, "
            "found none. Group layers yourself: dg.whole or dg.tie."
        )
    return [Groups(tuple(parts.values()), "blocks")]


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.removeprefix("aten::")


class _Ancestors:
    """Which nodes each node is computed from: one number a node, one bit an ancestor."""

    def __init__(self, nodes: Any) -> None:
        self.place = {node: i for i, node in enumerate(nodes)}
        self.bits: list[int] = []
        for node in self.place:
            mine = 0
            for source in node.all_input_nodes:
                mine |= self.bits[self.place[source]] | 1 << self.place[source]
            self.bits.append(mine)

    def precedes(self, a: Node, b: Node) -> bool:
        return bool(self.bits[self.place[b]] >> self.place[a] & 1)


def _last_layer(node: Node, weights: dict[Node, str]) -> list[str] | None:
    """Parameters of the layer that a branch ends in, the scales behind it included."""
    names: list[str] = []
    while True:
        kind = _name(node)
        inputs = [a for a in node.all_input_nodes if a not in weights]
        mine = [weights[a] for a in node.all_input_nodes if a in weights]
        if kind in PRODUCTS:
            own = mine or [weights[a] for i in node.all_input_nodes for a in i.all_input_nodes if a in weights]
            return [*own, *names] if own else None
        if kind in SCALES:
            names = [*mine, *names]
        elif (kind not in THROUGH and node.op != "call_function") or (kind not in THROUGH and kind != ""):
            return None
        data = [a for a in inputs if a.op == "call_function"]
        if len(data) != 1:
            return None
        node = data[0]


def _trainable(model: nn.Module, name: str) -> bool:
    return model.get_parameter(name).requires_grad


def _single(found: Any, model: nn.Module, name: str) -> bool:
    return found.homes.get(id(model.get_parameter(name))) == 1


def _whole(model: nn.Module, name: str) -> Member:
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    shape = tuple(getattr(module, attribute).shape)
    return Member(module, attribute, partition_by_labels(shape, torch.zeros((1,) * len(shape), dtype=torch.long)))
