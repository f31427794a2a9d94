"""Kill what writes files, at every moment: an old file or report, or the new one, must be there and whole.

``python -m benchmarks.kills``, some minutes; ``--quick``: a few moments, nothing stored.

A moment is before or after a call of the system (``rename``, ``open``, ``write``, ``fsync``, ...): between two of them
a kill changes nothing. After every kill the folder is read as ``dgating predict`` reads it, and the next run must
succeed and leave nothing else behind.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from benchmarks._common import environment, store
from benchmarks._kill import events, killed
from dgating.cli.select import select
from dgating.files import readable, staged, write_text
from dgating.tables import REPORT, Predictor, Settings

LAST = 120  # moments of the command: from the renames on, and some before
SAME = ("selected.csv", "path.png", "model.safetensors", "preprocessing.json")  # the files without times of a run


@dataclass(frozen=True)
class Way:
    """``write(word)`` puts a state in place, ``word()`` says which one is there, ``None`` for none that is whole."""

    write: Callable[[str], None]
    word: Callable[[], str | None]
    left: list[str]


def one_file() -> Way:
    """A file, as every file of the library is written."""
    path = Path("file")

    def word() -> str | None:
        text = path.read_text() if path.is_file() else ""
        return text[:3] if text in ("old" * 1000, "new" * 1000) else None

    return Way(lambda said: write_text(path, said * 1000), word, ["file"])


def folder() -> Way:
    """The folder of a report with small files."""

    def write(said: str) -> None:
        with staged(Path("out"), REPORT, True) as new:
            for name in REPORT.files:
                write_text(new / name, said)

    def word() -> str | None:
        place = readable(Path("out"))
        if not place.is_dir() or sorted(os.listdir(place)) != sorted(REPORT.files):
            return None
        words = {(place / name).read_text() for name in REPORT.files}
        return words.pop() if len(words) == 1 else None

    return Way(write, word, ["out"])


def command() -> Way:
    """``dgating select --force`` on a table of 30 rows."""
    r = np.random.default_rng(0)
    frame = pd.DataFrame(r.normal(size=(30, 3)), columns=["a", "b", "y"])
    frame.to_csv("t.csv", index=False)

    def write(said: str) -> None:
        settings = Settings("y", folds=2, test=0, seed=("old", "new").index(said))
        with contextlib.redirect_stderr(io.StringIO()):
            select(Path("t.csv"), Path("out"), settings, force=True, quiet=True)

    known: dict[str, dict[str, bytes]] = {}
    for said in ("old", "new"):
        write(said)
        known[said] = {name: Path("out", name).read_bytes() for name in SAME}

    def word() -> str | None:
        place = readable(Path("out"))
        if not place.is_dir() or sorted(os.listdir(place)) != sorted(REPORT.files):
            return None
        Predictor.load(place)
        seed = json.loads((place / "metrics.json").read_text(encoding="utf-8"))["settings"]["seed"]
        said = ("old", "new")[seed]
        return said if {name: (place / name).read_bytes() for name in SAME} == known[said] else None

    return Way(write, word, ["out", "t.csv"])


@contextlib.contextmanager
def place(one_step: bool) -> Iterator[None]:
    """An empty folder to work in, on a system that exchanges two folders in one step, or on one that cannot."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        os.chdir(name)
        stack.callback(os.chdir, before)
        if not one_step:
            stack.enter_context(mock.patch("dgating.files._folders.exchange", return_value=False))
        yield


def every_moment(make: Callable[[], Way], one_step: bool, step: int, last: int | None = None) -> dict[str, Any]:
    """Kills at every ``step``-th moment, or of the ``last`` ones, in which a long run changes places of folders."""
    with place(one_step):
        way = make()
        way.write("old")
        moments = events(lambda: way.write("new"))
        found: Counter[str] = Counter()
        first = 1 if last is None else moments - last
        for at in range(first, moments + 1, step):
            found["not killed"] += not killed(lambda: way.write("new"), at)
            look(way, found)
    return {"moments": moments, **counts(found)}


def by_the_clock(delays: int) -> dict[str, Any]:
    """Kills of ``python -m dgating select`` after a while, from its start to its end."""
    with place(True):
        way = command()
        call = [sys.executable, "-m", "dgating", "select", "t.csv", "--target", "y", "--out", "out", "--folds", "2",
                "--test", "0", "--seed", "1", "--force", "--quiet"]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(call, check=True)
        whole = time.perf_counter() - start
        way.write("old")
        found: Counter[str] = Counter()
        for i in range(delays):
            process = subprocess.Popen(call)
            time.sleep(whole * (0.4 + 0.6 * i / max(1, delays - 1)))  # before that Python loads its libraries
            process.send_signal(signal.SIGKILL)
            process.wait()
            look(way, found)
    return counts(found)


def look(way: Way, found: Counter[str]) -> None:
    """After a kill: what is there, and whether the next run puts the old state in place and nothing else."""
    found["kills"] += 1
    found[way.word() or "lost"] += 1
    found["with something left"] += sorted(os.listdir()) != way.left
    way.write("old")
    found["next run failed"] += (way.word(), sorted(os.listdir())) != ("old", way.left)


def counts(found: Counter[str]) -> dict[str, int]:
    """All that may happen, also what did not."""
    names = ("kills", "old", "new", "lost", "not killed", "with something left", "next run failed")
    return {name: found[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few moments, print only")
    quick = parser.parse_args().quick
    step, every, delays = (40, 60, 1) if quick else (4, 12, 6)  # of a folder; of the command; by the clock
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "a file": lambda: every_moment(one_file, True, 1),
        "a folder, exchanged in one step": lambda: every_moment(folder, True, step),
        "a folder, two renames": lambda: every_moment(folder, False, step),
        "dgating select": lambda: every_moment(command, True, every, LAST),
        "dgating select, two renames": lambda: every_moment(command, False, every, LAST),
        "dgating select, by the clock": lambda: by_the_clock(delays),
    }
    runs = {}
    for name, measure in measures.items():
        start = time.perf_counter()
        runs[name] = measure()
        print(f"{name}: {runs[name]} ({time.perf_counter() - start:.0f} s)", flush=True)
    if not quick:
        kills = sum(run["kills"] for run in runs.values())
        lost = sum(run["lost"] for run in runs.values())
        print(f"{kills} kills, {lost} lost")
        store("kills", {"environment": environment(), "kills": kills, "lost": lost, "runs": runs})


if __name__ == "__main__":
    main()
