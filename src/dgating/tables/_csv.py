"""CSV files in which a spreadsheet finds data only."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pandas as pd

from dgating.files import replacing

# https://owasp.org/www-community/attacks/CSV_Injection, and the wide forms that spreadsheets read alike
FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def safe(text: str) -> str:
    """A text that no spreadsheet takes for a formula: with an apostrophe before it if it starts like one.

    A text that starts with apostrophes and then like a formula has one more, too. So the text is found again, by
    taking one apostrophe off whatever starts with apostrophes and one of ``= + - @``, tab or line break.

    Example:
        >>> print(safe("=1+1"), safe("'=1+1"), safe("a=1"), safe("-1"))
        '=1+1 ''=1+1 a=1 -1
    """
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def write_csv(frame: pd.DataFrame, path: Path, *, new: bool = False) -> None:
    """Write a table, whole or not at all: texts in quotes and :func:`safe`, numbers as they are.

    The quotes keep a text in its cell also where a spreadsheet cuts at semicolons.

    Raises:
        FileExistsError: with ``new``, a file is there.
        OSError: it cannot be written.
    """
    frame = frame.rename(columns=lambda name: safe(str(name)))
    for name in frame.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]]:
        frame[name] = frame[name].map(lambda value: safe(value) if isinstance(value, str) else value)
    with replacing(path, new=new) as file:
        frame.to_csv(file, index=False, quoting=csv.QUOTE_NONNUMERIC, mode="wb", encoding="utf-8")
