"""``dgating compact``: take out of a saved model what contributes nothing, and write what is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dgating as dg
from dgating._text import plain
from dgating.cli.files import check_output, writing
from dgating.cli.models import Subject, imported, sources, subject
from dgating.cli.pt2_guard import Guard
from dgating.cli.terminal import console
from dgating.compaction import compact_bytes, difference, inputs_to_check, run, scale_of
from dgating.deploy import export_bytes
from dgating.files import write_bytes
from dgating.structure import call_kwargs, silent

EXPECTED = (ValueError, TypeError, RuntimeError, ImportError, OSError)
WRITERS = (".safetensors", ".pt2", ".onnx")


@dataclass(frozen=True)
class File:
    """What goes where, and a line about it.

    Attributes:
        option: that named the path.
    """

    option: str
    path: Path
    content: bytes
    line: str


@dataclass(frozen=True)
class Checked:
    """How far the compact model was compared with the full one."""

    difference: float
    scale: float
    inputs: int


def compact(
    model: str,
    *,
    weights: Path | None,
    shapes: list[str],
    inputs: str | None,
    out: list[Path],
    plan: Path | None,
    fold: bool,
    force: bool,
) -> None:
    """Print the plan and the sizes; write the compact model to every file of ``out``.

    Raises:
        ValueError: options that do not go together, a file that is not what it should be, or one that is there
            already and would be replaced without ``force``.
        RuntimeError: the model cannot be read or run.
    """
    with _reported(model):
        reads = [Path(model), *([] if weights is None else [weights]), *sources(model, inputs)]
        _check_outputs(out, plan, force, reads)
        screen = console()
        case = subject(model, weights, shapes, inputs)
        if case.target == "graph" and any(p.suffix.lower() == ".safetensors" for p in out):
            raise ValueError(
                "--out: a .pt2 file becomes a .pt2 or .onnx file; .safetensors needs the model's code to load."
            )
        if case.target == "graph":  # the program of a file
            with Guard():
                run(case.model, case.args, case.kwargs)
        with torch.no_grad():
            small = dg.compact(case.model, case.args, kwargs=case.kwargs, target=case.target, fold_constants=fold)
        what: Any = small.compaction
        for line in str(what).split("\n"):
            screen.print(plain(line))
        screen.print(sizes(case.model, small))
        seen = compare(case.model, small, case)
        screen.print(
            f"largest difference {seen.difference:.1e} (outputs up to {seen.scale:.3g}), on {seen.inputs} inputs"
        )
        files = [] if plan is None else [File("--plan", plan, (what.to_json() + "\n").encode(), f"wrote {plan.name}")]
        files += [file_of(small, case, path) for path in out]  # all of them, before the first one is written
        for file in files:
            check_output(file.option, file.path, force, [*reads, *imported()])
        _write(files, force)
        for file in files:
            screen.print(plain(file.line))
        if out and case.fixed_axes:
            screen.print(plain(f"sizes of the example, no longer free: {', '.join(case.fixed_axes)}"))
        if not out:
            screen.print("nothing written; --out says where to")


@contextmanager
def _reported(model: str) -> Iterator[None]:
    """Errors of a program in a file are one line that names the file; those of code keep their traceback."""
    if not model.lower().endswith(".pt2"):
        yield
        return
    try:
        with silent():
            yield
    except Exception as error:
        if isinstance(error, EXPECTED) and plain(error) == str(error):
            raise
        lines = str(error).strip().splitlines() or [""]
        raise RuntimeError(f"{model} cannot be run ({type(error).__name__}: {plain(lines[0])[:200]}).") from error


def _check_outputs(out: list[Path], plan: Path | None, force: bool, reads: list[Path]) -> None:
    """Raise ``ValueError`` before anything is computed for a file that cannot or must not be written."""
    for path in out:
        if path.suffix.lower() not in WRITERS:
            raise ValueError(f"--out: expected a name that ends in {', '.join(WRITERS)}, received {path.name!r}.")
    named = [("--out", path) for path in out] + ([] if plan is None else [("--plan", plan)])
    places = [path.resolve() for _, path in named]
    twice = next((path for path in places if places.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"--out, --plan: expected different files, {str(twice)!r} is named twice.")
    for option, path in named:
        check_output(option, path, force, reads)
    if plan is not None and plan.suffix.lower() != ".json":
        raise ValueError(f"--plan: expected a name that ends in .json, received {plan.name!r}.")


def _write(files: list[File], force: bool) -> None:
    """All files; after an error, none of those that were not there before."""
    made: list[Path] = []
    try:
        for file in files:
            there = file.path.exists()
            with writing(file.option, file.path):
                write_bytes(file.path, file.content, new=not force)
            if not there:
                made.append(file.path)
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.unlink()
        raise


def compare(model: nn.Module, small: nn.Module, case: Subject) -> Checked:
    """The figures behind what ``dg.compact`` has checked already, in the model's own precision."""
    every = inputs_to_check(case.args, call_kwargs(model, case.kwargs))
    pairs = [(run(model, *i), run(small, *i)) for i in every]
    return Checked(max(difference(a, b) for a, b in pairs), max(scale_of(a) for a, _ in pairs), len(every))


def sizes(full: nn.Module, small: nn.Module) -> Any:
    """Numbers and bytes before and after."""
    from rich.table import Table

    table = Table()
    for head in ("", "before", "after", "left"):
        table.add_column(head, justify="right" if head else "left")
    for name, count in (("parameters", parameters), ("bytes", size_in_bytes)):
        a, b = count(full), count(small)
        table.add_row(name, f"{a:,}", f"{b:,}", f"{b / a:.0%}" if a else "-")
    return table


def parameters(model: nn.Module) -> int:
    """Numbers in the parameters, a shared one counted once."""
    return sum(p.numel() for p in model.parameters())


def size_in_bytes(model: nn.Module) -> int:
    """Memory of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def file_of(small: nn.Module, case: Subject, path: Path) -> File:
    """One file, not yet written."""
    if path.suffix.lower() == ".safetensors":
        content = compact_bytes(small)
        line = f"wrote {path.name}: {len(content):,} bytes; load it with dg.load_compact(full_model, path)"
        return File("--out", path, content, line)
    content, done = export_bytes(small, case.args, path, case.kwargs, case.free_batch)
    agrees = "not run" if done.max_difference is None else f"differs by {done.max_difference:.1e}"
    return File("--out", path, content, f"wrote {path.name}: {done.bytes:,} bytes, {done.nodes} operations, {agrees}")
