"""What a gated model looks like in numbers: norms of groups, balance, a report."""

from dgating.reporting._norms import group_norms, imbalance, misalignment, sparsity
from dgating.reporting._report import Report, report

__all__ = [
    "Report",
    "group_norms",
    "imbalance",
    "misalignment",
    "report",
    "sparsity",
]
