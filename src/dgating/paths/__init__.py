"""Regularization paths of any model: one run from a dense model to an empty one, cross-validation, budgets."""

from dgating.paths._budget import budget_path
from dgating.paths._cross_validation import CrossValidatedPath, cross_validate_path, kept_path, padded
from dgating.paths._data import BLOCK, Data, as_data
from dgating.paths._grid import lam_max
from dgating.paths._objective import log_likelihood, r2
from dgating.paths._path import path
from dgating.paths._result import PathPoint, RegularizationPath
from dgating.paths._walk import Options

__all__ = [
    "BLOCK",
    "CrossValidatedPath",
    "Data",
    "Options",
    "PathPoint",
    "RegularizationPath",
    "as_data",
    "budget_path",
    "cross_validate_path",
    "kept_path",
    "lam_max",
    "log_likelihood",
    "padded",
    "path",
    "r2",
]
