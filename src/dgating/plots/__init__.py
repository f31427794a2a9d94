"""Pictures of gated models, their training and their paths (matplotlib, the ``plot`` extra)."""

from dgating.plots._model import group_norms, history
from dgating.plots._path import cross_validation, path

__all__ = ["cross_validation", "group_norms", "history", "path"]
