"""Programs saved by ``torch.export``: checked, read without unpickling, as an ordinary module with its inputs."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from dgating.cli.pt2_archive import Archive, opened
from dgating.cli.pt2_inputs import example_inputs
from dgating.cli.pt2_program import checked
from dgating.cli.pt2_tensors import FOLDERS, Stored, config_member, config_of, stored_tensors
from dgating.files import MOST_BYTES, named_json
from dgating.structure import EXPORT, silent

FREE = 4  # size of a free axis in made-up inputs, where the program allows it
EMBEDDINGS = {torch.ops.aten.embedding.default}


def read_program(path: Path) -> ExportedProgram:
    """The program in a ``.pt2`` file: operators of ATen on tensors, nothing else.

    torch evaluates texts of such a file and unpickles parts of it. So it is not given the file: it reads an archive
    that is written here, from what was checked.

    Raises:
        ValueError: not such a file, a truncated one, one of an older format, or one that holds anything else.
    """
    with opened(path) as archive:
        graph = checked(
            named_json(archive.read("models/model.json", MOST_BYTES), f"{path.name!r}, models/model.json"), path.name
        )
        inputs = example_inputs(archive)
        clean = _clean_copy(archive, graph, stored_tensors(archive))
    try:
        with EXPORT, silent():
            program = torch.export.load(clean)
    except Exception as error:  # torch raises many kinds for a file that was changed
        raise ValueError(
            f"torch.export.load cannot read {path.name!r} ({type(error).__name__}: {_first_line(error)})."
        ) from None
    program.example_inputs = inputs
    return program


def _clean_copy(archive: Archive, graph: dict[str, Any], tensors: list[Stored]) -> io.BytesIO:
    """An archive of the same program in which every text was checked."""
    buffer = io.BytesIO()
    texts = {
        "archive_format": "pt2",
        "archive_version": "0",
        "byteorder": "little",
        ".data/version": "6\n",
        "models/model.json": json.dumps(graph),
        "data/sample_inputs/model.pt": "",
        **{config_member(folder): json.dumps(config_of(tensors, folder)) for folder in FOLDERS},
    }
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as copy:
        for name, text in texts.items():
            copy.writestr(f"model/{name}", text)
        for member in sorted({t.member for t in tensors}):
            with copy.open(f"model/{member}", "w", force_zip64=True) as into:
                archive.copy(member, into)  # type: ignore[arg-type]
    buffer.seek(0)
    return buffer


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


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
