"""Arguments that can only be mistakes are refused before any work: one check a kind of argument."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, jit, nn
from torch.nn.parameter import is_lazy

MOST_DEPTH = 64  # a gate tensor has D - 1 numbers a group, and a file could ask for any number
MOST_LAMS = 100_000
MOST_SEED = (1 << 63) - 1


def check_number(name: str, value: object) -> None:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, received {type(value).__name__}. Convert it with float().")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond all floats
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name}: expected a finite number >= 0, received {repr(value)[:40]}.")


def check_depth(depth: object, least: int = 2) -> int:
    """Raise unless ``depth`` is a whole number from ``least`` to :data:`MOST_DEPTH`."""
    number = int(depth) if isinstance(depth, Integral) and not isinstance(depth, bool) else None
    if number is not None and least <= number <= MOST_DEPTH:
        return number
    raise (TypeError if number is None else ValueError)(
        f"depth: expected a whole number >= {least}, at most {MOST_DEPTH} (2 = group lasso, 3 and 4 = sparser, not "
        f"convex), received {depth!r}."
    )


def check_whole(name: str, value: object, low: int, high: int | None = None) -> int:
    """A whole number in a range."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if number is None or number < low or (high is not None and number > high):
        most = "" if high is None else f", at most {high}"
        raise ValueError(f"{name}: expected a whole number >= {low}{most}, received {value!r}.")
    return number


def check_positive(name: str, value: Any) -> None:
    """A finite number above zero."""
    check_number(name, value)
    if not value > 0:
        raise ValueError(f"{name}: expected a finite number > 0, received {value!r}.")


def check_below_one(name: str, value: Any, zero: bool) -> None:
    """A number in ``[0, 1)``, or in ``(0, 1)`` without ``zero``."""
    check_number(name, value)
    if value >= 1 or (value == 0 and not zero):
        raise ValueError(f"{name}: expected a number in {'[' if zero else '('}0, 1), received {value!r}.")


def check_seed(seed: object) -> None:
    """A seed that torch and numpy take."""
    check_whole("seed", seed, 0, MOST_SEED)


def check_device(device: Any) -> None:
    """A device that is there."""
    if device is None:
        return
    try:
        kind = torch.device(device).type
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(
            f"device: expected one that this machine has, received {device!r} ({said}). Take device='cpu'."
        ) from None
    if kind == "meta":
        raise ValueError("device: expected one that computes, received 'meta'. Take device='cpu'.")


def check_callable(name: str, value: object, what: str) -> None:
    """A function or ``None``."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}: expected {what} or None, received {type(value).__name__}.")


def check_lams(lams: Any) -> int | list[float] | None:
    """``None``, a number of strengths, or rising strengths as floats."""
    if lams is None:
        return None
    if isinstance(lams, Integral):  # True is one, too
        return check_whole("lams", lams, 1, MOST_LAMS)
    given = lams.tolist() if hasattr(lams, "tolist") else lams
    if not isinstance(given, Sequence) or isinstance(given, str | bytes | bytearray):
        raise TypeError(f"lams: expected rising strengths, a number of them or None, received {type(lams).__name__}.")
    for lam in given:
        check_number("lams", lam)
    out = [float(lam) for lam in given]
    if not out or any(b <= a for a, b in itertools.pairwise(out)):
        raise ValueError(f"lams: expected rising strengths, received {out[:5]}. Use sorted(lams).")
    return out


def check_strengths(lams: Any) -> None:
    """A number of strengths, or strengths ``>= 0`` in any order."""
    if isinstance(lams, Integral):  # True is one, too
        check_whole("lams", lams, 1, MOST_LAMS)
        return
    given = np.asarray(lams)
    good = given.ndim == 1 and given.dtype.kind in "iuf" and given.size > 0
    if not good or not np.isfinite(given).all() or given.min() < 0:
        raise ValueError(f"lams: expected a number of strengths, or strengths >= 0, received {repr(lams)[:80]}.")


def check_rows(what: str, rows: Any, n: int) -> np.ndarray:
    """Row numbers of a fold in ``0 .. n - 1``."""
    made = np.asarray(rows)
    if made.size == 0:
        raise ValueError(f"{what}: expected rows, received none.")
    if made.ndim != 1 or made.dtype.kind not in "iu":
        raise ValueError(
            f"{what}: expected row numbers, received {made.dtype} of shape {made.shape}. Of a mask, take flatnonzero."
        )
    if made.min() < 0 or made.max() >= n:
        raise ValueError(f"{what}: expected row numbers in 0 .. {n - 1}, received {made.min()} .. {made.max()}.")
    return made.astype(np.int64)


def check_fold(number: int, fold: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows of a fold: each of them once, and none in both."""
    if not isinstance(fold, tuple | list) or len(fold) != 2:
        raise ValueError(f"folds: expected pairs of row numbers (to train on, to score), fold {number} is no pair.")
    parts = []
    for what, rows in zip(("train", "score"), fold, strict=True):
        made = check_rows(f"folds: rows of fold {number} to {what} on", rows, n)
        if len(np.unique(made)) != len(made):
            raise ValueError(f"folds: expected every row once, fold {number} has rows to {what} on twice.")
        parts.append(made)
    both = np.intersect1d(*parts)
    if len(both):
        raise ValueError(
            f"folds: fold {number} is scored on {len(both)} rows that it is trained on, such as {both[0]}: the score "
            "would flatter it."
        )
    return parts[0], parts[1]


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
