"""Estimators as feature selectors: ``get_support``, ``transform`` and names, from exact zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.validation import check_is_fitted


class GroupSelectorMixin(SelectorMixin):
    """For estimators whose fit sets ``feature_importances_``: a column is selected where that is not zero."""

    feature_importances_: np.ndarray

    def _get_support_mask(self) -> Any:
        check_is_fitted(self, "feature_importances_")
        return np.asarray(self.feature_importances_) > 0
