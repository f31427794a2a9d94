"""What the settings of an optimizer have been since the monitor was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgating.maths import momentum_shift


@dataclass(frozen=True)
class Place:
    """A parameter group of the optimizer, as one of its parameters sees it.

    Attributes:
        settings: its options.
        top_lr: the largest step size that the certificate has to reckon with.
        top_decay: the largest weight decay so far.
        momenta: the smallest and the largest momentum so far.
    """

    settings: Mapping[str, Any]
    top_lr: float
    top_decay: float
    momenta: tuple[float, float]

    def shift(self, kappa: float) -> float | None:
        """The constant of the momentum theorem, ``None`` where it does not exist."""
        nesterov = bool(self.settings.get("nesterov"))
        return momentum_shift(self.top_lr, self.momenta[1], kappa, nesterov)


class SettingsRecord:
    """Extremes of the settings, one row a parameter group. Reading them waits for no device."""

    def __init__(self, optimizer: torch.optim.Optimizer, max_lr: float) -> None:
        self.optimizer, self.max_lr = optimizer, max_lr
        self.rows: list[dict[str, float]] = []
        self.note()

    def note(self) -> None:
        """Take in the settings of this step."""
        groups = self.optimizer.param_groups
        if len(groups) < len(self.rows):
            raise RuntimeError(
                f"optimizer: expected its {len(self.rows)} parameter groups, {len(groups)} are left. Make a new "
                "monitor."
            )
        for group in groups[len(self.rows) :]:
            momentum = float(group.get("momentum", 0.0))
            self.rows.append({"lr": 0.0, "decay": 0.0, "low": momentum, "high": momentum})
        for row, group in zip(self.rows, groups, strict=True):
            lr, momentum = group["lr"], float(group.get("momentum", 0.0))
            if not isinstance(lr, Tensor):  # a tensor may live on the device: places() reads it
                row["lr"] = max(row["lr"], lr)
            row["decay"] = max(row["decay"], float(group.get("weight_decay", 0.0)))
            row["low"], row["high"] = min(row["low"], momentum), max(row["high"], momentum)

    def places(self) -> dict[int, Place]:
        """The place of every parameter, by id."""
        self.note()
        out: dict[int, Place] = {}
        for row, group in zip(self.rows, self.optimizer.param_groups, strict=True):
            scheduled = (float(group.get(name) or 0.0) for name in ("lr", "initial_lr", "max_lr"))
            row["lr"] = max(row["lr"], *scheduled)
            top = max(row["lr"], self.max_lr)
            place = Place(group, top, row["decay"], (row["low"], row["high"]))
            out.update({id(p): place for p in group["params"]})
        return out
