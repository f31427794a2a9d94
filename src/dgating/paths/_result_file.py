"""The file of a ``RegularizationPath``: how it is written, and what is checked before a path is made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from dgating._checks import MOST_DEPTH
from dgating.files import read_json, read_safetensors, seal_safetensors

FORMAT, UNSEALED = "dgating/path/2", "dgating/path/1"
REAL = ("lam", "loss", "objective", "score", "standard_error", "seconds")
COUNTS = ("parameters", "flops", "steps")
NUMBERS = (*REAL[:5], *COUNTS, "seconds")
NOT_FINITE = ("nan", "inf", "-inf")  # JSON has no such numbers


class Walked(Protocol):
    """What a file holds of a path."""

    @property
    def points(self) -> Sequence[Any]:
        """The points."""
        ...

    @property
    def depth(self) -> int:
        """The depth D."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """How it was walked."""
        ...


def path_to_bytes(path: Walked, folder: str | None = None) -> bytes:
    """The content of a file; ``folder`` is the key of the folder that it belongs to, if to one."""
    tensors: dict[str, Tensor] = {}
    for i, p in enumerate(path.points):
        for kind in ("kept", "norms", "state"):
            tensors |= {f"{i}/{kind}/{n}": t.contiguous().clone() for n, t in getattr(p, kind).items()}
    header = {
        "format": FORMAT,
        "folder": folder,
        "depth": path.depth,
        "settings": path.settings,
        "points": [{n: _json(getattr(p, n)) for n in NUMBERS} for p in path.points],
    }
    return seal_safetensors(save(tensors), json.dumps(header))


def path_from_file(where: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and points of a file.

    Raises:
        ValueError: (or another of :data:`~dgating.files._reading.MALFORMED`) damaged, changed or of another kind.
    """
    stored = read_safetensors(where)
    header = read_json(stored.metadata.get("dgating", "null"))
    if not isinstance(header, dict) or header.get("format") not in (FORMAT, UNSEALED):
        raise ValueError(f"expected the format {FORMAT!r}")
    if header["format"] == FORMAT and not stored.sealed:
        raise ValueError("it has no checksum")
    depth, points = header["depth"], header["points"]
    if type(depth) is not int or not 2 <= depth <= MOST_DEPTH or not isinstance(header["settings"], dict):
        raise ValueError(f"depth {repr(depth)[:80]}, or settings that are no object")
    if not isinstance(points, list):
        raise ValueError("its points are no list")
    parts: list[dict[str, Any]] = [
        {"kept": {}, "norms": {}, "state": {}, **_numbers(numbers, i)} for i, numbers in enumerate(points)
    ]
    for key, t in stored.tensors().items():
        number, kind, name = key.split("/", 2)
        if number != str(int(number)) or int(number) not in range(len(parts)):
            raise ValueError(f"a tensor of point {number[:20]} of {len(parts)}")
        parts[int(number)][kind][name] = t
    for part in parts:
        _check_groups(part, parts[0])
    return header, parts


def _numbers(numbers: Any, i: int) -> dict[str, Any]:
    if not isinstance(numbers, dict) or numbers.keys() != set(NUMBERS):
        raise ValueError(f"point {i} has other numbers than {list(NUMBERS)}")
    made: dict[str, Any] = {}
    for name, given in numbers.items():
        value = float(given) if name in REAL and given in NOT_FINITE else given
        if type(value) not in ((int, float) if name in REAL else (int,)) or (name in COUNTS and value < 0):
            raise ValueError(f"point {i} has the {name} {repr(value)[:80]}")
        made[name] = value
    if not 0 <= made["lam"] < math.inf:
        raise ValueError(f"point {i} has the lam {made['lam']}")
    return made


def _check_groups(part: dict[str, Any], first: dict[str, Any]) -> None:
    """Masks and norms of the same groups at every point, and weights of the same names and sizes or none."""
    kept, norms, state = part["kept"], part["norms"], part["state"]
    if not kept.keys() == norms.keys() == first["kept"].keys() or state.keys() != first["state"].keys():
        raise ValueError("its points have other groups or weights than the first")
    for name, mask in kept.items():
        size = first["kept"][name].shape
        if mask.dtype != torch.bool or mask.ndim != 1 or mask.shape != size or norms[name].shape != size:
            raise ValueError(f"masks and norms of {name[:80]!r} that do not belong together")
        if not norms[name].is_floating_point() or not torch.equal(mask.view(torch.uint8), (norms[name] > 0).byte()):
            raise ValueError(f"groups of {name[:80]!r} that are left, and have no norm above zero")
        if not bool((norms[name].isfinite() & (norms[name] >= 0)).all()):
            raise ValueError(f"norms of {name[:80]!r} that are no norms")
    if any(t.shape != first["state"][name].shape or t.dtype != first["state"][name].dtype for name, t in state.items()):
        raise ValueError("its points have weights of different sizes")


def _json(x: float) -> Any:
    return x if math.isfinite(x) else str(x)
