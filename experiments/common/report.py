"""Render what is stored: ``experiments/README.md``, the block of results in each experiment's README, the pictures.

Nothing here computes an experiment. Every number that a reader sees comes from a stored file, through ``summarise``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dgating._config import write_bytes, write_text
from experiments.common import store
from experiments.common.experiment import Experiment, Summary, Verdict
from experiments.common.registry import experiment, names
from experiments.common.runner import results
from experiments.common.statistics import table

BEGIN, END = "<!-- results: rendered by `python -m experiments report` -->", "<!-- end of results -->"
SHOWN = ("paper", "cpu")  # a smoke run checks code, not claims: it is never reported

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


def reported(it: Experiment, out: Path | None = None, scales: tuple[str, ...] = SHOWN) -> Reported | None:
    """The largest complete run that is stored, else the largest incomplete one, ``None`` where there is none."""
    stored = []
    for scale in scales:
        file = results(it, out) / f"{scale}.json"
        records = store.read(file, it.settings(scale))
        if records:
            stored.append((scale, file, records, store.load(file)))
    if not stored:
        return None
    scale, file, records, head = next((s for s in stored if len(s[2]) == s[3]["cells_in_all"]), stored[0])
    configuration = it.configurations[scale]
    summary = it.summarise(configuration, records)
    machines = sorted({r.environment.get("gpu") or r.environment.get("cpu", "?") for r in records})
    return Reported(
        it, scale, file, summary, it.verdicts(configuration, summary), len(records), head["cells_in_all"],
        head["seconds"], ", ".join(machines),
    )  # fmt: skip


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
        *(f"![{name}](results/{name}.png)" for name in pictures(found)),
    ]
    return "\n".join(lines).strip()


def verdict_table(found: Reported) -> str:
    """Claim, the paper's figure, ours, verdict; of an incomplete run it is one *so far*."""
    so_far = "so far " if found.incomplete else ""
    rows = [
        (v.claim, v.paper, v.ours, f"{so_far}**{v.status}**" + (f": {v.why}" if v.why else "")) for v in found.verdicts
    ]
    return table(["claim", "paper", "here", "verdict"], rows)


def pictures(found: Reported) -> list[str]:
    """Names of the pictures, with the scale."""
    return [f"{found.scale}_{name}" for name in found.it.plots(found.it.configurations[found.scale], found.summary)]


def draw(found: Reported) -> list[Path]:
    """Draw the pictures beside the stored run."""
    import io

    made = []
    for name, figure in found.it.plots(found.it.configurations[found.scale], found.summary).items():
        file, data = found.file.parent / f"{found.scale}_{name}.png", io.BytesIO()
        figure.savefig(data, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        write_bytes(file, data.getvalue())
        made.append(file)
    return made


def page() -> str:
    """The text of ``experiments/README.md``."""
    lines = [HEAD]
    for name in names():
        it, found = experiment(name), reported(experiment(name))
        lines += [f"## [{it.title}]({name}/README.md)", ""]
        if found is None:
            lines += [f"Not run yet: `python -m experiments run {name} --scale cpu`.", ""]
            continue
        whole = f", incomplete: {found.incomplete}" if found.incomplete else ""
        lines += [f"`python -m experiments run {name} --scale {found.scale}` ({found.seconds / 60:.0f} min{whole})", ""]
        lines += [verdict_table(found), ""]
    return "\n".join(lines).rstrip() + "\n"


def readme(it: Experiment, found: Reported | None) -> str:
    """An experiment's README with its block of results."""
    text = (it.folder / "README.md").read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{it.name}/README.md: expected the two marks {BEGIN!r} and {END!r}.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    inside = block(found) if found else "Not run yet."
    return f"{before}{BEGIN}\n\n{inside}\n\n{END}{after}"


def rendered() -> Iterator[tuple[Path, str]]:
    """Files and texts of the report."""
    for name in names():
        it = experiment(name)
        yield it.folder / "README.md", readme(it, reported(it))
    yield Path(__file__).parent.parent / "README.md", page()


def report() -> list[Path]:
    """Write all pages and pictures; the files written."""
    made = []
    for file, text in rendered():
        write_text(file, text)
        made.append(file)
    for name in names():
        found = reported(experiment(name))
        made += [] if found is None else draw(found)
    return made
