"""A sub-network as one group."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from dgating.gating import Groups, Member, Part, check_tensor, partition_by_labels


def whole(modules: nn.Module | Iterable[nn.Module], name: str | None = None) -> Groups:
    """All trainable parameters of a sub-network (or of several) as a single group.

    An expert, a tree, a branch, the tower of a modality: it stays or it goes. For several sub-networks that compete,
    put them side by side: ``concat(*[whole(e) for e in experts], name="experts")``.

    Args:
        modules: one module or several that form the group together.
        name: key in the diagnostics.

    Returns:
        :class:`Groups` of length one.

    Raises:
        ValueError: no trainable parameters.
        TypeError: not modules.

    Example:
        >>> import torch, dgating as dg
        >>> experts = [torch.nn.Linear(3, 2) for _ in range(4)]
        >>> groups = dg.concat(*[dg.whole(e) for e in experts], name="experts")
        >>> len(groups), groups.sizes.tolist()
        (4, [8, 8, 8, 8])
    """
    if not isinstance(modules, nn.Module | Iterable):
        raise TypeError(f"modules: expected torch.nn.Module, received {type(modules).__name__}.")
    todo = [modules] if isinstance(modules, nn.Module) else list(modules)
    members: dict[int, Member] = {}
    for top in todo:
        if not isinstance(top, nn.Module):
            raise TypeError(f"modules: expected torch.nn.Module, received {type(top).__name__}.")
        for path, module in top.named_modules():
            for attribute, p in module._parameters.items():
                if p is None or not p.requires_grad:
                    continue
                check_tensor(p, f"{path}.{attribute}" if path else attribute)
                labels = torch.zeros((1,) * p.ndim, dtype=torch.long)
                members.setdefault(id(p), Member(module, attribute, partition_by_labels(tuple(p.shape), labels)))
    if not members:
        raise ValueError("whole: expected modules with trainable parameters, received none.")
    return Groups((Part(tuple(members.values())),), name)
