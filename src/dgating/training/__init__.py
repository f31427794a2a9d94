"""What is minimised, and who watches it: the objective, the monitor of dead groups, regrowth."""

from dgating.training._monitor import AbsorptionMonitor, certified_groups
from dgating.training._objective import add_penalty_grad_, check_optimizer, effective_penalty, param_groups, penalty

__all__ = [
    "AbsorptionMonitor",
    "add_penalty_grad_",
    "certified_groups",
    "check_optimizer",
    "effective_penalty",
    "param_groups",
    "penalty",
]
