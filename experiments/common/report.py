"""Render what is stored: ``experiments/README.md``, the block of results in each experiment's README, the pictures.

Nothing here computes an experiment. Every number that a reader sees comes from a stored file, through ``summarise``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from dgating.files import write_bytes, write_text
from experiments.common import store
from experiments.common.experiment import Experiment, Summary, Verdict
from experiments.common.registry import experiment, names
from experiments.common.runner import results
from experiments.common.statistics import table

BEGIN, END = "<!-- results: rendered by `python -m experiments report` -->", "<!-- end of results -->"
SHOWN = ("paper", "gpu", "cpu")  # a smoke run checks code, not claims: it is never reported

HEAD = """# Experiments

The figures of *D-Gating* (arXiv 2509.23898), one folder each, run by one command:

```
python -m experiments list
python -m experiments run fig04_regression --scale cpu --data FOLDER --jobs 2
python -m experiments report
```

`smoke` runs in seconds on tables that scikit-learn brings and checks the code, `cpu` is what two cores do in 20 minutes
to a few hours and is a scaled-down run where a folder says so, `paper` is the full protocol. Results are stored in each
folder (`results/*.json`: configuration, versions, machine, seconds, seeds); an interrupted run goes on where it
stopped. This page is rendered from them. Numbers of the paper are quoted from it; a dash means that it gives none.
"""


@dataclass(frozen=True)
class Reported:
    """A stored run, summarised."""

    it: Experiment
    scale: str
    file: Path
    summary: Summary
    verdicts: list[Verdict]
    cells: int
    cells_in_all: int
    seconds: float
    machine: str

    @property
    def incomplete(self) -> str:
        """How many cells of how many, empty where there are all."""
        return "" if self.cells == self.cells_in_all else f"{self.cells} of {self.cells_in_all} cells"

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Pictures by the names of their files, which begin with the scale."""
        drawn = self.it.plots(self.it.configurations[self.scale], self.summary)
        return {f"{self.scale}_{name}": figure for name, figure in drawn.items()}


def reported(it: Experiment, out: Path | None = None, scales: tuple[str, ...] = SHOWN) -> list[Reported]:
    """What is stored of an experiment, a complete run before incomplete ones, then the larger scale first."""
    stored = []
    for scale in (scale for scale in scales if scale in it.configurations):
        file = results(it, out) / f"{scale}.json"
        records = store.read(file, it.settings(scale))
        if not records:
            continue
        head, configuration = store.load(file), it.configurations[scale]
        summary = it.summarise(configuration, records)
        machines = sorted({r.machine for r in records})
        stored.append(Reported(
            it, scale, file, summary, it.verdicts(configuration, summary), len(records), head["cells_in_all"],
            head["seconds"], ", ".join(machines),
        ))  # fmt: skip
    return sorted(stored, key=lambda found: found.cells < found.cells_in_all)


def block(found: Reported) -> str:
    """The results of one experiment: verdicts, tables, pictures, as Markdown."""
    configuration = found.it.configurations[found.scale]
    whole = f" **Incomplete: {found.incomplete}.**" if found.incomplete else ""
    lines = [
        f"Scale `{found.scale}`, {found.cells} cells, {found.seconds / 60:.0f} minutes of computing on "
        f"{found.machine}.{whole} File: `results/{found.scale}.json`.",
        "",
        verdict_table(found),
        "",
        found.it.tables(configuration, found.summary),
        "",
        *(f"![{name}](results/{name}.png)" for name in found.figures),
    ]
    return "\n".join(lines).strip()


def verdict_table(found: Reported) -> str:
    """Claim, the paper's figure, ours, verdict; of an incomplete run it is one *so far*."""
    so_far = "so far " if found.incomplete else ""
    rows = [
        (v.claim, v.paper, v.ours, f"{so_far}**{v.status}**" + (f": {v.why}" if v.why else "")) for v in found.verdicts
    ]
    return table(["claim", "paper", "here", "verdict"], rows)


def draw(found: Reported) -> list[Path]:
    """Draw the pictures beside the stored run."""
    import io

    made = []
    for name, figure in found.figures.items():
        file, data = found.file.parent / f"{name}.png", io.BytesIO()
        figure.savefig(data, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        write_bytes(file, data.getvalue())
        made.append(file)
    return made


def page(runs: dict[str, list[Reported]]) -> str:
    """The text of ``experiments/README.md``."""
    lines = [HEAD]
    for name, stored in runs.items():
        it = experiment(name)
        lines += [f"## [{it.title}]({name}/README.md)", ""]
        if not stored:
            lines += [f"Not run yet: `python -m experiments run {name} --scale cpu`.", ""]
        for found in stored:
            whole = f", incomplete: {found.incomplete}" if found.incomplete else ""
            minutes = f"{found.seconds / 60:.0f} min on {found.machine}{whole}"
            lines += [f"`python -m experiments run {name} --scale {found.scale}` ({minutes})", ""]
            lines += [verdict_table(found), ""]
    return "\n".join(lines).rstrip() + "\n"


def readme(it: Experiment, stored: list[Reported]) -> str:
    """An experiment's README with its block of results."""
    text = (it.folder / "README.md").read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{it.name}/README.md: expected the two marks {BEGIN!r} and {END!r}.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    blocks = [block(found) for found in stored]
    if len(stored) > 1:
        blocks = [f"## Scale `{found.scale}`\n\n{text}" for found, text in zip(stored, blocks, strict=True)]
    inside = "\n\n".join(blocks) or "Not run yet."
    return f"{before}{BEGIN}\n\n{inside}\n\n{END}{after}"


def everything() -> dict[str, list[Reported]]:
    """What is stored of all experiments, by name."""
    return {name: reported(experiment(name)) for name in names()}


def rendered(runs: dict[str, list[Reported]]) -> Iterator[tuple[Path, str]]:
    """Files and texts of the report."""
    for name, stored in runs.items():
        it = experiment(name)
        yield it.folder / "README.md", readme(it, stored)
    yield Path(__file__).parent.parent / "README.md", page(runs)


def report() -> list[Path]:
    """Write all pages and pictures; the files written."""
    runs, made = everything(), []
    for file, text in rendered(runs):
        write_text(file, text)
        made.append(file)
    return made + [file for stored in runs.values() for found in stored for file in draw(found)]
