"""Programs saved by ``torch.export``: read without unpickling anything, as an ordinary module with its inputs."""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

FREE = 4  # size of a free axis in made-up inputs, where the program allows it
EMBEDDINGS = {torch.ops.aten.embedding.default}


def read_program(path: Path) -> ExportedProgram:
    """The program in a ``.pt2`` file.

    The file is a program: opening one runs its graph. But what torch would unpickle in it is refused.

    Raises:
        ValueError: not such a file, a truncated one, one of an older format, or one with pickled or native parts.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check(archive, path.name)
    except zipfile.BadZipFile:
        raise ValueError(
            f"{path.name!r} is not a whole .pt2 file. Expected one written by torch.export.save."
        ) from None
    log = logging.getLogger("torch.export")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(io.BytesIO(content))
    except Exception as error:  # torch raises many kinds for a file that was changed
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"torch.export.load cannot read {path.name!r} ({type(error).__name__}: {first}).") from error
    finally:
        log.setLevel(level)


def _check(archive: zipfile.ZipFile, file: str) -> None:
    """Raise unless the archive holds a graph and plain tensors."""
    names = {n.partition("/")[2]: n for n in archive.namelist()}
    if not any(n.startswith("models/") for n in names):
        raise ValueError(
            f"{file!r} is not a whole .pt2 file, or one of an older torch: it holds no exported program. Save it again "
            "with torch.export.save."
        )
    for name, full in names.items():
        if name.startswith("data/aotinductor/"):
            raise ValueError(f"{file!r} holds compiled code ({name}). Expected a program written by torch.export.save.")
        if name.startswith("data/sample_inputs/"):
            if content := archive.read(full):
                _plain(content, file, name)
        elif name.startswith(("data/weights/", "data/constants/")):
            known = name.endswith("_config.json") or name.rpartition("/")[2].startswith(("weight_", "tensor_"))
            if name.endswith("_config.json"):
                entries = json.loads(archive.read(full))["config"].values()
                known = not any(e["use_pickle"] or "tensor_meta" not in e or e["tensor_meta"] is None for e in entries)
            if not known:
                raise ValueError(f"{file!r} holds pickled objects ({name}), which are not opened.")


def _plain(content: bytes, file: str, name: str) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        raise ValueError(f"{file!r} holds pickled objects ({name}), which are not opened.") from None


def module_of(program: ExportedProgram) -> GraphModule:
    """The program as a module with the names of the model it was exported from."""
    module = program.module(check_guards=False)
    graph = GraphModule(module, module.graph)  # without the refusal of train() and eval()
    graph.training = False
    return graph


def inputs_of(program: ExportedProgram, given: list[Tensor] | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs for the program: those given, those stored with it, or made-up ones of the shapes that it expects."""
    if given is None and program.example_inputs is not None:
        args, kwargs = program.example_inputs
        return tuple(args), dict(kwargs)
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    specs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    tensors = [isinstance(nodes[s.arg.name].meta["val"], Tensor) for s in specs if s.arg.name in nodes]
    if given is not None and len(given) != sum(tensors):
        raise ValueError(
            f"--input: expected {sum(tensors)} tensors, in the order of the program, received {len(given)}."
        )
    ready = iter(given or [])
    sizes: dict[str, int] = {}
    generator = torch.Generator().manual_seed(0)
    leaves: list[Any] = []
    for entry in specs:
        node = nodes.get(entry.arg.name)
        value = node.meta["val"] if node is not None else getattr(entry.arg, "value", None)
        if node is None or not isinstance(value, Tensor):
            leaves.append(getattr(entry.arg, "value", value))
        elif given is not None:
            leaves.append(next(ready))
        else:
            leaves.append(_make(node, value, program, sizes, generator))
    spec = program.call_spec.in_spec
    assert spec is not None
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return tuple(args), dict(kwargs)


def free_axes(program: ExportedProgram) -> dict[str, list[int]]:
    """The axes of every input whose size is free."""
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    axes = {
        name: [a for a, n in enumerate(v.shape) if not isinstance(n, int)]
        for name, v in values.items()
        if isinstance(v, Tensor)
    }
    return {name: free for name, free in axes.items() if free}


def _make(node: Node, like: Tensor, program: ExportedProgram, sizes: dict[str, int], random: torch.Generator) -> Tensor:
    shape = [_size(n, program, sizes) for n in like.shape]
    if like.dtype.is_floating_point:
        return torch.randn(shape, generator=random).to(like.dtype)
    if like.dtype == torch.bool:
        return torch.ones(shape, dtype=torch.bool)
    rows = [
        u.args[0].meta["val"].shape[0] for u in node.users if u.target in EMBEDDINGS and isinstance(u.args[0], Node)
    ]
    return torch.randint(0, min(rows, default=2), shape, generator=random).to(like.dtype)


def _size(n: Any, program: ExportedProgram, sizes: dict[str, int]) -> int:
    """A size, the same for the same symbol everywhere, within the range that the program allows."""
    if isinstance(n, int):
        return n
    expression = n.node.expr
    for symbol in expression.free_symbols:
        if str(symbol) not in sizes:
            known = program.range_constraints.get(symbol)
            low, high = (int(known.lower), known.upper) if known is not None else (0, FREE)
            value = max(low, FREE)
            sizes[str(symbol)] = value if value <= high else int(high)
    return int(expression.subs({s: sizes[str(s)] for s in expression.free_symbols}))
