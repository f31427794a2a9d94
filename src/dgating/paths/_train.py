"""Training at one strength: SGD with momentum on data in memory."""

from __future__ import annotations

import torch
from torch import nn

from dgating._model import is_gated
from dgating._optim import param_groups
from dgating.paths._data import Data
from dgating.paths._objective import Loss, mean_loss


class Trainer:
    """SGD on a gated model. The strength may change from epoch to epoch; momentum goes on."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        self.model, self.loss, self.batch_size, self.generator = model, loss, batch_size, generator
        if is_gated(model):
            groups = param_groups(model, 1.0, weight_decay)
        else:  # every group is gone
            groups = [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]
        self.optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum)
        self.per_lam = [
            g["weight_decay"] if g.get("dgating") in ("omega", "gates") else None for g in self.optimizer.param_groups
        ]

    def set_lam(self, lam: float) -> None:
        for group, decay in zip(self.optimizer.param_groups, self.per_lam, strict=True):
            if decay is not None:
                group["weight_decay"] = lam * decay

    def epoch(self, data: Data) -> float:
        """One pass; the mean data loss over it."""
        self.model.train()
        total, rows = torch.zeros((), device=data.target.device), 0
        for batch in data.batches(self.batch_size, self.generator):
            value = mean_loss(self.loss, self.model(*batch.inputs), batch)
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()
            total += value.detach() * len(batch)
            rows += len(batch)
        return float(total) / rows
