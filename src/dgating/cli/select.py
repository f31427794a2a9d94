"""``dgating select`` and ``dgating predict``: the columns of a table that matter, and predictions from them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgating._text import plain
from dgating.cli.files import check_output, same_file
from dgating.cli.terminal import console

if TYPE_CHECKING:
    from dgating.tables import Selection, Settings

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
    from dgating.files import staged, writing
    from dgating.tables import REPORT, read_table, write_report
    from dgating.tables import select as run

    settings.check()
    if lies_in(table, out):
        raise ValueError(f"--out {str(out)!r} holds the table itself, which would be lost; name another folder.")
    with staged(out, REPORT, force) as folder:
        frame = read_table(table, settings.reading)
        wait = f"{len(frame)} rows, {frame.shape[1]} columns: cross-validation"
        with console(stderr=True, quiet=quiet).status(wait):
            found = run(frame, settings)
            with writing(out):
                write_report(found, folder, table, out)
    if not quiet:
        _show(found, out)


def predict(report: Path, table: Path, out: Path, *, separator: str | None, force: bool, quiet: bool) -> None:
    """Predict every row of a table."""
    from dataclasses import replace

    from dgating.files import readable, writing
    from dgating.tables import CATEGORY, Predictor, read_table, write_csv

    _check_predictions(out, report, table, force)
    model = Predictor.load(readable(report))
    how = replace(model.reading, separator=separator or model.reading.separator)
    text = [f.name for f in model.features if f.text and f.kind == CATEGORY]
    made, rows = model.predict(read_table(table, how, text))
    with writing(out):
        write_csv(made, out, new=not force)
    screen = console(quiet=quiet)
    for words, counts in (("missing values, filled in", rows.missing), ("words that are new", rows.unknown)):
        if counts:
            screen.print(f"{words}: " + ", ".join(f"{plain(n)} {c}" for n, c in counts.items()))
    screen.print(f"{len(made)} predictions of {plain(model.target)} in {plain(out)}")


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a file, or one that would be made, is below a folder: by its own name, or where a link leads."""
    whole = Path(os.path.realpath(folder))
    names = (Path(os.path.realpath(path)), Path(os.path.realpath(path.parent)) / path.name)
    return any(place == whole or same_file(place, folder) for name in names for place in name.parents)


def _check_predictions(out: Path, report: Path, table: Path, force: bool) -> None:
    """Raise ``ValueError`` where predictions would replace something that they must not."""
    files = [place for place in report.iterdir() if place.is_file()] if report.is_dir() else []
    if lies_in(out, report) or any(same_file(out, place) for place in files):
        raise ValueError(f"--out: expected a file outside the report, {str(out)!r} is in it; name another one.")
    check_output("--out", out, force, [table])


def _show(found: Selection, out: Path) -> None:
    from rich.table import Table

    from dgating.tables import PAGE_FILE, number, summary

    screen = console()
    table: Any = Table()
    for head in ("feature", "importance", "leaves at λ"):
        table.add_column(head, justify="left" if head == "feature" else "right")
    kept = found.table()
    kept = kept[kept["selected"]]
    for row in kept.head(SHOWN).itertuples(index=False):
        table.add_row(plain(row.feature), number(row.importance), number(row.lam_leaves))
    if len(kept):
        screen.print(table)
    if len(kept) > SHOWN:
        screen.print(f"and {len(kept) - SHOWN} more")
    screen.print(f"{plain(found.target.name)}: {summary(found)}")
    for name, reason in found.dropped.items():
        if reason != "--drop":
            screen.print(f"left out {plain(name)}: {plain(reason)}")
    absent = found.rows["without target"]
    if absent:
        screen.print(f"left out {absent} rows without a value of {plain(found.target.name)}")
    for note in found.notes:
        screen.print(f"note: {plain(note)}")
    screen.print(f"report: {plain(out / PAGE_FILE)}")
