"""Tiny models of many kinds, with random units zeroed and an oracle of what a compaction must remove."""

from benchmarks.zoo import (
    decoders_more,
    plain_branch,
    plain_conv,
    plain_mlp,
    plain_sequence,
    text,
    text_more,
    vision,
    vision_more,
)
from benchmarks.zoo._family import Family
from benchmarks.zoo._randomise import randomise_
from benchmarks.zoo._zero import Zeroed

PLAIN = [*plain_mlp.FAMILIES, *plain_conv.FAMILIES, *plain_branch.FAMILIES, *plain_sequence.FAMILIES]
TRANSFORMERS = [*text.LISTED, *vision.LISTED, *text_more.UNLISTED, *decoders_more.UNLISTED, *vision_more.UNLISTED]
FAMILIES: dict[str, Family] = {family.name: family for family in [*TRANSFORMERS, *PLAIN]}

__all__ = ["FAMILIES", "Family", "Zeroed", "randomise_"]
