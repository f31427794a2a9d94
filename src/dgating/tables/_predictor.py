"""The model that is left: a few columns in, predictions out; saved as safetensors and JSON, without the estimator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save

from dgating.estimators import ACTIVATIONS
from dgating.files import (
    read_json_file,
    read_safetensors,
    read_sealed_json,
    refusing,
    seal_json,
    write_bytes,
)
from dgating.tables._encode import Encoded, Feature, encode
from dgating.tables._kinds import CATEGORY, DATE, NUMBER
from dgating.tables._read import Reading

FORMAT = "dgating/table-model/2"
WEIGHTS_FILE, WORDS_FILE = "model.safetensors", "preprocessing.json"
ROWS = 65_536  # that go through the network at a time


@dataclass(frozen=True)
class Predictor:
    """Layers on the encoded columns of some features; a linear model is one layer.

    Attributes:
        target: name of the column that is predicted.
        classes: in the order of the outputs, ``None`` for numbers.
        features: the columns that are read.
        activation: between layers.
        layers: weights ``(out, in)`` and biases ``(out,)``.
        centre: ``(p,)`` taken off the encoded columns, which are divided by ``scale (p,)`` then.
        target_centre: ``(k,)``; outputs are multiplied by ``target_scale (k,)``, and this is added.
        reading: how the text file of the training rows was written.
    """

    target: str
    classes: tuple[Any, ...] | None
    features: tuple[Feature, ...]
    activation: str
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]
    centre: np.ndarray
    scale: np.ndarray
    target_centre: np.ndarray
    target_scale: np.ndarray
    reading: Reading

    def outputs(self, X: np.ndarray) -> np.ndarray:
        """``(n, k)`` numbers or logits for encoded rows ``(n, p)``."""
        apply = ACTIVATIONS[self.activation]()
        made = [np.empty((0, len(self.layers[-1][1])))]
        for start in range(0, len(X), ROWS):
            z = torch.as_tensor((X[start : start + ROWS] - self.centre) / self.scale)
            for i, (weight, bias) in enumerate(self.layers):
                z = apply(z) if i else z
                z = z @ torch.as_tensor(weight, dtype=torch.float64).T + torch.as_tensor(bias, dtype=torch.float64)
            made.append(z.numpy())
        return np.concatenate(made) * self.target_scale + self.target_centre

    def probabilities(self, X: np.ndarray) -> np.ndarray:
        """``(n, k)`` chances of the classes."""
        logits = self.outputs(X)
        chances = np.exp(logits - logits.max(1, keepdims=True))
        return chances / chances.sum(1, keepdims=True)

    def predict(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, Encoded]:
        """A column ``prediction``, for classes also their probabilities; and what the rows were missing.

        Raises:
            ValueError: columns that are not there, or of another kind.
        """
        self.check_columns(frame.columns)
        rows = encode(self.features, frame)
        if self.classes is None:
            return pd.DataFrame({"prediction": self.outputs(rows.X)[:, 0]}), rows
        chances = self.probabilities(rows.X)
        best = pd.Series(list(self.classes)).iloc[chances.argmax(1)].reset_index(drop=True)
        columns = {f"probability {name}": chances[:, i] for i, name in enumerate(self.classes)}
        return pd.DataFrame({"prediction": best, **columns}), rows

    def check_columns(self, names: Sequence[str] | pd.Index) -> None:
        """Raises ``ValueError`` if a column is not there."""
        gone = [f.name for f in self.features if f.name not in set(names)]
        if gone:
            raise ValueError(
                f"expected the columns {[f.name for f in self.features]}, {gone} are not in the table, which has "
                f"{list(names)[:10]}{' and more' if len(names) > 10 else ''}."
            )

    def save(self, folder: Path) -> None:
        """Write two files into a folder, each with a checksum: no byte of them can change unnoticed."""
        arrays = {
            "centre": self.centre, "scale": self.scale, "target_centre": self.target_centre,
            "target_scale": self.target_scale,
        }  # fmt: skip
        for i, (weight, bias) in enumerate(self.layers):
            arrays |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
        content = save({name: np.ascontiguousarray(a) for name, a in arrays.items()})
        words = {
            "format": FORMAT, "weights_sha256": hashlib.sha256(content).hexdigest(), "target": self.target,
            "classes": self.classes, "activation": self.activation, "reading": asdict(self.reading),
            "features": [asdict(f) for f in self.features],
        }  # fmt: skip
        write_bytes(folder / WEIGHTS_FILE, content)
        write_bytes(folder / WORDS_FILE, seal_json(words))

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: no such files, others, or damaged or changed ones.
        """
        for name in (WEIGHTS_FILE, WORDS_FILE):
            if not (folder / name).is_file():
                raise ValueError(f"expected a folder written by dgating select, {str(folder)!r} has no file {name!r}.")
        whole = f"{str(folder)!r} is not a whole folder written by dgating select"
        with refusing(whole, "Run dgating select again."):
            words = read_json_file(folder / WORDS_FILE)
            if not isinstance(words, dict) or words.get("format") != FORMAT:
                raise ValueError(f"{WORDS_FILE!r} has not the format {FORMAT!r} of this version")
            words = read_sealed_json(folder / WORDS_FILE)
            stored = read_safetensors(folder / WEIGHTS_FILE)
            if hashlib.sha256(stored.path.read_bytes()).hexdigest() != words["weights_sha256"]:
                raise ValueError(f"{WEIGHTS_FILE!r} is not the file that was written with {WORDS_FILE!r}")
            return predictor_of(words, {name: t.numpy() for name, t in stored.tensors().items()})


def predictor_of(words: dict[str, Any], arrays: dict[str, np.ndarray]) -> Predictor:
    """A predictor of the content of its two files.

    Raises:
        ValueError: (or another of :data:`~dgating.files._reading.MALFORMED`) parts that do not belong together.
    """
    if not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in arrays.values()):
        raise ValueError("weights that are no finite numbers")
    classes = words["classes"]
    if classes is not None:
        kinds = isinstance(classes, list) and all(isinstance(c, bool | int | float | str) for c in classes)
        if not kinds or len({repr(c) for c in classes}) < max(2, len(classes)):
            raise ValueError(f"classes {repr(classes)[:80]}")
    if not isinstance(words["target"], str) or words["activation"] not in ACTIVATIONS:
        raise ValueError(f"target {repr(words['target'])[:80]}, activation {repr(words['activation'])[:80]}")
    features = tuple(map(_feature, words["features"]))
    if len({f.name for f in features}) != len(features):
        raise ValueError("a feature that is there twice")
    count = sum(name.endswith(".weight") for name in arrays)
    layers = tuple((arrays[f"layers.{i}.weight"], arrays[f"layers.{i}.bias"]) for i in range(count))
    outputs = 1 if classes is None else len(classes)
    sizes = [sum(len(f.names) for f in features), *(len(bias) for _, bias in layers)]
    if (
        [w.shape for w, _ in layers] != list(zip(sizes[1:], sizes[:-1], strict=True))
        or sizes[-1] != outputs
        or not layers
    ):
        raise ValueError(f"layers of sizes {sizes} for {outputs} outputs")
    scales = {name: arrays[name] for name in ("centre", "scale", "target_centre", "target_scale")}
    widths = {"centre": sizes[0], "scale": sizes[0], "target_centre": 1, "target_scale": 1}
    if any(scales[name].shape != (n,) for name, n in widths.items()) or len(arrays) != 2 * count + len(scales):
        raise ValueError("scales of another size, or tensors that belong to nothing")
    if any(bias.ndim != 1 for _, bias in layers) or (scales["scale"] == 0).any():
        raise ValueError("biases of another shape, or a scale of zero")
    reading = words["reading"]
    separator, decimal = reading["separator"], reading["decimal"]
    if (separator is not None and not isinstance(separator, str)) or not isinstance(decimal, str) or len(decimal) != 1:
        raise ValueError(f"a table with the separator {repr(separator)[:80]} and the decimal mark {repr(decimal)[:80]}")
    return Predictor(
        words["target"], None if classes is None else tuple(classes), features, words["activation"], layers, **scales,
        reading=Reading(separator, decimal, _words(reading["missing"])),
    )  # fmt: skip


def _feature(f: Any) -> Feature:
    made = Feature(f["name"], f["kind"], f["text"], tuple(f["fill"]), _words(f["words"]), f["indicator"])
    kinds = (str, str, bool, bool)
    if not all(isinstance(v, k) for v, k in zip((made.name, made.kind, made.text, made.indicator), kinds, strict=True)):
        raise ValueError(f"feature {repr(made.name)[:80]}")
    numbers = all(type(v) in (int, float) and np.isfinite(v) for v in made.fill)
    if not numbers or len(made.fill) != {NUMBER: 1, DATE: 3, CATEGORY: 0}[made.kind]:
        raise ValueError(f"feature {made.name[:80]!r} of kind {made.kind[:80]!r} is filled with {repr(made.fill)[:80]}")
    if len(set(made.words)) != len(made.words):
        raise ValueError(f"feature {made.name[:80]!r} has a word twice")
    return made


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"expected a list of words, received {repr(value)[:80]}")
    return tuple(value)
