"""``dgating inspect``: what is in a file. The file is read as data: nothing in it is run, imported or unpickled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgating._text import plain
from dgating.cli.files import checked_safetensors, manifest_of
from dgating.cli.inspect_onnx import inspect_onnx
from dgating.cli.inspect_pt2 import inspect_pt2
from dgating.cli.listing import ROWS, TENSORS, Cell, Say, fill, numel, shape_text, table, tensor_row
from dgating.cli.terminal import console
from dgating.compaction import FORMAT, UNSEALED
from dgating.files import existing


def inspect(path: Path) -> None:
    """Print a summary of a file that this library reads or writes.

    Raises:
        ValueError: another kind of file, or one that is damaged; the message is one line.
    """
    readers: dict[str, Callable[[Path, Say], None]] = {
        ".safetensors": _safetensors,
        ".pt2": inspect_pt2,
        ".onnx": inspect_onnx,
        ".json": _json,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"FILE: expected a name that ends in {', '.join(readers)}, received {path.name!r}.")
    existing(path)
    lines: list[Any] = []
    try:
        reader(path, lines.append)
    except ImportError:
        raise
    except (ValueError, OSError) as error:
        raise ValueError(plain(error)) from error
    except Exception as error:  # a damaged file can fail at any place; all mean the same
        raise ValueError(f"{path.name!r} is damaged ({type(error).__name__}: {plain(error)[:200]}).") from error
    screen = console()
    for line in lines:
        screen.print(plain(line) if isinstance(line, str) else line)


# --- safetensors ---


def _safetensors(path: Path, say: Say) -> None:
    stored = checked_safetensors(path)
    manifest = manifest_of(stored)
    shapes = {name: list(stored.shapes[name]) for name in sorted(stored.shapes)}
    total = sum(numel(shape) for shape in shapes.values())
    say(f"{path.name}: {len(shapes)} tensors, {total:,} numbers, {path.stat().st_size:,} bytes")
    if manifest is None:
        rows = [tensor_row(name, stored.tensor(name)) for name in list(shapes)[:ROWS]]
        say(fill(table("", *TENSORS), rows, len(shapes)))
        return
    if manifest["format"] not in (FORMAT, UNSEALED):
        raise ValueError(f"{path.name!r} has format {manifest['format']!r}; this version reads {FORMAT!r}.")
    try:
        _steps(manifest, shapes, say)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{path.name!r} has a damaged manifest ({type(error).__name__}: {error}).") from error


def _steps(manifest: dict[str, Any], shapes: dict[str, list[int]], say: Say) -> None:
    """What every compaction sliced."""
    steps = manifest["steps"]
    say(f"written by dg.save_compact ({manifest['format']}), {len(steps)} step{'s' * (len(steps) != 1)}")
    shared = manifest["shared"]
    now = {**shapes, **{name: shapes[first] for name, first in shared.items()}}
    for number, step in enumerate(steps, 1):
        before = step.get("shapes", {})
        rows: list[tuple[Cell, ...]] = []
        for name, slices in sorted(step["slices"].items()):
            kept = ", ".join(f"{_kept(s)} along axis {s['axis']}" for s in slices)
            old = shape_text(before[name]) if name in before else "?"
            rows.append((name, old, kept, shape_text(now[name]) if name in now else "-"))
        title = f"step {number}, target {step['target']}: {len(rows)} tensors were sliced"
        say(fill(table(title, "tensor", "before", "kept", "in the file"), rows))
        if step["biases"]:
            say(f"constants moved into {', '.join(sorted(step['biases']))}")
        if rewritten := [where or "the whole model" for where in step["inputs"]]:
            say(f"rewritten graphs: {', '.join(rewritten)}")
    if shared:
        say(f"shared: {', '.join(f'{a} = {b}' for a, b in sorted(shared.items()))}")


def _kept(s: dict[str, Any]) -> int:
    """How many indices stay; with a row axis, in each row."""
    return len(s["keep"] if s.get("row") is None else s["keep"][0])


# --- JSON ---


def _json(path: Path, say: Say) -> None:
    from dgating.gating import GateConfig

    rows: list[tuple[Cell, ...]] = []
    for spec in GateConfig.load(path).groups:
        tensors = [".".join(filter(None, (m["path"], m["tensor"]))) for part in spec["parts"] for m in part["members"]]
        number = sum(part["n_groups"] for part in spec["parts"])
        rows.append((str(spec["name"]), str(number), str(spec["depth"]), tensors))
    say(fill(table(f"{path.name}: a GateConfig", "groups", "J", "D", "tensors"), rows))
