"""Op rules, one file a family. Importing this package registers them all."""

from dgating.structure.rules import (  # noqa: F401  (imported for their registrations)
    attention,
    convolution,
    creation,
    elementwise,
    indexing,
    joining,
    movement,
    normalisation,
    pooling,
    product,
    reduction,
    repeating,
)
from dgating.structure.rules._registry import RULES, fallback, keeps, rule

__all__ = ["RULES", "fallback", "keeps", "rule"]
