"""Groups of one-hot columns, read from the fitted encoder that made them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import OneToOneFeatureMixin
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.validation import check_is_fitted


def one_hot_groups(transformer: Any) -> np.ndarray:
    """Which output columns of a fitted encoder come from one categorical input.

    Read from the fitted categories, with dropped and infrequent ones accounted for; names are not parsed, so
    underscores, ``feature_name_combiner`` and ``verbose_feature_names_out`` do not matter.

    Args:
        transformer: a fitted ``OneHotEncoder``, a ``ColumnTransformer`` with such in it, or a ``Pipeline`` that ends
            with one of the two; steps after it that map columns one to one (scalers) are skipped.

    Returns:
        ``(p,)`` labels for ``groups=``: one label for all columns of a category, another for every other column. A
        ``ColumnTransformer`` puts the name of the part and ``__`` before them.

    Raises:
        TypeError: another transformer.
        sklearn.exceptions.NotFittedError: it is not fitted.

    Example:
        >>> from sklearn.preprocessing import OneHotEncoder
        >>> encoder = OneHotEncoder(drop="first").fit([["red", "S"], ["blue", "M"], ["red", "L"]])
        >>> one_hot_groups(encoder).tolist()
        ['x0', 'x1', 'x1']
    """
    encoder = _encoder_in(transformer)
    if encoder is None:
        raise TypeError(
            "one_hot_groups: expected a OneHotEncoder, a ColumnTransformer or a Pipeline that ends with one, received "
            f"{type(transformer).__name__}; pass groups= as labels instead."
        )
    check_is_fitted(encoder)
    return _of_encoder(encoder) if isinstance(encoder, OneHotEncoder) else _of_columns(encoder)


def _encoder_in(transformer: Any) -> OneHotEncoder | ColumnTransformer | None:
    """The step that decides on the columns."""
    if isinstance(transformer, Pipeline):
        steps = [step for _, step in transformer.steps if step not in (None, "passthrough")]
        while steps and isinstance(steps[-1], OneToOneFeatureMixin):
            steps.pop()
        return _encoder_in(steps[-1]) if steps else None
    return transformer if isinstance(transformer, OneHotEncoder | ColumnTransformer) else None


def _of_encoder(encoder: OneHotEncoder, inputs: Sequence[Any] | None = None) -> np.ndarray:
    sizes = np.array([len(c) for c in encoder.categories_])
    if inputs is None or len(inputs) != len(sizes):
        inputs = getattr(encoder, "feature_names_in_", [f"x{i}" for i in range(len(sizes))])
    rare = getattr(encoder, "infrequent_categories_", [None] * len(sizes))
    sizes -= [0 if r is None else len(r) - 1 for r in rare]  # all rare ones share a column
    if encoder.drop_idx_ is not None:
        sizes -= [0 if dropped is None else 1 for dropped in encoder.drop_idx_]
    return np.repeat(np.asarray(inputs, dtype=object), sizes)


def _inputs(columns: ColumnTransformer, chosen: Any) -> list[Any]:
    """Names (or numbers, where there are none) of the inputs that a part was given."""
    count: int = getattr(columns, "n_features_in_", 0)
    names = list(getattr(columns, "feature_names_in_", range(count)))
    if isinstance(chosen, slice):
        by_name = isinstance(chosen.start, str) or isinstance(chosen.stop, str)
        return [] if by_name else names[chosen]  # the part knows its names
    picked = np.atleast_1d(np.asarray(chosen))
    picked = np.flatnonzero(picked) if picked.dtype == bool else picked
    return [names[c] if isinstance(c, Integral) else c for c in picked.tolist()]


def _of_columns(columns: ColumnTransformer) -> np.ndarray:
    places = columns.output_indices_
    labels = np.empty(max(place.stop for place in places.values()), dtype=object)
    for name, part, chosen in columns.transformers_:
        place = places[name]
        size = place.stop - place.start
        if size == 0:
            continue
        inputs = _inputs(columns, chosen)
        encoder = _encoder_in(part)
        if isinstance(encoder, OneHotEncoder):
            of_part = _of_encoder(encoder, inputs)
        elif encoder is not None:
            of_part = _of_columns(encoder)
        else:
            of_part = inputs if len(inputs) == size else range(size)
        labels[place] = [f"{name}__{label}" for label in of_part]
    return labels
