"""The core: partitions of weights into groups, gates on them, and the calls that gate, zero and collapse a model."""

from dgating.gating._apply import collapse_, gate_, is_gated, plan_masks, zero_
from dgating.gating._config import GateConfig
from dgating.gating._evaluating import evaluating
from dgating.gating._gate import gate_product
from dgating.gating._gated_tensors import Unit, by_groups, find_units, full, gate_of, units, wide
from dgating.gating._groups import Groups, Member, Part, concat, tie
from dgating.gating._optimizer_state import REST_DECAY, ROLE, bare, check_editable, check_holds, entry_state
from dgating.gating._partition import UNGATED, Partition, partition_by_dim, partition_by_labels
from dgating.gating._plan import check_tensor
from dgating.gating._transaction import all_or_nothing
from dgating.gating._trial import Decay, decay_of
from dgating.gating._zeros import check_zeros

__all__ = [
    "REST_DECAY",
    "ROLE",
    "UNGATED",
    "Decay",
    "GateConfig",
    "Groups",
    "Member",
    "Part",
    "Partition",
    "Unit",
    "all_or_nothing",
    "bare",
    "by_groups",
    "check_editable",
    "check_holds",
    "check_tensor",
    "check_zeros",
    "collapse_",
    "concat",
    "decay_of",
    "entry_state",
    "evaluating",
    "find_units",
    "full",
    "gate_",
    "gate_of",
    "gate_product",
    "is_gated",
    "partition_by_dim",
    "partition_by_labels",
    "plan_masks",
    "tie",
    "units",
    "wide",
    "zero_",
]
