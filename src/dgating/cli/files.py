"""Files that the commands read: there, whole, and of the kind that was expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def existing(path: Path) -> Path:
    """The path, if there is a file."""
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r}.")
    return path


def open_safetensors(path: Path) -> Any:
    """The file, opened: ``metadata()``, ``keys()``, ``get_tensor()``."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name!r} is not a whole safetensors file ({error}).") from error


def manifest_of(path: Path) -> dict[str, Any] | None:
    """The manifest of a file that ``save_compact`` wrote, ``None`` for other safetensors files."""
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get("dgating")
    try:
        manifest = json.loads(text or "null")
    except json.JSONDecodeError:
        return None
    return manifest if isinstance(manifest, dict) and "format" in manifest else None
