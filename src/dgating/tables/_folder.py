"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(out: Path, ours: Collection[str], force: bool) -> Iterator[Path]:
    """An empty folder beside ``out``, which takes its place at the end; after an error nothing is left of it.

    A folder that is there already must be empty, or, with ``force``, hold nothing but files named in ``ours``.

    Raises:
        ValueError: ``out`` is there and must not be replaced.
        OSError: it cannot be written.
    """
    out = out.resolve()
    _check(out, ours, force)
    made = [p for p in (out.parent, *out.parent.parents) if not p.exists()]  # the innermost first
    new, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        with writing(out):
            new.mkdir(parents=True)
        yield new
        with writing(out):
            if out.exists():
                os.replace(out, old)
            try:
                os.replace(new, out)
            except OSError:
                if old.exists():
                    os.replace(old, out)
                raise
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
        if not out.exists():
            for folder in made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Errors of the system are about ``--out``."""
    try:
        yield
    except OSError as error:
        raise OSError(f"--out {str(out)!r} cannot be written: {error.strerror or error}.") from error


def _check(out: Path, ours: Collection[str], force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {str(out)!r} is a file.")
    there = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in there if name not in ours]
    if foreign:
        raise ValueError(
            f"--out {str(out)!r} holds files that are not of a report, such as {foreign[0]!r}; name another."
        )
    if there and not force:
        raise ValueError(f"--out {str(out)!r} holds a report already; name another folder, or replace it by --force.")
