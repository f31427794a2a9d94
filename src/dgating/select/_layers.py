"""Choose layers of a model by instance, type, name pattern or predicate."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch import nn

Rule: TypeAlias = "nn.Module | type[nn.Module] | str | Callable[[str, nn.Module], bool]"
Rules: TypeAlias = "Rule | Iterable[Rule]"


def layers(model: nn.Module, include: Rules, exclude: Rules = ()) -> dict[str, nn.Module]:
    """Modules of a model that match a rule, by path.

    Args:
        model: where to look.
        include: one rule or several: a module instance, a module type, a glob on the path (``"blocks.*.mlp"``), or a
            predicate ``f(path, module) -> bool``. A module is chosen when any rule matches.
        exclude: rules of the same kinds that take modules out again.

    Returns:
        Path to module, in registration order.

    Raises:
        ValueError: nothing matches (near names are listed).
        TypeError: a rule of another kind.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> list(dg.layers(net, torch.nn.Linear, exclude="2"))
        ['0']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, received {type(model).__name__}.")
    wanted, unwanted = _rules(include), _rules(exclude)
    everything = {path: m for path, m in model.named_modules() if "parametrizations" not in path.split(".")}
    chosen = {
        path: m
        for path, m in everything.items()
        if any(_matches(r, path, m) for r in wanted) and not any(_matches(r, path, m) for r in unwanted)
    }
    if not chosen:
        raise ValueError(
            f"layers: nothing in {type(model).__name__} matches include={_say(wanted)}"
            + (f" after exclude={_say(unwanted)}" if unwanted else "")
            + f". Near names: {_near(wanted, everything)}."
        )
    return chosen


def _rules(rules: Rules) -> list[Rule]:
    single = isinstance(rules, nn.Module | type | str) or (callable(rules) and not isinstance(rules, Iterable))
    out = [rules] if single or not isinstance(rules, Iterable) else list(rules)
    for rule in out:
        if not (isinstance(rule, nn.Module | str) or callable(rule)):
            raise TypeError(
                f"layers: expected a module, a module type, a glob or a predicate, received {type(rule).__name__}."
            )
    return out  # type: ignore[return-value]


def _matches(rule: Rule, path: str, module: nn.Module) -> bool:
    if isinstance(rule, nn.Module):
        return module is rule
    if isinstance(rule, type):
        return isinstance(module, rule)
    if isinstance(rule, str):
        return fnmatch.fnmatchcase(path, rule)
    return bool(rule(path, module))


def _say(rules: list[Rule]) -> str:
    return str([r if isinstance(r, str) else getattr(r, "__name__", type(r).__name__) for r in rules])


def _near(rules: list[Rule], everything: dict[str, nn.Module]) -> list[str]:
    paths = [p for p in everything if p]
    near = [n for r in rules if isinstance(r, str) for n in difflib.get_close_matches(r, paths, n=3, cutoff=0.3)]
    return list(dict.fromkeys(near))[:5] or [f"{p} ({type(everything[p]).__name__})" for p in paths[:5]]
