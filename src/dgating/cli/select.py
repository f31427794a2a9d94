"""``dgating select`` and ``dgating predict``: the columns of a table that matter, and predictions from them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgating._files import write_text

if TYPE_CHECKING:
    from dgating.tables._select import Selection, Settings

SHOWN = 20  # features in the terminal; the report has all


def need(command: str, *modules: str) -> None:
    """Raise ``ImportError`` with what to install if one of the modules is missing."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ImportError(
            f'dgating {command} needs {" and ".join(missing)}: pip install "dgating[tables,sklearn,plot]".'
        )


def select(table: Path, out: Path, settings: Settings, *, force: bool, quiet: bool) -> None:
    """Run, write the report, print a brief version."""
    from rich.console import Console

    from dgating.tables._folder import staged, writing
    from dgating.tables._read import read_table
    from dgating.tables._report import FILES, write_report
    from dgating.tables._select import select as run

    settings.check()
    wait = Console(stderr=True, quiet=quiet)
    with staged(out, FILES, force) as folder:
        frame = read_table(table, settings.reading)
        with wait.status(f"{len(frame)} rows, {frame.shape[1]} columns: cross-validation"):
            found = run(frame, settings)
            with writing(out):
                write_report(found, folder, table, out)
    if not quiet:
        _show(found, out)


def predict(report: Path, table: Path, out: Path, *, separator: str | None, quiet: bool) -> None:
    """Predict every row of a table."""
    from dataclasses import replace

    from rich.console import Console

    from dgating.tables._folder import writing
    from dgating.tables._kinds import CATEGORY
    from dgating.tables._predictor import Predictor
    from dgating.tables._read import read_table

    if out.exists() and (not out.is_file() or (table.exists() and out.samefile(table))):  # a device is no file
        raise ValueError(f"--out: expected a new file, received {str(out)!r}; name another one.")
    model = Predictor.load(report)
    how = replace(model.reading, separator=separator or model.reading.separator)
    text = [f.name for f in model.features if f.text and f.kind == CATEGORY]
    made, rows = model.predict(read_table(table, how, text))
    with writing(out):
        write_text(out, made.to_csv(index=False))
    if quiet:
        return
    console = Console(soft_wrap=True, highlight=False)
    for words, counts in (("missing values, filled in", rows.missing), ("words that are new", rows.unknown)):
        if counts:
            console.print(f"{words}: " + ", ".join(f"{shown(n)} {c}" for n, c in counts.items()), markup=False)
    console.print(f"{len(made)} predictions of {shown(model.target)} in {out}", markup=False)


def shown(name: str) -> str:
    """A name without characters that steer a terminal."""
    return "".join(c if c.isprintable() else "�" for c in name)


def _show(found: Selection, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dgating.tables._report import PAGE_FILE, number, summary

    console = Console(soft_wrap=True, highlight=False)
    table: Any = Table()
    for head in ("feature", "importance", "leaves at λ"):
        table.add_column(head, justify="left" if head == "feature" else "right")
    kept = found.table()
    kept = kept[kept["selected"]]
    for row in kept.head(SHOWN).itertuples(index=False):
        table.add_row(Text(shown(str(row.feature))), number(row.importance), number(row.lam_leaves))
    if len(kept):
        console.print(table)
    if len(kept) > SHOWN:
        console.print(f"and {len(kept) - SHOWN} more")
    console.print(f"{shown(found.target.name)}: {summary(found)}", markup=False)
    for name, reason in found.dropped.items():
        if reason != "--drop":
            console.print(f"left out {shown(name)}: {shown(reason)}", markup=False)
    absent = found.rows["without target"]
    if absent:
        console.print(f"left out {absent} rows without a value of {shown(found.target.name)}", markup=False)
    for note in found.notes:
        console.print(f"note: {shown(note)}", markup=False)
    console.print(f"report: {out / PAGE_FILE}", markup=False)
