"""scikit-learn estimators."""

from dgating.estimators._linear import (
    DGatedLinearClassifier,
    DGatedLinearClassifierCV,
    DGatedLinearRegressor,
    DGatedLinearRegressorCV,
)
from dgating.estimators._network import DGatedClassifier, DGatedClassifierCV, DGatedRegressor, DGatedRegressorCV
from dgating.estimators._network_fit import ACTIVATIONS
from dgating.estimators._one_hot import one_hot_groups

__all__ = [
    "ACTIVATIONS",
    "DGatedClassifier",
    "DGatedClassifierCV",
    "DGatedLinearClassifier",
    "DGatedLinearClassifierCV",
    "DGatedLinearRegressor",
    "DGatedLinearRegressorCV",
    "DGatedRegressor",
    "DGatedRegressorCV",
    "one_hot_groups",
]
