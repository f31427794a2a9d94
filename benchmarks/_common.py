"""What every benchmark needs: a description of the machine, and a safe way to write a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dgating.files import write_text
from experiments.common.environment import cpu_model, environment

RESULTS = Path(__file__).parent / "results"


def store(name: str, result: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/<name>.json``: whole or not at all, so that an interrupted run leaves the old result.

    Numbers that are not finite are refused (JSON has no word for them): a benchmark that divided by zero must not pass
    for a result.
    """
    path = RESULTS / f"{name}.json"
    write_text(path, json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return path


__all__ = ["RESULTS", "cpu_model", "environment", "store"]
