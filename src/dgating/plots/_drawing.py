"""What every picture needs: somewhere to draw, and texts that are drawn as they are written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Text


def literal(texts: Iterable[Text]) -> None:
    """Draw texts as they are written: a name is no formula, whatever the user's own settings say."""
    for text in texts:
        text.set_parse_math(False)
        text.set_usetex(False)


def new_figure(width: float, height: float) -> Figure:
    """A figure without pyplot: nothing to close, no display needed. Raises ``ImportError`` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'dgating[plot]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes, or those of a new figure."""
    return new_figure(6, 4).add_subplot() if ax is None else ax


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
