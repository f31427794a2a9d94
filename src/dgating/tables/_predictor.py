"""The model that is left: a few columns in, predictions out; saved as safetensors and JSON, without the estimator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dgating._files import write_bytes, write_text
from dgating.estimators._network_fit import ACTIVATIONS
from dgating.tables._encode import Encoded, Feature, encode
from dgating.tables._kinds import CATEGORY, DATE, NUMBER
from dgating.tables._read import Reading

FORMAT = "dgating/table-model/1"
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
        """Write two files into a folder."""
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
        write_text(folder / WORDS_FILE, json.dumps(words, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: no such files, other or damaged ones.
        """
        for name in (WEIGHTS_FILE, WORDS_FILE):
            if not (folder / name).is_file():
                raise ValueError(f"expected a folder written by dgating select, {str(folder)!r} has no file {name!r}.")
        try:
            words = json.loads((folder / WORDS_FILE).read_text(encoding="utf-8"))
            if words["format"] != FORMAT:
                raise ValueError(f"format {words['format']!r}")
            content = (folder / WEIGHTS_FILE).read_bytes()
            if hashlib.sha256(content).hexdigest() != words["weights_sha256"]:
                raise ValueError(f"{WEIGHTS_FILE!r} is not the file that was written with {WORDS_FILE!r}")
            return cls._from(words, load(content))
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{str(folder)!r} is not a whole folder written by dgating select ({type(error).__name__}: {error}); "
                "run dgating select again."
            ) from None

    @classmethod
    def _from(cls, words: dict[str, Any], arrays: dict[str, np.ndarray]) -> Predictor:
        def names(value: Any) -> tuple[str, ...]:
            if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
                raise TypeError(f"expected a list of words, received {value!r}")
            return tuple(value)

        features = tuple(
            Feature(f["name"], f["kind"], bool(f["text"]), tuple(f["fill"]), names(f["words"]), bool(f["indicator"]))
            for f in words["features"]
        )
        for f in features:
            if len(f.fill) != {NUMBER: 1, DATE: 3, CATEGORY: 0}[f.kind] or not np.isfinite(f.fill).all():
                raise ValueError(f"feature {f.name!r}")
        count = sum(name.endswith(".weight") for name in arrays)
        layers = tuple((arrays[f"layers.{i}.weight"], arrays[f"layers.{i}.bias"]) for i in range(count))
        outputs = 1 if words["classes"] is None else len(words["classes"])
        sizes = [sum(len(f.names) for f in features), *(len(bias) for _, bias in layers)]
        if [w.shape for w, _ in layers] != list(zip(sizes[1:], sizes[:-1], strict=True)) or sizes[-1] != outputs:
            raise ValueError(f"layers of sizes {sizes} for {outputs} outputs")
        ACTIVATIONS[words["activation"]]
        reading = Reading(
            words["reading"]["separator"], words["reading"]["decimal"], names(words["reading"]["missing"])
        )
        inputs = {name: arrays[name] for name in ("centre", "scale")}
        targets = {name: arrays[name] for name in ("target_centre", "target_scale")}
        if any(a.shape != (sizes[0],) for a in inputs.values()) or any(len(a) != 1 for a in targets.values()):
            raise ValueError("scales of another size")
        classes = None if words["classes"] is None else tuple(words["classes"])
        return cls(
            str(words["target"]), classes, features, words["activation"], layers, **inputs, **targets, reading=reading
        )
