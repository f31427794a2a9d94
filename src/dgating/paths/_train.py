"""Training at one strength: SGD with momentum on data in memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dgating.gating import is_gated
from dgating.paths._data import Data
from dgating.paths._objective import Loss, mean_loss
from dgating.training import param_groups


class Batches:
    """Row numbers without end: all rows in a new order, then again; batches differ by one row at most."""

    def __init__(self, n: int, size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> None:
        self.n, self.size, self.generator, self.device = n, size, generator, device
        self.left: list[Tensor] = []

    def __next__(self) -> Tensor:
        if not self.left:
            order = torch.randperm(self.n, generator=self.generator).to(self.device)
            self.left = list(order.tensor_split(math.ceil(self.n / self.size)))[::-1]
        return self.left.pop()

    def copy(self) -> Batches:
        """Another stream that goes on from here alike."""
        made = Batches(self.n, self.size, self.generator.clone_state(), self.device)
        made.left = list(self.left)
        return made


class Trainer:
    """SGD on a model, gated or not. The strength may change between runs; momentum goes on."""

    def __init__(self, model: nn.Module, loss: Loss, *, lr: float, momentum: float, weight_decay: float) -> None:
        self.model, self.loss, self.lr = model, loss, lr
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

    def run(self, data: Data, batches: Batches, steps: int, cosine: bool = False) -> float:
        """So many steps, with ``cosine`` to a step size of zero; the mean data loss over them."""
        self.model.train()
        total = torch.zeros((), device=data.target.device)
        for step in range(steps):
            if cosine:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            batch = data.rows(next(batches))
            value = mean_loss(self.loss, self.model(*batch.inputs), batch)
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()
            total += value.detach()
        return float(total) / max(steps, 1)
