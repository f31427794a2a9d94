"""Files that the commands read: there, whole, and of the kind that was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgating._reading import Stored, read_json, read_safetensors, refusing


def existing(path: Path) -> Path:
    """The path, if there is a file."""
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r}.")
    return path


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
