"""Data sets that come in an archive: read from it, or from its unpacked files, compressed one by one or not."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from experiments.data._files import DataDamaged, DataMissing, File, fetch, places, verified

UNREADABLE = (zlib.error, lzma.LZMAError, EOFError, OSError, KeyError, zipfile.BadZipFile, tarfile.TarError)


@dataclass(frozen=True)
class Part:
    """One file inside an archive.

    Args:
        path: inside the archive, and below the archive's folder once unpacked.
        sha256: of its bytes when nothing compresses it any more; ``None`` where no source states one.
    """

    path: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The last piece of the path."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Parts:
    """The parts of an archive, found and not read yet: in an archive, or each in a file of its own."""

    archive: Archive
    packed: Path | None
    unpacked: tuple[Path, ...] = ()

    def read(self) -> dict[str, bytes]:
        """All parts, by name, in one pass: a compressed tar file cannot be read out of order.

        Raises:
            DataDamaged: unreadable, incomplete, or of another checksum.
        """
        parts = self.archive.parts
        content = {}
        if self.packed is not None:
            with _readable(self.packed):
                content = _packed(self.packed, self.archive)
        for part, path in zip(parts, self.unpacked, strict=not self.packed):
            with _readable(path):
                content[part.name] = _inflated(path.read_bytes(), path.name)
        for part in parts:
            received = hashlib.sha256(content[part.name]).hexdigest()
            if part.sha256 not in (None, received):
                where = self.packed or self.unpacked[parts.index(part)]
                raise DataDamaged(f"{where}: expected {part.name} of sha256 {part.sha256}, received {received}.")
        return content


@dataclass(frozen=True)
class Archive:
    """An archive, or its unpacked files.

    Args:
        folder: where archive and unpacked files lie, relative to the folder of data sets.
        parts: what is read of it.
        files: the archive, by any of its names; the first is fetched where there is none.
        ending: what the names of its parts end with besides, inside the archive (``".Z"``).
        inner: an archive in the archive that holds the parts.
    """

    folder: str
    parts: tuple[Part, ...]
    files: tuple[File, ...] = ()
    ending: str = ""
    inner: str | None = None

    def find(self, folder: str | Path | None = None, *, download: bool = True) -> Parts:
        """The parts, all from one place: unpacked files before archives there.

        Raises:
            DataMissing: no place has all; the message lists the unpacked files that a place lacks.
            DataDamaged: an archive of other bytes than expected.
        """
        lacking = []
        for place in places(folder):
            found = [_one_of(place / self.folder / part.path) for part in self.parts]
            here = tuple(path for path in found if path is not None)
            if len(here) == len(found):
                if any(path.suffix == ".Z" for path in here):
                    self._can_uncompress()
                return Parts(self, None, here)
            for file in self.files:
                if (path := place / file.path).is_file():
                    return self._opened(verified(path, file))
            if here:
                names = [part.path for part, path in zip(self.parts, found, strict=True) if path is None]
                lacking.append(f" {place / self.folder} lacks {', '.join(names)}.")
        also = f" Or unpack it: {self._unpacked()} (or these as .gz, .xz, .Z).{''.join(lacking)}"
        if not self.files:
            raise DataMissing(f"{self.folder}: not found. Put these into FOLDER: {self._unpacked()}.{''.join(lacking)}")
        if self.ending == ".Z":
            self._can_uncompress()
        return self._opened(fetch(self.files[0], download, also))

    def _opened(self, path: Path) -> Parts:
        if self.ending == ".Z":
            self._can_uncompress()
        return Parts(self, path)

    def _unpacked(self) -> str:
        return ", ".join(f"{self.folder}/{part.path}" for part in self.parts)

    def _can_uncompress(self) -> None:
        """Say so before a run begins, not in the middle of it."""
        if importlib.util.find_spec("uncompresspy") is None:
            home = f" from {self.files[0].url}" if self.files else ""
            raise DataMissing(
                f"{self.folder}: the files{home} end in .Z (Unix compress), which Python cannot open. "
                f"Either pip install uncompresspy (it needs Python 3.11), or unpack them with uncompress or gzip -d, "
                f"put {self._unpacked()} into FOLDER, and pass --data FOLDER or set DGATING_DATA=FOLDER."
            )


@dataclass(frozen=True)
class Either:
    """The first archive where a folder has it, else the second, which may be fetched."""

    first: Archive
    second: Archive

    def find(self, folder: str | Path | None = None, *, download: bool = True) -> Parts:
        """Like :meth:`Archive.find`."""
        try:
            return self.first.find(folder, download=False)
        except DataMissing as error:
            instead = str(error)
        try:
            return self.second.find(folder, download=download)
        except DataMissing as error:
            raise DataMissing(f"{instead} Instead of these: {error}") from None


def _one_of(path: Path) -> Path | None:
    """The file, plain or compressed."""
    for ending in ("", *INFLATE):
        if (file := path.with_name(path.name + ending)).is_file():
            return file
    return None


def _packed(path: Path, archive: Archive) -> dict[str, bytes]:
    wanted = {part.path + archive.ending: part.name for part in archive.parts}
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as outer:
            if archive.inner not in outer.namelist():
                content = {name: outer.read(name) for name in wanted}
            else:
                with zipfile.ZipFile(io.BytesIO(outer.read(archive.inner))) as inner:
                    content = {name: inner.read(name) for name in wanted}
    else:
        content = {}
        with tarfile.open(path) as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))  # some archives say ./name
                if name in wanted and (file := tar.extractfile(member)) is not None:
                    content[name] = file.read()
    return {short: _inflated(content[name], name) for name, short in wanted.items()}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise DataDamaged(f"{path}: expected a whole file, received one that cannot be read ({error}).") from error


def _inflated(content: bytes, name: str) -> bytes:
    return INFLATE.get(PurePosixPath(name).suffix, bytes)(content)


def _uncompress(content: bytes) -> bytes:
    lzw = importlib.import_module("uncompresspy")  # optional, and without types
    try:
        with lzw.LZWFile(io.BytesIO(content), warn_truncation=False) as file:
            return file.read()
    except ValueError as error:
        raise EOFError(str(error)) from None


INFLATE: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress, ".Z": _uncompress}
