"""What an experiment is: cells that can be computed one by one, a summary of them, verdicts on the paper's claims.

A **cell** is a small dict of JSON values (``{"seed": 0, "depth": 3}``). ``measure`` computes one from the
configuration, the cell and the place alone, so that cells may run in any order, in any process, and again after an
interruption. Everything else (summary, verdicts, pictures, tables) is computed from stored cells, never by a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Cell = dict[str, Any]
Summary = dict[str, Any]
SCALES = ("smoke", "cpu", "gpu", "paper")


@dataclass(frozen=True)
class Place:
    """Where a cell is computed: nothing of it may change a result but for rounding."""

    data: Path | None = None
    device: str = "cpu"

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers drawn on the CPU, so that a seed means the same on every device."""
        return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Record:
    """A computed cell: what it found, and how long that took."""

    cell: Cell
    found: dict[str, Any]
    seconds: float
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def machine(self) -> str:
        """The processor, or the GPU, that computed it."""
        return self.environment.get("gpu") or self.environment.get("cpu") or "?"


Status = Literal["reproduced", "partly", "not reproduced"]


def status(whole: bool, some: bool) -> Status:
    """Of a claim that holds as a whole, in part, or not."""
    return "reproduced" if whole else "partly" if some else "not reproduced"


@dataclass(frozen=True)
class Verdict:
    """One claim of the paper beside what was found here."""

    claim: str
    paper: str
    ours: str
    status: Status
    why: str = ""


@dataclass(frozen=True)
class Experiment:
    """One figure of the paper.

    Args:
        name: of the folder, after the first figure.
        title: a line for the list.
        configurations: a frozen dataclass for each of ``smoke`` (seconds, any machine), ``cpu`` (one to a few hours on
            two cores), where it pays ``gpu`` (minutes to an hour on one), and ``paper`` (the full protocol).
        cells: all cells of a configuration.
        measure: ``measure(configuration, cell, place) -> dict`` of JSON values.
        summarise: ``summarise(configuration, records) -> dict``: the numbers that tables, pictures and verdicts show.
            Must accept an incomplete list of records.
        verdicts: ``verdicts(configuration, summary)``.
        tables: ``tables(configuration, summary)``: Markdown.
        plots: ``plots(configuration, summary)``: matplotlib figures by file name without ending.
        datasets: names of the data sets that a configuration needs.
        alone: its cells are about time, so that nothing of ours may run beside them.
    """

    name: str
    title: str
    configurations: dict[str, Any]
    cells: Callable[[Any], list[Cell]]
    measure: Callable[[Any, Cell, Place], dict[str, Any]]
    summarise: Callable[[Any, Sequence[Record]], Summary]
    verdicts: Callable[[Any, Summary], list[Verdict]]
    tables: Callable[[Any, Summary], str]
    plots: Callable[[Any, Summary], dict[str, Any]]
    datasets: Callable[[Any], Sequence[str]] = lambda configuration: ()
    alone: bool = False

    def __post_init__(self) -> None:
        """Every scale, ``gpu`` if it likes, and nothing else."""
        given = set(self.configurations)
        if given | {"gpu"} != set(SCALES) or not all(map(is_dataclass, self.configurations.values())):
            raise ValueError(f"{self.name}: expected a dataclass for each of {SCALES}, received {sorted(given)}.")

    @property
    def folder(self) -> Path:
        """Its code, README and results."""
        return Path(__file__).parent.parent / self.name

    def settings(self, scale: str) -> dict[str, Any]:
        """The configuration as JSON."""
        return asdict(self.configurations[scale])
