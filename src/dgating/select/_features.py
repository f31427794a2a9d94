"""The inputs of a layer: columns of a linear layer, input channels of a convolution, rows of an embedding."""

from __future__ import annotations

from torch import nn

from dgating.gating import Groups
from dgating.select._axes import inputs
from dgating.select._target import check_initialised, resolve


def features(layer: nn.Module, name: str | None = None) -> Groups:
    r"""One group for every input of a layer: the weights that leave it.

    On the first layer this selects input features. On a later layer it selects the hidden units that feed it: a unit
    whose outgoing weights are all zero contributes nothing.

    Linear and ``Conv1D`` of transformers: one group an input feature. Convolutions (grouped and transposed too): one
    an input channel. ``LSTM``/``GRU``/``RNN``: one an input feature, over all gates and both directions.
    ``MultiheadAttention``: one an embedding dimension of the fused input projection. ``Embedding``: one a row (token
    or category).

    Args:
        layer: the layer whose inputs are grouped.
        name: key in the diagnostics; by default the path of the weight.

    Returns:
        :class:`Groups` with one group an input.

    Raises:
        TypeError: a layer of another kind (use :func:`by_dim` on its tensor).

    Example:
        >>> import torch, dgating as dg
        >>> len(dg.features(torch.nn.Linear(64, 300)))
        64
        >>> len(dg.features(torch.nn.Conv2d(3, 16, 5)))
        3

    Reference: arXiv 2509.23898, feature selection (Fig. 5).
    """
    check_initialised(layer)
    found = inputs(layer) if isinstance(layer, nn.Module) else None
    if found is None:
        raise TypeError(
            f"features: expected a linear, convolution, recurrent, attention or embedding layer, received "
            f"{type(layer).__name__}. Use by_dim(layer, dim, name=...) for any other tensor."
        )
    for part in found.parts:
        for m in part.members:
            resolve(m.owner, m.name)
    return Groups(found.parts, name)
