"""Which models can be worked on: eager, bare, and with every tensor there."""

from __future__ import annotations

from torch import jit, nn
from torch.nn.parameter import is_lazy


def check_eager(model: object, name: str = "model") -> None:
    """Refuse what hides its modules and parameters: scripted, compiled and wrapped models."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, received {type(model).__name__}.")
    if isinstance(model, jit.ScriptModule):
        raise TypeError(
            f"{name}: expected an eager torch.nn.Module, received a scripted one. Gate and compact before torch.jit."
        )
    kind = type(model).__name__
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or kind == "OptimizedModule":
        raise ValueError(
            f"{name}: expected the bare model, received it wrapped in {kind}, which would not see the new parameters. "
            "Gate or compact first, then wrap or compile."
        )


def check_weights(model: object, name: str = "model") -> None:
    """Refuse what is no module, and a module with tensors that are not there."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, received {type(model).__name__}.")
    for path, p in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(p):
            raise ValueError(
                f"{name}: expected initialised tensors, received {path!r}, which is lazy. Run one forward pass first."
            )
        if p.is_meta:
            raise ValueError(
                f"{name}: expected weights, received {path!r}, which is on 'meta'. Materialise the model first."
            )
