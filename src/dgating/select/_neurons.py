"""The outputs of linear layers, one group a neuron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

from torch import nn

from dgating.gating import Groups, Member, Part, partition_by_dim
from dgating.select._axes import is_transposed_linear, outputs
from dgating.select._layers import Rules, layers
from dgating.select._target import check_initialised, resolve
from dgating.select._units import discover, groups_of


@overload
def neurons(
    layer_or_model: nn.Module,
    example_inputs: None = None,
    *,
    include: Rules | None = None,
    exclude: Rules = (),
    bias: bool = False,
    name: str | None = None,
) -> Groups: ...


@overload
def neurons(
    layer_or_model: nn.Module, example_inputs: Any, *, kwargs: Mapping[str, Any] | None = None
) -> list[Groups]: ...


def neurons(
    layer_or_model: nn.Module,
    example_inputs: Any = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    include: Rules | None = None,
    exclude: Rules = (),
    bias: bool = False,
    name: str | None = None,
) -> Groups | list[Groups]:
    r"""One group for every neuron: the incoming weights of one output of a linear layer.

    With ``example_inputs`` the hidden layers are found by what the model computes: one :class:`Groups` for every hidden
    layer of every MLP, gate and value rows of gated linear units together, biases included, so that what is zero can
    be removed by :func:`compact`. Without, layers are chosen by type and name.

    Args:
        layer_or_model: a linear layer (its neurons), or a model: then every linear layer but the last one registered,
            which usually is the output. Say ``include`` when that guess is wrong for your model.
        example_inputs: a tuple of positional or a dict of keyword arguments.
        kwargs: further keyword arguments of the model, with ``example_inputs``.
        include: layers of the model to take, see :func:`layers`.
        exclude: layers to leave out.
        bias: whether the neuron's bias belongs to its group. The paper leaves it ungated; with it, a dead neuron of a
            ReLU network puts out exactly zero.
        name: key in the diagnostics; by default the path of the weight for a layer, ``"neurons"`` for a model.

    Returns:
        :class:`Groups`, one part a layer; with ``example_inputs`` a list of :class:`Groups`, one a hidden layer.

    Raises:
        ValueError: nothing matches (near names are listed), or the model has no hidden linear layer.
        CompactionError: ``example_inputs`` were given and ``torch.export`` cannot read the model.
        TypeError: a layer that is not linear is included.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> len(dg.neurons(net)), len(dg.neurons(net[0], bias=True))
        (8, 8)
        >>> [len(g) for g in dg.neurons(net, (torch.randn(3, 4),))]
        [8]
    """
    if example_inputs is not None:
        if include is not None or exclude != () or bias or name is not None:
            raise ValueError("neurons: include, exclude, bias and name choose layers without example_inputs.")
        return _found(layer_or_model, example_inputs, kwargs)
    check_initialised(layer_or_model)
    if _linear(layer_or_model):
        if include is not None or exclude != ():
            raise ValueError("neurons: include and exclude choose layers of a model, but a single layer was given.")
        return Groups((_part(layer_or_model, None, bias),), name)
    if not isinstance(layer_or_model, nn.Module):
        raise TypeError(f"neurons: expected a linear layer or a model, received {type(layer_or_model).__name__}.")
    if include is None:
        chosen = layers(layer_or_model, lambda _, m: _linear(m))
        last = list(chosen)[-1]
        chosen = {p: m for p, m in chosen.items() if p != last}
        if exclude and chosen:
            allowed = layers(layer_or_model, lambda _, m: _linear(m), exclude)
            chosen = {p: m for p, m in chosen.items() if p in allowed}
        if not chosen:
            raise ValueError(
                "neurons: expected a model with a hidden linear layer, but only the output layer "
                f"({last!r}) is left. Name the layers with include=... ."
            )
    else:
        chosen = layers(layer_or_model, include, exclude)
        # a pattern may match activations and containers, too: what has no weights of its own is left out
        chosen = {path: m for path, m in chosen.items() if m._parameters} or chosen
    return Groups(tuple(_part(m, path, bias) for path, m in chosen.items()), name or "neurons")


def _found(model: nn.Module, example_inputs: Any, kwargs: Mapping[str, Any] | None) -> list[Groups]:
    """Units that linear layers (or stacks of them) write and read, and that are no heads."""
    found = discover(model, example_inputs, kwargs)
    chosen = []
    for family in found.families:
        wide = [s for s in family.sites if s.info.ndim > 1]
        linear = all(s.info.ndim == 2 or (s.info.ndim == 3 and s.factor.depends(0)) for s in wide)
        roles = set().union(*(s.roles for s in wide))
        if linear and {"in", "out"} <= roles and not found.is_heads(family) and found.trainable(family):
            chosen.append((family, [(s, None) for s in family.producers]))
    groups = groups_of(model, found, chosen)
    if not groups:
        raise ValueError(
            "neurons: expected a model with hidden neurons that can leave, found none. dg.plan_compaction(model, "
            "example_inputs) says why units stay."
        )
    return groups


def _linear(module: object) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Module) and is_transposed_linear(module))


def _part(layer: nn.Module, path: str | None, bias: bool) -> Part:
    label = None if path is None else f"{path}.weight"
    if not _linear(layer):
        raise TypeError(
            f"neurons: expected linear layers, received {type(layer).__name__} at {path!r}. Use filters for "
            "convolutions and by_dim for other tensors."
        )
    check_initialised(layer)
    partition = outputs(layer)
    assert partition is not None
    resolve(layer, "weight")
    members = [Member(layer, "weight", partition)]
    if bias and layer.bias is not None:
        _, _, shape = resolve(layer, "bias")
        members.append(Member(layer, "bias", partition_by_dim(shape, 0)))
    return Part(tuple(members), label)
