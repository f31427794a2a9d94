"""Build the compact model: a copy with sliced weights whose modules keep their classes and forward code."""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from dgating.compaction._plan import CompactionPlan
from dgating.compaction._rules import ModuleChange, module_rule
from dgating.compaction._verify import quiet_copy
from dgating.structure import CompactionError, Slice, cut


def sliced_copy(model: nn.Module, slices: dict[str, list[Slice]]) -> nn.Module:
    """A copy of the model with sliced tensors. The full tensors are never copied."""
    memo: dict[int, Any] = {}
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, ss in slices.items():
            old = named[name]
            new: Tensor = cut(old, ss)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            memo[id(old)] = new
        small = quiet_copy(model, memo)
    for module in small.modules():
        if hasattr(module, "_flat_weights"):
            module._init_flat_weights()  # type: ignore[operator]
        if type(module).train is not nn.Module.train and not isinstance(module, GraphModule):
            _forget(module)
    return small


def _forget(module: nn.Module) -> None:
    """Let a module drop what it computed from the full weights: one with a ``train`` of its own does so there."""
    training = module.training
    with contextlib.suppress(NotImplementedError):  # exported modules refuse
        module.train(True)
        module.train(training)


def fold_(small: nn.Module, folded: dict[str, Tensor]) -> None:
    """Add the constants of removed units to the biases; a layer without one gets it."""
    with torch.no_grad():
        for name, delta in folded.items():
            path, _, attribute = name.rpartition(".")
            module = small.get_submodule(path)
            bias = getattr(module, attribute)
            if bias is None:
                like = module.weight
                setattr(module, attribute, nn.Parameter(delta.to(like), requires_grad=like.requires_grad))  # type: ignore[arg-type, union-attr]
            else:
                bias.add_(delta.to(bias))


def module_changes(model: nn.Module, plan: CompactionPlan) -> dict[str, ModuleChange]:
    """What happens to every module whose own tensors or sizes change."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    sliced = {id(t) for n, t in _named(model) if n in plan.slices}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        if any(id(t) in sliced for t in own.values()):
            shapes[path] = {n: tuple(t.shape) for n, t in own.items()}
    sizes: dict[str, list[tuple[str, str, int, int]]] = {}
    for path, op, argument, old, new in plan.sizes:
        pairs = zip(old, new, strict=False) if isinstance(old, list) else [(old, new)]
        for a, b in pairs:
            if isinstance(a, int) and isinstance(b, int) and a != b:
                sizes.setdefault(path, []).append((op, argument, a, b))
    return {
        path: ModuleChange(path, shapes.get(path, {}), tuple(sizes.get(path, ())))
        for path in _children_first(model, "")
        if path in shapes or path in sizes
    }


def _children_first(module: nn.Module, path: str) -> list[str]:
    """Paths of all modules, each after those that it holds: a forward can only be tried once its parts are right."""
    below = [_children_first(m, f"{path}.{name}" if path else name) for name, m in module.named_children()]
    return [*(p for paths in below for p in paths), path]


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


# --- sizes that a forward reads from attributes ---

NOT_SIZES = re.compile(r"(idx|index|layer_id|eps|stride|padding|dilation|kernel|token|version|seed|num_layers|n_layer)")


def size_attributes(module: nn.Module, change: ModuleChange) -> list[tuple[Any, str, int, int]]:
    """Integer attributes (of the module, or of a configuration it holds) that equal a size which changes.

    ``(owner, name, old, new)``; a size that becomes two different numbers is left out.
    """
    becomes: dict[int, set[int]] = {}
    for _, _, old, new in change.sizes:
        becomes.setdefault(old, set()).add(new)
    found = []
    for owner in [module, *_configs(module)]:
        for name, value in list(vars(owner).items()):
            if isinstance(value, bool) or not isinstance(value, int) or NOT_SIZES.search(name):
                continue
            new = becomes.get(value)
            if new is not None and len(new) == 1:
                found.append((owner, name, value, next(iter(new))))
    return found


def _configs(module: nn.Module) -> list[Any]:
    return [v for k, v in vars(module).items() if k.endswith("config") and hasattr(v, "__dict__")]


def own_configs(module: nn.Module) -> None:
    """Give a module configurations of its own: they are shared by all layers, and layers differ now."""
    for name, value in list(vars(module).items()):
        if name.endswith("config") and hasattr(value, "__dict__"):
            object.__setattr__(module, name, copy.copy(value))


def assignments(candidates: list[Any]) -> Iterator[list[Any]]:
    """Which attributes to change, the likeliest first: all, none, then smaller and smaller sets."""
    yield candidates
    if candidates:
        yield []
    for size in range(len(candidates) - 1, 0, -1):
        for subset in itertools.islice(itertools.combinations(candidates, size), 32):
            yield list(subset)


def set_attributes(chosen: list[Any], new: bool) -> None:
    for owner, name, before, after in chosen:
        value = after if new else before
        if isinstance(owner, nn.Module):
            setattr(owner, name, value)
        else:
            vars(owner)[name] = value


Attributes = dict[str, list[tuple[str, str, int, int]]]


def follow_weights(
    small: nn.Module,
    changes: dict[str, ModuleChange],
    same: Callable[[str], bool | None],
    reached: Callable[[str], bool],
) -> tuple[Attributes, list[str]]:
    """Make every changed module consistent with its weights.

    Returns the attributes that were set without a rule, ``(configuration or "", name, old, new)`` by module, and the
    paths of the modules where it cannot be done.

    ``same(path)`` runs one module on its recorded inputs and says whether it gives what it gave before (``None``: its
    inputs or outputs shrink, so that only the whole model can tell); ``reached(path)``, whether a run of the compact
    model comes as far as that module.
    """
    attributes: Attributes = {}
    pending, refused = [], []
    for path, change in changes.items():
        module = small.get_submodule(path)
        rule = module_rule(module)
        if rule is not None:
            try:
                rule(module, change)
            except CompactionError:
                refused.append(path)
        elif change.sizes:
            own_configs(module)
            pending.append(path)
    last = False
    alike: dict[Any, set[Any]] = {}  # layers of one class take the same attributes: only the first is tried out
    while pending:
        left = []
        for path in pending:
            module = small.get_submodule(path)
            candidates = size_attributes(module, changes[path])
            kind = (type(module), tuple(_place(c, module) for c in candidates))
            if kind in alike:
                chosen = [c for c in candidates if _place(c, module) in alike[kind]]
                set_attributes(chosen, new=True)
            elif not last and not reached(path):
                left.append(path)  # what runs before it is not right yet
                continue
            else:
                chosen = _choose(candidates, lambda p=path: same(p))
            if chosen is None:
                left.append(path)
                continue
            alike[kind] = {_place(c, module) for c in chosen}
            if chosen:
                names = {id(v): k for k, v in vars(module).items()}
                attributes[path] = [(names.get(id(o), ""), name, old, new) for o, name, old, new in chosen]
        if len(left) == len(pending):
            if last:
                return attributes, [*refused, *left]
            last = True
        pending = left
    return attributes, refused


def _place(candidate: Any, module: nn.Module) -> tuple[bool, str]:
    return candidate[0] is module, candidate[1]


def _choose(candidates: list[Any], verdict: Callable[[], bool | None]) -> list[Any] | None:
    """Set the first assignment that is right, else the first that may be; ``None`` when all are wrong."""
    maybe: list[Any] | None = None
    for chosen in assignments(candidates):
        set_attributes(chosen, new=True)
        answer = verdict()
        if answer:
            return chosen
        set_attributes(chosen, new=False)
        if answer is None and maybe is None:
            maybe = chosen
    if maybe is not None:
        set_attributes(maybe, new=True)
    return maybe


def repeat_attributes(small: nn.Module, changes: dict[str, ModuleChange], attributes: Attributes) -> None:
    """Make modules consistent with their weights as :func:`follow_weights` found it out."""
    for path, change in changes.items():
        module = small.get_submodule(path)
        rule = module_rule(module)
        if rule is not None:
            with contextlib.suppress(CompactionError):  # its graph takes its place
                rule(module, change)
    for path, chosen in attributes.items():
        module = small.get_submodule(path)
        own_configs(module)
        for owner, name, old, new in chosen:
            holder = vars(module)[owner] if owner else module
            known = {(id(o), k, a, b) for o, k, a, b in size_attributes(module, changes[path])}
            if (id(holder), name, old, new) not in known:
                raise ValueError(f"{path!r} has no size {name!r} that goes from {old!r} to {new!r}")
            set_attributes([(holder, name, old, new)], new=True)
