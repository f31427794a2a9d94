"""Files that are written whole or not at all.

The content goes into a temporary file beside the target, which is renamed once it is safe on the disk. The temporary
file is locked while it is written. The system ends that lock with the process, however it ends: a temporary file that
nobody holds was left by a kill, and the next writer of the same path removes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing that a kill left is removed
    fcntl = None

SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
TRIES = 100  # names of temporary files, each one of 2^64


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write a text in UTF-8, see :func:`replacing`."""
    write_bytes(path, text.encode("utf-8"), new=new)


def write_bytes(path: Path, content: bytes, *, new: bool = False) -> None:
    """Write bytes, see :func:`replacing`."""
    with replacing(path, new=new) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` at the end.

    A reader sees the old file or the whole new one, also after a kill or a loss of power. After an error nothing has
    changed. What is replaced keeps its mode and, where the system allows it, its owner; a link stays, and the file
    that it leads to is replaced. Folders on the way are made.

    Args:
        path: the target.
        new: refuse a file that is there, also one that somebody else makes meanwhile.

    Raises:
        FileExistsError: with ``new``, a file is there.
        IsADirectoryError: a folder is there.
        OSError: a device or a pipe is there, or the system refuses; the error names ``path``.
    """
    with about(path):
        target, there = _resolved(path, new)
        with parents(target.parent):
            remove_left(target)
            descriptor, temporary = _temporary(target)
            with os.fdopen(descriptor, "wb") as file:
                try:
                    yield file
                    file.flush()
                    like(descriptor, there)
                    os.fsync(descriptor)
                    if fcntl is None:
                        file.close()  # Windows does not rename an open file
                    _publish(temporary, target, new)
                except BaseException:
                    with suppress(FileNotFoundError):
                        os.unlink(temporary)
                    raise
            sync_folder(target.parent)


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Errors of the system name ``path``, not a temporary file beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def parents(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; after an error the new ones are removed, unless somebody used them."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]  # the innermost first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in made:
            with suppress(OSError):
                place.rmdir()
        raise


def lock(descriptor: int) -> bool | None:
    """Whether the lock of an open file is ours now; ``None`` where the system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def like(descriptor: int, there: os.stat_result | None) -> None:
    """Give an open file or folder the owner and the mode of another one."""
    if there is None or not hasattr(os, "fchown"):
        return
    mode, here = stat.S_IMODE(there.st_mode), os.fstat(descriptor)
    if (here.st_uid, here.st_gid) != (there.st_uid, there.st_gid):
        try:
            os.fchown(descriptor, there.st_uid, there.st_gid)
        except OSError:
            mode &= 0o777  # the set-id bits were meant for the other owner
            mode &= 0o777 if _has_group(descriptor, there.st_gid) else 0o707
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:  # some file systems have one mode for all, and no change
        os.fchmod(descriptor, mode)


def _has_group(descriptor: int, group: int) -> bool:
    """Give an open file to a group, if that is allowed; the rights of one group are not for another."""
    with suppress(OSError):
        os.fchown(descriptor, -1, group)
    return os.fstat(descriptor).st_gid == group


def sync_folder(folder: Path) -> None:
    """Make renames in a folder safe on the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some file systems have no such call, and the file is in its place already
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def beside(target: Path, end: str) -> Path:
    """A hidden name in the folder of ``target`` that belongs to it; short, however long the name of the target is."""
    key = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]
    return target.with_name(f".dgating-{key}{end}")


def is_temporary(name: str) -> bool:
    """Whether a file is a temporary one of this module."""
    return re.fullmatch(r"\.dgating-[0-9a-f]{12}-[0-9a-f]{16}\.tmp", name) is not None


def _resolved(path: Path, new: bool) -> tuple[Path, os.stat_result | None]:
    """Where a path leads, and what is there."""
    try:
        there = os.stat(path)  # the system refuses a link here that it would not open, such as a foreign one in /tmp
    except FileNotFoundError:
        return Path(os.path.realpath(path)), None
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file, found a folder", str(path))
    if not stat.S_ISREG(there.st_mode):
        raise OSError(errno.EINVAL, "expected a file, found a device or a pipe", str(path))
    if new:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return Path(os.path.realpath(path)), there


def _temporary(target: Path) -> tuple[int, Path]:
    """A new file that we hold, open for writing, and its name."""
    for _ in range(TRIES):
        temporary = beside(target, f"-{secrets.token_hex(8)}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE, 0o666)
        except FileExistsError:
            continue
        if lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)  # another writer took it for a left one, before it was locked
    raise FileExistsError(errno.EEXIST, "no free name for a temporary file", str(target))


def _publish(temporary: Path, target: Path, new: bool) -> None:
    if not new:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # other than a rename, it never replaces
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.replace(temporary, target)  # a file system without hard links
    else:
        os.unlink(temporary)


def remove_left(target: Path) -> None:
    """Remove temporary files of this target whose writers are gone."""
    start = beside(target, "-").name
    with suppress(OSError):
        for name in os.listdir(target.parent):
            if name.startswith(start) and is_temporary(name):
                _remove_unheld(target.with_name(name))


def _remove_unheld(file: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDWR | SAFE)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and lock(descriptor):
                os.unlink(file)
        finally:
            os.close(descriptor)
