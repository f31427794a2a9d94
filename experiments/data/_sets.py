"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from experiments.data import _readers as read
from experiments.data import _sources as at
from experiments.data._archives import Archive, Either, Parts
from experiments.data._dataset import Dataset, Text
from experiments.data._files import DataDamaged, File, find


@dataclass(frozen=True)
class Source:
    """How to come by a data set.

    Args:
        read: from what was found to the data set.
        wanted: files and archives; ``read`` takes what :func:`find` returns for each.
        check: for bytes that no checksum covers: what is wrong, as words after 'expected'; empty where nothing is.
    """

    read: Callable[..., Dataset | Text]
    wanted: tuple[File | Archive | Either, ...] = ()
    check: Callable[[Any], str] = lambda found: ""


def isolet_counts(found: Dataset) -> str:
    """617 columns in [-1, 1]; of every letter 240 rows and 60 test rows, less two of F and one of M."""
    expected = [np.full(26, 240), np.full(26, 60)]
    expected[0][5] -= 2
    expected[1][12] -= 1
    for X, y, counts in zip((found.X, found.X_test), (found.y, found.y_test), expected, strict=True):
        if X is None or X.shape[1] != 617 or not np.abs(X).max() <= 1:
            return "617 columns in [-1, 1], received others"
        if y is None or y.min() < 0 or not np.array_equal(np.bincount(y, minlength=26), counts):
            return f"rows of each letter {counts.tolist()}, received others"
    return ""


def shakespeare_lines(found: Text) -> str:
    """124456 lines, between the first words of the file and the last."""
    text = found.text
    if not text.startswith("This is the 100th Etext file") or not text.rstrip().endswith("William Shakespeare"):
        return "Project Gutenberg's Etext 100, received another text"
    lines = text.count("\n")
    return "" if lines == 124456 else f"124456 lines, received {lines}"


SETS: dict[str, Source] = {
    "mnist": Source(read.idx, at.MNIST),
    "fashion_mnist": Source(read.idx, at.FASHION_MNIST),
    "isolet": Source(read.isolet, (at.ISOLET,), isolet_counts),
    "coil20": Source(read.coil20, (at.COIL20,)),
    "madelon": Source(read.madelon, (at.MADELON,)),
    "har265": Source(read.har265, (Either(at.HAR265, at.HAR),)),
    "har": Source(read.har, (at.HAR,)),
    "mice_protein": Source(read.mice_protein, (at.MICE_PROTEIN,)),
    "wine_red": Source(read.wine, (at.WINE_RED,)),
    "wine_white": Source(read.wine, (at.WINE_WHITE,)),
    "tinyshakespeare": Source(read.text, (at.TINYSHAKESPEARE,)),
    "shakespeare": Source(read.text, (at.SHAKESPEARE,), shakespeare_lines),
    "cifar10": Source(read.cifar10, (at.CIFAR10,)),
    "cifar10_30k": Source(read.cifar10, (at.CIFAR10_30K,)),
    "cifar100": Source(read.cifar100, (at.CIFAR100,)),
    "svhn": Source(read.svhn, at.SVHN),
    "digits": Source(read.digits),
    "diabetes": Source(read.diabetes),
}


def names() -> tuple[str, ...]:
    """Every name that :func:`load` takes."""
    return tuple(SETS)


# a name in a variable is taken for that of a table: only the two texts are asked for as such
@overload
def load(  # pyright: ignore[reportOverlappingOverload]
    name: Literal["tinyshakespeare", "shakespeare"], folder: str | Path | None = None, *, download: bool = True
) -> Text: ...
@overload
def load(name: str, folder: str | Path | None = None, *, download: bool = True) -> Dataset: ...
def load(name: str, folder: str | Path | None = None, *, download: bool = True) -> Dataset | Text:
    """A data set, raw as in its files.

    Args:
        name: one of :func:`names`.
        folder: where to look for files first; then the folder named by ``DGATING_DATA``, then the cache.
        download: fetch what is nowhere into the cache.

    Returns:
        ``Text`` for the two Shakespeares, else ``Dataset``.

    Raises:
        ValueError: no such data set.
        DataMissing: a file is nowhere and could not be fetched; the message says what to put where.
        DataDamaged: a file is not the one expected.
    """
    source = _source(name)
    found = _found(source, folder, download)
    try:
        loaded = source.read(*found)
    except DataDamaged:
        raise
    except ValueError as error:
        raise DataDamaged(f"{name}: its files cannot be read as what they should be ({error}).") from error
    if wrong := source.check(loaded):
        raise DataDamaged(f"{name}: expected {wrong}. Its files are damaged or another version: replace them.")
    return loaded


def require(names: Iterable[str], folder: str | Path | None = None, *, download: bool = True) -> None:
    """Find or fetch all files of these data sets, before a run begins.

    Raises:
        ValueError: no such data set; before anything is fetched.
        DataMissing: as in :func:`load`.
        DataDamaged: as in :func:`load`, as far as that shows without reading an archive.
    """
    for source in [_source(name) for name in names]:
        _found(source, folder, download)


def _source(name: str) -> Source:
    if name not in SETS:
        raise ValueError(f"data set: expected one of {', '.join(SETS)}, received {name!r}.")
    return SETS[name]


def _found(source: Source, folder: str | Path | None, download: bool) -> list[Path | Parts]:
    return [
        find(each, folder, download=download) if isinstance(each, File) else each.find(folder, download=download)
        for each in source.wanted
    ]
