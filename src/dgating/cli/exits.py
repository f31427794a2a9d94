"""How a command ends: one line and an exit code for every error, and time to clean up when it is stopped."""

from __future__ import annotations

import csv
import os
import signal
import struct
import sys
import threading
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import typer

from dgating._text import plain

MISTAKE, BUG, INTERRUPTED, PIPE = 2, 70, 130, 1
TRACEBACK = "DGATING_TRACEBACK"  # the environment variable that shows where an error comes from
LONGEST = 2000  # characters of a message: a field of a damaged table may have a million

SPEAKING = (ValueError, TypeError, RuntimeError, ImportError, OSError)  # their messages say enough
SILENT = (LookupError, ArithmeticError, MemoryError, EOFError, csv.Error, struct.error, zipfile.BadZipFile, zlib.error)
LIBRARIES = ("onnx", "onnxruntime", "pandas", "pyarrow", "safetensors")  # errors of their own are about the file


@contextmanager
def one_line() -> Iterator[None]:
    """Mistakes of the user are one line and exit code 2, our own mistakes one line and 70.

    An interrupt ends with 130 and the end of a pipe (``| head``) with 1, both without a word. ``SIGTERM`` and
    ``SIGHUP`` leave time to clean up.
    """
    try:
        with stopping():
            yield
            sys.stdout.flush()
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _close_output()
        raise typer.Exit(PIPE) from None
    except Exception as error:
        if os.environ.get(TRACEBACK):
            for line in traceback.format_exc().splitlines():
                typer.echo(plain(line), err=True)
        mistake = _is_mistake(error)
        text = f"error: {message(error)}"
        if not mistake:
            text = f"internal error: {message(error)} (please report it; {TRACEBACK}=1 in the environment shows where)"
        typer.secho(text, fg="red", err=True)
        raise typer.Exit(MISTAKE if mistake else BUG) from error


def message(error: Exception) -> str:
    """What an error says, on one line."""
    lines = (line.strip() for line in str(error).splitlines())
    text = plain(" ".join(line for line in lines if line))
    if not text or not isinstance(error, SPEAKING):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


@contextmanager
def stopping() -> Iterator[None]:
    """Let ``SIGTERM`` and ``SIGHUP`` end the block as an exception does, so that it can clean up.

    Only in the main thread, and only where nobody else handles the signal or ignores it. A second signal ends the
    process at once.
    """
    numbers = []
    if threading.current_thread() is threading.main_thread():
        wanted = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
        numbers = [n for n in wanted if n is not None and signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _is_mistake(error: Exception) -> bool:
    return isinstance(error, SPEAKING + SILENT) or type(error).__module__.partition(".")[0] in LIBRARIES


def _close_output() -> None:
    """Nobody reads: what is still in the buffer must not fail when Python ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
