"""Pictures of regularization paths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dgating.maths import standard_errors
from dgating.plots._drawing import literal, new_figure, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dgating.paths import CrossValidatedPath, RegularizationPath

MOST_LINES = 300  # of the norm plot: the groups that last longest


def path(found: RegularizationPath, groups: str | None = None) -> Figure:
    """Score and number of groups against λ above, the norm of every group below.

    Args:
        found: what :func:`dgating.path` returned.
        groups: the ``Groups.name`` whose norms are drawn; by default the first.

    Raises:
        ImportError: matplotlib is missing.
        KeyError: no such groups.

    Example:
        >>> import torch, dgating as dg
        >>> x = torch.randn(40, 4)
        >>> found = dg.path(torch.nn.Linear(4, 1), (x, x[:, :1]), [0.1, 0.2], dense_steps=5, steps=30)
        >>> len(dg.plots.path(found).axes)  # groups, score, norms
        3
    """
    names = list(found[0].norms)
    name = names[0] if groups is None else groups
    if name not in names:
        raise KeyError(f"groups: no groups named {name!r} in this path; it has {names}.")
    figure = new_figure(7, 6)
    above, below = figure.subplots(2, 1, sharex=True)
    lams = found.lams
    above.plot(lams, [p.n_groups for p in found], color="C0", marker=".", drawstyle="steps-mid")
    above.set_ylabel("groups", color="C0")
    whole_numbers(above.yaxis)
    scores = [p.score for p in found]
    if not all(math.isnan(s) for s in scores):
        right = above.twinx()
        right.plot(lams, scores, color="C1", marker=".")
        literal([right.set_ylabel(str(found.settings.get("score", "score")), color="C1")])
    norms = torch.stack([p.norms[name] for p in found])
    order = (norms > 0).sum(0).argsort(descending=True, stable=True)[:MOST_LINES]
    below.plot(lams, norms[:, order].numpy(), lw=0.8)
    below.set(xscale="log", xlabel=r"$\lambda$")
    literal([below.set_ylabel(f"norms of {name}")])
    below.set_ylim(bottom=0)
    return figure


def cross_validation(found: CrossValidatedPath, rules: Sequence[str] = ("best", "1se")) -> Figure:
    """Mean score with its standard error against λ, the groups left, and a line for what each rule takes.

    Args:
        found: what :func:`dgating.cross_validate_path` returned.
        rules: of its ``select``.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an unknown rule.

    Example:
        >>> import torch, dgating as dg
        >>> x = torch.randn(40, 4)
        >>> data, options = (x, x[:, :1]), {"dense_steps": 5, "steps": 30}
        >>> found = dg.cross_validate_path(torch.nn.Linear(4, 1), data, folds=2, lams=[0.1, 0.2], **options)
        >>> len(dg.plots.cross_validation(found).axes)  # scores, groups
        2
    """
    chosen = {rule: found.select(rule) for rule in rules}
    figure = new_figure(7, 4)
    axes = figure.subplots()
    lams = found.path.lams
    axes.errorbar(lams, found.scores.mean(0), standard_errors(found.scores), color="C1", marker=".", capsize=2)
    axes.set(xscale="log", xlabel=r"$\lambda$")
    score = found.path.settings.get("score", "score")
    literal([axes.set_ylabel(f"{score}, {len(found.scores)} folds", color="C1")])
    right = axes.twinx()
    right.plot(lams, [p.n_groups for p in found.path], color="C0", drawstyle="steps-mid")
    right.set_ylabel("groups", color="C0")
    whole_numbers(right.yaxis)
    for style, (rule, point) in zip(itertools.cycle(("--", ":", "-.")), chosen.items(), strict=False):
        axes.axvline(point.lam, color="0.4", ls=style, label=f"{rule}: {point.n_groups} groups")
    axes.legend()
    return figure
