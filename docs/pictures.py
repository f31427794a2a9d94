"""The pictures of README and documentation, drawn from small trainings: ``make pictures`` (about a minute).

Each function returns a figure; its name is that of the file in ``docs/images``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import dgating as dg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = Path(__file__).parent / "images"
SIGNAL, NOISE = "#c0392b", "#7f8c8d"
LAM, STEPS, EVERY = 0.02, 600, 5


def _features() -> tuple[nn.Module, Tensor, Tensor]:
    """The network of the README: 3 of 20 inputs matter."""
    torch.manual_seed(0)
    x = torch.randn(1000, 20)
    y = (x[:, 0] * x[:, 1] + x[:, 2].sin()).unsqueeze(1)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1)), x, y


def _trained(
    depth: int, look: Callable[[nn.Module, dg.AbsorptionMonitor], dict[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """What was seen every few steps of a training of it."""
    net, x, y = _features()
    dg.gate_(net, dg.features(net[0], name="inputs"), depth=depth)
    optimizer = torch.optim.SGD(dg.param_groups(net, lam=LAM), lr=0.05, momentum=0.9)
    monitor = dg.AbsorptionMonitor(net, lam=LAM, optimizer=optimizer, window=100)
    rows = []
    for step in range(STEPS):
        optimizer.zero_grad()
        mse_loss(net(x), y).backward()
        monitor.update()
        optimizer.step()
        if step % EVERY == EVERY - 1:
            rows.append(look(net, monitor))
    return rows


def _axes(width: float = 6.4, height: float = 3.4, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _colour(group: int) -> str:
    return SIGNAL if group < 3 else NOISE


def _name_lines(ax: Axes) -> None:
    ax.plot([], [], color=SIGNAL, label="the 3 inputs that matter")
    ax.plot([], [], color=NOISE, label="the other 17")


def norms() -> Figure:
    """Norm of every group over the training; a dot where it is certified."""
    rows = _trained(3, lambda net, m: {"norm": dg.group_norms(net)["inputs"], "dead": m.absorbed()["inputs"]})
    figure, ax = _axes()
    steps = [EVERY * (i + 1) for i in range(len(rows))]
    for j in range(20):
        values = [float(row["norm"][j]) for row in rows]
        ax.plot(steps, values, color=_colour(j), lw=1.2)
        first = next((i for i, row in enumerate(rows) if row["dead"][j]), None)
        if first is not None:
            ax.plot(steps[first], values[first], "o", color="k", ms=4)
    _name_lines(ax)
    ax.plot([], [], "o", color="k", ms=4, label="certified: only to zero from here")
    ax.axhline(1.2e-7, color="k", ls=":", lw=0.8)
    ax.annotate("threshold of the paper", (steps[-1], 1.2e-7), ha="right", va="bottom", fontsize=8)
    ax.set(yscale="log", xlabel="step", ylabel="norm of a group", ylim=(3e-8, 5), xlim=(0, STEPS))
    ax.legend(fontsize=8, loc="lower left")
    return figure


def depths() -> Figure:
    """The same training with three depths."""
    figure, axes = _axes(8.4, 2.9, 3)
    for ax, depth in zip(axes, (2, 3, 4), strict=True):
        rows = _trained(depth, lambda net, m: {"norm": dg.group_norms(net)["inputs"]})
        steps = [EVERY * (i + 1) for i in range(len(rows))]
        for j in range(20):
            ax.plot(steps, [float(row["norm"][j]) for row in rows], color=_colour(j), lw=1.0)
        ax.set(yscale="log", xlabel="step", ylim=(1e-8, 5), xlim=(0, STEPS), title=f"D = {depth}")
    axes[0].set_ylabel("norm of a group")
    _name_lines(axes[0])
    axes[0].legend(fontsize=7, loc="lower left")
    return figure


def margins() -> Figure:
    """The certificate's margin of every group."""
    rows = _trained(3, lambda net, m: {"margin": m.margins()["inputs"]})
    figure, ax = _axes()
    for j in range(20):
        seen = [(EVERY * (i + 1), float(r["margin"][j])) for i, r in enumerate(rows) if math.isfinite(r["margin"][j])]
        ax.plot(*zip(*seen, strict=True), color=_colour(j), lw=1.2)
    _name_lines(ax)
    ax.axhline(1.0, color="k", lw=0.8)
    ax.annotate("certified below", (10, 0.92), va="top", fontsize=8)
    ax.set(yscale="log", xlabel="step", ylabel=r"margin $G \prod b / \kappa$", xlim=(0, STEPS))
    ax.legend(fontsize=8, loc="lower left")
    return figure


class Block(nn.Module):
    """A gated unit with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, h: Tensor) -> Tensor:
        """The sum."""
        return h + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


def compact() -> Figure:
    """The weights of a block before and after its dead units were cut out."""
    torch.manual_seed(0)
    model, batch = nn.Sequential(Block(), nn.LayerNorm(16), nn.Linear(16, 4)), torch.randn(8, 16)
    groups = dg.neurons(model, (batch,))
    dg.gate_(model, groups)
    dead = torch.rand(24, generator=torch.Generator().manual_seed(3)) < 0.6
    dg.zero_(model, {groups[0].name: dead})
    dg.collapse_(model)
    small = dg.compact(model, (batch,))
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=(24, 16), width_ratios=(16, 16, 24))
    blocks = (("with zeros", model[0], 23.5), ("compact", small[0], 15.5))
    for row, (title, block, last) in zip(axes, blocks, strict=True):
        for ax, name in zip(row, ("gate", "up", "down"), strict=True):
            weight = getattr(block, name).weight.detach().abs()
            ax.imshow(weight != 0, cmap="Greys", vmin=-0.25, vmax=2)  # zeros in grey
            ax.imshow(weight.masked_fill(weight == 0, float("nan")).numpy(), cmap="viridis", vmin=0, vmax=0.25)
            width = 23.5 if name == "down" else 15.5
            ax.set(xlim=(-0.5, width), ylim=(last, -0.5))
            ax.set_title(f"{name}, {title}: {weight.shape[0]} x {weight.shape[1]}", fontsize=9)
            ax.axis("off")
    return figure


def path() -> Figure:
    """A path over λ: the score, how many inputs are left, and their norms."""
    _, x, y = _features()
    torch.manual_seed(0)
    y = y + 0.3 * torch.randn(len(y), 1)
    found = dg.path(
        lambda: _features()[0], (x, y), 16, groups=lambda net: dg.features(net[0], name="inputs"), steps=100, seed=0
    )
    return dg.plots.path(found)


PICTURES = (norms, depths, margins, compact, path)


def main() -> None:
    """Draw all."""
    IMAGES.mkdir(exist_ok=True)
    for draw in PICTURES:
        draw().savefig(IMAGES / f"{draw.__name__}.png", dpi=130)
        print(f"docs/images/{draw.__name__}.png")


if __name__ == "__main__":
    main()
