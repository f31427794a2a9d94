"""Which λ does cross-validation choose, and how good is the linear model: D = 2, 3, 4 beside skglm and the oracle.

    python -m benchmarks.linear_selection           # stores results/linear_selection.json
    python -m benchmarks.linear_selection --quick   # two seeds, only prints

The simulation of section 9.2 of the D-Gating paper: 200 training and 2000 test rows, 200 columns in 40 groups of 5,
seven informative groups, columns, weights and noise N(0, 1). ``DGatedLinearRegressorCV`` on 50 strengths, five folds
without shuffling, rules ``best`` and ``1se``. skglm's ``GroupLasso`` (where it can be imported) gets the strengths, the
folds, the standardised columns and the rules of D = 2. The oracle is least squares on the 35 true columns.

*false* and *missed* groups are counted against the true seven, *exact* is the number of seeds with neither.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import time
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.model_selection import KFold

from benchmarks._common import environment, store
from dgating import DGatedLinearRegressorCV
from dgating.maths import choose

N, TEST, P, SIZE, INFORMATIVE, SEEDS = 200, 2000, 200, 5, 7, 10
DEPTHS, RULES, FOLDS, LAMS = (2, 3, 4), ("best", "1se"), 5, 50

Found = tuple[np.ndarray, float]


def simulate(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X, w = rng.standard_normal((N + TEST, P)), np.zeros(P)
    w[: INFORMATIVE * SIZE] = rng.standard_normal(INFORMATIVE * SIZE)
    y = X @ w + rng.standard_normal(N + TEST)
    return X[:N], y[:N], X[N:], y[N:]


def measure(found: Found, X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    coef, intercept = found
    left = np.linalg.norm(coef.reshape(-1, SIZE), axis=1) > 0
    return {
        "rmse": float(np.sqrt(np.mean((y - X @ coef - intercept) ** 2))),
        "groups": int(left.sum()),
        "false": int(left[INFORMATIVE:].sum()),
        "missed": int((~left[:INFORMATIVE]).sum()),
    }


def oracle(X: np.ndarray, y: np.ndarray) -> Found:
    wide = np.column_stack([X[:, : INFORMATIVE * SIZE], np.ones(len(X))])
    solution = np.linalg.lstsq(wide, y, rcond=None)[0]
    return np.concatenate([solution[:-1], np.zeros(P - INFORMATIVE * SIZE)]), float(solution[-1])


def skglm_path(X: np.ndarray, y: np.ndarray, lams: np.ndarray) -> list[Found]:
    """Solutions at the rising ``lams``, each from the one before, from the largest down."""
    from skglm import GroupLasso  # pyright: ignore[reportMissingImports]

    scale, found = X.std(0), []
    model = GroupLasso(groups=SIZE, tol=1e-6, max_iter=1000, max_epochs=100_000, fit_intercept=True, warm_start=True)
    for lam in lams[::-1]:
        model.alpha = float(lam)
        model.fit(X / scale, y)
        found.append((model.coef_ / scale, float(model.intercept_)))
    return found[::-1]


def skglm_scores(X: np.ndarray, y: np.ndarray, lams: np.ndarray) -> np.ndarray:
    rows = []
    for train, test in KFold(FOLDS).split(X):
        found = skglm_path(X[train], y[train], lams)
        rows.append([-np.mean((y[test] - X[test] @ coef - b) ** 2) for coef, b in found])
    return np.array(rows)


def runs(seed: int, with_skglm: bool) -> Iterable[dict[str, Any]]:
    X, y, *held = simulate(seed)
    yield {"seed": seed, "method": "oracle", "rule": "-", **measure(oracle(X, y), *held), "seconds": 0.0}
    lams = np.empty(0)
    for depth in DEPTHS:
        began = time.perf_counter()
        model = DGatedLinearRegressorCV(LAMS, cv=FOLDS, depth=depth, groups=SIZE, rule="best").fit(X, y)
        seconds = time.perf_counter() - began
        for rule in RULES:
            i = choose(model.scores_, rule)
            found = model.path_.coef[i, :, 0].numpy(), float(model.path_.intercept[i])
            yield {
                "seed": seed, "method": f"dgating D = {depth}", "rule": rule, **measure(found, *held),
                "lam": float(model.lams_[i]), "seconds": round(seconds, 3),
            }  # fmt: skip
        lams = model.lams_ if depth == 2 else lams
    if with_skglm:
        began = time.perf_counter()
        scores, path = skglm_scores(X, y, lams), skglm_path(X, y, lams)
        seconds = time.perf_counter() - began
        for rule in RULES:
            i = choose(scores, rule)
            yield {
                "seed": seed, "method": "skglm", "rule": rule, **measure(path[i], *held), "lam": float(lams[i]),
                "seconds": round(seconds, 3),
            }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds, with the standard error of the error."""
    made = []
    for method, rule in dict.fromkeys((r["method"], r["rule"]) for r in rows):
        mine = [r for r in rows if (r["method"], r["rule"]) == (method, rule)]
        rmse = np.array([r["rmse"] for r in mine])
        made.append(
            {
                "method": method,
                "rule": rule,
                "rmse": round(float(rmse.mean()), 4),
                "standard error": round(float(rmse.std(ddof=1)) / math.sqrt(len(rmse)), 4),
                **{name: round(float(np.mean([r[name] for r in mine])), 2) for name in ("groups", "false", "missed")},
                "exact": sum(r["false"] == r["missed"] == 0 for r in mine),
                "seconds": round(float(np.median([r["seconds"] for r in mine])), 3),
            }
        )
        print(*(f"{k} {v}" for k, v in made[-1].items()), sep=", ")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds, nothing stored")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    peers = [name for name in ("skglm",) if importlib.util.find_spec(name)]
    if not peers:
        print("skglm is not installed: left out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a peer that stops at its iteration limit says so
        if peers:
            X, y, *_ = simulate(SEEDS)
            skglm_path(X, y, np.array([1.0]))  # compiles
        rows = [row for seed in range(2 if arguments.quick else SEEDS) for row in runs(seed, bool(peers))]
    table = summary(rows)
    if not arguments.quick:
        settings = {
            "train": N, "test": TEST, "columns": P, "group size": SIZE, "informative groups": INFORMATIVE,
            "seeds": SEEDS, "folds": FOLDS, "strengths": LAMS,
        }  # fmt: skip
        versions = {"numpy": np.__version__, "scikit-learn": sklearn.__version__}
        versions |= {name: importlib.metadata.version(name) for name in peers}
        result = {"environment": environment() | versions, "settings": settings, "summary": table, "runs": rows}
        print(store("linear_selection", result).name)


if __name__ == "__main__":
    main()
