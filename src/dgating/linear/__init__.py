"""Paths of linear models by proximal and accelerated solvers."""

from dgating.linear._checks import Array, tensor, vector
from dgating.linear._data import LossName
from dgating.linear._group_bridge import GroupBridgePath, group_bridge_path
from dgating.linear._group_lasso import GroupLassoPath, group_lasso_path, lam_max_linear
from dgating.linear._moments import BLOCK, condense, is_tall

__all__ = [
    "BLOCK",
    "Array",
    "GroupBridgePath",
    "GroupLassoPath",
    "LossName",
    "condense",
    "group_bridge_path",
    "group_lasso_path",
    "is_tall",
    "lam_max_linear",
    "tensor",
    "vector",
]
