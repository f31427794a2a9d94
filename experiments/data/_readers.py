"""From files to arrays, one function a format."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import torch

from experiments.data._archives import Parts
from experiments.data._dataset import Dataset, Text


def idx(images: Path, labels: Path, test_images: Path, test_labels: Path) -> Dataset:
    """MNIST and its like: n × 28 × 28 grey pictures."""
    X, y, X_test, y_test = map(_idx, (images, labels, test_images, test_labels))
    return Dataset(X, y.astype(np.int64), X_test, y_test.astype(np.int64))


def _idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    kind, axes = content[2], content[3]  # after two zeros; the sizes follow, then the values
    if content[:2] != b"\0\0" or kind != 8:
        raise ValueError(f"{path.name}: expected an idx file of unsigned bytes, it begins with {content[:4]!r}")
    sizes = np.frombuffer(content, ">u4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(sizes).copy()  # writable


def isolet(parts: Parts) -> Dataset:
    """617 numbers of a spoken letter, already in [-1, 1]; the letter is last.

    UCI's own text runs speaker by speaker. Another one in use has the same training rows group by group of speakers,
    sorted by letter inside a group: results that depend on the order of rows differ.
    """
    tables = (_table(text) for text in parts.read().values())
    (X, y), (X_test, y_test) = ((rows[:, :-1].copy(), rows[:, -1].astype(np.int64) - 1) for rows in tables)
    return Dataset(X, y, X_test, y_test)


def coil20(file: Path) -> Dataset:
    """Pictures of twenty things, 32 × 32 made 20 × 20: 400 columns.

    A row is a picture column by column: ``row.reshape(20, 20).T`` is upright. Bicubic interpolation with antialiasing;
    its values leave [0, 1] a little.
    """
    import scipy.io

    content = scipy.io.loadmat(file)
    pictures = torch.tensor(content["X"].reshape(-1, 1, 32, 32))
    small = torch.nn.functional.interpolate(pictures, size=(20, 20), mode="bicubic", antialias=True)
    return Dataset(small.flatten(1).numpy(), content["Y"].ravel().astype(np.int64) - 1)


def madelon(file: Path) -> Dataset:
    """A made problem of two classes: 20 of 500 columns matter."""
    import scipy.io

    content = scipy.io.loadmat(file)
    return Dataset(content["X"].astype(float), (content["Y"].ravel() > 0).astype(np.int64))


def har(parts: Parts, columns: int | None = None) -> Dataset:
    """Numbers of 2.56 seconds of a smartphone's motion, in [-1, 1], and six activities; the test part has other people.

    Args:
        parts: the official files.
        columns: so many of the first ones; all by default.
    """
    content = parts.read()
    X, X_test = (_table(content[f"X_{part}.txt"], None)[:, :columns].copy() for part in ("train", "test"))
    y, y_test = (np.loadtxt(io.BytesIO(content[f"y_{part}.txt"]), np.int64) - 1 for part in ("train", "test"))
    names = [line.split(maxsplit=1)[1] for line in content["features.txt"].decode("ascii").splitlines()]
    return Dataset(X, y, X_test, y_test, tuple(names[:columns]))


def har265(parts: Parts) -> Dataset:
    """The 265 columns of signals in time, the first of the 561.

    The text with these columns alone has lost the order in time among rows of one person and one activity; rows are
    the same.
    """
    return har(parts, 265)


def mice_protein(file: Path) -> Dataset:
    """Levels of 77 proteins (missing ones are nan), and eight classes of mice in the order of the alphabet.

    A mouse has 15 rows in a sequence: a random split of rows puts a mouse on both sides.
    """
    with file.open(encoding="utf-8", newline="") as lines:
        names, *rows = csv.reader(lines)
    # the columns around the proteins are MouseID, and Genotype, Treatment, Behavior: together the class
    X = np.array([[float(value) if value else np.nan for value in row[1:-4]] for row in rows])
    y = np.unique([row[-1] for row in rows], return_inverse=True)[1]
    return Dataset(X, y.astype(np.int64), feature_names=tuple(names[1:-4]))


def wine(file: Path) -> Dataset:
    """Eleven measurements of a wine, and its quality from 0 to 10, a number."""
    with file.open(encoding="utf-8") as lines:
        names = [name.strip('"') for name in lines.readline().strip().split(";")]
        rows = np.loadtxt(lines, delimiter=";", ndmin=2)
    return Dataset(rows[:, :-1].copy(), rows[:, -1].copy(), feature_names=tuple(names[:-1]))


def text(file: Path) -> Text:
    """ASCII, line by line as it is."""
    return Text(file.read_bytes().decode("ascii"))


def cifar10(parts: Parts) -> Dataset:
    """3 × 32 × 32 coloured pictures of ten classes."""
    return _cifar(parts, labels=1)


def cifar100(parts: Parts) -> Dataset:
    """3 × 32 × 32 coloured pictures of a hundred classes (the fine labels)."""
    return _cifar(parts, labels=2)


def _cifar(parts: Parts, labels: int) -> Dataset:
    # a record is its labels, the last of them the finest, and the bytes of the picture; the last file is the test part
    *train, test = parts.read().values()
    rows, test_rows = (np.frombuffer(b, np.uint8).reshape(-1, labels + 3072) for b in (b"".join(train), test))
    (X, y), (X_test, y_test) = (
        (r[:, labels:].reshape(-1, 3, 32, 32).copy(), r[:, labels - 1].astype(np.int64)) for r in (rows, test_rows)
    )
    return Dataset(X, y, X_test, y_test)


def svhn(train: Path, test: Path) -> Dataset:
    """3 × 32 × 32 coloured pictures of the ten digits."""
    (X, y), (X_test, y_test) = map(_svhn, (train, test))
    return Dataset(X, y, X_test, y_test)


def _svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import scipy.io

    content = scipy.io.loadmat(path)
    X = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1))  # from height × width × colour × picture
    return X, content["y"].ravel().astype(np.int64) % 10  # the files call the digit 0 ten


def digits() -> Dataset:
    """1797 × 8 × 8 grey pictures (0 to 16) of the ten digits; comes with scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Dataset(bunch.images.astype(np.uint8), bunch.target.astype(np.int64))  # type: ignore[attr-defined]


def diabetes() -> Dataset:
    """442 patients, ten measurements, and how the disease went on: a number; comes with scikit-learn."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return Dataset(bunch.data, bunch.target, feature_names=tuple(bunch.feature_names))  # type: ignore[attr-defined]


def _table(content: bytes, delimiter: str | None = ",") -> np.ndarray:
    return np.loadtxt(io.BytesIO(content), delimiter=delimiter, ndmin=2)
