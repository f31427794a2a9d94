"""What is in a ``.pt2`` file: its graph and its tensors, read as data. The program is not loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgating.cli.listing import ROWS, TENSORS, Say, fill, shape_text, table, tensor_row
from dgating.cli.pt2_archive import opened
from dgating.cli.pt2_inputs import example_inputs
from dgating.cli.pt2_tensors import DTYPES, stored_tensors
from dgating.files import MOST_BYTES, named_json


def inspect_pt2(path: Path, say: Say) -> None:
    """Say how many operations, parameters and inputs a program has, and which of its numbers are zero."""
    with opened(path) as archive:
        model = named_json(archive.read("models/model.json", MOST_BYTES), f"{path.name!r}, models/model.json")
        tensors = stored_tensors(archive)
        stored = example_inputs(archive) is not None
        try:
            graph = model["graph_module"]["graph"]
            calls = Counter(_short(node["target"]) for node in graph["nodes"])
            inputs = list(_inputs(model["graph_module"]))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path.name!r} holds no exported program ({type(error).__name__}: {error}).") from None
        parameters = sum(
            t.numel for t in {(t.member, t.offset, t.shape, t.strides): t for t in tensors if t.is_param}.values()
        )
        say(f"{path.name}: {calls.total()} operations, {parameters:,} parameters, {path.stat().st_size:,} bytes")
        say(f"most common: {', '.join(f'{n} {op}' for op, n in calls.most_common(8))}")
        for line in inputs:
            say(line)
        if stored:
            say("it stores example inputs")
        rows = [tensor_row(t.name, t.read(archive)) for t in tensors[:ROWS]]
        say(fill(table("", *TENSORS), rows, len(tensors)))
    say(f"dgating compact {path.name} says what could be removed")


def _short(target: Any) -> str:
    """``linear`` of ``torch.ops.aten.linear.default``."""
    parts = str(target).split(".")
    return parts[3] if parts[:2] == ["torch", "ops"] and len(parts) > 3 else parts[-1]


def _inputs(module: dict[str, Any]) -> Iterator[str]:
    """A line for every tensor among the inputs of the user."""
    values = module["graph"]["tensor_values"]
    for spec in module["signature"]["input_specs"]:
        tensor = (spec.get("user_input") or {}).get("arg", {}).get("as_tensor")
        if tensor is not None:
            meta = values[tensor["name"]]
            dtype = str(DTYPES.get(meta["dtype"], "?")).removeprefix("torch.")
            yield f"input {tensor['name']}: {shape_text(_size(n) for n in meta['sizes'])} {dtype}"


def _size(size: dict[str, Any]) -> str:
    """A number, or the name of a free size."""
    if "as_int" in size:
        return str(size["as_int"])
    found = re.fullmatch(r"Symbol\('(\w+)'.*\)", str(size["as_expr"]["expr_str"])[:200])
    return found.group(1) if found else "*"
