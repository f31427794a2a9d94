"""The four tables of the feature selection benchmark: split, standardised by the rows to train on, as tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from experiments.data import DataMissing, load, split, standardised

Split = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
TABLES = ("isolet", "coil20", "madelon", "mnist10k")


def table(name: str, folder: Path) -> Split:
    """Rows to train on, rows to test on, and their classes. ``mnist10k`` are the 10,000 test pictures of MNIST."""
    try:
        found = load("mnist" if name == "mnist10k" else name, folder)
    except DataMissing as error:
        raise SystemExit(str(error)) from None
    if name == "mnist10k":
        found = replace(found, X=found.X_test, y=found.y_test, X_test=None, y_test=None)
    found = standardised(found if found.X_test is not None else split(found, 0.2, 0))
    X, X_test = torch.tensor(found.X), torch.tensor(found.X_test)
    return X, X_test, torch.tensor(found.y), torch.tensor(found.y_test)
