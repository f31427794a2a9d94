"""Is a certified group ever alive later? Digits, MLP 64-300-100-10, pixels and hidden neurons gated.

    python -m benchmarks.certificate            # seeds x depths x lams, SGD with momentum, and Adam as mere evidence

Each run trains for ``EPOCHS``, asks the monitor at 25, 50 and 100 % of them, and then goes on to ten times as long at
the same step size. A group certified at one of those moments that is above the threshold at the end of the long run is
an error of the certificate. Stricter: a group certified at the end of *any* epoch of the first half of the long run
counts, for safety factors 1, 2 and 4 (the default). Beside it: what the paper's threshold finds at the same moments.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import joblib
import torch
from torch import nn

import dgating as dg
from benchmarks._common import environment, store
from dgating.cli.demo import BATCH, accuracy, gate, load, network

EPOCHS, LONGER = 60, 10
DEPTHS, LAMS = (3, 4), (0.005, 0.01, 0.02)
SAFETIES = (1, 2, 4)
THRESHOLD = 1.1920929e-07
LR = {"sgd": 0.05, "adam": 1e-3}


def one_run(seed: int, depth: int, lam: float, optimizer: str) -> dict[str, Any]:
    """Train, certify at three moments, train on ten times as long, compare."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    data = load(seed, "cpu")
    net = gate(network(seed), depth)
    groups = dg.param_groups(net, lam, weight_decay=5e-4)
    opt = (
        torch.optim.SGD(groups, lr=LR["sgd"], momentum=0.9)
        if optimizer == "sgd"
        else torch.optim.Adam(groups, lr=LR["adam"])
    )
    steps = -(-len(data.x) // BATCH)
    monitor = dg.AbsorptionMonitor(net, lam, opt, window=steps)
    shuffle = torch.Generator().manual_seed(seed)
    moments: dict[str, Any] = {}
    certified: dict[str, dict[str, torch.Tensor]] = {}
    size_then: dict[str, dict[str, torch.Tensor]] = {}
    worst: dict[str, dict[str, float]] = {}
    ever = {
        safety: {name: torch.zeros(len(n), dtype=torch.bool) for name, n in dg.group_norms(net).items()}
        for safety in SAFETIES
    }
    for epoch in range(1, EPOCHS * LONGER + 1):
        for rows in torch.randperm(len(data.x), generator=shuffle).split(BATCH):
            opt.zero_grad()
            nn.functional.cross_entropy(net(data.x[rows]), data.y[rows]).backward()
            monitor.update()
            opt.step()
        if epoch <= EPOCHS * LONGER // 2:
            for name, ratio in monitor.margins().items():  # proportional to the safety factor
                for safety, masks in ever.items():
                    masks[name] |= ratio * (safety / monitor.safety) < 1
        share = {EPOCHS // 4: "25 %", EPOCHS // 2: "50 %", EPOCHS: "100 %"}.get(epoch)
        norms = dg.group_norms(net)
        if share:
            certified[share] = monitor.absorbed()
            size_then[share] = norms
            moments[share] = {
                name: {
                    "groups": len(norms[name]),
                    "certified": int(certified[share][name].sum()),
                    "certified, safety 2": int((monitor.margins()[name] * (2 / monitor.safety) < 1).sum()),
                    "threshold": int((norms[name] <= THRESHOLD).sum()),
                }
                for name in norms
            }
        if epoch == EPOCHS:
            acc = {
                "plain": accuracy(net, data),
                "certified zeros": _accuracy_without(net, data, certified[share or ""]),
            }
        for moment, masks in certified.items():  # the largest size a certified group reached since, relative to then
            for name, mask in masks.items():
                if bool(mask.any()):
                    ratio = (norms[name][mask] / size_then[moment][name][mask].clamp_min(1e-30)).max()
                    row = worst.setdefault(moment, {})
                    row[name] = max(row.get(name, 0.0), float(ratio))
    errors = {
        moment: {name: int((masks[name] & (norms[name] > THRESHOLD)).sum()) for name in masks}
        for moment, masks in certified.items()
    }
    return {
        "seed": seed,
        "depth": depth,
        "lam": lam,
        "optimizer": optimizer,
        "coverage": monitor.coverage,
        "moments": moments,
        "alive after ten times as long": errors,
        "largest size since, relative to certification": worst,
        "certified in any epoch of the first half": {
            str(safety): {
                "certified": sum(int(m.sum()) for m in masks.values()),
                "alive in the long run": sum(int((m & (norms[name] > THRESHOLD)).sum()) for name, m in masks.items()),
            }
            for safety, masks in ever.items()
        },
        "zero in the long run": {name: int((n <= THRESHOLD).sum()) for name, n in norms.items()},
        "accuracy": acc,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _accuracy_without(net: nn.Module, data: Any, masks: dict[str, torch.Tensor]) -> float:
    """Accuracy with the certified groups taken out, on a copy of the weights."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    dg.zero_(net, masks)
    result = accuracy(net, data)
    net.load_state_dict(state)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, one depth, one lam")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds for SGD")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--name", default="certificate", help="name of the stored result")
    parser.add_argument("--adam-seeds", type=int, default=2, help="number of seeds for Adam")
    arguments = parser.parse_args()
    quick = arguments.quick
    torch.set_num_threads(1)
    todo = [
        (seed, depth, lam, optimizer)
        for optimizer, seeds in (("sgd", arguments.seeds), ("adam", arguments.adam_seeds))
        for seed in range(arguments.first_seed, arguments.first_seed + seeds)
        for depth in DEPTHS
        for lam in LAMS
        if not quick or (seed, depth, lam) == (0, 3, 0.01)
    ]
    runs = []
    for r in joblib.Parallel(arguments.jobs, return_as="generator")(joblib.delayed(one_run)(*task) for task in todo):
        runs.append(r)
        errors = sum(sum(e.values()) for e in r["alive after ten times as long"].values())
        print(*(r[k] for k in ("optimizer", "seed", "depth", "lam", "accuracy")), f"errors {errors}", flush=True)
    result = {
        "environment": environment(),
        "settings": {"epochs": EPOCHS, "longer": LONGER, "batch": BATCH, "lr": LR, "momentum": 0.9, "safety": 4.0,
                     "window": "one epoch", "threshold": THRESHOLD},
        "summary": summary(runs),
        "runs": runs,
    }  # fmt: skip
    print(store("certificate_quick" if quick else arguments.name, result))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares certified and below the threshold at each moment, and the number of errors, by optimizer."""
    out: dict[str, Any] = {}
    for optimizer in dict.fromkeys(r["optimizer"] for r in runs):
        mine = [r for r in runs if r["optimizer"] == optimizer]
        row: dict[str, Any] = {"runs": len(mine)}
        for moment in ("25 %", "50 %", "100 %"):
            cells = [g for r in mine for g in r["moments"][moment].values()]
            total = sum(g["groups"] for g in cells)
            row[moment] = {
                "certified": sum(g["certified"] for g in cells) / total,
                "certified, safety 2": sum(g["certified, safety 2"] for g in cells) / total,
                "threshold": sum(g["threshold"] for g in cells) / total,
            }
        row["zero in the long run"] = sum(sum(r["zero in the long run"].values()) for r in mine) / total
        row["certified but alive in the long run"] = sum(
            sum(e.values()) for r in mine for e in r["alive after ten times as long"].values()
        )
        row["any epoch of the first half, by safety factor"] = {
            str(s): {
                key: sum(r["certified in any epoch of the first half"][str(s)][key] for r in mine)
                for key in ("certified", "alive in the long run")
            }
            for s in SAFETIES
        }
        row["accuracy change by certified zeros"] = {
            "mean": sum(r["accuracy"]["certified zeros"] - r["accuracy"]["plain"] for r in mine) / len(mine),
            "worst": min(r["accuracy"]["certified zeros"] - r["accuracy"]["plain"] for r in mine),
        }
        out[optimizer] = row
    return out


if __name__ == "__main__":
    main()
