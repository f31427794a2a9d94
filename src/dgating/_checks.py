"""Checks of arguments: models that can be worked on (eager, bare, every tensor there), tensors, names and paths."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, jit, nn
from torch.nn.parameter import is_lazy


def check_eager(model: object, name: str = "model") -> None:
    """Refuse what hides its modules and parameters: scripted, compiled and wrapped models."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, received {type(model).__name__}.")
    if isinstance(model, jit.ScriptModule):
        raise TypeError(
            f"{name}: expected an eager torch.nn.Module, received a scripted one. Gate and compact before torch.jit."
        )
    kind = type(model).__name__
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or kind == "OptimizedModule":
        raise ValueError(
            f"{name}: expected the bare model, received it wrapped in {kind}, which would not see the new parameters. "
            "Gate or compact first, then wrap or compile."
        )


def check_weights(model: object, name: str = "model") -> None:
    """Refuse what is no module, and a module with tensors that are not there."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, received {type(model).__name__}.")
    for path, p in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(p):
            raise ValueError(
                f"{name}: expected initialised tensors, received {path!r}, which is lazy. Run one forward pass first."
            )
        if p.is_meta:
            raise ValueError(
                f"{name}: expected weights, received {path!r}, which is on 'meta'. Materialise the model first."
            )


def check_path(name: str, value: object) -> Path:
    """A path of text; ``pathlib.Path`` takes some other things, and says nothing about the argument."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a path, received {type(value).__name__}.")
    return Path(text)


def check_folder(name: str, value: object) -> Path:
    """A path where a folder is, or nothing."""
    path = check_path(name, value)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{name}: expected a folder, {str(path)!r} is a file; name another one.")
    return path


def check_dense(name: str, value: object) -> Tensor:
    """A dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, received {type(value).__name__}.")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, received {value.layout}.")
    return value


def check_text(name: str, value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected text, received {type(value).__name__}.")
    return value


def check_real(name: str, value: object) -> Tensor:
    """A dense tensor of real floating-point numbers."""
    tensor = check_dense(name, value)
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected floating-point numbers, received {tensor.dtype}.")
    return tensor
