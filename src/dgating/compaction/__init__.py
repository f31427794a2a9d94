"""Physically smaller models that compute the same function: plan, cut, verify, save."""

from dgating.compaction._compact import compact
from dgating.compaction._plan import CompactionPlan, plan_compaction
from dgating.compaction._rules import ModuleChange, register_module_rule
from dgating.compaction._save import FORMAT, UNSEALED, compact_bytes, load_compact, save_compact
from dgating.compaction._verify import difference, inputs_to_check, run, scale_of

__all__ = [
    "FORMAT",
    "UNSEALED",
    "CompactionPlan",
    "ModuleChange",
    "compact",
    "compact_bytes",
    "difference",
    "inputs_to_check",
    "load_compact",
    "plan_compaction",
    "register_module_rule",
    "run",
    "save_compact",
    "scale_of",
]
