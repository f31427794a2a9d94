"""``GateConfig``: the gating of a model as JSON, to gate a fresh model alike and load a state_dict into it."""

from __future__ import annotations

import json
import math
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dgating._checks import check_path
from dgating.files import read_bytes, read_json, refusing, write_text
from dgating.gating._apply import gate_planned
from dgating.gating._config_check import check_config
from dgating.gating._gated_tensors import by_groups, units
from dgating.gating._groups import Groups, Member, Part
from dgating.gating._partition import Partition, partition_by_labels
from dgating.gating._plan import plan_gating

FORMAT = "dgating/gates/1"


@dataclass(frozen=True)
class GateConfig:
    """What is gated in a model, and how deep: everything but the numbers.

    A gated model's ``state_dict`` holds factors; to load it, a fresh model must be gated in the same way first.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> _ = dg.gate_(net, dg.features(net), depth=4)
        >>> text = dg.GateConfig.from_model(net).to_json()
        >>> fresh = dg.GateConfig.from_json(text).apply_(torch.nn.Linear(4, 2))
        >>> fresh.load_state_dict(net.state_dict())
        <All keys matched successfully>
    """

    groups: tuple[dict[str, Any], ...]

    @classmethod
    def from_model(cls, model: nn.Module) -> GateConfig:
        """Read the gating of a model. Raises ``ValueError`` when it has none."""
        out = []
        for name, parts in by_groups(units(model)).items():
            out.append(
                {
                    "name": name,
                    "depth": parts[0].depth,
                    "parts": [
                        {
                            "label": unit.label,
                            "n_groups": unit.n_groups,
                            "members": [
                                {"path": s.path, "tensor": s.tensor, **_encode(s.gate.partition)} for s in unit.sites
                            ],
                        }
                        for unit in parts
                    ],
                }
            )
        return cls(tuple(out))

    def apply_(self, model: nn.Module) -> nn.Module:
        """Gate a fresh model in the same way, in place.

        Raises:
            ValueError: a model of another architecture, or a damaged configuration; the model stays as it is.
        """
        todo: list[tuple[Groups, int]] = []
        with _readable():
            check_config(self.groups)
        for spec in self.groups:
            parts = [
                Part(tuple(_member(model, m, part["n_groups"]) for m in part["members"]), part["label"])
                for part in spec["parts"]
            ]
            todo.append((Groups(tuple(parts), spec["name"]), spec["depth"]))
        depths = [depth for _, depth in todo]
        planned = plan_gating(model, [g for g, _ in todo])
        gate_planned(list(zip(planned, depths, strict=True)))  # all at once: a refusal leaves no part gated
        return model

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps({"format": FORMAT, "groups": self.groups}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> GateConfig:
        """Read JSON text. Raises ``ValueError`` for anything that is not a gating configuration."""
        return cls._from(text)

    @classmethod
    def _from(cls, text: str | bytes) -> GateConfig:
        with refusing("GateConfig: expected JSON, received something else", "Take the text of GateConfig.to_json."):
            data = read_json(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            got = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"GateConfig: expected format {FORMAT!r}, received {repr(got)[:80]}.")
        with _readable():
            check_config(data["groups"])
        return cls(tuple(data["groups"]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, atomically."""
        write_text(check_path("path", path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GateConfig:
        """Read a file written by :meth:`save`. Raises ``ValueError`` for any other content."""
        where = check_path("path", path)
        with refusing("GateConfig: expected a JSON file", "Take one written by GateConfig.save."):
            content = read_bytes(where)
        return cls._from(content)


def _readable() -> AbstractContextManager[None]:
    return refusing("GateConfig: the configuration is damaged", "Make it again: GateConfig.from_model(model).")


def _member(model: nn.Module, spec: dict[str, Any], n_groups: int) -> Member:
    """A tensor of the model and its groups; labels are spread out once the tensor is known to have their size."""
    path, tensor = spec["path"], spec["tensor"]
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ValueError(
            f"GateConfig: {type(model).__name__} has no module {path!r}: "
            "expected a model of the architecture that was gated."
        ) from None
    title = f"{path}.{tensor}" if path else tensor
    found = getattr(module, tensor, None)
    if not isinstance(found, torch.Tensor):
        raise ValueError(
            f"GateConfig: {type(module).__name__} has no tensor {title!r}: "
            "expected a model of the architecture that was gated."
        )
    if list(found.shape) != spec["shape"]:
        raise ValueError(
            f"GateConfig: made for a tensor of shape {tuple(spec['shape'])}, but {title!r} is {tuple(found.shape)}: "
            "expected a model of the architecture that was gated."
        )
    return Member(module, tensor, _decode(spec, n_groups))


def _encode(partition: Partition) -> dict[str, Any]:
    """Labels as runs ``[value, length]``: a hundred heads are a hundred pairs."""
    values, lengths = torch.unique_consecutive(partition.labels.reshape(-1), return_counts=True)
    out: dict[str, Any] = {"shape": list(partition.shape), "labelled": list(partition.labels.shape)}
    n = partition.labels.numel()
    if n == 1 and int(values[0]) == 0:
        return {**out, "kind": "whole"}
    if n % partition.n_groups == 0 and torch.equal(
        partition.labels.reshape(-1), torch.arange(n) // (n // partition.n_groups)
    ):
        return {**out, "kind": "blocks"}
    return {**out, "kind": "runs", "values": values.tolist(), "lengths": lengths.tolist()}


def _decode(spec: dict[str, Any], n_groups: int) -> Partition:
    shape, labelled = tuple(spec["shape"]), tuple(spec["labelled"])
    n = math.prod(labelled)
    if spec["kind"] == "whole":
        flat = torch.zeros(1, dtype=torch.long)
    elif spec["kind"] == "blocks":
        flat = torch.arange(n) // (n // n_groups)
    else:
        flat = torch.repeat_interleave(torch.tensor(spec["values"]), torch.tensor(spec["lengths"]))
    return partition_by_labels(shape, flat.view(labelled), n_groups)
