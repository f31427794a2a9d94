"""What has to be remembered of a compaction to repeat it on a freshly built full-size model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dgating.compaction._modules import Attributes
from dgating.compaction._plan import CompactionPlan
from dgating.files import MOST_AXES, whole_numbers
from dgating.structure import Args, CompactionError

MOST_INPUTS = 1 << 27  # bytes of example inputs that a file may ask for
DTYPES = {
    name: getattr(torch, name)
    for name in (
        "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64",
        "complex128",
    )
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Record:
    """One compaction: the plan, the attributes that were set without a rule, and what rewritten graphs were traced on.

    ``inputs`` describes the inputs of each module that was replaced by its graph; the whole model is ``""``. ``shapes``
    are those before slicing. ``free``: the graph was traced with free sizes of its inputs; ``held`` lists the modules
    whose graphs were not.
    """

    plan: CompactionPlan
    target: str
    shapes: dict[str, list[int]]
    attributes: Attributes = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    free: bool = True
    held: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "shapes": self.shapes,
            "free": self.free,
            "held": self.held,
            "slices": {name: [s.to_json() for s in ss] for name, ss in self.plan.slices.items()},
            "biases": {name: delta.numel() for name, delta in self.plan.folded.items()},
            "sizes": self.plan.sizes,
            "attributes": self.attributes,
            "inputs": self.inputs,
        }


def describe_inputs(args: Args, kwargs: Any) -> Any:
    """Inputs as JSON: the shapes of tensors instead of their numbers. ``None`` when there is something else in them."""
    try:
        return _describe((tuple(args), dict(kwargs)))
    except TypeError:
        return None


def _describe(x: Any) -> Any:
    if isinstance(x, Tensor):
        return {"tensor": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
    if x is None or isinstance(x, bool | int | float | str):
        return {"value": x}
    if type(x) in (list, tuple):
        return {"items": [_describe(i) for i in x], "tuple": isinstance(x, tuple)}
    if type(x) is dict and all(isinstance(k, str) for k in x):
        return {"dict": {k: _describe(v) for k, v in x.items()}}
    raise TypeError(type(x).__name__)


def example_inputs(spec: Any) -> tuple[Args, dict[str, Any]]:
    """Inputs of the described shapes, to trace a graph on.

    Raises:
        CompactionError: they cannot be described.
        ValueError: no description, or one of more than :data:`MOST_INPUTS` bytes, found before any is asked for.
    """
    if spec is None:
        raise CompactionError(
            "the graph was traced on inputs that are no tensors, numbers or plain containers; such a model cannot be "
            "re-built from a file. Export it instead: dg.export(model, example_inputs, 'model.pt2')."
        )
    if (size := size_of_inputs(spec)) > MOST_INPUTS:
        raise ValueError(f"inputs of {size:,} bytes, expected at most {MOST_INPUTS:,}")
    made = _example(spec)
    if type(made) is not tuple or len(made) != 2 or type(made[0]) is not tuple or type(made[1]) is not dict:
        raise ValueError("inputs that are no arguments and keywords")
    return made


def size_of_inputs(spec: Any) -> int:
    """Bytes of the described tensors. Raises ``ValueError`` for what is no description."""
    if not isinstance(spec, dict):
        raise ValueError(f"inputs {repr(spec)[:80]}")
    if spec.keys() == {"tensor", "dtype"}:
        shape, dtype = whole_numbers(spec["tensor"]), spec["dtype"]
        if shape is None or len(shape) > MOST_AXES or not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"an input of shape {repr(spec['tensor'])[:80]} and dtype {repr(dtype)[:80]}")
        return math.prod(max(n, 1) for n in shape) * DTYPES[dtype].itemsize
    if spec.keys() == {"items", "tuple"} and isinstance(spec["items"], list) and isinstance(spec["tuple"], bool):
        return sum(map(size_of_inputs, spec["items"]))
    if spec.keys() == {"dict"} and isinstance(spec["dict"], dict):
        return sum(map(size_of_inputs, spec["dict"].values()))
    if spec.keys() == {"value"} and (spec["value"] is None or isinstance(spec["value"], bool | int | float | str)):
        return 0
    raise ValueError(f"inputs {repr(spec)[:80]}")


def _example(spec: Any) -> Any:
    if "tensor" in spec:
        dtype = DTYPES[spec["dtype"]]
        made = torch.zeros(spec["tensor"], dtype=dtype)
        return made + 0.5 if dtype.is_floating_point else made
    if "items" in spec:
        made = [_example(i) for i in spec["items"]]
        return tuple(made) if spec["tuple"] else made
    if "dict" in spec:
        return {k: _example(v) for k, v in spec["dict"].items()}
    return spec["value"]
