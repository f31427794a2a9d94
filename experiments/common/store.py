"""One JSON file holds a run: configuration and cells. It is both the result and where an interrupted run goes on.

The file is written whole after every cell (temporary file, then rename), so that ``kill -9`` loses at most the cells
that were being computed. A file of another configuration is refused: results of different settings never mix.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgating.files import write_text
from experiments.common.experiment import Cell, Record

FORMAT = "dgating/experiment/1"


class OtherConfiguration(ValueError):
    """A stored run has other settings than the one that was asked for."""


def read(file: Path, settings: dict[str, Any]) -> list[Record]:
    """The records of a file, none where there is no file. Other settings raise :class:`OtherConfiguration`."""
    if not file.is_file():
        return []
    stored = load(file)
    settings = json.loads(json.dumps(settings))
    if stored["configuration"] != settings:
        before = stored["configuration"]
        names = sorted(k for k in settings.keys() | before.keys() if settings.get(k) != before.get(k))
        raise OtherConfiguration(
            f"{file.name}: expected a run of this configuration, found one that differs in {', '.join(names)}. "
            "Pass --restart to replace it, or --out FOLDER to store elsewhere."
        )
    return [Record(**record) for record in stored["cells"]]


def load(file: Path) -> dict[str, Any]:
    """A stored run as it is. A file that is not one is a ``ValueError``."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name}: expected the JSON of a run, received something else ({error}).") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError(f"{file.name}: expected a stored run of format {FORMAT!r}.")
    return stored


def write(file: Path, name: str, scale: str, settings: dict[str, Any], records: list[Record], total: int) -> None:
    """Store a run. Numbers that are not finite are refused: a cell must say ``None`` where it has none."""
    head = {
        "format": FORMAT,
        "experiment": name,
        "scale": scale,
        "configuration": settings,
        "cells_in_all": total,
        "seconds": round(sum(record.seconds for record in records), 1),
    }
    # one line a cell: short files, and differences that can be read
    lines = [json.dumps(asdict(record), allow_nan=False, ensure_ascii=False) for record in records]
    text = json.dumps(head, indent=1, allow_nan=False, ensure_ascii=False)
    write_text(file, text[:-2] + ',\n "cells": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")


def key(cell: Cell) -> str:
    """A cell as text, the same for equal cells."""
    return json.dumps(cell, sort_keys=True)
