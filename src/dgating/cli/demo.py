"""``dgating demo``: gate the pixels and hidden neurons of a network that reads real digits, and certify which are dead.

The 8 x 8 handwritten digits that ship inside scikit-learn, an MLP 64-300-100-10, SGD. Seconds on a laptop.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dgating as dg
from dgating._config import write_bytes, write_text
from dgating._penalty import FLOAT32_EPS

EPOCHS, BATCH, LR, MOMENTUM = 60, 64, 0.1, 0.9


@dataclass(frozen=True)
class Data:
    """Standardised digits, split into training and test rows."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def load(seed: int, device: str) -> Data:
    """The digits of scikit-learn, 75 % for training; pixels scaled to [0, 1]."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("the demo needs scikit-learn: pip install 'dgating[demo]'.") from error
    x, y = load_digits(return_X_y=True)
    a, b, c, d = train_test_split(x / 16.0, y, test_size=0.25, random_state=seed, stratify=y)
    as_x = {"dtype": torch.float32, "device": device}
    return Data(
        torch.tensor(a, **as_x), torch.tensor(c, device=device), torch.tensor(b, **as_x), torch.tensor(d, device=device)
    )


def network(seed: int) -> nn.Sequential:
    """64-300-100-10, Kaiming normal weights."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    for layer in (net[0], net[2], net[4]):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return net


def gate(net: nn.Sequential, depth: int) -> nn.Sequential:
    """Pixels and both hidden layers: each unit is the weights that leave it."""
    return dg.gate_(
        net,
        [
            dg.features(net[0], name="pixels"),
            dg.features(net[2], name="hidden 1"),
            dg.features(net[4], name="hidden 2"),
        ],
        depth=depth,
    )


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    """Share of test digits that are read correctly."""
    return float((net(data.x_test).argmax(1) == data.y_test).float().mean())


def train(
    net: nn.Module, groups: list[dict[str, Any]], data: Data, *, seed: int, lam: float | None, tick: Callable[[], None]
) -> tuple[torch.optim.Optimizer, dg.AbsorptionMonitor | None]:
    """Plain SGD with a cosine schedule: the loop that any user has. ``lam`` adds a monitor."""
    steps = -(-len(data.x) // BATCH)
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    monitor = None if lam is None else dg.AbsorptionMonitor(net, lam, optimizer, window=steps)
    shuffle = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(data.x), generator=shuffle).to(data.x.device).split(BATCH):
            loss = nn.functional.cross_entropy(net(data.x[rows]), data.y[rows])
            optimizer.zero_grad()
            loss.backward()
            if monitor is not None:
                monitor.update()
            optimizer.step()
            schedule.step()
        tick()
    if not bool(torch.isfinite(loss)):
        raise RuntimeError(f"training diverged (loss {loss.item()}). Try a smaller --lam or --depth.")
    return optimizer, monitor


def run(seed: int, depth: int, lam: float, out: Path, device: str) -> dict[str, Any]:
    """Train dense and gated, certify, zero, collapse, and write report.json, model.safetensors and pixels.png."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console()
    started = time.perf_counter()
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, {str(out)!r} is a file.")
    data = load(seed, device)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("training", total=2 * EPOCHS)
        dense = network(seed).to(device)
        decay = [{"params": dense.parameters(), "weight_decay": 5e-4}]
        train(dense, decay, data, seed=seed, lam=None, tick=lambda: progress.advance(bar))
        net = gate(network(seed), depth).to(device)
        groups = dg.param_groups(net, lam, weight_decay=5e-4)
        optimizer, monitor = train(net, groups, data, seed=seed, lam=lam, tick=lambda: progress.advance(bar))
    assert monitor is not None
    report, coverage = dg.report(net, monitor), monitor.coverage
    masks = monitor.absorbed()
    below = {name: int((norms <= FLOAT32_EPS).sum()) for name, norms in dg.group_norms(net).items()}
    figures: dict[str, Any] = {"dense": accuracy(dense, data), "gated": accuracy(net, data)}
    dg.zero_(net, masks, optimizer)
    if depth == 2:  # convex penalty: zeros were screened, so the optimality condition decides, on all training data
        revived = monitor.recheck(lambda: nn.functional.cross_entropy(net(data.x), data.y).backward())
        masks = {name: mask & ~revived[name] for name, mask in masks.items()}
    dg.collapse_(net)
    figures["after exact zeros"] = accuracy(net, data)
    result = {
        "dgating": dg.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "settings": {"seed": seed, "depth": depth, "lam": lam, "device": device, "epochs": EPOCHS, "batch": BATCH,
                     "lr": LR, "momentum": MOMENTUM, "schedule": "cosine"},
        "certificate": coverage,
        "accuracy": figures,
        "groups": {
            name: {"groups": mask.numel(), "certified": int(mask.sum()), "threshold": below[name], "kept":
                int((~mask).sum())}
            for name, mask in masks.items()
        },
        "report": [asdict(row) for row in report.rows],
        "seconds": round(time.perf_counter() - started, 2),
    }  # fmt: skip
    console.print(report)
    write(net, data, masks["pixels"], result, out)
    say(console, result, out)
    return result


def say(console: Any, result: dict[str, Any], out: Path) -> None:
    """The outcome in a few lines."""
    acc = result["accuracy"]
    console.print(
        f"accuracy: dense {acc['dense']:.3f}, gated {acc['gated']:.3f}, "
        f"after exact zeros {acc['after exact zeros']:.3f}"
    )
    for name, g in result["groups"].items():
        console.print(
            f"{name}: {g['kept']} of {g['groups']} kept; the certificate found {g['certified']} dead, "
            f"a 1.2e-7 threshold would have found {g['threshold']}"
        )
    console.print(f"certificate: {result['certificate']}")
    console.print(f"wrote report.json, model.safetensors and pixels.png to {out.resolve()} ({result['seconds']:.0f} s)")


def write(net: nn.Module, data: Data, dead: Tensor, result: dict[str, Any], out: Path) -> None:
    """All files of the demo, each written whole or not at all."""
    from safetensors.torch import save

    write_text(out / "report.json", json.dumps(result, indent=2) + "\n")
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    write_bytes(out / "model.safetensors", save(tensors))
    write_bytes(out / "pixels.png", pixels_png(data, ~dead.cpu()))


def pixels_png(data: Data, kept: Tensor) -> bytes:
    """Ten digits with the unused pixels hatched out, and the mask alone."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6), layout="constrained")
    axes = figure.subplots(1, 11)
    hidden = (~kept.view(8, 8)).numpy()
    for digit, ax in enumerate(axes[:10]):
        row = int((data.y_test == digit).nonzero()[0, 0])
        ax.imshow(data.x_test[row].view(8, 8).cpu().numpy(), cmap="gray_r")
        ax.imshow(_red(hidden))
    axes[10].imshow(kept.view(8, 8).numpy(), cmap="Blues", vmin=0, vmax=1.5)
    axes[10].set_title("kept", fontsize=9)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    figure.suptitle(f"{int(kept.sum())} of 64 pixels are used; the red ones are certified dead", fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _red(hidden: Any) -> Any:
    import numpy as np

    picture = np.zeros((8, 8, 4))
    picture[hidden] = (0.85, 0.2, 0.2, 0.45)
    return picture
