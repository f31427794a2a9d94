"""``save_compact`` and ``load_compact``: weights and slices in one file, re-applied to a fresh full-size model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from dgating._checks import check_path
from dgating.compaction._graphs import analyse_dynamic, edit, imposed, module_of_graph, rewritten_module
from dgating.compaction._manifest import (
    attributes_of_step,
    biases_of_step,
    check_inputs,
    check_manifest,
    sizes_of_step,
    slices_of_step,
)
from dgating.compaction._modules import module_changes, repeat_attributes, sliced_copy
from dgating.compaction._plan import CompactionPlan
from dgating.compaction._record import MOST_INPUTS, example_inputs, size_of_inputs
from dgating.files import (
    Stored,
    read_json,
    read_safetensors,
    refusing,
    seal_safetensors,
    warn_unsealed,
    write_bytes,
)
from dgating.structure import CompactionError, Slice, analyse, cut

FORMAT, UNSEALED = "dgating/compact/2", "dgating/compact/1"


def save_compact(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a compact model: its tensors as safetensors, and in the header a JSON manifest of what was sliced.

    The file holds no code and nothing is pickled: :func:`load_compact` builds the model from a fresh full-size one. The
    file is written whole or not at all, and has a checksum (SHA-256) of everything in it.

    Args:
        model: a model made by :func:`compact`, trained on or not.
        path: the file, ``.safetensors`` by convention.

    Raises:
        ValueError: not a model made by :func:`compact`.

    Example:
        >>> import tempfile, torch, dgating as dg
        >>> def build():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net = build()
        >>> with torch.no_grad():
        ...     _ = net[0].weight[:3].zero_(), net[0].bias[:3].zero_()
        >>> small = dg.compact(net, (torch.randn(5, 4),))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dg.save_compact(small, f"{folder}/small.safetensors")
        ...     again = dg.load_compact(build(), f"{folder}/small.safetensors")
        >>> x = torch.randn(5, 4)
        >>> again[0].out_features, torch.equal(again(x), small(x))
        (5, True)
    """
    path = check_path("path", path)
    write_bytes(path, compact_bytes(model))


def compact_bytes(model: nn.Module) -> bytes:
    """What :func:`save_compact` writes."""
    records = getattr(model, "_compaction_records", None)
    if not isinstance(model, nn.Module) or not records:
        raise ValueError(
            f"save_compact: expected a model made by dg.compact, received {type(model).__name__}. Save an ordinary "
            "model by its state_dict."
        )
    for record in records:
        for where, spec in record.inputs.items():
            if spec is None:
                raise CompactionError(
                    f"save_compact: the graph of {where or 'the model'!r} was traced on inputs that a file cannot "
                    "describe. Export the model instead: dg.export(model, example_inputs, 'model.pt2')."
                )
            if size_of_inputs(spec) > MOST_INPUTS:
                raise CompactionError(
                    f"save_compact: the graph of {where or 'the model'!r} was traced on {size_of_inputs(spec):,} bytes "
                    f"of inputs, expected at most {MOST_INPUTS:,}. Compact with a smaller batch of example inputs."
                )
    tensors, shared = _unique(model)
    manifest = {
        "format": FORMAT,
        "shared": shared,
        "not_finite": sorted(name for name, t in tensors.items() if not _is_finite(t)),
        "steps": [r.to_json() for r in records],
    }
    return seal_safetensors(save(tensors), json.dumps(manifest))


def _unique(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State without repetitions, and which names share a tensor with which."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            shared[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors, shared


def load_compact(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Re-build a compact model from a freshly built full-size one and a file written by :func:`save_compact`.

    The file is not trusted: its checksum must be right, and everything that it says of the model must fit the model
    before memory is asked for. Only attributes are set that compaction itself would set. (The checksum finds damage and
    edits; it is no signature of who wrote the file.)

    Args:
        model: a model of the architecture that was compacted, with any weights; it is not changed.
        path: the file.

    Returns:
        The compact model on the CPU, in the mode of ``model``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, a damaged one, or one of another architecture or dtype.

    Warns:
        UserWarning: a file of format ``dgating/compact/1``, which had no checksum.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> dg.load_compact(net, "missing.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: load_compact: no file 'missing.safetensors'.
    """
    where = check_path("path", path)
    manifest, stored = _read(where)
    unfit = f"load_compact: {where.name!r} does not fit this {type(model).__name__}"
    with refusing(unfit, "Expected a full-size model of the architecture that was compacted, freshly built."):
        check_manifest(manifest)
        small = model
        for step in manifest["steps"]:
            small = _repeat(small, step)
        _load_state(small, stored, manifest)
    records = [_Loaded(step) for step in manifest["steps"]]
    small._compaction_records = (*getattr(model, "_compaction_records", ()), *records)  # type: ignore[assignment]
    return small


class _Loaded:
    """A record read from a file, ready to be written again."""

    def __init__(self, step: dict[str, Any]) -> None:
        self.step = step
        self.inputs: dict[str, Any] = step["inputs"]

    def to_json(self) -> dict[str, Any]:
        return self.step


def _read(path: Path) -> tuple[dict[str, Any], Stored]:
    if not path.is_file():
        raise FileNotFoundError(f"load_compact: no file {path.name!r}.")
    whole = f"load_compact: {path.name!r} is not a whole safetensors file"
    with refusing(whole, "Expected one written by dg.save_compact."):
        stored = read_safetensors(path)
    try:
        manifest = read_json(stored.metadata.get("dgating", "null"))
    except ValueError:
        manifest = None
    got = manifest.get("format") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or got not in (FORMAT, UNSEALED) or (got == FORMAT and not stored.sealed):
        raise ValueError(
            f"load_compact: expected a file written by dg.save_compact (format {FORMAT!r} with a checksum), "
            f"{path.name!r} has format {repr(got)[:80]}. Load an ordinary state_dict with model.load_state_dict."
        )
    if got == UNSEALED:
        warn_unsealed("load_compact", path)
    return manifest, stored


def _repeat(model: nn.Module, step: dict[str, Any]) -> nn.Module:
    """One compaction again, on a model with any weights."""
    slices, sizes = slices_of_step(model, step), sizes_of_step(model, step)
    attributes = attributes_of_step(model, step)
    check_inputs(model, step)
    if step["target"] == "graph":
        return _graph(model, slices, example_inputs(step["inputs"][""]), step["free"])
    plan = CompactionPlan((), (), slices, {}, {}, (0, 0), sizes)
    small = sliced_copy(model, slices)
    for module, name, bias in biases_of_step(small, step):
        setattr(module, name, bias)
    repeat_attributes(small, module_changes(model, plan), attributes)
    for path, spec in step["inputs"].items():
        rewritten_module(model, small, path, slices, *example_inputs(spec), dynamic=path not in step["held"])
    return small


def _graph(model: nn.Module, slices: dict[str, list[Slice]], inputs: tuple[Any, Any], free: bool) -> nn.Module:
    engine = analyse_dynamic(model, *inputs) if free else analyse(model, *inputs)
    solution = imposed(engine, slices)
    if solution is None:
        raise ValueError("its graph does not allow these slices")
    edit(engine, solution)
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    made: dict[int, Tensor] = {}
    for name, old in named.items():
        if id(old) not in made or name in slices:
            new = cut(old, slices.get(name, []))
            made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return module_of_graph(engine.captured.program, {name: made[id(old)] for name, old in named.items()})


def _load_state(small: nn.Module, stored: Stored, manifest: dict[str, Any]) -> None:
    """Names, shapes, dtypes and sharing must be those of the model; then the tensors are read."""
    shared, kept = manifest["shared"], small.state_dict(keep_vars=True)
    shapes = dict(stored.shapes)
    for name, first in shared.items():
        if name in shapes or first not in stored.shapes or kept.get(name) is not kept.get(first):
            raise ValueError(f"{name[:80]!r} does not share the tensor {first[:80]!r}")
        shapes[name] = stored.shapes[first]
    missing, extra = sorted(kept.keys() - shapes.keys()), sorted(shapes.keys() - kept.keys())
    wrong = [n for n in kept if n in shapes and tuple(kept[n].shape) != shapes[n]]
    if missing or extra or wrong:
        what = [f"missing {missing[:3]}"] if missing else []
        what += [f"unexpected {[n[:80] for n in extra[:3]]}"] if extra else []
        what += [f"{n!r} is {shapes[n]}, expected {tuple(kept[n].shape)}" for n in wrong[:3]]
        raise ValueError("; ".join(what))
    state = stored.tensors()
    for name, t in state.items():
        if t.dtype != kept[name].dtype:
            raise ValueError(f"{name!r} is {t.dtype}, expected {kept[name].dtype}: take model.to({t.dtype})")
        if not _is_finite(t) and not _may_be_infinite(name, kept[name], manifest):
            raise ValueError(f"{name!r} holds nan or infinite numbers")
    small.load_state_dict({**state, **{name: state[first] for name, first in shared.items()}})


def _may_be_infinite(name: str, tensor: Tensor, manifest: dict[str, Any]) -> bool:
    """Whether the file says so; format 1 could not, and masks are buffers."""
    if manifest["format"] == UNSEALED:
        return not isinstance(tensor, nn.Parameter)
    return name in manifest["not_finite"]


def _is_finite(t: Tensor) -> bool:
    return not (t.is_floating_point() or t.is_complex()) or bool(t.isfinite().all())


__all__ = ["load_compact", "save_compact"]
