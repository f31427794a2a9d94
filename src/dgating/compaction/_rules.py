"""Type rules: the attributes of a module that have to follow its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dgating.select import is_transposed_linear


@dataclass(frozen=True)
class ModuleChange:
    """What compaction did to one module, for its rule.

    Attributes:
        path: where the module is in the model.
        shapes: old shape of every parameter and buffer of the module itself, by name; the new ones are in place.
        sizes: numbers in the forward code that have to change: ``(operation, argument, old, new)``, in the order in
            which the forward uses them.
    """

    path: str
    shapes: dict[str, tuple[int, ...]]
    sizes: tuple[tuple[str, str, int, int], ...]

    def new(self, argument: str) -> int | None:
        """The new value of an argument that occurs once, such as ``groups``."""
        found = {new for _, name, _, new in self.sizes if name == argument}
        return found.pop() if len(found) == 1 else None


ModuleRule = Callable[[nn.Module, ModuleChange], None]
F = TypeVar("F", bound=ModuleRule)
_RULES: dict[type[nn.Module], ModuleRule] = {}


def register_module_rule(kind: type[nn.Module]) -> Callable[[F], F]:
    """Decorator: say how the attributes of a module type follow its weights when :func:`compact` slices them.

    The rule gets the module of the compact model (its weights have their new shapes already) and a
    :class:`ModuleChange` with the old shapes and the sizes that the forward code has to use now. It sets attributes in
    place. A rule serves subclasses, too; a rule of the subclass goes first. Modules without a rule need none when
    their forward reads sizes from tensors; integer attributes that hold a size which changed are found by themselves.

    Args:
        kind: the module class.

    Raises:
        TypeError: not a module class.

    Example:
        >>> import torch, dgating as dg
        >>> class Scale(torch.nn.Module):
        ...     def __init__(self, n):
        ...         super().__init__()
        ...         self.n, self.scale = n, torch.nn.Parameter(torch.ones(n))
        ...     def forward(self, x):
        ...         return x * self.scale.view(1, self.n)
        >>> @dg.register_module_rule(Scale)
        ... def _(module, change):
        ...     module.n = module.scale.numel()
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"register_module_rule: expected a subclass of torch.nn.Module, received {kind!r}.")

    def register(f: F) -> F:
        if not callable(f):
            raise TypeError(f"register_module_rule: expected a function of (module, change), received {f!r}.")
        _RULES[kind] = f
        return f

    return register


def module_rule(module: nn.Module) -> ModuleRule | None:
    """The rule of the nearest base class that has one."""
    found = next((_RULES[k] for k in type(module).__mro__ if k in _RULES), None)
    return _transposed_linear if found is None and is_transposed_linear(module) else found


def _transposed_linear(module: nn.Module, change: ModuleChange) -> None:
    """``Conv1D`` of transformers, which is no import of ours."""
    module.nx, module.nf = module.weight.shape  # type: ignore[union-attr, misc, assignment]


@register_module_rule(nn.Linear)
def _linear(module: nn.Module, change: ModuleChange) -> None:
    module.out_features, module.in_features = module.weight.shape  # type: ignore[union-attr, misc]


@register_module_rule(_ConvNd)
def _conv(module: nn.Module, change: ModuleChange) -> None:
    assert isinstance(module, _ConvNd)
    module.groups = change.new("groups") or module.groups
    rows, per = module.weight.shape[:2]
    if isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = rows, per * module.groups
    else:
        module.in_channels, module.out_channels = per * module.groups, rows


@register_module_rule(_NormBase)
def _norm(module: nn.Module, change: ModuleChange) -> None:
    for name in change.shapes:
        tensor = getattr(module, name)
        if isinstance(tensor, torch.Tensor) and tensor.ndim == 1:
            module.num_features = tensor.shape[0]  # type: ignore[assignment]


@register_module_rule(nn.GroupNorm)
def _group_norm(module: nn.Module, change: ModuleChange) -> None:
    assert isinstance(module, nn.GroupNorm)
    groups = change.new("num_groups")
    if groups is not None:
        module.num_channels = module.num_channels // module.num_groups * groups
        module.num_groups = groups


@register_module_rule(nn.Embedding)
def _embedding(module: nn.Module, change: ModuleChange) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape  # type: ignore[union-attr, misc]


@register_module_rule(nn.PReLU)
def _prelu(module: nn.Module, change: ModuleChange) -> None:
    module.num_parameters = module.weight.numel()  # type: ignore[union-attr, operator]
