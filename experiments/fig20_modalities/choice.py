"""Which strength of a split to take: a pure function of its points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RULES = ("best", "1se")


def chosen(points: Sequence[dict[str, Any]], rule: str) -> int | None:
    """Index of a point; ``None`` where every training diverged.

    ``"best"``: the smallest validation RMSE. ``"1se"``: among the points within one standard error of it, those with
    the fewest modalities, of these the largest strength. The standard error is that of the best point, over its
    validation rows. Equal errors: the larger strength.
    """
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {RULES}, received {rule!r}.")
    validation = {i: point["rmse"][1] for i, point in enumerate(points) if "diverged" not in point}
    if not validation:
        return None
    best = max(validation, key=lambda i: (-validation[i], points[i]["lam"]))
    if rule == "best":
        return best
    reach = validation[best] + points[best]["rmse_error"]
    near = [i for i, value in validation.items() if value <= reach]
    return max(near, key=lambda i: (-len(points[i]["left"]), points[i]["lam"]))
