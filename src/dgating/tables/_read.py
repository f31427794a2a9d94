"""From a file to a ``DataFrame``: CSV, TSV and Parquet, checked before anything is computed."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dgating.files import existing

SEPARATORS = (",", ";", "\t", "|")
TEXT, PARQUET = (".csv", ".tsv"), (".parquet", ".pq")
PER_BYTE = 4  # of memory for a byte of text, while it is read
SHARE = 0.5  # of the memory that a table may take


@dataclass(frozen=True)
class Reading:
    """How a text file is written.

    Attributes:
        separator: between fields; ``None``: that of :data:`SEPARATORS` which splits the header into most names.
        decimal: the decimal mark.
        missing: words for a missing value, next to the usual ones (an empty field, ``NA``, ``nan``, ``null``).
    """

    separator: str | None = None
    decimal: str = "."
    missing: tuple[str, ...] = ()


def read_table(path: Path, how: Reading | None = None, text: Sequence[str] = ()) -> pd.DataFrame:
    """The table in a file, columns named by strings; ``text`` are columns of a text file not to be read as numbers.

    Raises:
        ImportError: a Parquet file without pyarrow.
        ValueError: not a table, an empty one, names that repeat, too large for the memory.
    """
    how = how or Reading()
    suffix = existing(path).suffix.lower()
    if suffix in PARQUET:
        frame = _parquet(path)
    elif suffix in TEXT:
        frame = _text(path, how, text)
    else:
        raise ValueError(
            f"expected a table whose name ends in {', '.join(TEXT + PARQUET)}, received {path.name!r}; save it as one."
        )
    frame.columns = [str(name) for name in frame.columns]
    _check_names(list(frame.columns), path)
    if len(frame) == 0:
        raise ValueError(f"{path.name!r} has a header and no rows; expected at least one row below the names.")
    return frame.reset_index(drop=True)


def check_memory(need: float, what: str, instead: str) -> None:
    """Refuse what would take more than half of the memory of the machine."""
    there = memory()
    if there is not None and need > SHARE * there:
        raise ValueError(
            f"{what} needs about {need / 1e9:.1f} GB of memory, more than half of the {there / 1e9:.1f} GB of this "
            f"machine; {instead}."
        )


def memory() -> int | None:
    """Bytes of memory of this machine, ``None`` where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _check_names(names: list[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path.name!r}: expected every column name once, {twice[0]!r} is there twice; rename one.")


def _parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f'{path.name!r}: Parquet files need pyarrow: pip install "dgating[tables]", or save the table as CSV.'
        ) from error
    try:
        head: Any = pyarrow.parquet.read_metadata(path)
        check_memory(
            8.0 * PER_BYTE * head.num_rows * head.num_columns,
            f"{path.name!r}",
            "take fewer columns or a sample of rows",
        )
        _check_names([head.schema.column(i).path for i in range(head.num_columns)], path)
        return pd.read_parquet(path, engine="pyarrow")
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name!r} is not a whole Parquet file ({_first_line(error)}).") from error


def _text(path: Path, how: Reading, text: Sequence[str]) -> pd.DataFrame:
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path.name!r} is empty; expected a line of column names and rows below it.")
    check_memory(
        float(PER_BYTE) * size, f"{path.name!r}", "save it as Parquet, or take fewer columns or a sample of the rows"
    )
    with path.open("rb") as file:
        if b"\0" in file.read(2**16):
            raise ValueError(f"{path.name!r} is not a text file in UTF-8 (it has zero bytes); save the table as CSV.")
    try:
        separator = _separator(path, how.separator)
        header, first = _lines(path, separator)
        _check_names(header, path)
        if len(first) > len(header):  # pandas would take the first field for the name of the row
            raise ValueError(
                f"{path.name!r}: its first row has {len(first)} fields, expected {len(header)} as in the header; name "
                "every column."
            )
        frame = pd.read_csv(
            path, sep=separator, decimal=how.decimal, na_values=list(how.missing), encoding="utf-8-sig",
            skipinitialspace=True, low_memory=False, dtype=dict.fromkeys(text, str),
        )  # fmt: skip
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name!r}: expected text in UTF-8, received another encoding (byte {error.start}); convert it, for "
            f"example by: iconv -f latin1 -t utf-8 {path.name} > new.csv"
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise ValueError(f"{path.name!r} cannot be read as a table: {_first_line(error)}") from error
    return frame


def _separator(path: Path, given: str | None) -> str:
    if given is not None:
        given = "\t" if given in ("tab", "\\t") else given  # as one writes it in a shell
        if len(given) != 1:
            raise ValueError(f"--separator: expected one character, or tab, received {given!r}.")
        return given
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(SEPARATORS, key=lambda s: len(_lines(path, s)[0]))  # the first of equals


def _lines(path: Path, separator: str) -> tuple[list[str], list[str]]:
    """Header and first row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = (line for line in csv.reader(file, delimiter=separator, skipinitialspace=True) if line)
        return next(lines, []), next(lines, [])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
