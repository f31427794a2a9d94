"""The picture of a selection: score and number of features against λ, and the paths of the features."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from dgating._text import plain
from dgating.tables._select import SCORES, Selection

NAMED = 12  # features with a name beside their line
LINES = 200  # of the features that last longest


def picture(found: Selection) -> bytes:
    """A PNG image.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install 'dgating[plot]'.") from error
    with rc_context({"text.usetex": False}):  # a name is no formula, whatever the user's own settings say
        return _drawn(found, Figure)


def _drawn(found: Selection, Figure: Any) -> bytes:
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    sign = -1 if found.target.classes is not None else 1  # log loss is shown as such: smaller is better
    chosen = found.lams[found.index]

    above.errorbar(
        found.lams, sign * found.scores.mean(0), found.standard_errors, color="C0", marker=".", lw=1, elinewidth=0.6
    )
    above.set_ylabel(f"{SCORES[found.target.task]}, mean of {len(found.scores)} folds", color="C0")
    right = above.twinx()
    right.plot(found.lams, (found.norms > 0).sum(1), color="0.45", drawstyle="steps-mid", lw=1)
    right.set_ylabel("features kept", color="0.45")
    right.set_ylim(bottom=0)

    below.set(xscale="log", xlabel="strength λ of the penalty", ylabel="importance")
    below.set_ylim(0, 1.05 * max(float(found.norms.max(initial=0)), 1e-12))
    table = found.table()
    place = {f.name: j for j, f in enumerate(found.features)}
    order = [place[name] for name in table["feature"][:LINES]]
    named = [place[name] for name in found.selected[:NAMED]]
    for j in order[::-1]:
        color = f"C{named.index(j) % 10}" if j in named else "0.8"
        below.plot(found.lams, found.norms[:, j], color=color, lw=1.3 if j in named else 0.7)
    _names(below, found, named)
    for axes in (above, below):
        axes.axvline(chosen, color="0.3", ls="--", lw=0.9)
    for axes in (above, right, below):
        axes.spines["top"].set_visible(False)
    below.spines["right"].set_visible(False)
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # a font need not have every script that a name is written in
        warnings.filterwarnings("ignore", message=r"Glyph \d+|Matplotlib currently does not support")
        figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


def _names(axes: Any, found: Selection, named: list[int]) -> None:
    """Names in a column at the right, in the order of the lines where they are cut, moved apart."""
    if not named:
        return
    height = axes.get_ylim()[1]
    at = found.norms[found.index]
    order = sorted(named, key=lambda j: at[j])
    step, y = height / 14, []
    for j in order:
        y.append(max(at[j], y[-1] + step) if y else at[j])
    over = max(0.0, y[-1] - height)
    for j, value in zip(order, np.array(y) - over, strict=True):
        name = plain(found.features[j].name)
        axes.annotate(
            name if len(name) <= 24 else name[:23] + "…", (1.01, value / height), xycoords="axes fraction",
            color=f"C{named.index(j) % 10}", fontsize=8, va="center", parse_math=False, annotation_clip=False,
        )  # fmt: skip
