"""The picture of a regularization path (matplotlib, the ``plot`` extra)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dgating.paths._rules import standard_errors
from dgating.reporting.plots import literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dgating.paths._cross_validation import CrossValidatedPath
    from dgating.paths._result import RegularizationPath

MOST_LINES = 300  # of the norm plot: the groups that last longest


def plot_path(path: RegularizationPath, groups: str | None = None) -> Figure:
    """Score and number of groups against λ above, the norm of every group below.

    Args:
        path: what :func:`path` returned.
        groups: the ``Groups.name`` whose norms are drawn; by default the first.

    Raises:
        ImportError: matplotlib is missing.
        KeyError: no such groups.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'dgating[plot]'.") from error
    names = list(path[0].norms)
    name = names[0] if groups is None else groups
    if name not in names:
        raise KeyError(f"groups: no groups named {name!r} in this path; it has {names}.")
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    lams = path.lams
    above.plot(lams, [p.n_groups for p in path], color="C0", marker=".", drawstyle="steps-mid")
    above.set_ylabel("groups", color="C0")
    scores = [p.score for p in path]
    if not all(math.isnan(s) for s in scores):
        right = above.twinx()
        right.plot(lams, scores, color="C1", marker=".")
        literal([right.set_ylabel(str(path.settings.get("score", "score")), color="C1")])
    norms = torch.stack([p.norms[name] for p in path])
    order = (norms > 0).sum(0).argsort(descending=True, stable=True)[:MOST_LINES]
    below.plot(lams, norms[:, order].numpy(), lw=0.8)
    below.set(xscale="log", xlabel=r"$\lambda$")
    literal([below.set_ylabel(f"norms of {name}")])
    below.set_ylim(bottom=0)
    return figure


def plot_cross_validation(found: CrossValidatedPath, rules: Sequence[str] = ("best", "1se")) -> Figure:
    """Mean score with its standard error against λ, the groups left, and a line for what each rule takes.

    Args:
        found: what :func:`cross_validate_path` returned.
        rules: of its ``select``.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an unknown rule.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'dgating[plot]'.") from error
    chosen = {rule: found.select(rule) for rule in rules}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lams = found.path.lams
    axes.errorbar(lams, found.scores.mean(0), standard_errors(found.scores), color="C1", marker=".", capsize=2)
    axes.set(xscale="log", xlabel=r"$\lambda$")
    score = found.path.settings.get("score", "score")
    literal([axes.set_ylabel(f"{score}, {len(found.scores)} folds", color="C1")])
    right = axes.twinx()
    right.plot(lams, [p.n_groups for p in found.path], color="C0", drawstyle="steps-mid")
    right.set_ylabel("groups", color="C0")
    for style, (rule, point) in zip(itertools.cycle(("--", ":", "-.")), chosen.items(), strict=False):
        axes.axvline(point.lam, color="0.4", ls=style, label=f"{rule}: {point.n_groups} groups")
    axes.legend()
    return figure
