"""The tensors in a ``.pt2`` file: what is said of them, against the bytes that are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgating.cli.listing import numel
from dgating.cli.pt2_archive import Archive
from dgating.cli.pt2_grammar import device, path
from dgating.files import MOST_BYTES, named_json

DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool, 13: torch.bfloat16,
    28: torch.uint16, 29: torch.float8_e4m3fn, 30: torch.float8_e5m2, 31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz, 33: torch.float8_e8m0fnu, 34: torch.uint32, 35: torch.uint64,
}  # fmt: skip
FOLDERS = ("weights", "constants")
SLACK = 2**26  # bytes that tensors which repeat their numbers may have beyond four times those stored


@dataclass(frozen=True)
class Stored:
    """A tensor in the archive: strided numbers in one of its members."""

    name: str
    member: str
    is_param: bool
    requires_grad: bool
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    entry: dict[str, Any]

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return numel(self.shape)

    def read(self, archive: Archive) -> Tensor:
        """The tensor itself."""
        if not self.numel:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(archive.numbers(self.member), dtype=self.dtype)
        return flat.as_strided(self.shape, self.strides, self.offset)


def stored_tensors(archive: Archive) -> list[Stored]:
    """The weights and constants of a program.

    Raises:
        ValueError: a pickled one, or one that says more than the bytes that the file has for it.
    """
    found = [t for folder in FOLDERS for t in _tensors(archive, folder)]
    named = {t.member for t in found}
    for member in archive:
        if member.rpartition("/")[2].startswith(("weight_", "tensor_")) and member not in named:
            raise ValueError(f"{archive.file!r} holds {member}, which no tensor uses.")
    bytes_ = sum(t.numel * t.dtype.itemsize for t in found)
    limit = 4 * sum(archive.size(m) for m in named) + SLACK
    if bytes_ > limit:
        raise ValueError(f"{archive.file!r}: its tensors would take {bytes_:,} bytes, expected at most {limit:,}.")
    return found


def config_of(tensors: list[Stored], folder: str) -> dict[str, Any]:
    """What torch reads about the tensors of one folder, written anew."""
    return {"config": {t.name: t.entry for t in tensors if t.member.startswith(f"data/{folder}/")}}


def config_member(folder: str) -> str:
    """The member that describes the tensors of a folder."""
    return f"data/{folder}/model_{folder}_config.json"


def _tensors(archive: Archive, folder: str) -> Iterator[Stored]:
    member = config_member(folder)
    config = named_json(archive.read(member, MOST_BYTES), f"{archive.file!r}, {member}")
    try:
        entries = dict(config["config"])
        for name, entry in entries.items():
            yield _tensor(archive, folder, str(name), entry)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(
            f"{archive.file!r}: {member} does not describe tensors ({type(error).__name__}: {error})."
        ) from None


def _tensor(archive: Archive, folder: str, name: str, entry: dict[str, Any]) -> Stored:
    where = f"{archive.file!r}, tensor {name[:80]!r}"
    meta, record = entry["tensor_meta"], f"data/{folder}/{entry['path_name']}"
    if entry["use_pickle"] is not False or meta is None:
        raise ValueError(f"{archive.file!r} holds pickled objects ({record}), which are not opened.")
    if record not in archive:
        raise ValueError(f"{archive.file!r} is not a whole .pt2 file: it has no {record[:80]}.")
    try:
        path(name)
        kind = device(meta["device"]["type"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from None
    dtype = DTYPES.get(meta["dtype"])
    shape, strides = _whole(meta["sizes"]), _whole(meta["strides"])
    (offset,) = _whole([meta["storage_offset"]])
    if dtype is None or len(shape) != len(strides) or len(shape) > 64 or meta["layout"] != 7:
        raise ValueError(f"{where}: expected a dense tensor, received dtype {meta['dtype']}, layout {meta['layout']}.")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    numbers = numel(shape)
    size = archive.size(record)
    if (numbers and (last + 1) * dtype.itemsize > size) or size % dtype.itemsize or numbers >= 2**62:
        raise ValueError(f"{where}: {list(shape)} of {dtype} does not fit the {size:,} bytes that the file has for it.")
    clean = {
        "path_name": entry["path_name"],
        "is_param": bool(entry["is_param"]),
        "use_pickle": False,
        "tensor_meta": {
            "dtype": meta["dtype"],
            "sizes": [{"as_int": n} for n in shape],
            "requires_grad": bool(meta["requires_grad"]),
            "device": {"type": kind, "index": None},
            "strides": [{"as_int": n} for n in strides],
            "storage_offset": {"as_int": offset},
            "layout": 7,
        },
    }
    grad = bool(meta["requires_grad"])
    return Stored(name, record, bool(entry["is_param"]), grad, dtype, shape, strides, offset, clean)


def _whole(sizes: list[dict[str, Any]]) -> tuple[int, ...]:
    numbers = tuple(size["as_int"] for size in sizes)
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise TypeError("sizes that are no whole numbers")
    return numbers
