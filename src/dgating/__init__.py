"""Structured sparsity that trains like ordinary deep learning: D-Gating for any ``nn.Module``.

The public surface, one name a line. Anything not listed here may change.
"""

import importlib
import typing

from dgating import plots as plots
from dgating._absorption import AbsorptionMonitor as AbsorptionMonitor
from dgating._config import GateConfig as GateConfig
from dgating._diagnostics import group_norms as group_norms
from dgating._diagnostics import imbalance as imbalance
from dgating._diagnostics import misalignment as misalignment
from dgating._diagnostics import sparsity as sparsity
from dgating._groups import Groups as Groups
from dgating._groups import concat as concat
from dgating._groups import tie as tie
from dgating._lam import lam_grid as lam_grid
from dgating._model import collapse_ as collapse_
from dgating._model import gate_ as gate_
from dgating._model import is_gated as is_gated
from dgating._model import zero_ as zero_
from dgating._optim import add_penalty_grad_ as add_penalty_grad_
from dgating._optim import check_optimizer as check_optimizer
from dgating._optim import effective_penalty as effective_penalty
from dgating._optim import param_groups as param_groups
from dgating._optim import penalty as penalty
from dgating._penalty import TimeBudget as TimeBudget
from dgating._penalty import group_prox as group_prox
from dgating._penalty import prox_norm as prox_norm
from dgating._penalty import prox_threshold as prox_threshold
from dgating._penalty import time_budget as time_budget
from dgating._reference import ProximalSolution as ProximalSolution
from dgating._reference import proximal_gradient as proximal_gradient
from dgating.compaction._compact import compact as compact
from dgating.compaction._export import Exported as Exported
from dgating.compaction._export import export as export
from dgating.compaction._plan import CompactionPlan as CompactionPlan
from dgating.compaction._plan import plan_compaction as plan_compaction
from dgating.compaction._profile import Profile as Profile
from dgating.compaction._profile import profile as profile
from dgating.compaction._rules import ModuleChange as ModuleChange
from dgating.compaction._rules import register_module_rule as register_module_rule
from dgating.compaction._save import load_compact as load_compact
from dgating.compaction._save import save_compact as save_compact
from dgating.paths._budget import budget_path as budget_path
from dgating.paths._cross_validation import CrossValidatedPath as CrossValidatedPath
from dgating.paths._cross_validation import cross_validate_path as cross_validate_path
from dgating.paths._grid import lam_max as lam_max
from dgating.paths._group_bridge import GroupBridgePath as GroupBridgePath
from dgating.paths._group_bridge import group_bridge_path as group_bridge_path
from dgating.paths._group_lasso import GroupLassoPath as GroupLassoPath
from dgating.paths._group_lasso import group_lasso_path as group_lasso_path
from dgating.paths._group_lasso import lam_max_linear as lam_max_linear
from dgating.paths._path import path as path
from dgating.paths._result import PathPoint as PathPoint
from dgating.paths._result import RegularizationPath as RegularizationPath
from dgating.reporting.report import Report as Report
from dgating.reporting.report import report as report
from dgating.select.blocks import blocks as blocks
from dgating.select.by_dim import by_dim as by_dim
from dgating.select.by_labels import by_labels as by_labels
from dgating.select.coupled import coupled as coupled
from dgating.select.experts import experts as experts
from dgating.select.features import features as features
from dgating.select.filters import filters as filters
from dgating.select.heads import heads as heads
from dgating.select.layers import layers as layers
from dgating.select.neurons import neurons as neurons
from dgating.select.whole import whole as whole
from dgating.structure._capture import CompactionError as CompactionError

if typing.TYPE_CHECKING:
    from dgating.estimators._linear import DGatedLinearClassifier as DGatedLinearClassifier
    from dgating.estimators._linear import DGatedLinearClassifierCV as DGatedLinearClassifierCV
    from dgating.estimators._linear import DGatedLinearRegressor as DGatedLinearRegressor
    from dgating.estimators._linear import DGatedLinearRegressorCV as DGatedLinearRegressorCV
    from dgating.estimators._network import DGatedClassifier as DGatedClassifier
    from dgating.estimators._network import DGatedClassifierCV as DGatedClassifierCV
    from dgating.estimators._network import DGatedRegressor as DGatedRegressor
    from dgating.estimators._network import DGatedRegressorCV as DGatedRegressorCV
    from dgating.estimators._one_hot import one_hot_groups as one_hot_groups

__version__ = "0.1.0"

# these need scikit-learn, which is an extra: imported when they are first asked for
_ESTIMATORS = {
    "DGatedClassifier": "dgating.estimators._network",
    "DGatedClassifierCV": "dgating.estimators._network",
    "DGatedLinearClassifier": "dgating.estimators._linear",
    "DGatedLinearClassifierCV": "dgating.estimators._linear",
    "DGatedLinearRegressor": "dgating.estimators._linear",
    "DGatedLinearRegressorCV": "dgating.estimators._linear",
    "DGatedRegressor": "dgating.estimators._network",
    "DGatedRegressorCV": "dgating.estimators._network",
    "one_hot_groups": "dgating.estimators._one_hot",
}


def __getattr__(name: str) -> typing.Any:
    if name not in _ESTIMATORS:
        raise AttributeError(f"module 'dgating' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_ESTIMATORS[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise ModuleNotFoundError(f'dgating.{name} needs scikit-learn: pip install "dgating[sklearn]".') from error


__all__ = [
    "AbsorptionMonitor",
    "CompactionError",
    "CompactionPlan",
    "CrossValidatedPath",
    "DGatedClassifier",
    "DGatedClassifierCV",
    "DGatedLinearClassifier",
    "DGatedLinearClassifierCV",
    "DGatedLinearRegressor",
    "DGatedLinearRegressorCV",
    "DGatedRegressor",
    "DGatedRegressorCV",
    "Exported",
    "GateConfig",
    "GroupBridgePath",
    "GroupLassoPath",
    "Groups",
    "ModuleChange",
    "PathPoint",
    "Profile",
    "ProximalSolution",
    "RegularizationPath",
    "Report",
    "TimeBudget",
    "add_penalty_grad_",
    "blocks",
    "budget_path",
    "by_dim",
    "by_labels",
    "check_optimizer",
    "collapse_",
    "compact",
    "concat",
    "coupled",
    "cross_validate_path",
    "effective_penalty",
    "experts",
    "export",
    "features",
    "filters",
    "gate_",
    "group_bridge_path",
    "group_lasso_path",
    "group_norms",
    "group_prox",
    "heads",
    "imbalance",
    "is_gated",
    "lam_grid",
    "lam_max",
    "lam_max_linear",
    "layers",
    "load_compact",
    "misalignment",
    "neurons",
    "one_hot_groups",
    "param_groups",
    "path",
    "penalty",
    "plan_compaction",
    "plots",
    "profile",
    "prox_norm",
    "prox_threshold",
    "proximal_gradient",
    "register_module_rule",
    "report",
    "save_compact",
    "sparsity",
    "tie",
    "time_budget",
    "whole",
    "zero_",
]
