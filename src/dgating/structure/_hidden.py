"""Entries that nobody reads because a factor hides them: a layer scale or a gate that is zero.

A residual sum gives a branch the labels of the stream, which stays. What a factor of zero multiplies is not missed all
the same: the products that compute it need not read their inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from dgating.structure._engine import Engine
from dgating.structure._factors import Shape, reshape
from dgating.structure._info import shape_of
from dgating.structure._uses import MatrixUse

SHAPE_ONLY = ("aten::sym_size", "aten::sym_numel", "aten::sym_stride", "aten::_assert_tensor_metadata")
ENTRYWISE = ("aten::clone", "aten::_to_copy", "aten::to", "aten::alias", "aten::detach", "aten::contiguous",
             "aten::dropout", "aten::feature_dropout", "aten::type_as")  # fmt: skip
REGROUPED = ("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten", "aten::squeeze",
             "aten::unsqueeze")  # fmt: skip


def hidden(engine: Engine) -> dict[Node, Tensor]:
    """Where the tensor of a node is read by nobody: masks that broadcast to it, for the nodes that have such entries.

    One walk backwards. Only factors that follow from weights alone hide: of two computed ones that are zero, each could
    hide the other, and what makes either zero would be gone.
    """
    found: dict[Node, Tensor] = {}
    for node in reversed(engine.captured.program.graph.nodes):
        val = node.meta.get("val")
        if node.op != "call_function" or not isinstance(val, Tensor) or not node.users:
            continue
        mask = torch.ones((1,) * val.ndim, dtype=torch.bool)
        for user in node.users:
            mask = mask & _behind(engine, node, user, found.get(user))
            if not bool(mask.any()):
                break
        else:
            found[node] = mask
    return found


def _behind(engine: Engine, node: Node, user: Node, theirs: Tensor | None) -> Tensor:
    """The entries of ``node`` that one user does not read, given those of the user that nobody reads (``theirs``)."""
    shape = shape_of(node.meta["val"])
    name = _name(user)
    if name in SHAPE_ONLY:
        return torch.ones((1,) * len(shape), dtype=torch.bool)
    if name in ("aten::mul", "aten::multiply"):
        zero = _zero_factor(engine, node, user)
        theirs = zero if theirs is None else theirs if zero is None else theirs | zero
    if theirs is not None:
        if name in ENTRYWISE or torch.Tag.pointwise in getattr(user.target, "tags", ()):
            return _unbroadcast(theirs, shape)
        if name in REGROUPED and user.args[0] is node and not any(isinstance(a, torch.dtype) for a in user.args):
            return reshape(theirs, shape_of(user.meta["val"]), shape)
        if name == "aten::permute":
            dims: Any = user.args[1]
            return theirs.permute(sorted(range(len(dims)), key=lambda a: dims[a] % len(dims)))
        if name == "aten::transpose":
            return theirs.transpose(*user.args[1:])  # type: ignore[arg-type]
    return torch.zeros((1,) * len(shape), dtype=torch.bool)


def _zero_factor(engine: Engine, node: Node, user: Node) -> Tensor | None:
    """Where the other side of a product is zero whatever the input, with all axes of the result."""
    a, b = (*user.args, *user.kwargs.values())[:2]
    other = b if a is node else a
    ndim = user.meta["val"].ndim
    if isinstance(other, int | float):
        return torch.full((1,) * ndim, other == 0)
    info = engine.info.get(other) if isinstance(other, Node) else None
    if info is None or not info.static or info.value is None:
        return None
    return (info.value == 0).reshape((1,) * (ndim - info.value.ndim) + tuple(info.value.shape))


def _unbroadcast(mask: Tensor, shape: Shape) -> Tensor:
    """The mask of a result for an operand: an entry that was repeated is hidden where all its copies are."""
    mask = mask.reshape((1,) * max(0, len(shape) - mask.ndim) + tuple(mask.shape))
    lead = mask.ndim - len(shape)
    for axis in range(mask.ndim):
        if mask.shape[axis] > 1 and (axis < lead or shape[axis - lead] == 1):
            mask = mask.all(axis, keepdim=True)
    return mask.reshape(mask.shape[lead:])


def hidden_outputs(use: MatrixUse, mask: Tensor | None) -> Tensor | None:
    """``(g, n)``: the outputs of a product with weights that are hidden wherever they occur; ``None``: none of them."""
    if mask is None:
        return None
    if bool(mask.all()):
        return torch.ones(use.outputs.shape, dtype=torch.bool)
    axis = _output_axis(use.node)
    if axis is None:
        return None
    rows = mask.movedim(axis, -1).reshape(-1, mask.shape[axis]).all(0)
    return rows.expand(use.outputs.size).reshape(use.outputs.shape) if bool(rows.any()) else None


def _output_axis(node: Node) -> int | None:
    """The axis of the result that the outputs of the layer lie along."""
    name = _name(node)
    if name in ("aten::linear", "aten::addmm"):
        return -1
    if name.startswith(("aten::conv", "aten::_conv")):
        weight: Any = node.args[1]
        return node.meta["val"].ndim - (weight.meta["val"].ndim - 2) - 1
    return None


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name
