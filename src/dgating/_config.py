"""``GateConfig``: the gating of a model as JSON, to gate a fresh model alike and load a state_dict into it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dgating._files import write_text
from dgating._groups import Groups, Member, Part
from dgating._model import gate_planned
from dgating._partition import Partition, partition_by_labels
from dgating._plan import check_depth, plan_gating
from dgating._units import by_groups, units

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

        A model of another architecture is a ``ValueError`` and stays as it is.
        """
        todo: list[tuple[Groups, int]] = []
        for spec in self.groups:
            parts = []
            for part in spec["parts"]:
                members = []
                for path, tensor, partition in _part(part):
                    try:
                        module = model.get_submodule(path)
                    except AttributeError:
                        raise ValueError(
                            f"GateConfig: {type(model).__name__} has no module {path!r}: "
                            "expected a model of the architecture that was gated."
                        ) from None
                    members.append(Member(module, tensor, partition))
                parts.append(Part(tuple(members), part["label"]))
            todo.append((Groups(tuple(parts), spec["name"]), spec["depth"]))
        depths = [check_depth(depth) for _, depth in todo]
        planned = plan_gating(model, [g for g, _ in todo])
        gate_planned(list(zip(planned, depths, strict=True)))  # all at once: a refusal leaves no part gated
        return model

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps({"format": FORMAT, "groups": self.groups}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> GateConfig:
        """Read JSON text. Raises ``ValueError`` for anything that is not a gating configuration."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"GateConfig: expected JSON, received something else ({error}).") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            got = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"GateConfig: expected format {FORMAT!r}, received {got!r}.")
        try:
            for spec in data["groups"]:
                _expect(spec["name"], str)
                check_depth(spec["depth"])
                for part in spec["parts"]:
                    _part(part)
        except (KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise ValueError(f"GateConfig: the configuration is damaged ({type(error).__name__}: {error}).") from None
        return cls(tuple(data["groups"]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, atomically."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GateConfig:
        """Read a file written by :meth:`save`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"GateConfig: expected a JSON text file, {Path(path).name!r} is binary.") from None
        return cls.from_json(text)


def _part(spec: dict[str, Any]) -> list[tuple[str, str, Partition]]:
    """Path, tensor and partition of each member of a part; anything missing or of the wrong kind raises."""
    _expect(spec["label"], str)
    _expect(spec["n_groups"], int)
    members = []
    for m in spec["members"]:
        _expect(m["path"], str)
        _expect(m["tensor"], str)
        members.append((m["path"], m["tensor"], _decode(m, spec["n_groups"])))
    if not members:
        raise ValueError("a part without members")
    return members


def _expect(value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, received {value!r}")


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
    n = 1
    for size in labelled:
        n *= size
    if spec["kind"] == "whole":
        flat = torch.zeros(1, dtype=torch.long)
    elif spec["kind"] == "blocks":
        flat = torch.arange(n) // (n // n_groups)
    elif spec["kind"] == "runs":
        flat = torch.repeat_interleave(torch.tensor(spec["values"]), torch.tensor(spec["lengths"]))
    else:
        raise KeyError(f"kind {spec['kind']!r}")
    return partition_by_labels(shape, flat.view(labelled), n_groups)
