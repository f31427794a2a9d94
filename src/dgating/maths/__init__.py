"""Pure functions of tensors: penalty, proximal map, certificate, time budget, rules that choose a strength."""

from dgating.maths._certificate import largest_product, momentum_shift
from dgating.maths._choose import RULES, choose, standard_errors
from dgating.maths._lam import lam_grid, largest_lam
from dgating.maths._penalty import (
    FLOAT32_EPS,
    TimeBudget,
    check_labels,
    effective_penalty_of,
    group_prox,
    prox_norm,
    prox_threshold,
    time_budget,
    weight_decay_of,
)
from dgating.maths._proximal_gradient import ProximalSolution, proximal_gradient

__all__ = [
    "FLOAT32_EPS",
    "RULES",
    "ProximalSolution",
    "TimeBudget",
    "check_labels",
    "choose",
    "effective_penalty_of",
    "group_prox",
    "lam_grid",
    "largest_lam",
    "largest_product",
    "momentum_shift",
    "prox_norm",
    "prox_threshold",
    "proximal_gradient",
    "standard_errors",
    "time_budget",
    "weight_decay_of",
]
