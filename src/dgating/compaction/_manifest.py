"""What the manifest of a compact model may say of a given full-size model; all of it is checked before any is done."""

from __future__ import annotations

from typing import Any

from torch import nn

from dgating.compaction._record import size_of_inputs
from dgating.files import whole_numbers
from dgating.structure import Slice

LARGEST = 1 << 31  # of sizes in forward code
STEP = {"target", "shapes", "free", "held", "slices", "biases", "sizes", "attributes", "inputs"}


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raise ``ValueError`` unless every entry is of the right kind, whatever the model."""
    steps, shared = manifest["steps"], manifest["shared"]
    if not isinstance(steps, list) or not steps or not all(isinstance(s, dict) for s in steps):
        raise ValueError(f"steps {_brief(steps)}")
    if not isinstance(shared, dict) or not _texts(shared.values()):
        raise ValueError(f"shared names {_brief(shared)}")
    if not isinstance(manifest.get("not_finite", []), list) or not _texts(manifest.get("not_finite", [])):
        raise ValueError(f"names of tensors with infinite numbers {_brief(manifest['not_finite'])}")
    for step in steps:
        if step.keys() != STEP:
            raise ValueError(f"a step with the entries {_brief(sorted(step))}, expected {sorted(STEP)}")
        if step["target"] not in ("module", "graph") or not isinstance(step["free"], bool):
            raise ValueError(f"target {_brief(step['target'])}, free {_brief(step['free'])}")
        for name in ("shapes", "slices", "biases", "attributes", "inputs"):
            if not isinstance(step[name], dict):
                raise ValueError(f"{name} {_brief(step[name])}")
        if not isinstance(step["held"], list) or not _texts(step["held"]):
            raise ValueError(f"modules whose graphs were held {_brief(step['held'])}")


def slices_of_step(model: nn.Module, step: dict[str, Any]) -> dict[str, list[Slice]]:
    """The slices of a step: indices that rise, of axes that the model's tensors have."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    if step["slices"].keys() != step["shapes"].keys():
        raise ValueError("slices and shapes of other tensors")
    made = {}
    for name, entries in step["slices"].items():
        if name not in named:
            raise ValueError(f"it has no tensor {name[:80]!r}")
        shape = list(named[name].shape)
        if step["shapes"][name] != shape:
            raise ValueError(f"{name!r} is {shape} and was {_brief(step['shapes'][name])}")
        if not isinstance(entries, list):
            raise ValueError(f"slices {_brief(entries)} of {name!r}")
        made[name] = [_slice(entry, shape) for entry in entries]  # one after the other: shape becomes smaller
    return made


def _slice(entry: Any, shape: list[int]) -> Slice:
    """One slice of a tensor of this shape, which becomes that of what is left."""
    if not isinstance(entry, dict) or not {"axis", "keep"} <= entry.keys() <= {"axis", "keep", "row"}:
        raise ValueError(f"a slice {_brief(entry)}")
    axis, keep, row = entry["axis"], entry["keep"], entry.get("row")
    if type(axis) is not int or axis not in range(len(shape)) or not isinstance(keep, list):
        raise ValueError(f"a slice of axis {_brief(axis)} with the indices {_brief(keep)} of a tensor of {shape}")
    rows = [keep]
    if row is not None:
        if type(row) is not int or row not in range(len(shape)) or row == axis or len(keep) != shape[row]:
            raise ValueError(f"a slice of axis {axis} with {len(keep)} rows of axis {_brief(row)} of {shape}")
        rows = keep
    width = len(rows[0]) if isinstance(rows[0], list) else 0
    for indices in rows:
        known = whole_numbers(indices)
        if not known or len(known) != width or known[-1] >= shape[axis] or sorted(set(known)) != known:
            raise ValueError(f"a slice of axis {axis} of a tensor of {shape} with the indices {_brief(indices)}")
    shape[axis] = width
    return Slice.from_json(entry)


def sizes_of_step(model: nn.Module, step: dict[str, Any]) -> tuple[tuple[str, str, str, Any, Any], ...]:
    """Sizes in forward code that change; they only become smaller."""
    made = []
    if not isinstance(step["sizes"], list):
        raise ValueError(f"sizes {_brief(step['sizes'])}")
    for entry in step["sizes"]:
        if not isinstance(entry, list) or len(entry) != 5 or not _texts(entry[:3]):
            raise ValueError(f"a size {_brief(entry)}")
        path, op, argument, old, new = entry
        model.get_submodule(path)
        pairs = zip(old, new, strict=True) if isinstance(old, list) and isinstance(new, list) else [(old, new)]
        for a, b in pairs:
            if type(a) is int and type(b) is int and a != b and not 0 <= b < a < LARGEST:
                raise ValueError(f"a size of {path!r} that goes from {a} to {b}")
        made.append((path, op, argument, old, new))
    return tuple(made)


def attributes_of_step(model: nn.Module, step: dict[str, Any]) -> dict[str, list[tuple[str, str, int, int]]]:
    """Attributes that hold a size; :func:`repeat_attributes` sets only those that compaction itself may set."""
    made = {}
    for path, entries in step["attributes"].items():
        model.get_submodule(path)
        made[path] = []
        for entry in entries if isinstance(entries, list) else [entries]:
            good = isinstance(entry, list) and len(entry) == 4 and _texts(entry[:2]) and whole_numbers(entry[2:], 1)
            if not good or entry[3] >= entry[2]:
                raise ValueError(f"an attribute {_brief(entry)} of {path!r}")
            made[path].append((entry[0], entry[1], entry[2], entry[3]))
    return made


def biases_of_step(small: nn.Module, step: dict[str, Any]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """The biases to create, by module and name: only where a module has none and could have one."""
    made = []
    for name, n in step["biases"].items():
        path, _, attribute = name.rpartition(".")
        module = small.get_submodule(path)
        like = getattr(module, "weight", None)
        if attribute not in module._parameters or not isinstance(like, nn.Parameter):
            raise ValueError(f"{name[:80]!r} is no bias of {type(module).__name__}")
        if type(n) is not int or not 0 < n <= like.numel():
            raise ValueError(f"a bias {name!r} of {_brief(n)} numbers for a weight of {tuple(like.shape)}")
        if module._parameters[attribute] is None:
            made.append((module, attribute, nn.Parameter(like.new_zeros(n), requires_grad=like.requires_grad)))
    return made


def check_inputs(model: nn.Module, step: dict[str, Any]) -> None:
    """Graphs take the place of modules of the model, and are traced on what can be described."""
    wanted = {""} if step["target"] == "graph" else step["inputs"].keys() - {""}
    if step["inputs"].keys() != wanted:
        raise ValueError(f"inputs of {_brief(sorted(step['inputs']))} for the target {step['target']!r}")
    for path, spec in step["inputs"].items():
        model.get_submodule(path)
        if spec is not None:
            size_of_inputs(spec)


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _brief(value: Any) -> str:
    return repr(value)[:80]
