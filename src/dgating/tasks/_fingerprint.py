"""What a result depends on, in words and hashes that the next process finds again: the settings of a folder.

Functions are described by what they compute, not by their name: two lambdas are called the same.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEEPEST = 20
PIECE = 64 << 20  # bytes of an array at a time


def fingerprint(*arrays: Any) -> str:
    """A short hash of shapes, types and bytes; read in pieces."""
    digest = hashlib.sha256()
    for array in arrays:
        values = array.detach().cpu() if isinstance(array, Tensor) else np.asarray(array)
        digest.update(f"{tuple(values.shape)} {str(values.dtype).removeprefix('torch.')}".encode())
        flat = values.reshape(1) if values.ndim == 0 else values
        rows = max(1, PIECE // max(1, flat[:1].nbytes))
        for start in range(0, len(flat), rows):
            part = flat[start : start + rows]
            if isinstance(part, Tensor):  # as bytes: numpy has no bfloat16
                part = part.contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def described(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """JSON that is the same for the same value in any process, and another one for any other.

    Numbers, texts and containers stay; arrays, models and functions become hashes. Of a function count its code, its
    defaults, what it encloses and the plain values and functions of its own module that it names; what functions of
    other modules compute does not.

    Raises:
        TypeError: an object that nothing is known of.

    Example:
        >>> described({"lr": 0.1, "f": abs}), described(lambda x: x + 1) == described(lambda x: x + 2)
        ({'lr': 0.1, 'f': 'builtins.abs'}, False)
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in seen or len(seen) > DEEPEST:
        return "..."
    seen = (*seen, id(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return described(value.tolist(), seen)
    if isinstance(value, Tensor | np.ndarray):
        return fingerprint(value)
    if isinstance(value, Mapping):
        return {str(k): described(v, seen) for k, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [described(v, seen) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((described(v, seen) for v in value), key=repr)
    if isinstance(value, torch.dtype | torch.device | Path | bytes | complex | types.EllipsisType):
        return str(value)
    if isinstance(value, nn.Module):
        return _model(value, seen)
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if isinstance(value, types.MethodType):
        return [described(value.__func__, seen), described(value.__self__, seen)]
    if isinstance(value, functools.partial):
        return [described(part, seen) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType) or inspect.isroutine(value):
        return _name(value)
    if hasattr(value, "__dict__"):
        return {"type": _name(type(value)), **described(vars(value), seen), **_calls(type(value), "__call__", seen)}
    text = repr(value)
    if " at 0x" not in text:
        return text
    raise TypeError(
        f"folder: cannot tell one {type(value).__name__} from another in a later call; pass a number, a text, an "
        "array or a function, or leave folder=None."
    )


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', None) or ''}.{getattr(value, '__qualname__', value.__class__.__name__)}"


def _model(model: nn.Module, seen: tuple[int, ...]) -> dict[str, Any]:
    """Weights, structure, what is trained, and the forward of classes that are not torch's."""
    kinds = sorted({type(m) for m in model.modules()}, key=_name)
    return {
        "text": str(model),
        "weights": {name: fingerprint(t) for name, t in model.state_dict().items()},
        "trained": [p.requires_grad for p in model.parameters()],
        "forward": {
            _name(kind): _calls(kind, "forward", seen) for kind in kinds if not kind.__module__.startswith("torch.")
        },
    }


def _calls(kind: type, method: str, seen: tuple[int, ...]) -> dict[str, Any]:
    found = getattr(kind, method, None)
    return {method: _function(found, seen)} if isinstance(found, types.FunctionType) else {}


def _function(f: types.FunctionType, seen: tuple[int, ...]) -> list[Any]:
    cells = [cell.cell_contents for cell in f.__closure__ or () if _filled(cell)]
    named = {name: f.__globals__[name] for name in sorted(_names(f.__code__)) if name in f.__globals__}
    own = {
        name: value
        for name, value in named.items()
        if not isinstance(value, types.FunctionType) or value.__globals__ is f.__globals__
    }
    plain = (bool, int, float, str, tuple, list, dict, np.ndarray, Tensor, types.FunctionType)
    uses = {name: described(value, seen) if isinstance(value, plain) else _name(value) for name, value in own.items()}
    rest = {name: _name(value) for name, value in named.items() if name not in own}
    parts = [f.__defaults__, f.__kwdefaults__, cells, uses, rest]
    code = hashlib.sha256(repr(_code(f.__code__)).encode()).hexdigest()[:16]
    return [_name(f), code, described(parts, seen)]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:  # a name that has no value yet
        return False


def _names(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*(_names(c) for c in inner))


def _code(code: types.CodeType) -> list[Any]:
    constants = []
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            constants.append(_code(c))
        else:
            constants.append(sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c))
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]
