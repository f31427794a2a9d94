"""Feature selection by others, from their own packages (dependency group ``peers``).

LassoNet: Lemhadri, Ruan, Abraham, Tibshirani, JMLR 22(127), 2021. HSIC-Lasso: Yamada et al., Neural Computation 2014
(block version: Climente-González et al., Bioinformatics 2019). Random forest: Breiman 2001.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def lassonet_path(
    X: Tensor, y: Tensor, look: Callable[[Tensor, Callable[[Tensor], np.ndarray]], None], *, seed: int,
    hidden: tuple[int, ...], device: str = "cpu", **options: Any,
) -> float:  # fmt: skip
    """The path of ``LassoNetClassifier`` from dense to sparse; seconds without the time spent in ``look``.

    ``look(columns, predict)`` is called at every strength with the columns that are left and a function of rows.
    Options that are not given are those of its constructor, with ``M = 10``.
    """
    from lassonet import LassoNetClassifier  # pyright: ignore[reportMissingImports]

    spent = 0.0

    def callback(model: Any, *_: Any) -> None:
        nonlocal spent
        begin = time.perf_counter()
        look(model.model.input_mask().cpu().nonzero()[:, 0], lambda rows: np.asarray(model.predict(rows)))
        spent += time.perf_counter() - begin

    start = time.perf_counter()
    model = LassoNetClassifier(
        hidden_dims=hidden, **{"M": 10, **options}, random_state=seed, torch_seed=seed, verbose=0,
        device=torch.device(device),
    )  # fmt: skip
    model.path(X, y, return_state_dicts=False, callback=callback)
    return time.perf_counter() - start - spent


def hsic_lasso(X: Tensor, y: Tensor, most: int, *, jobs: int = 1) -> Tensor:
    """Columns in the order of HSIC-Lasso (blocks of 20 rows, three permutations), at most ``most``."""
    from pyHSICLasso import HSICLasso  # pyright: ignore[reportMissingImports]

    np.linalg.linalg = np.linalg  # type: ignore[attr-defined]  (its fallback is named by it, gone from NumPy 2.4)
    model = HSICLasso()
    model.input(X.numpy(), y.numpy())
    model.classification(most, B=20, M=3, n_jobs=jobs)
    return torch.as_tensor(np.asarray(model.get_index()))


def forest_order(X: Tensor, y: Tensor, *, seed: int, trees: int = 500, jobs: int = 1) -> Tensor:
    """Columns by the importance that a random forest gives them, largest first."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(trees, random_state=seed, n_jobs=jobs).fit(X, y)
    return torch.as_tensor(model.feature_importances_.argsort()[::-1].copy())
