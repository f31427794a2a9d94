"""Who reads which labels: what the rules note and the solver asks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.fx import Node

from dgating.structure._capture import Weight
from dgating.structure._labels import Ids


@dataclass(eq=False)
class MatrixUse:
    """A product with weights: input label ``[g, k]`` reaches output label ``[g, n]`` where ``nonzero[g, n, k]``.

    ``constant[g, k]`` is the known value of the input (NaN where it varies). ``fold`` says how a constant can move
    into a bias; ``None`` where it cannot.
    """

    node: Node
    inputs: Ids
    outputs: Ids
    nonzero: Tensor
    constant: Tensor
    weight: Tensor
    fold: Fold | None
    why: str


@dataclass(eq=False)
class Fold:
    """Where a constant input of a matrix product goes: the bias of this call."""

    weight: Weight
    bias: Weight | None
    module: str


@dataclass(eq=False)
class DirectUse:
    """``sources`` stay when the label of ``targets`` beside them stays, unless ``zero``; ``None``: in any case."""

    sources: Ids
    targets: Ids | None
    zero: np.ndarray | None
    why: str


@dataclass(eq=False)
class Expansion:
    """A tensor with labels ``parents`` was repeated: every copy has labels ``children`` of its own along ``axes``."""

    parents: Ids
    children: Ids
    axes: tuple[int, ...]


@dataclass(eq=False)
class Blocks:
    """A grouped product: row ``g`` of ``inputs`` feeds row ``g`` of ``outputs``; every row must keep as many."""

    inputs: Ids
    outputs: Ids


@dataclass(eq=False)
class Heads:
    """An attention: a label of each of its heads, and all labels that were those of its values before they met."""

    node: Node
    heads: Ids
    values: Ids
