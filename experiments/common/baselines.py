"""Feature selection by others, from their own packages (dependency group ``peers``).

LassoNet: Lemhadri, Ruan, Abraham, Tibshirani, JMLR 22(127), 2021. HSIC-Lasso: Yamada et al., Neural Computation 2014
(block version: Climente-González et al., Bioinformatics 2019). Random forest: Breiman 2001.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor


def lassonet_path(
    X: Tensor, y: Tensor, look: Callable[[Tensor, Callable[[Tensor], np.ndarray]], None], *, seed: int,
    hidden: tuple[int, ...], device: str = "cpu", **options: Any,
) -> float:  # fmt: skip
    """The path of ``LassoNetClassifier`` from dense to sparse; seconds without the time spent in ``look``.

    Most of its search for a first λ, and some of its path, is spent in ``torch.sort``, which NumPy does many times
    faster on a processor: its sort takes the place of the other, with the same values.

    ``look(columns, predict)`` is called at every strength with the columns that are left and a function of rows.
    Options that are not given are those of its constructor, with ``M = 10``.
    """
    from lassonet import LassoNetClassifier  # pyright: ignore[reportMissingImports]

    spent = 0.0

    def callback(model: Any, *_: Any) -> None:
        nonlocal spent
        begin = time.perf_counter()
        columns = model.model.input_mask().cpu().nonzero()[:, 0]
        look(columns, lambda rows: np.asarray(model.predict(rows.cpu().numpy())))
        spent += time.perf_counter() - begin

    start = time.perf_counter()
    model = LassoNetClassifier(
        hidden_dims=hidden, **{"M": 10, **options}, random_state=seed, torch_seed=seed, verbose=0,
        device=torch.device(device),
    )  # fmt: skip
    operator = importlib.import_module("lassonet.prox")
    with mock.patch.object(operator, "torch", _FastSort()) if device == "cpu" else contextlib.nullcontext():
        model.path(X.cpu(), y.cpu(), return_state_dicts=False, callback=callback)
    return time.perf_counter() - start - spent


class _FastSort:
    """``torch`` with ``sort(x, dim=0, descending=True)`` as NumPy does it, for the module of LassoNet's operator."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def sort(x: Tensor, dim: int, descending: bool) -> Any:
        assert dim == 0
        assert descending
        return SimpleNamespace(values=torch.from_numpy(np.sort(x.detach().numpy(), axis=0)[::-1].copy()))


def hsic_lasso(X: Tensor, y: Tensor, ks: Sequence[int], *, jobs: int = 1) -> dict[int, Tensor]:
    """For every k the columns of HSIC-Lasso (blocks of 20 rows, three permutations), largest coefficient first.

    One path of its non-negative LARS up to the largest k; those with a positive coefficient at the last step that has
    at most k of them. (``get_index`` of the package sorts the columns of the last step: its first k are not those.)
    """
    from pyHSICLasso import HSICLasso  # pyright: ignore[reportMissingImports]

    np.linalg.linalg = np.linalg  # type: ignore[attr-defined]  (its fallback is named by it, gone from NumPy 2.4)
    model = HSICLasso()
    model.input(X.numpy(), y.numpy())
    model.classification(max(ks), B=20, M=3, n_jobs=jobs)
    steps = torch.as_tensor(np.asarray(model.path).T.copy())  # steps × columns
    counts = (steps > 0).sum(1)
    found = {}
    for k in ks:
        at = steps[int((counts <= k).nonzero()[-1])]
        found[k] = at.argsort(descending=True, stable=True)[: int((at > 0).sum())]
    return found


def forest_order(X: Tensor, y: Tensor, *, seed: int, trees: int = 500, jobs: int = 1) -> Tensor:
    """Columns by the importance that a random forest gives them, largest first."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(trees, random_state=seed, n_jobs=jobs).fit(X, y)
    return torch.as_tensor(model.feature_importances_.argsort()[::-1].copy())
