"""Files made to do harm: does anything in them run, how much memory do they take, is the answer one line?

Honest files of every format are changed in one place a thousand times: every text becomes code, every number a wrong
one, parts are pickled, packed, twice there or huge, bytes are lost or flipped. Each file is opened in a process of its
own by the command that reads it. Counted are the files that made a file of their own (code was run), tracebacks,
answers of more than one line, and memory beyond what the process had before.

    python -m benchmarks.hostile_files [--quick] [--files 1000]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dgating as dg
from benchmarks._common import environment, store
from benchmarks._mutations import MUTANTS, Mutant, damaged

SECONDS = 60  # a file that takes longer is stopped
MEGABYTE = 2**20


@dataclass(frozen=True)
class Format:
    """How an honest file is made, and which commands read it."""

    suffix: str
    honest: Callable[[Path], None]
    commands: tuple[tuple[str, ...], ...]


def network() -> nn.Sequential:
    """A small one, with three units that can leave."""
    torch.manual_seed(0)
    first = nn.Linear(4, 8)
    with torch.no_grad():
        first.weight[:3] = 0
        first.bias[:3] = 0
    return nn.Sequential(first, nn.ReLU(), nn.Linear(8, 2)).eval()


def _program(path: Path) -> None:
    batch = {0: torch.export.Dim("batch", max=64)}
    torch.export.save(torch.export.export(network(), (torch.randn(5, 4),), dynamic_shapes=(batch,)), path)


def _onnx(path: Path) -> None:
    dg.export(network(), torch.randn(5, 4), path)


def _compact(path: Path) -> None:
    dg.save_compact(dg.compact(network(), torch.randn(5, 4)), path)


def _config(path: Path) -> None:
    net = network()
    dg.gate_(net, [dg.features(net[0], name="inputs"), dg.neurons(net[2], name="hidden")], depth=4)
    dg.GateConfig.from_model(net).save(path)


FORMATS = {
    "pt2": Format(".pt2", _program, (("inspect",), ("compact",))),
    "onnx": Format(".onnx", _onnx, (("inspect",),)),
    "safetensors": Format(".safetensors", _compact, (("inspect",),)),
    "json": Format(".json", _config, (("inspect",),)),
}


def honest(kind: Format) -> bytes:
    """The bytes of a file as the library or torch writes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"honest{kind.suffix}"
        kind.honest(path)
        return path.read_bytes()


def mutants(kind: Format, content: bytes, marker: str, files: int, seed: int = 0) -> Iterator[Mutant]:
    """The honest file, ``files`` changed ones; a third of them damaged at random."""
    rng = random.Random(seed)
    made = list(MUTANTS[kind.suffix](content, marker, rng, max(16, files)))
    crafted = [m for m in made if not m[0].startswith(("payload", "org.onnx", "onnx."))]
    others = [m for m in made if m[0].startswith(("payload", "org.onnx", "onnx."))]
    few = max(0, files - len(crafted) - files // 3)
    chosen = [others[i * len(others) // few] for i in range(few)] if few else []
    yield "honest", content
    yield from [*crafted, *chosen, *damaged(content, rng, files // 3)][: max(files, len(crafted))]


def attempt(command: tuple[str, ...], path: Path, folder: Path) -> dict[str, Any]:
    """Run a command on a file in a process of its own: what it printed, how it ended, memory it took."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.chdir(folder)
        result = _run(command, path)
        with os.fdopen(write, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if not text:
        return {"code": None, "error": f"killed by signal {os.WTERMSIG(status)}", "megabytes": 0.0, "seconds": SECONDS}
    return json.loads(text)


def _run(command: tuple[str, ...], path: Path) -> dict[str, Any]:
    from dgating.cli.app import app

    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, err = io.StringIO(), io.StringIO()
    start = time.perf_counter()
    code: int | None = 0
    fault = ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = app([*command, str(path)], standalone_mode=False) or 0  # of typer.Exit
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException as error:
            code = getattr(error, "exit_code", None)
            if code is None:
                fault = f"{type(error).__name__}: {str(error)[:200]} at {traceback.extract_tb(error.__traceback__)[-1]}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "code": code,
        "error": fault,
        "stderr": err.getvalue(),
        "stdout": out.getvalue()[:20_000],
        "megabytes": (peak - before) / 1024,
        "seconds": time.perf_counter() - start,
    }


def judge(done: dict[str, Any], ran: bool) -> list[str]:
    """What is wrong with an answer; nothing for one clear line or a whole report."""
    wrong = ["ran code"] * ran
    if done["code"] is None:
        wrong.append("stopped after a minute" if "signal 14" in done["error"] else "traceback")
    elif done["code"] != 0:
        lines = done["stderr"].strip().splitlines()
        if len(lines) != 1 or not lines[0].removeprefix("\x1b[31m").startswith("error: "):
            wrong.append("not one line")
    shown = (done.get("stdout", "") + done.get("stderr", "")).replace("\x1b[31m", "").replace("\x1b[0m", "")
    if any(c in shown for c in "\x1b\x07"):
        wrong.append("steers the terminal")
    if done["megabytes"] > 200:
        wrong.append("more than 200 MB")
    return wrong


def measure(name: str, files: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """One format: how many of its files did what."""
    kind = FORMATS[name]
    content = honest(kind)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        marker = folder / "MARKER"
        path = folder / f"file{kind.suffix}"
        for command in kind.commands:
            wrong: Counter[str] = Counter()
            accepted = most = longest = total = 0
            for what, changed in mutants(kind, content, str(marker), files):
                path.write_bytes(changed)
                done = attempt(command, path, folder)
                found = judge(done, marker.exists())
                marker.unlink(missing_ok=True)
                total += 1
                accepted += done["code"] == 0
                most, longest = max(most, done["megabytes"]), max(longest, done["seconds"])
                wrong.update(found)
                if what == "honest" and done["code"] != 0:
                    wrong["honest file refused"] += 1
                    say(f"{name} {command}: the honest file is refused: {done}")
                for fault in found:
                    say(
                        f"{name} {command} {what[:100]}: {fault} {done['error'][:300]} {done.get('stderr', '')[:200]!r}"
                    )
            result[command[0]] = {
                "files": total,
                "accepted": accepted,
                "ran code": wrong["ran code"],
                "tracebacks": wrong["traceback"],
                "not one line": wrong["not one line"],
                "steers the terminal": wrong["steers the terminal"],
                "stopped after a minute": wrong["stopped after a minute"],
                "more than 200 MB": wrong["more than 200 MB"],
                "honest file refused": wrong["honest file refused"],
                "most MB": round(most, 1),
                "longest s": round(longest, 1),
            }
            say(f"{name} {command[0]}: {result[command[0]]}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Files made to do harm.")
    parser.add_argument("--quick", action="store_true", help="a hundred files a format, printed only")
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--format", action="append", choices=list(FORMATS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = 100 if options.quick else options.files
    warm()
    results = {name: measure(name, files) for name in options.format or FORMATS}
    if not options.quick and not options.format:
        print(store("hostile_files", {"environment": environment("cpu"), "files": files, "formats": results}))


def warm() -> None:
    """Import and run everything once, so that the memory of libraries is not counted as that of a file."""
    from dgating.cli.app import app

    for kind in FORMATS.values():
        content = honest(kind)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"warm{kind.suffix}"
            path.write_bytes(content)
            for command in kind.commands:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                    app([*command, str(path)], standalone_mode=False)


if __name__ == "__main__":
    sys.exit(main())
