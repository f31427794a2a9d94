"""Is a certified group ever alive later, and was its bound ever exceeded? Digits, and three tables of other packages.

    python -m benchmarks.certificate                        # digits: SGD with momentum, and Adam as evidence
    python -m benchmarks.certificate --data fair rossi cars # packages statsmodels, lifelines, vega_datasets

Every network has its inputs and both hidden layers gated. Each run trains for ``epochs``, asks the monitors at 25, 50
and 100 % of them, and goes on to ten times as long at the same step size, on the same rows. Two figures are errors:

- *alive*: a group certified at one of those moments, or (stricter) at the end of any epoch of the first half of the
  long run, that is above the threshold at its end.
- *bounds exceeded*: a group with a gradient larger, at any time of the long run, than the bound of its certificate.

Safety factors 1, 2 and 4 (the default) watch the same training. Beside them: what the paper's threshold finds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import joblib
import torch
from torch import Tensor, nn

import dgating as dg
from benchmarks._common import environment, store

LONGER = 10
DEPTHS, LAMS = (3, 4), (0.005, 0.01, 0.02)
SAFETIES = (1.0, 2.0, 4.0)
THRESHOLD = 1.1920929e-07
LR = {"sgd": 0.05, "adam": 1e-3}
BATCH = 64
MOMENTS = {"25 %": 4, "50 %": 2, "100 %": 1}
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Table:
    """Rows, classes, widths of the hidden layers and epochs of the first training."""

    x: Tensor
    y: Tensor
    hidden: tuple[int, int]
    epochs: int


def digits() -> Table:
    """8 x 8 pictures of scikit-learn, 75 % of the rows as in the demo."""
    from dgating.cli.demo import load

    data = load(0, "cpu")
    return Table(data.x, data.y, (300, 100), 60)


def fair() -> Table:
    """Extramarital affairs (statsmodels): yes or no, from ratings and classes with rare values."""
    from statsmodels.datasets import fair as source

    frame = source.load_pandas().data
    return _table(frame.drop(columns="affairs"), frame["affairs"] > 0, 20)


def rossi() -> Table:
    """Arrest within a year after release from prison (lifelines)."""
    from lifelines.datasets import load_rossi

    frame = load_rossi()
    return _table(frame.drop(columns=["arrest", "week"]), frame["arrest"], 100)


def cars() -> Table:
    """Where a car was built (vega_datasets)."""
    from vega_datasets import local_data

    frame = local_data.cars().dropna()
    return _table(frame.drop(columns=["Name", "Origin", "Year"]), frame["Origin"].astype("category").cat.codes, 100)


def _table(frame: Any, target: Any, epochs: int) -> Table:
    """One-hot columns for whole numbers with few values (some are rare), standardised numbers, ten columns of noise."""
    generator = torch.Generator().manual_seed(0)
    columns = []
    for name in frame:
        values = torch.tensor(frame[name].to_numpy(dtype=float), dtype=torch.float32)
        levels = values.unique()
        if len(levels) <= 8:
            columns.append((values[:, None] == levels).float())
        else:
            columns.append(((values - values.mean()) / values.std())[:, None])
    columns.append(torch.randn(len(frame), 10, generator=generator))
    return Table(torch.cat(columns, 1), torch.tensor(target.to_numpy(dtype=int)), (64, 32), epochs)


DATA: dict[str, Callable[[], Table]] = {"digits": digits, "fair": fair, "rossi": rossi, "cars": cars}


def network(table: Table, seed: int, depth: int) -> nn.Sequential:
    """Two hidden layers; inputs and hidden units are gated, each unit is the weights that leave it."""
    torch.manual_seed(seed)
    first, second = table.hidden
    classes = int(table.y.max()) + 1
    net = nn.Sequential(
        nn.Linear(table.x.shape[1], first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, classes)
    )
    groups = [dg.features(net[i], name=name) for i, name in ((0, "inputs"), (2, "hidden 1"), (4, "hidden 2"))]
    return dg.gate_(net, groups, depth=depth)


def one_run(name: str, seed: int, depth: int, lam: float, kind: str) -> dict[str, Any]:
    """Train, certify at three moments, train on ten times as long, compare."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    started = time.perf_counter()
    table = DATA[name]()
    net = network(table, seed, depth)
    groups = dg.param_groups(net, lam, weight_decay=5e-4)
    optimizer = optimizer_of(kind, groups)
    window = -(-len(table.x) // BATCH)
    monitors = {
        s: dg.AbsorptionMonitor(net, lam, optimizer, window=window, safety=s, evidence=kind == "adam") for s in SAFETIES
    }
    at = {table.epochs // share: moment for moment, share in MOMENTS.items()}
    moments: dict[str, Any] = {}
    certified: dict[str, dict[float, Masks]] = {}
    ever = {s: {n: torch.zeros_like(m) for n, m in monitor.absorbed().items()} for s, monitor in monitors.items()}
    shuffle = torch.Generator().manual_seed(seed)
    accuracy: dict[str, float] = {}
    for epoch in range(1, table.epochs * LONGER + 1):
        for rows in torch.randperm(len(table.x), generator=shuffle).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(table.x[rows]), table.y[rows]).backward()
            for monitor in monitors.values():
                monitor.update()
            optimizer.step()
        if epoch <= table.epochs * LONGER // 2:
            for s, monitor in monitors.items():
                for n, mask in monitor.absorbed().items():
                    ever[s][n] |= mask
        if epoch in at:
            moment, norms = at[epoch], dg.group_norms(net)
            certified[moment] = {s: monitor.absorbed() for s, monitor in monitors.items()}
            moments[moment] = {
                "groups": sum(len(n) for n in norms.values()),
                "certified": {str(s): count(m) for s, m in certified[moment].items()},
                "threshold": count({n: v <= THRESHOLD for n, v in norms.items()}),
            }
        if epoch == table.epochs:
            accuracy = {
                "plain": share_right(net, table),
                "certified zeros": without(net, table, certified["100 %"][4.0]),
            }
    alive = {n: v > THRESHOLD for n, v in dg.group_norms(net).items()}
    return {
        "data": name,
        "seed": seed,
        "depth": depth,
        "lam": lam,
        "optimizer": kind,
        "coverage": monitors[4.0].coverage,
        "moments": moments,
        "alive after ten times as long": {
            moment: {str(s): count(both(m, alive)) for s, m in masks.items()} for moment, masks in certified.items()
        },
        "any epoch of the first half": {
            str(s): {
                "certified": count(ever[s]),
                "alive later": count(both(ever[s], alive)),
                "bounds exceeded": count(monitor.exceeded()),
                "revoked at the end": count(monitor.revoked()),
            }
            for s, monitor in monitors.items()
        },
        "never observed": count({n: c == 0 for n, c in monitors[4.0].observations().items()}),
        "zero in the long run": count({n: ~a for n, a in alive.items()}),
        "accuracy": accuracy,
        "seconds": round(time.perf_counter() - started, 1),
    }


def optimizer_of(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """SGD with momentum, or Adam."""
    if kind == "adam":
        return torch.optim.Adam(groups, lr=LR["adam"])
    return torch.optim.SGD(groups, lr=LR["sgd"], momentum=0.9)


def count(masks: Masks) -> int:
    """How many groups are marked."""
    return sum(int(mask.sum()) for mask in masks.values())


def both(a: Masks, b: Masks) -> Masks:
    """Groups that are marked in both."""
    return {name: a[name] & b[name] for name in a}


@torch.no_grad()
def share_right(net: nn.Module, table: Table) -> float:
    """Share of rows that are classified correctly."""
    return float((net(table.x).argmax(1) == table.y).float().mean())


def without(net: nn.Module, table: Table, masks: Masks) -> float:
    """Accuracy with the certified groups taken out; the weights are put back."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    dg.zero_(net, masks)
    result = share_right(net, table)
    net.load_state_dict(state)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=["digits"], choices=list(DATA))
    parser.add_argument("--quick", action="store_true", help="one seed, one depth, one lam")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds for SGD")
    parser.add_argument("--adam-seeds", type=int, default=1, help="number of seeds for Adam")
    parser.add_argument("--name", default="certificate", help="name of the stored result")
    arguments = parser.parse_args()
    todo = [
        (data, seed, depth, lam, optimizer)
        for data in arguments.data
        for optimizer, seeds in (("sgd", arguments.seeds), ("adam", arguments.adam_seeds))
        for seed in range(seeds)
        for depth in DEPTHS
        for lam in LAMS
        if not arguments.quick or (seed, depth, lam) == (0, 3, 0.01)
    ]
    runs: list[dict[str, Any]] = []
    settings = {
        "longer": LONGER, "batch": BATCH, "lr": LR, "momentum": 0.9, "weight decay of the rest": 5e-4,
        "window": "one epoch", "threshold": THRESHOLD,
    }  # fmt: skip
    for run in joblib.Parallel(arguments.jobs, return_as="generator")(joblib.delayed(one_run)(*task) for task in todo):
        runs.append(run)
        cell = [run[k] for k in ("data", "optimizer", "seed", "depth", "lam")]
        print(*cell, run["any epoch of the first half"]["4.0"], f"{run['seconds']} s", flush=True)
        result = {"environment": environment(), "settings": settings, "summary": summary(runs), "runs": runs}
        store("certificate_quick" if arguments.quick else arguments.name, result)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By data and optimizer: shares certified and below the threshold at each moment, and both errors."""
    out: dict[str, Any] = {}
    for data, optimizer in dict.fromkeys((r["data"], r["optimizer"]) for r in runs):
        mine = [r for r in runs if (r["data"], r["optimizer"]) == (data, optimizer)]
        groups = sum(r["moments"]["100 %"]["groups"] for r in mine)
        row: dict[str, Any] = {"runs": len(mine), "groups": groups}
        for moment in MOMENTS:
            cells = [r["moments"][moment] for r in mine]
            row[moment] = {str(s): sum(c["certified"][str(s)] for c in cells) / groups for s in SAFETIES}
            row[moment]["threshold"] = sum(c["threshold"] for c in cells) / groups
        row["alive after ten times as long"] = {
            str(s): sum(e[str(s)] for r in mine for e in r["alive after ten times as long"].values()) for s in SAFETIES
        }
        keys = mine[0]["any epoch of the first half"]["4.0"]
        row["any epoch of the first half"] = {
            str(s): {k: sum(r["any epoch of the first half"][str(s)][k] for r in mine) for k in keys} for s in SAFETIES
        }
        row["never observed"] = sum(r["never observed"] for r in mine)
        row["zero in the long run"] = sum(r["zero in the long run"] for r in mine) / groups
        change = [r["accuracy"]["certified zeros"] - r["accuracy"]["plain"] for r in mine]
        row["accuracy change by certified zeros"] = {"mean": sum(change) / len(change), "worst": min(change)}
        out[f"{data}, {optimizer}"] = row
    return out


if __name__ == "__main__":
    main()
