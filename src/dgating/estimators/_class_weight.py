"""Classes as numbers, and the factors of ``class_weight``."""

from __future__ import annotations

from typing import Any

import numpy as np

from dgating._checks import check_number


def codes_of(y: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, the number of each row's class, and the weight ``rows`` of each class.

    Raises:
        ValueError: one class only, or one without weight.
    """
    classes, codes = np.unique(y, return_inverse=True)
    mass = np.bincount(codes, rows)
    if len(classes) < 2 or (mass <= 0).any():
        seen = classes[mass > 0].tolist()
        raise ValueError(
            f"y: expected rows of at least two classes, each of positive weight, received {len(seen)} class "
            f"({seen}); add rows of others, or leave out classes whose rows all weigh nothing."
        )
    return classes, codes, mass


def class_factors(class_weight: Any, classes: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """``(k,)`` factors; ``"balanced"`` gives every class the same weight in total.

    Raises:
        ValueError: neither ``None`` nor ``"balanced"`` nor a dict, a class that is not there, or a factor below 0.
    """
    if class_weight is None:
        return np.ones(len(mass))
    if isinstance(class_weight, str) and class_weight == "balanced":
        return mass.sum() / (len(mass) * mass)
    if not isinstance(class_weight, dict):
        raise ValueError(f"class_weight: expected None, 'balanced' or a dict, received {class_weight!r}.")
    unknown = [c for c in class_weight if c not in classes]
    if unknown:
        raise ValueError(f"class_weight: expected classes of y, {classes.tolist()}, received {unknown}.")
    for value in class_weight.values():
        check_number("class_weight", value)
    return np.array([float(class_weight.get(c, 1.0)) for c in classes.tolist()])
