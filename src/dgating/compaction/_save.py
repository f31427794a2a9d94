"""``save_compact`` and ``load_compact``: weights and slices in one file, re-applied to a fresh full-size model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dgating._files import write_bytes
from dgating.compaction._graphs import analyse_dynamic, edit, imposed, module_of_graph, rewritten_module
from dgating.compaction._modules import module_changes, repeat_attributes, sliced_copy
from dgating.compaction._plan import CompactionPlan, analyse
from dgating.compaction._record import example_inputs, slices_from_json
from dgating.structure._capture import CompactionError
from dgating.structure._sizes import Slice, apply, cut

FORMAT = "dgating/compact/1"


def save_compact(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a compact model: its tensors as safetensors, and in the header a JSON manifest of what was sliced.

    The file holds no code and nothing is pickled: :func:`load_compact` builds the model from a fresh full-size one. The
    file is written whole or not at all.

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
    tensors, shared = _unique(model)
    manifest = {"format": FORMAT, "shared": shared, "steps": [r.to_json() for r in records]}
    write_bytes(Path(path), save(tensors, metadata={"dgating": json.dumps(manifest)}))


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

    Args:
        model: a model of the architecture that was compacted, with any weights; it is not changed.
        path: the file.

    Returns:
        The compact model on the CPU, in the mode of ``model``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, a truncated one, or one of another architecture.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> dg.load_compact(net, "missing.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: load_compact: no file 'missing.safetensors'.
    """
    manifest, tensors = _read(Path(path))
    small = model
    records: list[Any] = []
    try:
        for step in manifest["steps"]:
            small = _repeat(small, step)
        state = dict(tensors)
        for name, first in manifest["shared"].items():
            state[name] = tensors[first]
    except CompactionError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"load_compact: {Path(path).name!r} does not fit this {type(model).__name__} ({type(error).__name__}: "
            f"{error}). Expected a full-size model of the architecture that was compacted, freshly built."
        ) from None
    _load_state(small, state, Path(path).name, type(model).__name__)
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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"load_compact: no file {path.name!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("dgating")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"load_compact: {path.name!r} is not a whole safetensors file ({error}). Expected one written by "
            "dg.save_compact."
        ) from None
    try:
        manifest = json.loads(text or "null")
    except (json.JSONDecodeError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else None
        raise ValueError(
            f"load_compact: expected a file written by dg.save_compact (format {FORMAT!r}), {path.name!r} has format "
            f"{got!r}. Load an ordinary state_dict with model.load_state_dict."
        )
    return manifest, tensors


def _repeat(model: nn.Module, step: dict[str, Any]) -> nn.Module:
    """One compaction again, on a model with any weights."""
    slices = slices_from_json(step["slices"])
    if step["target"] not in ("module", "graph"):
        raise ValueError(f"target {step['target']!r}")
    sizes = tuple((p, op, a, old, new) for p, op, a, old, new in step["sizes"])
    plan = CompactionPlan((), (), slices, {}, {}, (0, 0), sizes)
    _check_slices(model, slices, step["shapes"])
    if step["target"] == "graph":
        return _graph(model, slices, example_inputs(step["inputs"][""]), step["free"])
    small = sliced_copy(model, slices)
    for name, n in step["biases"].items():
        owner, _, attribute = name.rpartition(".")
        module = small.get_submodule(owner)
        if getattr(module, attribute) is None:
            setattr(module, attribute, nn.Parameter(torch.zeros(n)))
    attributes = {p: [(o, k, a, b) for o, k, a, b in found] for p, found in step["attributes"].items()}
    repeat_attributes(small, module_changes(model, plan), attributes)
    for path, spec in step["inputs"].items():
        rewritten_module(model, small, path, slices, *example_inputs(spec), dynamic=path not in step["held"])
    return small


def _check_slices(model: nn.Module, slices: dict[str, list[Slice]], shapes: dict[str, list[int]]) -> None:
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, ss in slices.items():
        if name not in named:
            raise ValueError(f"it has no tensor {name!r}")
        if list(named[name].shape) != shapes[name]:
            raise ValueError(f"{name!r} is {list(named[name].shape)} and was {shapes[name]}")
        apply(named[name].detach(), ss)


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


def _load_state(small: nn.Module, state: dict[str, Tensor], file: str, kind: str) -> None:
    mine = small.state_dict()
    missing, extra = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
    wrong = [n for n in mine if n in state and mine[n].shape != state[n].shape]
    if missing or extra or wrong:
        what = [f"missing {missing[:3]}"] if missing else []
        what += [f"unexpected {extra[:3]}"] if extra else []
        what += [f"{n!r} is {tuple(state[n].shape)}, expected {tuple(mine[n].shape)}" for n in wrong[:3]]
        raise ValueError(
            f"load_compact: {file!r} does not fit this {kind}: {'; '.join(what)}. Expected a full-size model of the "
            "architecture that was compacted, freshly built."
        )
    small.load_state_dict(state)


__all__ = ["load_compact", "save_compact"]
