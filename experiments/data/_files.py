"""Files of data sets: where they are looked for, how they are checked, and what is said where one is missing."""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
from dataclasses import dataclass
from pathlib import Path

from experiments.data._download import download as fetch_url

VARIABLE = "DGATING_DATA"


class DataMissing(FileNotFoundError):
    """A file is in no folder and could not be fetched; the message says where to get it and where to put it."""


class DataDamaged(ValueError):
    """A file is there, and not the one expected."""


@dataclass(frozen=True)
class File:
    """One file of a data set.

    Args:
        path: relative to the folder of data sets.
        sha256: of its bytes, in hexadecimal; ``None`` where no source states one.
        url: its official home; ``None`` where it has none.
        bytes: its size.

    Raises:
        ValueError: something to download of which neither checksum nor size is known.
    """

    path: str
    sha256: str | None
    url: str | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        """What is fetched must be checked."""
        if self.url is not None and self.sha256 is None and self.bytes is None:
            raise ValueError(f"{self.path}: expected a checksum or a size for what is downloaded.")


def cache() -> Path:
    """The folder for downloads: ``$XDG_CACHE_HOME/dgating``, or ``~/.cache/dgating``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgating"


def places(folder: str | Path | None) -> list[Path]:
    """Folders to look in, first to last: the given one, that of ``DGATING_DATA``, the cache.

    Raises:
        DataMissing: one of the first two does not exist; a typing error must not start a download.
    """
    named = {"--data": folder, VARIABLE: os.environ.get(VARIABLE)}
    out = []
    for name, place in named.items():
        if place:
            if not Path(place).is_dir():
                raise DataMissing(f"{name}: expected a folder, {str(place)!r} is none.")
            out.append(Path(place))
    return [*out, cache()]


def find(file: File, folder: str | Path | None = None, *, download: bool = True) -> Path:
    """The file, checked: from the folder, from that of ``DGATING_DATA``, from the cache, or from its home.

    A file is hashed once in a process: about a second for 800 MB, little beside reading it.

    Args:
        file: which.
        folder: where to look first.
        download: fetch it into the cache where no folder has it.

    Raises:
        DataMissing: nowhere to be found, and not to be fetched.
        DataDamaged: found or fetched with other bytes than expected; what was fetched is not kept.
    """
    for place in places(folder):
        if (path := place / file.path).is_file():
            return verified(path, file)
    return fetch(file, download)


def verified(path: Path, file: File) -> Path:
    """The path, after a look at its bytes. Raises ``DataDamaged``."""
    if wrong := _wrong(path, file):
        home = "" if file.url is None else f" and get {file.url} again"
        raise DataDamaged(f"{path}: expected {wrong}. The file is damaged or another version: delete it{home}.")
    return path


def fetch(file: File, download: bool = True, also: str = "") -> Path:
    """The file in the cache, fetched from its home.

    Args:
        file: which.
        download: without it, only say what is missing.
        also: a last sentence for the message: other files that would do.

    Raises:
        DataMissing: no home, no permission to download, or no success.
        DataDamaged: other bytes than expected; they are not kept.
    """
    target = cache() / file.path
    if file.url is None:
        why = "no official home offers it"
    elif not download:
        why = "downloading was not asked for"
    else:

        def check(temporary: Path) -> None:
            if wrong := _wrong(temporary, file):
                raise DataDamaged(f"{file.url}: expected {wrong}. The download was not kept.")

        try:
            fetch_url(file.url, target, check)
        except (OSError, http.client.HTTPException) as error:
            why = f"download failed: {error}"
        else:
            return target
    home = "Put" if file.url is None else f"Get {file.url} and put"
    raise DataMissing(
        f"{file.path}: not found ({why}). {home} the file at FOLDER/{file.path}, "
        f"then pass --data FOLDER or set {VARIABLE}=FOLDER.{also}"
    )


def _wrong(path: Path, file: File) -> str:
    """What differs, as words after 'expected'; empty where nothing does."""
    stat = path.stat()
    if file.bytes is not None and stat.st_size != file.bytes:
        return f"{file.bytes} bytes, received {stat.st_size}"
    if file.sha256 is not None:
        received = _sha256(path, stat.st_size, stat.st_mtime_ns)
        if received != file.sha256:
            return f"sha256 {file.sha256}, received {received}"
    return ""


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:  # size and time: a replaced file is hashed anew
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while piece := content.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
