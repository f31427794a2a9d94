"""Which experiments there are: a folder with ``EXPERIMENT`` in its ``__init__`` is one."""

from __future__ import annotations

import importlib
from pathlib import Path

from experiments.common.experiment import Experiment


def names() -> list[str]:
    """Names of all experiments, in the order of their figures, those beyond the paper last."""
    return sorted(file.parent.name for file in Path(__file__).parent.parent.glob("*/measure.py"))


def experiment(name: str) -> Experiment:
    """One experiment. An unknown name is a ``ValueError`` that lists the others."""
    if name not in names():
        raise ValueError(f"expected one of {', '.join(names())}, received {name!r}.")
    return importlib.import_module(f"experiments.{name}").EXPERIMENT
