"""What ``dgating compact`` works on: a program in a ``.pt2`` file, or a model built by a Python function."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dgating._text import plain
from dgating.cli.files import checked_safetensors, manifest_of
from dgating.compaction import load_compact
from dgating.files import existing
from dgating.structure import split_inputs

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+)(?::(?P<high>\d+))?)?")


@dataclass(frozen=True)
class Subject:
    """A model, what to call it on, and what its compact form can be."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Literal["module", "graph"]
    free: dict[str, list[int]] | None = None  # free axes of a program's inputs; None: a model's own code decides

    @property
    def free_batch(self) -> bool:
        """Whether files that are written from it can have a free batch axis."""
        return self.free is None or any(0 in axes for axes in self.free.values())

    @property
    def fixed_axes(self) -> list[str]:
        """Axes that are free now and are fixed in the files that are written."""
        return [f"{name}.shape[{a}]" for name, axes in (self.free or {}).items() for a in axes if a != 0]


def subject(model: str, weights: Path | None, shapes: list[str], inputs: str | None) -> Subject:
    """The model that the options describe.

    Raises:
        ValueError: options that do not go together, or that name nothing.
    """
    if inputs is not None and shapes:
        raise ValueError("--input and --inputs: expected one of them, received both.")
    if model.lower().endswith(".pt2"):
        return _program(existing(Path(model)), weights, shapes, inputs)
    if not FUNCTION.fullmatch(model):
        raise ValueError(f"MODEL: expected a .pt2 file or package.module:function, received {model!r}.")
    if inputs is None and not shapes:
        raise ValueError(
            "expected the inputs of the model: --input 2x3x32x32 for each, or --inputs package.module:function."
        )
    built = call(model)
    if not isinstance(built, nn.Module):
        raise ValueError(f"MODEL: {model} returned {type(built).__name__}, expected a torch.nn.Module.")
    if weights is not None:
        built = load_weights(built, existing(weights))
    args, kwargs = split_inputs(call(inputs)) if inputs is not None else made_up(shapes)
    return Subject(built.eval(), args, kwargs, "module")


def _program(path: Path, weights: Path | None, shapes: list[str], inputs: str | None) -> Subject:
    from dgating.cli.pt2 import free_axes, inputs_of, module_of, read_program

    if weights is not None or inputs is not None:
        raise ValueError("--weights and --inputs belong to a model built by a function; a .pt2 file holds its own.")
    program = read_program(path)
    args, named = made_up(shapes)
    args, kwargs = inputs_of(program, [*args, *named.values()] or None)
    return Subject(module_of(program), args, kwargs, "graph", free_axes(program))


def call(name: str) -> Any:
    """The result of ``package.module:function``, looked for in the current folder, too."""
    if not FUNCTION.fullmatch(name):
        raise ValueError(f"expected package.module:function, received {name!r}.")
    module_name, _, attribute = name.partition(":")
    try:
        with _from_here():
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{name}: cannot import {module_name!r} ({error}).") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{name}: expected a function, {module_name!r} has {type(function).__name__} there.")
    try:
        return function()
    except Exception as error:
        raise ValueError(f"{name}() failed: {type(error).__name__}: {error}") from error


def sources(*names: str | None) -> list[Path]:
    """The files of the modules that ``package.module:function`` names, before they are imported."""
    found = []
    for name in names:
        if name is None or not FUNCTION.fullmatch(name):
            continue
        with _from_here(), suppress(ImportError, ValueError, AttributeError):  # importing it says what is wrong
            spec = importlib.util.find_spec(name.partition(":")[0])
            if spec is not None and spec.has_location and spec.origin is not None:
                found.append(Path(spec.origin))
    return found


def imported() -> list[Path]:
    """The files of all modules that are imported by now."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return [Path(file) for file in files if isinstance(file, str)]


@contextmanager
def _from_here() -> Iterator[None]:
    """Find modules in the current folder, too."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """The model with the weights of a file: a plain state dict, or one written by ``save_compact``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    if path.suffix.lower() != ".safetensors":
        raise ValueError(
            f"--weights: expected a .safetensors file, received {path.name!r}. Pickled files are not read."
        )
    if manifest_of(checked_safetensors(path)) is not None:
        return load_compact(model, path)
    try:
        load_model(model, path)
    except (SafetensorError, RuntimeError) as error:
        reason = plain(" ".join(str(error).split()))
        raise ValueError(f"--weights: {path.name!r} does not fit {type(model).__name__}: {reason}") from error
    return model


def made_up(shapes: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random inputs from descriptions such as ``2x3x32x32``, ``ids=2x16:int64:1000`` or ``mask=2x16:ones``."""
    generator = torch.Generator().manual_seed(0)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for text in shapes:
        found = SHAPE.fullmatch(text)
        dtype = getattr(torch, (found["dtype"] or "float32") if found else "", None)
        if found is None or (not isinstance(dtype, torch.dtype) and found["dtype"] != "ones"):
            raise ValueError(
                f"--input: expected [NAME=]SHAPE[:DTYPE[:HIGH]] such as 2x3x32x32, ids=2x16:int64:1000 or "
                f"mask=2x16:ones, received {text!r}."
            )
        size = [int(n) for n in found["shape"].split("x")]
        if found["dtype"] == "ones":
            made = torch.ones(size, dtype=torch.int64)
        elif dtype.is_floating_point or dtype.is_complex:  # type: ignore[union-attr]
            made = torch.randn(size, generator=generator).to(dtype)
        else:
            made = torch.randint(0, int(found["high"] or 2), size, generator=generator).to(dtype)
        if found["name"]:
            kwargs[found["name"]] = made
        else:
            args.append(made)
    return tuple(args), kwargs
