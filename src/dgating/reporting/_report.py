"""``report``: what is gated, what is left, what is certified: a table for people and plain data for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dgating._checks import check_number
from dgating.gating import units
from dgating.maths import FLOAT32_EPS
from dgating.reporting._norms import nonfinite_groups
from dgating.training import AbsorptionMonitor, certified_groups

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

SHOWN = 5  # groups that are named one by one


@dataclass(frozen=True)
class ReportRow:
    """One gate tensor of the model: a layer, or a set of tied slices.

    Attributes:
        groups: ``Groups.name``.
        label: the part of it (by default the path of its first tensor).
        depth: ``D``.
        n_groups: number of groups ``J``.
        kept: groups whose effective norm is above the tolerance and that the monitor, if any, has not certified.
        below_tol: groups whose effective norm is at most the tolerance.
        absorbed: groups certified by the monitor, or ``None`` without one.
        parameters: gated weights.
        kept_parameters: gated weights in kept groups.
        norm_min: smallest effective norm.
        norm_median: median effective norm.
        norm_max: largest effective norm.
        imbalance: largest imbalance of a group.
        nonfinite: groups with a factor that is nan or infinite: the training has diverged.
        first_nonfinite: numbers of the first of them.
    """

    groups: str
    label: str
    depth: int
    n_groups: int
    kept: int
    below_tol: int
    absorbed: int | None
    parameters: int
    kept_parameters: int
    norm_min: float
    norm_median: float
    norm_max: float
    imbalance: float
    nonfinite: int = 0
    first_nonfinite: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """Made by :func:`report`; ``print`` it, or use :meth:`to_dict` and :meth:`to_frame`."""

    rows: tuple[ReportRow, ...]
    tol: float
    parameters: int
    extra_parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return asdict(self)

    def to_frame(self) -> pd.DataFrame:
        """A pandas frame, one row a gate tensor. Needs the ``tables`` extra."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("Report.to_frame needs pandas: pip install 'dgating[tables]'.") from error
        return pd.DataFrame([asdict(row) for row in self.rows])

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        certified = any(row.absorbed is not None for row in self.rows)
        parts = Counter(row.groups for row in self.rows)
        table = Table(title=f"{self.parameters:,} parameters, {self.extra_parameters:,} of them gates")
        table.add_column("groups", overflow="fold")
        heads = ("D", "J", "kept", *(["certified"] if certified else []), "< tol", "weights", "norms", "imbalance")
        for head in heads:
            table.add_column(head, justify="right")
        for r in self.rows:
            name = r.groups if parts[r.groups] == 1 else f"{r.groups}: {r.label}"
            table.add_row(
                Text(name),  # as it is: a name may hold brackets, which rich would read as markup
                str(r.depth),
                f"{r.n_groups:,}",
                f"{r.kept:,}",
                *([f"{r.absorbed:,}" if r.absorbed is not None else "-"] if certified else []),
                f"{r.below_tol:,}",
                f"{r.kept_parameters / r.parameters:.0%}",
                f"{r.norm_min:.0e} .. {r.norm_max:.0e}",
                f"{r.imbalance:.0e}",
            )
        also = " and not certified" if certified else ""
        lines = [f"kept: norm above tol = {self.tol:.1e}{also}; weights: their share", *self._diverged()]
        table.caption = Text("\n".join(lines))
        return table

    def _diverged(self) -> Iterator[str]:
        """One line a gate tensor with factors that are not finite."""
        for r in self.rows:
            if r.nonfinite:
                first = ", ".join(map(str, r.first_nonfinite)) + (", ..." if r.nonfinite > SHOWN else "")
                of = f"{r.nonfinite:,} of {r.n_groups:,} groups of {r.label}"
                yield f"DIVERGED: nan or infinite factors in {of}: {first}"

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None, legacy_windows=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    __repr__ = __str__


@torch.no_grad()
def report(model: nn.Module, monitor: AbsorptionMonitor | None = None, tol: float = FLOAT32_EPS) -> Report:
    """Groups, norms, kept share, parameters and imbalance of a gated model, one row a gate tensor.

    Args:
        model: a gated model.
        monitor: adds the number of certified groups, which then do not count as kept.
        tol: norm up to which a group counts as zero; the paper's threshold by default.

    Returns:
        A :class:`Report`.

    Raises:
        ValueError: the model is not gated, the monitor watches another one, or ``tol`` is negative.

    Example:
        >>> import torch, dgating as dg
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> _ = dg.gate_(net, dg.features(net[0], name="inputs"))
        >>> dg.report(net).rows[0].kept
        4
    """
    check_number("tol", tol)
    tol = float(tol)
    if monitor is not None and not isinstance(monitor, AbsorptionMonitor):
        raise TypeError(f"monitor: expected an AbsorptionMonitor or None, received {type(monitor).__name__}.")
    found = units(model)
    masks = certified_groups(model, monitor)
    rows, at = [], dict.fromkeys(masks, 0)
    for unit in found:
        norms, sizes = unit.norms(), unit.sizes
        squares = unit.factor_norms().square()
        wrong = nonfinite_groups(unit).nonzero()[:, 0].tolist()
        small = norms <= tol
        kept, absorbed = ~small, None
        if unit.groups in masks:
            start = at[unit.groups]
            certified = masks[unit.groups][start : start + unit.n_groups]
            kept, absorbed = kept & ~certified, int(certified.sum())
            at[unit.groups] += unit.n_groups
        rows.append(
            ReportRow(
                groups=unit.groups,
                label=unit.label,
                depth=unit.depth,
                n_groups=unit.n_groups,
                kept=int(kept.sum()),
                below_tol=int(small.sum()),
                absorbed=absorbed,
                parameters=int(sizes.sum()),
                kept_parameters=int(sizes[kept.cpu()].sum()),
                norm_min=float(norms.min()),
                norm_median=float(norms.double().quantile(0.5)),
                norm_max=float(norms.max()),
                imbalance=float((squares.amax(0) - squares.amin(0)).max()),
                nonfinite=len(wrong),
                first_nonfinite=tuple(wrong[:SHOWN]),
            )
        )
    return Report(
        rows=tuple(rows),
        tol=tol,
        parameters=sum(p.numel() for p in model.parameters()),
        extra_parameters=sum(unit.gamma.numel() for unit in found),
    )
