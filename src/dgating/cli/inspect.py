"""``dgating inspect``: what is in a file, without building a model and without unpickling anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgating.cli.files import existing, manifest_of, open_safetensors
from dgating.compaction._save import FORMAT

Say = Callable[[Any], None]
ROWS = 40  # of a table; the rest is counted


def inspect(path: Path) -> None:
    """Print a summary of a file that this library reads or writes."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    readers: dict[str, Callable[[Path, Say], None]] = {
        ".safetensors": _safetensors,
        ".pt2": _pt2,
        ".onnx": _onnx,
        ".json": _json,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"FILE: expected a name that ends in {', '.join(readers)}, received {path.name!r}.")
    existing(path)
    reader(path, lambda x: console.print(x, markup=False) if isinstance(x, str) else console.print(x))


def _table(title: str, *heads: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _fill(table: Any, rows: list[tuple[str, ...]]) -> Any:
    for row in rows[:ROWS]:
        table.add_row(*row)
    if len(rows) > ROWS:
        table.caption = f"and {len(rows) - ROWS} more"
    return table


# --- safetensors ---


def _safetensors(path: Path, say: Say) -> None:
    manifest = manifest_of(path)
    with open_safetensors(path) as file:
        names = sorted(file.keys())
        total = sum(_numel(file.get_slice(n).get_shape()) for n in names)
        say(f"{path.name}: {len(names)} tensors, {total:,} numbers, {path.stat().st_size:,} bytes")
        if manifest is not None:
            if manifest["format"] != FORMAT:
                raise ValueError(f"{path.name!r} has format {manifest['format']!r}; this version reads {FORMAT!r}.")
            try:
                _steps(manifest, {n: file.get_slice(n).get_shape() for n in names}, say)
            except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                raise ValueError(f"{path.name!r} has a damaged manifest ({type(error).__name__}: {error}).") from error
            return
        rows = []
        for name in names:
            tensor = file.get_tensor(name)
            zeros = [f"{n} of {size}" if n else "-" for n, size in zip(zero_slices(tensor), tensor.shape, strict=True)]
            kind = str(tensor.dtype).removeprefix("torch.")
            share = float((tensor == 0).double().mean()) if tensor.numel() else 0.0
            rows.append((name, kind, _shape(tensor.shape), f"{share:.0%}", ", ".join(zeros[:2]) or "-"))
        say(_fill(_table("", "tensor", "dtype", "shape", "zeros", "zero slices of axis 0, 1"), rows))


def zero_slices(tensor: Tensor) -> list[int]:
    """How many slices of each axis are exactly zero; numbers without axes have none."""
    alive = tensor != 0
    counts = []
    for axis in range(tensor.ndim):
        others = [a for a in range(tensor.ndim) if a != axis]
        counts.append(int((~(alive.any(dim=others) if others else alive)).sum()))
    return counts


def _steps(manifest: dict[str, Any], shapes: dict[str, list[int]], say: Say) -> None:
    """What every compaction sliced."""
    steps = manifest["steps"]
    say(f"written by dg.save_compact ({manifest['format']}), {len(steps)} step{'s' * (len(steps) != 1)}")
    shared = manifest["shared"]
    now = {**shapes, **{name: shapes[first] for name, first in shared.items()}}
    for number, step in enumerate(steps, 1):
        before = step.get("shapes", {})
        rows = []
        for name, slices in sorted(step["slices"].items()):
            kept = ", ".join(f"{_kept(s)} along axis {s['axis']}" for s in slices)
            old = _shape(before[name]) if name in before else "?"
            rows.append((name, old, kept, _shape(now[name]) if name in now else "-"))
        title = f"step {number}, target {step['target']}: {len(rows)} tensors were sliced"
        say(_fill(_table(title, "tensor", "before", "kept", "in the file"), rows))
        if step["biases"]:
            say(f"constants moved into {', '.join(sorted(step['biases']))}")
        if rewritten := [where or "the whole model" for where in step["inputs"]]:
            say(f"rewritten graphs: {', '.join(rewritten)}")
    if shared:
        say(f"shared: {', '.join(f'{a} = {b}' for a, b in sorted(shared.items()))}")


def _kept(s: dict[str, Any]) -> int:
    """How many indices stay; with a row axis, in each row."""
    return len(s["keep"] if s.get("row") is None else s["keep"][0])


def _numel(shape: list[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _shape(shape: Any) -> str:
    return "x".join(str(n) for n in shape) or "one number"


# --- programs ---


def _pt2(path: Path, say: Say) -> None:
    import dgating as dg
    from dgating.cli.pt2 import inputs_of, module_of, read_program

    program = read_program(path)
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    calls = [
        str(t).split(".")[1] if isinstance(t, torch._ops.OpOverload) else getattr(t, "__name__", "?") for t in targets
    ]
    numbers = sum(p.numel() for p in program.parameters())
    say(f"{path.name}: {len(calls)} operations, {numbers:,} parameters, {path.stat().st_size:,} bytes")
    common = ", ".join(f"{n} {op}" for op, n in Counter(calls).most_common(8))
    say(f"most common: {common}")
    for spec in program.graph_signature.user_inputs:
        node = next((n for n in program.graph.nodes if n.op == "placeholder" and n.name == spec), None)
        if node is not None and isinstance(node.meta.get("val"), Tensor):
            say(f"input {spec}: {_shape(node.meta['val'].shape)} {str(node.meta['val'].dtype).removeprefix('torch.')}")
    args, kwargs = inputs_of(program)
    say(str(dg.plan_compaction(module_of(program), args, kwargs=kwargs)))


def _onnx(path: Path, say: Say) -> None:
    if find_spec("onnx") is None:
        raise ImportError("reading .onnx needs onnx: pip install 'dgating[onnx]'.")
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as error:  # a damaged protobuf raises many kinds
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{path.name!r} is not a whole ONNX model ({type(error).__name__}: {first}).") from error
    numbers = sum(_numel(list(t.dims)) for t in model.graph.initializer)
    opsets = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    say(f"{path.name}: {len(model.graph.node)} operations, opset {opsets}, {path.stat().st_size:,} bytes")
    say(f"{len(model.graph.initializer)} initializers, {numbers:,} numbers")
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            sizes = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
            say(f"{kind} {value.name}: {_shape(sizes)} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}")
    common = Counter(node.op_type for node in model.graph.node).most_common(8)
    say(f"most common: {', '.join(f'{n} {op}' for op, n in common)}")


# --- JSON ---


def _json(path: Path, say: Say) -> None:
    from dgating._config import GateConfig

    rows = []
    for spec in GateConfig.load(path).groups:
        tensors = [".".join(filter(None, (m["path"], m["tensor"]))) for part in spec["parts"] for m in part["members"]]
        number = sum(part["n_groups"] for part in spec["parts"])
        rows.append((spec["name"], str(number), str(spec["depth"]), "\n".join(tensors)))
    say(_fill(_table(f"{path.name}: a GateConfig", "groups", "J", "D", "tensors"), rows))
