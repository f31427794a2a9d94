"""The engine: follows every weight through the exported graph and finds the slices that belong together."""

from dgating.structure._analyse import analyse
from dgating.structure._capture import CompactionError, module_of
from dgating.structure._discovery import Discovery, Family, Site
from dgating.structure._engine import Engine
from dgating.structure._info import Info
from dgating.structure._inputs import Args, Kwargs, call_kwargs, random_like, split_inputs, tensors_of, uncompiled
from dgating.structure._one_export import EXPORT, silent
from dgating.structure._rewrite import Change, changes
from dgating.structure._sizes import Slice, apply, cut, slices_of
from dgating.structure._solve import Solution, solve
from dgating.structure._uses import MatrixUse
from dgating.structure._watching import Watching
from dgating.structure.rules import RULES
from dgating.structure.rules._registry import WHOLE

__all__ = [
    "EXPORT",
    "RULES",
    "WHOLE",
    "Args",
    "Change",
    "CompactionError",
    "Discovery",
    "Engine",
    "Family",
    "Info",
    "Kwargs",
    "MatrixUse",
    "Site",
    "Slice",
    "Solution",
    "Watching",
    "analyse",
    "apply",
    "call_kwargs",
    "changes",
    "cut",
    "module_of",
    "random_like",
    "silent",
    "slices_of",
    "solve",
    "split_inputs",
    "tensors_of",
    "uncompiled",
]
