"""A folder of a command that appears whole, and takes the place of an earlier one in a single step.

Beside the folder stand, while a run is at work, up to three hidden names that belong to it: a locked file, so that a
second run is refused; the new folder while it is filled; and, only where the system cannot exchange two folders in one
step, the old one between two renames. What a kill leaves of them is put right by the next run.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dgating.files._writing import SAFE, beside, is_temporary, like, lock, parents, sync_folder

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2 in Linux


@dataclass(frozen=True)
class Contents:
    """What a command writes into a folder.

    Attributes:
        what: a word for such a folder in messages.
        files: names of all files.
        mark: the one without which a folder is not one of the command, whatever else is in it.
    """

    what: str
    files: tuple[str, ...]
    mark: str


@contextmanager
def staged(out: Path, contents: Contents, force: bool) -> Iterator[Path]:
    """An empty folder, which takes the place of ``out`` at the end; after an error nothing has changed.

    A reader of ``out`` finds the whole old folder or the whole new one, also after a kill at any time (where the
    system cannot exchange folders: through :func:`readable`). The new folder and its files have the mode and owner of
    the old ones.

    Args:
        out: the folder; a link to one stays.
        contents: what belongs into it.
        force: whether an earlier folder with these contents, and nothing else, may be replaced.

    Raises:
        ValueError: ``out`` is there and must not be replaced, or another run is writing it.
        OSError: it cannot be written.
    """
    out = Path(os.path.realpath(out))
    _check(out, contents, force)
    with ExitStack() as stack:
        with writing(out):
            stack.enter_context(parents(out.parent))
            stack.enter_context(_alone(out))
            _put_right(out, contents)
            _check(out, contents, force)
            new = _new(out)
            new.mkdir()
        try:
            yield new
            _check(out, contents, force)  # somebody may have put files there meanwhile
            with writing(out):
                _take_place(new, out)
        finally:
            with suppress(OSError):  # what cannot be removed now, the next run removes, or says why it cannot
                _put_right(out, contents)


def readable(folder: Path) -> Path:
    """The folder, or where a run keeps it while it renames the next one, or kept it when it was killed."""
    old = _old(Path(os.path.realpath(folder)))
    return old if _is_kept(old) and not folder.exists() else folder


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Errors of the system are about ``--out``."""
    try:
        yield
    except OSError as error:
        raise OSError(f"--out {str(out)!r} cannot be written: {error.strerror or error}.") from error


def _new(out: Path) -> Path:
    return beside(out, "-new")


def _old(out: Path) -> Path:
    return beside(out, "-old")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the lock of a folder. The file goes at the end; one that a kill left is as good as a new one."""
    path = beside(out, "-lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | SAFE, 0o666)
        if lock(descriptor) is False:
            os.close(descriptor)
            raise ValueError(
                f"--out {str(out)!r}: another run is writing this folder; wait for it, or name another folder."
            )
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # the run before removed the file after we had opened it
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _check(out: Path, contents: Contents, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {str(out)!r} is a file.")
    if not out.exists():
        return
    if os.path.ismount(out):
        raise ValueError(f"--out {str(out)!r} is a mount point, which cannot be replaced; name a folder in it.")
    with os.scandir(out) as entries:
        there = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    foreign = sorted(name for name, folder in there.items() if folder or name not in contents.files)
    if foreign:
        raise ValueError(
            f"--out {str(out)!r} holds files that are not of a {contents.what}, such as {foreign[0]!r}; name another "
            "folder."
        )
    if there and contents.mark not in there:
        raise ValueError(
            f"--out {str(out)!r} holds {min(there)!r} and no {contents.mark!r}, so that it is no {contents.what}; "
            "name another folder."
        )
    if there and not force:
        raise ValueError(
            f"--out {str(out)!r} holds a {contents.what} already; name another folder, or replace it by --force."
        )


def _take_place(new: Path, out: Path) -> None:
    if not out.exists():
        sync_folder(new)
        os.rename(new, out)
    else:
        _make_alike(new, out)
        sync_folder(new)
        if not exchange(new, out):
            os.rename(out, _old(out))
            os.rename(new, out)
    sync_folder(out.parent)


def exchange(a: Path, b: Path) -> bool:
    """Let two folders change their names in one step. False where the system has no such call, and then nothing is
    done.
    """
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # not Linux
        return False
    return call(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


def _make_alike(new: Path, out: Path) -> None:
    """Mode and owner of the folder and of its files."""
    for place in (new, *new.iterdir()):
        earlier = out / place.relative_to(new)
        if earlier.is_symlink() or not earlier.exists():
            continue
        descriptor = os.open(place, os.O_RDONLY | SAFE)
        try:
            like(descriptor, earlier.stat())
        finally:
            os.close(descriptor)


def _put_right(out: Path, contents: Contents) -> None:
    """Undo what a run that ended early left beside ``out``, and remove the folder that was replaced."""
    new, old = _new(out), _old(out)
    if _is_kept(old) and not os.path.lexists(out):
        os.rename(old, out)
    for left in (new, old):
        if left.is_symlink():
            left.unlink()
        elif left.exists():
            _remove(left, out, contents)


def _is_kept(old: Path) -> bool:
    return old.is_dir() and not old.is_symlink()


def _remove(left: Path, out: Path, contents: Contents) -> None:
    """Remove the files of a command. What somebody else put beside them since they were checked goes to ``out``."""
    for place in list(left.iterdir()):
        if place.name in contents.files or is_temporary(place.name):
            place.unlink()
        elif not os.path.lexists(out / place.name):
            os.rename(place, out / place.name)
    left.rmdir()
