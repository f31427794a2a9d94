"""What the columns of a table are: numbers, categories, dates, or nothing that a model can use.

The rules, for a column of its own: booleans and text are categories; numbers are numbers, also whole ones with few
values; text that reads like dates is a date; text with almost as many values as rows names the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dgating._text import quoted

NUMBER, CATEGORY, DATE = "number", "category", "date"
IDENTIFIER = 0.9  # share of distinct values from which a text column names the rows
MIXED = 0.8  # share of numbers among the values of a text column from which the others must be a mistake
FEW = 10  # values of a text column up to which these two rules do not ask
LARGEST = 1e30  # squares must stay finite in float32 after scaling, and sentinels like 1e308 are no measurements
DATES = r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2}))(?:[T ]\d.*)?"


@dataclass(frozen=True)
class Column:
    """What a column is.

    Attributes:
        name: of the column.
        kind: ``"number"``, ``"category"`` or ``"date"``.
        text: whether its values are words, which a later file must not read as numbers.
        distinct: how many values it has, missing ones not counted.
        missing: how many rows have none.
    """

    name: str
    kind: str
    text: bool
    distinct: int
    missing: int


def column_of(series: pd.Series, *, categorical: bool = False) -> Column:
    """Name the kind of a column.

    Raises:
        ValueError: values that no kind fits; the message says what to do.
    """
    name, kind, text = str(series.name), _stored(series), False
    present = series.dropna()
    if kind == "text":
        text, kind = True, CATEGORY
        if not categorical:
            kind = _kind_of_text(present)
    values = present.unique()
    if categorical:
        kind = CATEGORY
    elif kind == NUMBER:
        _check_range(numbers(series), name)
    elif kind == "identifier":
        raise ValueError(
            f"{name!r} is text with {len(values)} values in {len(present)} rows, it names the rows (if not: "
            f"--categorical {quoted(name)})"
        )
    return Column(name, kind, text, len(values), len(series) - len(present))


def numbers(series: pd.Series) -> np.ndarray:
    """``(n,)`` float64, ``nan`` where missing.

    Raises:
        ValueError: values that are no numbers.
    """
    try:
        read: Any = pd.to_numeric(series)
        return read.to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        read = pd.to_numeric(series, errors="coerce")
        wrong = series.loc[read.isna() & series.notna()]
        example = repr(wrong.iloc[0]) if len(wrong) else f"values of type {series.dtype}"
        raise ValueError(f"{str(series.name)!r}: expected numbers, received {example}.") from None


def labels(series: pd.Series) -> tuple[np.ndarray, list[str]]:
    """``(n,)`` codes, ``-1`` where missing, and what they stand for; ``3`` and ``3.0`` are the same word."""
    codes, values = pd.factorize(series)
    words = [_word(value) for value in values.tolist()]
    order: dict[str, int] = {word: i for i, word in enumerate(sorted(set(words)))}
    number = np.array([order[word] for word in words] + [-1])  # the last one for the code -1
    return number[codes], list(order)


def dates(series: pd.Series) -> pd.Series:
    """Times without a zone, ``NaT`` where missing.

    Raises:
        ValueError: not written as 2024-12-31.
    """
    try:
        return pd.to_datetime(series, format="ISO8601", utc=True).dt.tz_localize(None)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(
            f"{str(series.name)!r}: expected dates written as 2024-12-31 (a time may follow), received others such as "
            f"{series.dropna().iloc[0]!r}; rewrite them or drop the column."
        ) from None


def counts_rows(series: pd.Series) -> bool:
    """Whether the column is 0, 1, 2, ... or 1, 2, 3, ..., as a program writes it that numbers its rows."""
    if not pd.api.types.is_integer_dtype(series.dtype) or len(series) < FEW or bool(series.isna().any()):
        return False
    values = series.to_numpy(dtype=np.int64)
    return int(values[0]) in (0, 1) and bool((np.diff(values) == 1).all())


def _stored(series: pd.Series) -> str:
    """The kind by how the values are stored; text is judged by what it says."""
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return CATEGORY if _stored(series.cat.categories.to_series()) != "text" else "text"
    if pd.api.types.is_bool_dtype(dtype):
        return CATEGORY
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return DATE
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return NUMBER
    inferred = pd.api.types.infer_dtype(series, skipna=True)
    kinds = {
        "string": "text", "boolean": CATEGORY, "empty": NUMBER, "date": DATE, "datetime": DATE, "decimal": NUMBER,
        "integer": NUMBER, "floating": NUMBER, "mixed-integer-float": NUMBER,
    }  # fmt: skip
    if inferred not in kinds:
        raise ValueError(
            f"{str(series.name)!r} holds values of kind {inferred!r}, expected numbers, text, booleans or dates"
        )
    return kinds[inferred]


def _kind_of_text(present: pd.Series) -> str:
    name, words = str(present.name), pd.Series(present.unique(), dtype=str)
    if len(words) > FEW:
        read: Any = pd.to_numeric(words, errors="coerce")
        _check_numbers(name, words, read.notna().to_numpy())
        if float(words.str.fullmatch(r"[-+]?\d+,\d+").mean()) >= MIXED:
            raise ValueError(f"{name!r} has numbers with decimal commas, such as {words[0]!r}: --decimal ,")
    if len(words) and bool(words.str.fullmatch(DATES).all()):
        return DATE
    return "identifier" if len(words) > FEW and len(words) >= IDENTIFIER * len(present) else CATEGORY


def _check_numbers(name: str, words: pd.Series, good: np.ndarray) -> None:
    if MIXED <= good.mean() < 1:
        wrong = [str(w) for w in words[~good][:3]]
        raise ValueError(
            f"{name!r} has {int(good.sum())} different numbers and {', '.join(map(repr, wrong))}: correct these, or "
            f"say that they are missing: {' '.join(f'--missing {quoted(w)}' for w in wrong)}"
        )


def _check_range(values: np.ndarray, name: str) -> None:
    wrong = int((np.abs(values) > LARGEST).sum())
    if wrong:
        raise ValueError(
            f"{name!r} has {wrong} infinite values (or beyond ±{LARGEST:.0e}): replace them by numbers or leave them "
            "empty"
        )


def _word(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
