"""Files of the commands: those that they read are there and whole, those that they write replace nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dgating.files import Stored, read_json, read_safetensors, refusing


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths lead to one file that is there."""
    return a.exists() and b.exists() and a.samefile(b)


def check_output(option: str, out: Path, force: bool, reads: Iterable[Path] = ()) -> None:
    """Raise ``ValueError`` where a file would replace something that it must not.

    Args:
        option: of the command, for the message.
        out: the file that will be written.
        force: replace a file that is there. Folders, devices and what is read are never replaced.
        reads: files that the command reads.
    """
    if out.exists() and not out.is_file():
        raise ValueError(f"{option}: expected a file, {str(out)!r} is a folder or a device; name another one.")
    read = next((path for path in reads if same_file(out, path)), None)
    if read is not None:
        raise ValueError(f"{option}: expected a new file, {str(out)!r} is {read.name!r}, which is read; name another.")
    if os.path.lexists(out) and not force:
        raise ValueError(_there(option, out))
    above = next(place for place in Path(os.path.realpath(out)).parents if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(
            f"{option}: {str(out)!r} cannot be written, {str(above)!r} is no folder that may be written to."
        )


@contextmanager
def writing(option: str, out: Path) -> Iterator[None]:
    """Errors of the system, while a file is written, name the option."""
    try:
        yield
    except FileExistsError:
        raise ValueError(_there(option, out)) from None
    except OSError as error:
        raise ValueError(f"{option}: {str(out)!r} cannot be written ({error.strerror or error}).") from error


def _there(option: str, out: Path) -> str:
    return f"{option} {str(out)!r} is there already; name another file, or replace it by --force."


def checked_safetensors(path: Path) -> Stored:
    """The file with a checked header; a broken one is a ``ValueError`` that names it."""
    with refusing(f"{path.name!r} is not a whole safetensors file", "Write it again."):
        return read_safetensors(path)


def manifest_of(stored: Stored) -> dict[str, Any] | None:
    """The manifest of a file that ``save_compact`` wrote, ``None`` for other safetensors files."""
    try:
        manifest = read_json(stored.metadata.get("dgating", "null"))
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and "format" in manifest else None
