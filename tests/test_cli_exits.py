"""How a command ends: exit codes, one line for every error, and cleaning up when it is stopped."""

import csv
import os
import re
import signal
import struct
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pytest
import safetensors
import typer
from typer.testing import CliRunner

import dgating.cli.select
import dgating.tables._select
from benchmarks._kill import fork
from dgating.cli.app import app
from dgating.cli.exits import LONGEST, message, stopping
from dgating.cli.terminal import console


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ends(monkeypatch, error):
    """Exit code and standard error of a command that raises ``error``."""

    def fail(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(dgating.cli.select, "predict", fail)
        result = CliRunner().invoke(app, ["predict", "report", "table.csv", "--out", "p.csv"])
    assert isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


MISTAKES = [
    ValueError("said"), TypeError("said"), RuntimeError("said"), ImportError("said"), OSError("said"),
    KeyError("said"), IndexError("said"), OverflowError("said"), ZeroDivisionError("said"), FloatingPointError("said"),
    RecursionError("said"), MemoryError("said"), MemoryError(), EOFError("said"), NotImplementedError("said"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "said"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "said"),
    csv.Error("said"), struct.error("said"), zlib.error("said"), zipfile.BadZipFile("said"),
    pd.errors.ParserError("said"), pd.errors.EmptyDataError("said"), pd.errors.OutOfBoundsDatetime("said"),
    pd.errors.DatabaseError("said"), pyarrow.ArrowException("said"), pyarrow.ArrowInvalid("said"),
    pyarrow.ArrowKeyError("said"), pyarrow.ArrowNotImplementedError("said"), pyarrow.ArrowCapacityError("said"),
    safetensors.SafetensorError("said"), np.linalg.LinAlgError("said"),
]  # fmt: skip


@pytest.mark.parametrize("error", MISTAKES, ids=lambda e: type(e).__name__)
def test_mistakes_of_the_user_are_one_line(monkeypatch, error):
    code, said = ends(monkeypatch, error)
    assert code == 2
    assert re.fullmatch(r"error: [^\n]*(said|MemoryError)[^\n]*\n", said)


@pytest.mark.parametrize("error", [AssertionError("said"), AttributeError("said"), NameError(), Exception("said")])
def test_our_own_mistakes_are_one_line_that_says_how_to_see_more(monkeypatch, error):
    code, said = ends(monkeypatch, error)
    assert code == 70
    assert re.fullmatch(rf"internal error: {type(error).__name__}[^\n]*DGATING_TRACEBACK=1[^\n]*\n", said)


@pytest.mark.parametrize("error", [ValueError("a\n\x1b[31mb"), AssertionError("a\n\x1b[31mb")])
def test_the_traceback_is_there_for_who_asks(monkeypatch, error):
    monkeypatch.setenv("DGATING_TRACEBACK", "1")
    code, said = ends(monkeypatch, error)
    assert code in (2, 70)
    assert said.startswith("Traceback (most recent call last):\n")
    assert "in fail\n" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1), (typer.Exit(7), 7), (SystemExit(9), 9)]
)
def test_ends_without_a_word(monkeypatch, error, code):
    assert ends(monkeypatch, error) == (code, "")


def test_a_message_is_one_line_of_words():
    assert message(ValueError("  a\n\n  b\r\nc\u2028d ")) == "a b c d"
    assert message(ValueError("\x1b[31m\u202e")) == "\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}"
    assert message(ValueError("")) == "ValueError"
    assert message(KeyError("a\nb")) == r"KeyError: 'a\nb'"
    assert len(message(ValueError("x" * 10**6))) == LONGEST + 1


# --- signals ---


def test_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    with stopping():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == before
    with pytest.raises(KeyError), stopping():
        raise KeyError
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_handlers_of_others_stay(handler):
    """``nohup`` ignores SIGHUP, and a program around the command may have its own way to end."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with stopping():
            assert signal.getsignal(signal.SIGHUP) is handler
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_have_no_handlers():
    found = []

    def inside():
        with stopping():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=str
)
def test_a_run_that_is_stopped_cleans_up(here, number, code):
    """In the middle of the cross-validation: nothing is left, and an earlier report is as it was."""
    pd.DataFrame({"a": range(40), "y": range(40)}).astype(float).to_csv("t.csv")
    Path("out").mkdir()
    Path("out/preprocessing.json").write_text("old")
    read, write = os.pipe()
    child = fork()
    if child == 0:

        def wait(*args):
            os.write(write, b"here")
            threading.Event().wait(60)

        dgating.tables._select._fit = wait
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run("select", "t.csv", "--target", "y", "--out", "out", "--force", "--folds", 2)
    assert os.read(read, 4) == b"here"
    assert len(os.listdir()) == 4  # the table, the report, the new one and its lock
    again = CliRunner().invoke(app, ["select", "t.csv", "--target", "y", "--out", "out", "--force", "--folds", "2"])
    assert again.exit_code == 2
    assert "another run is writing this folder" in again.stderr
    os.kill(child, number)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert sorted(os.listdir()) == ["out", "t.csv"]
    assert Path("out/preprocessing.json").read_text() == "old"
    for end in (read, write):
        os.close(end)


@pytest.mark.parametrize(
    "say", [lambda: print("word"), lambda: print("word\n" * 100_000), lambda: console().print("word")]
)
def test_output_that_nobody_reads(here, say):
    """As in ``dgating ... | head``: no word on standard error."""
    read, write = os.pipe()
    errors = os.memfd_create("errors") if hasattr(os, "memfd_create") else os.open("errors", os.O_RDWR | os.O_CREAT)
    os.close(read)
    child = fork()
    if child == 0:
        sys.stdout, sys.stderr = os.fdopen(write, "w"), os.fdopen(os.dup(errors), "w")
        dgating.cli.select.predict = lambda *args, **options: say()
        run("predict", "r", "t.csv", "--out", "p.csv")
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert os.pread(errors, 100, 0) == b""
    os.close(errors)


def run(*args):
    """The command as the whole of a process, which ends."""
    try:
        app([str(a) for a in args])
    except SystemExit as ended:
        try:
            sys.stdout.close()  # as Python does at its end
        finally:
            os._exit(ended.code or 0)
    finally:
        os._exit(99)
