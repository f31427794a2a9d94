"""The four tables of the feature selection benchmark, read from a folder: arrays, split and standardised.

Files (their usual names): ``isolet/isolet1+2+3+4.data.gz``, ``isolet/isolet5.data.gz``, ``coil20/COIL20.mat``,
``madelon/madelon.mat``, ``mnist/t10k-images-idx3-ubyte.gz`` and its labels.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split

Split = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def isolet(folder: Path) -> tuple[np.ndarray, ...]:
    """617 numbers of spoken letters, the speakers of its fifth part for testing."""
    rows, test = (np.genfromtxt(folder / "isolet" / f"isolet{n}.data.gz", delimiter=",") for n in ("1+2+3+4", "5"))
    return rows[:, :-1], test[:, :-1], rows[:, -1] - 1, test[:, -1] - 1


def coil20(folder: Path) -> tuple[np.ndarray, ...]:
    """Pictures of twenty things, 32 x 32 made 20 x 20."""
    import scipy.io

    file = scipy.io.loadmat(folder / "coil20" / "COIL20.mat")
    pictures = torch.tensor(file["X"].reshape(-1, 1, 32, 32))
    small = torch.nn.functional.interpolate(pictures, size=(20, 20), mode="bicubic", antialias=True)
    return _split(small.flatten(1).numpy(), file["Y"].ravel() - 1)


def madelon(folder: Path) -> tuple[np.ndarray, ...]:
    """A made problem: 20 of 500 columns matter."""
    import scipy.io

    file = scipy.io.loadmat(folder / "madelon" / "madelon.mat")
    return _split(file["X"].astype(float), file["Y"].ravel() > 0)


def mnist10k(folder: Path) -> tuple[np.ndarray, ...]:
    """The 10,000 test pictures of MNIST."""
    with gzip.open(folder / "mnist" / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 784).astype(float)
    with gzip.open(folder / "mnist" / "t10k-labels-idx1-ubyte.gz") as file:
        digits = np.frombuffer(file.read()[8:], np.uint8)
    return _split(pixels, digits)


TABLES = {"isolet": isolet, "coil20": coil20, "madelon": madelon, "mnist10k": mnist10k}


def table(name: str, folder: Path) -> Split:
    """Rows to train on, rows to test on, and their classes; columns standardised by the rows to train on."""
    try:
        X, X_test, y, y_test = TABLES[name](folder)
    except FileNotFoundError as error:
        raise SystemExit(f"{name}: expected {error.filename!r}. Put the file there, or pass --data FOLDER.") from None
    mean, spread = X.mean(0), X.std(0)
    spread[spread == 0] = 1
    rows, test = (torch.tensor((a - mean) / spread, dtype=torch.float32) for a in (X, X_test))
    return rows, test, *(torch.tensor(np.asarray(c), dtype=torch.long) for c in (y, y_test))


def _split(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
    return X, X_test, y, y_test
