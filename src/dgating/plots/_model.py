"""Pictures of a gated model and of its training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dgating.maths import FLOAT32_EPS
from dgating.plots._drawing import axes_or_new, literal
from dgating.reporting import group_norms as norms_of
from dgating.training import AbsorptionMonitor, certified_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def group_norms(
    model: nn.Module, monitor: AbsorptionMonitor | None = None, ax: Axes | None = None, tol: float = FLOAT32_EPS
) -> Axes:
    """Sorted norms of the effective weights, one line a ``Groups.name``; certified groups are marked.

    Args:
        model: a gated model.
        monitor: marks the certified groups.
        ax: where to draw; by default a new figure.
        tol: the threshold line.

    Returns:
        The axes.

    Raises:
        ValueError: the model is not gated, or the monitor watches another one.
        ImportError: matplotlib is missing.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Linear(4, 2)
        >>> _ = dg.gate_(net, dg.features(net))
        >>> dg.plots.group_norms(net).get_ylabel()
        'norm of the effective weights'
    """
    norms = norms_of(model)
    ax = axes_or_new(ax)
    masks = certified_groups(model, monitor)
    floor = tol / 1e3
    for name, values in norms.items():
        order = values.argsort(descending=True)
        y = values[order].clamp_min(floor).double().cpu().numpy()
        x = ((torch.arange(len(y)) + 0.5) / len(y)).numpy()
        (line,) = ax.plot(x, y, label=name, lw=1.5)
        if name in masks:
            dead = masks[name][order].cpu().numpy()
            ax.plot(x[dead], y[dead], "x", ms=4, color=line.get_color())
    ax.axhline(tol, color="0.5", ls=":", lw=1)
    ax.annotate("threshold", (0.01, tol), textcoords="offset points", xytext=(0, 3), color="0.4", fontsize=8)
    ax.set(yscale="log", xlabel="share of groups, largest first", ylabel="norm of the effective weights", xlim=(0, 1))
    literal(ax.legend(title="certified: x" if masks else None).get_texts())
    return ax


def history(monitor: AbsorptionMonitor | list[dict[str, Any]], ax: Axes | None = None) -> Axes:
    """Share of groups certified (solid) and below the threshold (dotted) against training steps.

    Args:
        monitor: a monitor, or its ``history``.
        ax: where to draw; by default a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: nothing was recorded yet: one record is made every ``window`` steps.
        ImportError: matplotlib is missing.

    Example:
        >>> import dgating as dg
        >>> row = {"step": 100, "groups": {"inputs": {"groups": 8, "absorbed": 2, "below_threshold": 0}}}
        >>> dg.plots.history([row]).get_xlabel()
        'training step'
    """
    records = monitor.history if isinstance(monitor, AbsorptionMonitor) else monitor
    if not records:
        raise ValueError("monitor: expected at least one record, received none. One is made every `window` steps.")
    ax = axes_or_new(ax)
    steps = [r["step"] for r in records]
    for name in records[0]["groups"]:
        rows = [r["groups"][name] for r in records]
        (line,) = ax.plot(steps, [float(r["absorbed"]) / r["groups"] for r in rows], label=f"{name}: certified", lw=1.5)
        below = [float(r["below_threshold"]) / r["groups"] for r in rows]
        ax.plot(steps, below, ls=":", color=line.get_color(), label=f"{name}: below the threshold")
    ax.set(xlabel="training step", ylabel="share of groups", ylim=(-0.02, 1.02))
    literal(ax.legend(fontsize=8).get_texts())
    return ax
