"""The archive of a ``.pt2`` file: which members it may have, and how they are read."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from dgating._text import plain

MEMBERS = re.compile(
    r"models/model\.json|archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
    r"|data/sample_inputs/model\.pt"
    r"|data/(weights|constants)/model_(weights|constants)_config\.json"
    r"|data/weights/weight_\d{1,9}|data/constants/tensor_\d{1,9}"
)
ROOT = re.compile(r"[^/\\\x00-\x1f]{1,255}")
CHUNK = 2**20
DIRECTORY = 2**23  # bytes of the list of members: 65,000 tensors; zipfile takes ten times as much to hold it


class Archive:
    """The members of an archive whose directory was checked, by their names below the root folder."""

    def __init__(self, archive: zipfile.ZipFile, file: str, members: re.Pattern[str] = MEMBERS) -> None:
        self.file = file
        self._archive = archive
        self._members = _checked(archive, file, members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def size(self, name: str) -> int:
        """Bytes of a member: as many as the file really has for it."""
        return self._members[name].file_size

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A whole member, at most ``limit`` bytes long.

        Raises:
            ValueError: no such member, a longer one, or one that is damaged.
        """
        if name not in self._members:
            raise ValueError(f"{self.file!r} is not a whole .pt2 file: it has no {name}.")
        if limit is not None and self.size(name) > limit:
            raise ValueError(
                f"{self.file!r}: expected at most {limit:,} bytes in {name}, received {self.size(name):,}."
            )
        with self._open(name) as member:
            return member.read()

    def numbers(self, name: str) -> bytearray:
        """A whole member, held once, for a tensor to use."""
        content = bytearray(self.size(name))
        view = memoryview(content)
        with self._open(name) as member:
            at = 0
            while piece := member.read(CHUNK):
                view[at : at + len(piece)] = piece
                at += len(piece)
        return content

    def copy(self, name: str, into: BinaryIO) -> None:
        """Write a member piece by piece."""
        with self._open(name) as member:
            while piece := member.read(CHUNK):
                into.write(piece)

    @contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
        try:
            with self._archive.open(self._members[name]) as member:
                yield member  # type: ignore[misc]
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{self.file!r} is damaged ({error}).") from None


@contextmanager
def directory(source: Path | BinaryIO, file: str) -> Iterator[zipfile.ZipFile]:
    """An archive whose list of members is short enough to be read. ``zipfile`` reads it before it can be asked."""
    with ExitStack() as stack:
        content = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        # the function by which zipfile itself finds the list: another reader could find another list
        end = zipfile._EndRecData(content)  # type: ignore[attr-defined]
        size = 0 if end is None else end[zipfile._ECD_SIZE]  # type: ignore[attr-defined]
        if size > DIRECTORY:
            raise ValueError(
                f"{file!r}: expected at most {DIRECTORY:,} bytes that list its members, received {size:,}."
            )
        content.seek(0)
        yield stack.enter_context(zipfile.ZipFile(content))


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """A ``.pt2`` file whose directory holds what ``torch.export.save`` writes, and nothing else.

    Raises:
        ValueError: another file, a damaged one, or one with members that are not expected.
    """
    try:
        with directory(path, path.name) as archive:
            if not any(name.endswith("/models/model.json") for name in archive.namelist()):
                raise ValueError(
                    f"{path.name!r} is not a whole .pt2 file, or one of an older torch: it holds no exported program. "
                    "Save it again with torch.export.save."
                )
            checked = Archive(archive, path.name)
            if "byteorder" in checked and checked.read("byteorder", 16) != b"little":
                raise ValueError(f"{path.name!r}: expected numbers in the byte order 'little'.")
            yield checked
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, OverflowError):
        raise ValueError(
            f"{path.name!r} is not a whole .pt2 file. Expected one written by torch.export.save."
        ) from None


def _checked(archive: zipfile.ZipFile, file: str, allowed: re.Pattern[str]) -> dict[str, zipfile.ZipInfo]:
    """The members by name; an error for a member that is unknown, twice there, packed, or larger than the file."""
    entries = archive.infolist()
    root = entries[0].orig_filename.partition("/")[0] if entries else ""
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        folder, _, name = entry.orig_filename.partition("/")  # filename is cut at a zero byte
        if folder != root or root in (".", "..") or not ROOT.fullmatch(root):
            raise ValueError(f"{file!r}: expected one folder in the archive, found {entry.orig_filename[:200]!r}.")
        if not allowed.fullmatch(name):
            raise ValueError(f"{file!r} holds {_kind(name)} ({plain(name)[:200]}), which are not opened.")
        if name in members:
            raise ValueError(f"{file!r} holds {plain(name)[:200]} twice.")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{file!r}: expected members as torch stores them, {plain(name)[:200]} is packed.")
        if entry.flag_bits & 0x1:
            raise ValueError(f"{file!r}: expected members as torch stores them, {plain(name)[:200]} is encrypted.")
        members[name] = entry
    assert archive.fp is not None
    archive.fp.seek(0, 2)
    if sum(entry.file_size for entry in entries) > archive.fp.tell():
        raise ValueError(f"{file!r} is damaged: its members are together larger than the file.")
    return members


def _kind(name: str) -> str:
    if name.startswith("data/aotinductor/"):
        return "compiled code"
    if name.startswith("data/") and not name.endswith("/"):
        return "pickled objects"
    return "unknown members"
