"""Structured sparsity that trains like ordinary deep learning: D-Gating for any ``nn.Module``.

The public surface, one name a line. Anything not listed here may change.
"""

import importlib
import typing

from dgating import plots as plots
from dgating.compaction import CompactionPlan as CompactionPlan
from dgating.compaction import ModuleChange as ModuleChange
from dgating.compaction import compact as compact
from dgating.compaction import load_compact as load_compact
from dgating.compaction import plan_compaction as plan_compaction
from dgating.compaction import register_module_rule as register_module_rule
from dgating.compaction import save_compact as save_compact
from dgating.deploy import Exported as Exported
from dgating.deploy import Profile as Profile
from dgating.deploy import export as export
from dgating.deploy import profile as profile
from dgating.gating import GateConfig as GateConfig
from dgating.gating import Groups as Groups
from dgating.gating import collapse_ as collapse_
from dgating.gating import concat as concat
from dgating.gating import gate_ as gate_
from dgating.gating import is_gated as is_gated
from dgating.gating import tie as tie
from dgating.gating import zero_ as zero_
from dgating.linear import GroupBridgePath as GroupBridgePath
from dgating.linear import GroupLassoPath as GroupLassoPath
from dgating.linear import group_bridge_path as group_bridge_path
from dgating.linear import group_lasso_path as group_lasso_path
from dgating.linear import lam_max_linear as lam_max_linear
from dgating.maths import ProximalSolution as ProximalSolution
from dgating.maths import TimeBudget as TimeBudget
from dgating.maths import group_prox as group_prox
from dgating.maths import lam_grid as lam_grid
from dgating.maths import prox_norm as prox_norm
from dgating.maths import prox_threshold as prox_threshold
from dgating.maths import proximal_gradient as proximal_gradient
from dgating.maths import time_budget as time_budget
from dgating.paths import CrossValidatedPath as CrossValidatedPath
from dgating.paths import PathPoint as PathPoint
from dgating.paths import RegularizationPath as RegularizationPath
from dgating.paths import budget_path as budget_path
from dgating.paths import cross_validate_path as cross_validate_path
from dgating.paths import lam_max as lam_max
from dgating.paths import path as path
from dgating.reporting import Report as Report
from dgating.reporting import group_norms as group_norms
from dgating.reporting import imbalance as imbalance
from dgating.reporting import misalignment as misalignment
from dgating.reporting import report as report
from dgating.reporting import sparsity as sparsity
from dgating.select import blocks as blocks
from dgating.select import by_dim as by_dim
from dgating.select import by_labels as by_labels
from dgating.select import coupled as coupled
from dgating.select import experts as experts
from dgating.select import features as features
from dgating.select import filters as filters
from dgating.select import heads as heads
from dgating.select import layers as layers
from dgating.select import neurons as neurons
from dgating.select import whole as whole
from dgating.structure import CompactionError as CompactionError
from dgating.training import AbsorptionMonitor as AbsorptionMonitor
from dgating.training import add_penalty_grad_ as add_penalty_grad_
from dgating.training import check_optimizer as check_optimizer
from dgating.training import effective_penalty as effective_penalty
from dgating.training import param_groups as param_groups
from dgating.training import penalty as penalty

if typing.TYPE_CHECKING:
    from dgating.estimators import DGatedClassifier as DGatedClassifier
    from dgating.estimators import DGatedClassifierCV as DGatedClassifierCV
    from dgating.estimators import DGatedLinearClassifier as DGatedLinearClassifier
    from dgating.estimators import DGatedLinearClassifierCV as DGatedLinearClassifierCV
    from dgating.estimators import DGatedLinearRegressor as DGatedLinearRegressor
    from dgating.estimators import DGatedLinearRegressorCV as DGatedLinearRegressorCV
    from dgating.estimators import DGatedRegressor as DGatedRegressor
    from dgating.estimators import DGatedRegressorCV as DGatedRegressorCV
    from dgating.estimators import one_hot_groups as one_hot_groups

__version__ = "0.1.0"

# these need scikit-learn, which is an extra: imported when they are first asked for
_ESTIMATORS = (
    "DGatedClassifier",
    "DGatedClassifierCV",
    "DGatedLinearClassifier",
    "DGatedLinearClassifierCV",
    "DGatedLinearRegressor",
    "DGatedLinearRegressorCV",
    "DGatedRegressor",
    "DGatedRegressorCV",
    "one_hot_groups",
)


def __getattr__(name: str) -> typing.Any:
    if name not in _ESTIMATORS:
        raise AttributeError(f"module 'dgating' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module("dgating.estimators"), name)
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
