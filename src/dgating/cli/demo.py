"""``dgating demo``: gate the pixels and hidden neurons of a network that reads real digits, certify which are dead, and
remove them.

The 8 x 8 handwritten digits that ship inside scikit-learn, an MLP 64-300-100-10, SGD. Seconds on a laptop.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dgating as dg
from dgating._text import plain
from dgating.cli.terminal import console
from dgating.files import Contents, staged, write_bytes, write_text, writing
from dgating.maths import FLOAT32_EPS

ONNX_FILE = "model.onnx"
DEMO = Contents(
    "demo", ("report.json", "model.safetensors", "compact.safetensors", "pixels.png", ONNX_FILE), mark="pixels.png"
)
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


def run(seed: int, depth: int, lam: float, out: Path, device: str, force: bool = False) -> dict[str, Any]:
    """Train dense and gated, certify, zero, collapse, compact, and write what came out."""
    with staged(out, DEMO, force) as folder:
        report, result = measured(seed, depth, lam, out, folder, device)
    screen = console()
    screen.print(report)
    say(screen, result, out)
    return result


def measured(
    seed: int, depth: int, lam: float, out: Path, folder: Path, device: str
) -> tuple[dg.Report, dict[str, Any]]:
    """All of :func:`run` but what it prints; ``folder`` is going to be ``out``."""
    from rich.progress import Progress

    started = time.perf_counter()
    data = load(seed, device)
    with Progress(console=console(), transient=True) as progress:
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
    small, compaction = shrink(net, data)
    figures["compact"] = accuracy(small, data)
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
        "compact": compaction,
    }  # fmt: skip
    with writing(out):
        compaction["onnx"] = to_onnx(small, data, folder)
        result["seconds"] = round(time.perf_counter() - started, 2)
        write(net, small, data, masks["pixels"], result, folder)
    return report, result


def shrink(net: nn.Module, data: Data) -> tuple[nn.Module, dict[str, Any]]:
    """The compact network, and how it compares with the one that still holds its zeros."""
    small = dg.compact(net, (data.x_test,))
    with torch.no_grad():
        difference = float((small(data.x_test) - net(data.x_test)).abs().max())
    measured = dg.profile(small, (data.x_test,), reference=net, repeats=50)
    return small, {
        "layers": [widths(net), widths(small)],
        "max_difference": difference,
        "profile": measured.to_dict(),
        "batch": len(data.x_test),
    }


def widths(net: nn.Module) -> list[int]:
    """Input, hidden and output sizes of the linear layers."""
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    return [layers[0].in_features, *(m.out_features for m in layers)]


def to_onnx(small: nn.Module, data: Data, out: Path) -> dict[str, Any] | str:
    """Write model.onnx: its size and how far it is from the model, or why there is none."""
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        return f"not written: needs {' and '.join(missing)}, pip install 'dgating[onnx]'"
    done = dg.export(small, (data.x_test[:8],), out / ONNX_FILE)
    return {"bytes": done.bytes, "opset": done.opset, "max_difference": done.max_difference}


def say(screen: Any, result: dict[str, Any], out: Path) -> None:
    """The outcome in a few lines."""
    acc, compact = result["accuracy"], result["compact"]
    for name, g in result["groups"].items():
        screen.print(
            f"{name}: {g['kept']} of {g['groups']} kept ({g['certified']} certified dead, "
            f"{g['threshold']} below the threshold 1.2e-7)"
        )
    screen.print(f"certificate: {result['certificate']}")
    screen.print(sizes(compact))
    figures = ", ".join(f"{name} {value:.3f}" for name, value in acc.items())
    screen.print(f"accuracy: {figures}")
    screen.print(f"largest difference of an output, compact or with zeros: {compact['max_difference']:.0e}")
    onnx = compact["onnx"]
    files = [name for name in DEMO.files if name != ONNX_FILE or isinstance(onnx, dict)]
    screen.print(f"wrote {', '.join(files)} to {plain(out.resolve())} ({result['seconds']:.0f} s)")
    if isinstance(onnx, str):
        screen.print(f"{ONNX_FILE} {onnx}")


def sizes(compact: dict[str, Any]) -> Any:
    """Before and after compaction, as a table."""
    from rich.table import Table

    after = compact["profile"]
    before = after["reference"]
    table = Table(title="the same function without the zeros")
    for head in ("", "with zeros", "compact", "ratio"):
        table.add_column(head, justify="right" if head else "left")
    table.add_row("layers", *("-".join(map(str, n)) for n in compact["layers"]), "")
    for name, key in (("parameters", "parameters"), ("bytes", "bytes"), (f"FLOPs, {compact['batch']} digits", "flops")):
        table.add_row(name, f"{before[key]:,}", f"{after[key]:,}", f"{before[key] / after[key]:.1f}x")
    times = [f"{p['latency_ms']:.3f} ms" for p in (before, after)]
    table.add_row(
        f"latency, {after['threads']} thread{'s' * (after['threads'] != 1)}", *times, f"{after['latency_speedup']:.1f}x"
    )
    table.caption = "pixels stay: compaction keeps what a model takes and gives"
    return table


def write(net: nn.Module, small: nn.Module, data: Data, dead: Tensor, result: dict[str, Any], out: Path) -> None:
    """All other files of the demo."""
    from safetensors.torch import save

    write_text(out / "report.json", json.dumps(result, indent=2) + "\n")
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    write_bytes(out / "model.safetensors", save(tensors))
    dg.save_compact(small, out / "compact.safetensors")
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
