"""What a ``GateConfig`` may say: checked by arithmetic alone, so that no size in a file asks for memory."""

from __future__ import annotations

import math
from typing import Any

from dgating._checks import check_depth
from dgating.files import whole_numbers


def check_config(groups: Any) -> None:
    """Raise (an error of :data:`~dgating.files._reading.MALFORMED`) unless these are the groups of a ``GateConfig``."""
    if not isinstance(groups, list | tuple) or not groups:
        raise ValueError("expected a list of groups")
    for spec in groups:
        _expect(spec["name"], str)
        check_depth(spec["depth"])
        if not isinstance(spec["parts"], list) or not spec["parts"]:
            raise ValueError(f"{spec['name'][:80]!r} has no parts")
        for part in spec["parts"]:
            _check_part(part)


def _check_part(part: Any) -> None:
    _expect(part["label"], str)
    n_groups = part["n_groups"]
    if type(n_groups) is not int or not isinstance(part["members"], list) or not part["members"]:
        raise ValueError(f"part {part['label'][:80]!r} has no number of groups, or no members")
    labels = sum(_check_member(member, n_groups) for member in part["members"])
    if not 1 <= n_groups <= labels:
        raise ValueError(f"part {part['label'][:80]!r} has {n_groups} groups and {labels} labels")


def _check_member(member: Any, n_groups: int) -> int:
    """How many labels there are, once spread out."""
    _expect(member["path"], str)
    _expect(member["tensor"], str)
    shape, labelled, kind = whole_numbers(member["shape"]), whole_numbers(member["labelled"], 1), member["kind"]
    if shape is None or labelled is None or len(labelled) != len(shape):
        raise ValueError(f"{member['tensor'][:80]!r} has no shape, or labels of other axes")
    if any(a not in (1, b) for a, b in zip(labelled, shape, strict=True)):
        raise ValueError(f"{member['tensor'][:80]!r} of shape {shape[:8]} has labels of shape {labelled[:8]}")
    n = math.prod(labelled)
    if kind == "whole":
        good = n == 1
    elif kind == "blocks":
        good = n_groups > 0 and n % n_groups == 0
    elif kind == "runs":
        values, lengths = whole_numbers(member["values"], -1), whole_numbers(member["lengths"], 1)
        good = values is not None and lengths is not None and len(values) == len(lengths) and sum(lengths) == n
        good = good and max(values or [-1]) in range(n_groups)
    else:
        good = False
    if not good:
        raise ValueError(
            f"{member['tensor'][:80]!r} has labels of kind {repr(kind)[:80]} that do not fit {n_groups} groups"
        )
    return n


def _expect(value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, received {repr(value)[:80]}")
