"""Which groups are gone, and when was it known: the absorption certificate beside a threshold on the norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import dgating as dg
from dgating.gating import units


def settled(looks: Sequence[Any]) -> int:
    """The first look from which on all are like the last one (tensors or plain values)."""
    first = len(looks) - 1
    while first > 0 and bool(torch.all(torch.as_tensor(looks[first - 1] == looks[-1]))):
        first -= 1
    return first


class Watch:
    """Looks at a gated model in training; give its two methods to ``train``.

    Args:
        model: gated.
        lam: the strength of the run, or one for each ``Groups.name``.
        every: steps between two looks.
        window: of the monitor, steps.
        threshold: a group is gone when its norm is not above this.
    """

    def __init__(
        self, model: nn.Module, lam: float | Mapping[str, float], *, every: int, window: int, threshold: float
    ) -> None:
        self.model, self.lam, self.every, self.window, self.threshold = model, lam, every, window, threshold
        self.depth = units(model)[0].depth
        self.monitor: dg.AbsorptionMonitor | None = None
        self.steps: list[int] = []
        self.left: list[Tensor] = []
        self.certified: list[Tensor] = []

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take in the gradients of a step. D = 2 has no certificate, only a screening: nothing to watch there."""
        if self.depth > 2 and (max(self.lam.values()) if isinstance(self.lam, Mapping) else self.lam) > 0:
            self.monitor = self.monitor or dg.AbsorptionMonitor(
                self.model, self.lam, optimizer, window=self.window, evidence=True
            )
            self.monitor.update()

    def on_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Look, now and then."""
        if step % self.every == 0:
            self.look(step)

    def look(self, step: int) -> None:
        """Which groups are left, which are certified."""
        norms = torch.cat(list(dg.group_norms(self.model).values()))
        self.steps.append(step)
        self.left.append((norms > self.threshold).cpu())
        if self.monitor is not None:
            self.certified.append(torch.cat(list(self.monitor.absorbed().values())).cpu())

    def found(self) -> dict[str, Any]:
        """Groups left at the end, certified groups, and the first steps at which either knew the final support.

        ``support_step``: from this look on the threshold shows the support of the last look. ``certified_step``: the
        first look at which every group that is gone at the end was certified, ``None`` if that never happened;
        ``certified_for_good``: from this look on that is so. ``certified_above``: groups that were certified at some
        look and are still above the threshold at the last one. ``revoked``: groups that were certified at some look and
        are not at the last one, because the bound on their gradient has grown.
        """
        last = self.left[-1]
        gone = ~last
        whole = [bool(known[gone].all()) for known in self.certified] if gone.any() else []
        ever = torch.stack(self.certified).any(0) if self.certified else None
        for_good = settled(whole) if whole and whole[-1] else None
        return {
            "left": int(last.sum()),
            "certified": int(self.certified[-1].sum()) if self.certified else None,
            "support_step": self.steps[settled(self.left)],
            "certified_step": self.steps[whole.index(True)] if True in whole else None,
            "certified_for_good": None if for_good is None else self.steps[for_good],
            "certified_above": int((ever & last).sum()) if ever is not None else None,
            "revoked": int((ever & ~self.certified[-1]).sum()) if ever is not None else None,
        }
