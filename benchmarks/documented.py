"""The small figures that README and documentation quote: the demo, ``dgating select`` on four tables, Adam and AdamW.

``python -m benchmarks.documented --data FOLDER``, about five minutes on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dgating as dg
from benchmarks._common import environment, store
from dgating.cli import demo
from experiments.fig04_regression.simulation import simulate


def demos(seeds: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
    """What ``dgating demo`` finds, without its pictures and files."""
    out = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            found = demo.run(seed, 3, 0.01, Path(folder), "cpu")
        found["compact"].pop("onnx")  # where it was written
        out.append(found)
    return out


# --- dgating select -------------------------------------------------------------------------------------------------


def selections(data: Path) -> list[dict[str, Any]]:
    """Four tables with the defaults of ``dgating select``, as a linear model and as a network."""
    from sklearn.datasets import load_breast_cancer, load_diabetes
    from typer.testing import CliRunner

    from dgating.cli.app import app

    out = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for table, loader in (("breast cancer", load_breast_cancer), ("diabetes", load_diabetes)):
            loader(as_frame=True).frame.to_csv(folder / f"{table}.csv", index=False)
        wine = data / "wine_quality"
        tables = [
            ("breast cancer", folder / "breast cancer.csv", "target", ["--task", "classification"]),
            ("diabetes", folder / "diabetes.csv", "target", []),
            ("red wine, 6 classes", wine / "winequality-red.csv", "quality", ["--task", "classification"]),
            ("white wine, `--task regression`", wine / "winequality-white.csv", "quality", ["--task", "regression"]),
        ]  # fmt: skip
        for table, file, target, options in tables:
            for model in ("linear", "network"):
                report = folder / f"{table} {model}"
                start = time.perf_counter()
                call = ["select", str(file), "--target", target, "--out", str(report), "--model", model, *options]
                result = CliRunner().invoke(app, call)
                if result.exit_code:
                    raise RuntimeError(f"{table}, {model}: {result.output}")
                found = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
                out.append({
                    "table": table, "model": model, "seconds": round(time.perf_counter() - start, 1),
                    "selected": found["selected"], "test": found["chosen"]["test"],
                })  # fmt: skip
    return out


# --- Adam and AdamW -------------------------------------------------------------------------------------------------


def decays(steps: int = 5000, lam: float = 0.5, lr: float = 0.01) -> list[dict[str, Any]]:
    """The simulation of Fig. 4, full batch, mean squared error; groups above 1e-3 at the end."""
    out = []
    data = simulate(0, 200, 2000, 40, 5, 7)
    # the solver takes half the mean squared error
    solver = dg.group_lasso_path(data.X.numpy(), data.y.numpy(), data.labels.numpy(), [lam / 2], fit_intercept=False)
    for depth in (2, 3, 4):
        for name in ("Adam", "AdamW"):
            torch.manual_seed(0)
            net = nn.Linear(200, 1, bias=False)
            dg.gate_(net, dg.by_labels(net, data.labels[None], name="weight"), depth=depth)
            optimizer = getattr(torch.optim, name)(dg.param_groups(net, lam), lr=lr)
            for _ in range(steps):
                loss = (net(data.X)[:, 0] - data.y).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            (norms,) = dg.group_norms(net).values()
            with torch.no_grad():
                rmse = (net(data.X_test)[:, 0] - data.y_test).square().mean().sqrt()
            out.append({"depth": depth, "optimizer": name, "active": int((norms > 1e-3).sum()), "rmse": float(rmse)})
    return [*out, {"solver": "group_lasso_path", "depth": 2, "active": int(solver.active[0].sum())}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        found = {"demo": demos(), "select": selections(options.data), "adamw": decays()}
    store("documented", {"environment": environment(), **found})
    print(json.dumps(found["adamw"], indent=1))


if __name__ == "__main__":
    main()
