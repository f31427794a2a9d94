"""Example inputs: the one place that says how a model is called on them and which tensors come out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def split_inputs(example_inputs: object, kwargs: Mapping[str, Any] | None = None) -> tuple[Args, Kwargs]:
    """Positional and keyword arguments out of whatever a user calls example inputs.

    Args:
        example_inputs: a tuple or list of positional arguments, one tensor (the only positional argument), or a dict
            or other mapping of keyword arguments, such as a tokenizer's output.
        kwargs: further keyword arguments.

    Returns:
        ``(args, kwargs)`` for ``model(*args, **kwargs)``.

    Raises:
        TypeError: inputs of another kind, or a keyword that is not a string.
        ValueError: a keyword given twice, or no input at all.

    Example:
        >>> split_inputs((1, 2), {"flag": True}), split_inputs({"x": 1})
        (((1, 2), {'flag': True}), ((), {'x': 1}))
    """
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs: expected a dict of keyword arguments or None, received {type(kwargs).__name__}.")
    more = dict(kwargs or {})
    if isinstance(example_inputs, Tensor):
        args, named = (example_inputs,), {}
    elif isinstance(example_inputs, tuple | list):
        args, named = tuple(example_inputs), {}
    elif isinstance(example_inputs, Mapping):
        args, named = (), dict(example_inputs)
    else:
        raise TypeError(
            "example_inputs: expected a tuple of positional arguments, a tensor or a dict of keyword arguments, "
            f"received {type(example_inputs).__name__}."
        )
    for key in [*named, *more]:
        if not isinstance(key, str):
            raise TypeError(
                f"example_inputs: expected names of arguments as keys, received {key!r}. "
                "A dict that is itself the first argument goes into a tuple: (inputs,)."
            )
    if twice := sorted(named.keys() & more.keys()):
        raise ValueError(f"kwargs: {twice} given twice, in example_inputs and in kwargs. Give each once.")
    named.update(more)
    if not args and not named:
        raise ValueError(
            "example_inputs: expected at least one input, received none. Pass what the model is called on."
        )
    return args, named


def call_kwargs(model: nn.Module, kwargs: Mapping[str, Any]) -> Kwargs:
    """The keyword arguments with ``use_cache=False`` where ``forward`` knows it: a key-value cache is no output."""
    out = dict(kwargs)
    if not isinstance(model, torch.jit.ScriptModule) and "use_cache" in inspect.signature(model.forward).parameters:
        out.setdefault("use_cache", False)
    return out


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)


@torch.no_grad()
def random_like(args: Args, kwargs: Mapping[str, Any], generator: torch.Generator) -> tuple[Args, Kwargs]:
    """Fresh random inputs of the same structure, shapes, dtypes and devices.

    Floats are normal with mean and standard deviation of the example (standard normal where it is constant), integers
    uniform between its smallest and largest. Kept as they are: booleans, integers that are all 0 or 1 (a mask),
    tensors with an infinity or nan (a mask, too), empty tensors, whatever is no tensor. One tensor given in two
    places stays one tensor.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        generator: a CPU generator; the same seed gives the same inputs on every device.
    """
    made: dict[int, Any] = {}

    def fresh(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) not in made:
            made[id(x)] = _random_tensor(x, generator)
        return made[id(x)]

    return pytree.tree_map(fresh, (tuple(args), dict(kwargs)))


def _random_tensor(x: Tensor, generator: torch.Generator) -> Tensor:
    if x.numel() == 0 or x.dtype == torch.bool:
        return x
    if x.is_complex():
        return torch.complex(*(_random_tensor(part, generator) for part in (x.real, x.imag)))
    if x.is_floating_point():
        known = x.double()
        if not bool(known.isfinite().all()):
            return x
        mean, std = float(known.mean()), float(known.std(correction=0))
        if std == 0:
            mean, std = 0.0, 1.0
        return (torch.randn(x.shape, generator=generator) * std + mean).to(x)
    low, high = int(x.min()), int(x.max())
    if low >= 0 and high <= 1:
        return x
    return torch.randint(low, high + 1, x.shape, generator=generator).to(x)


def tensors_of(output: object) -> list[tuple[str, Tensor]]:
    """Every tensor of a model's output with its path, in order: ``[("logits", t), ("hidden_states.0", t), ...]``.

    Goes through tuples, lists, mappings and dataclasses; ``None``, numbers and objects of other kinds (a cache) hold
    no output and are left out. The path of a bare tensor is ``""``.
    """
    return list(_walk(output, ""))


def _walk(value: object, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    if isinstance(value, Mapping):
        children = [(str(key), child) for key, child in value.items()]
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        children = [(str(name), child) for name, child in zip(names, value, strict=True)]
    elif is_dataclass(value) and not isinstance(value, type):
        children = [(field.name, getattr(value, field.name)) for field in fields(value)]
    else:
        return
    for name, child in children:
        yield from _walk(child, f"{path}.{name}" if path else name)
