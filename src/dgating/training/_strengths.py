r"""The strength λ of a training in progress: a number, a function of the step, or what the optimizer decays by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from dgating.gating import Unit
from dgating.maths import weight_decay_of
from dgating.training._objective import Lam, lam_by_groups
from dgating.training._optimizer_settings import Place

Source: TypeAlias = Lam | Callable[[], Lam] | None
Penalty: TypeAlias = Literal["decay", "loss", "gradient"]
Places: TypeAlias = Mapping[int, Place]


class Strengths:
    """λ by ``Groups.name``, now and at its largest.

    Args:
        source: λ, one per ``Groups.name``, a function that returns either, or ``None`` for the decay of the optimizer.
        units: what is gated.
        places: of the factors in the optimizer; empty without one.
        penalty: where the penalty is. With ``"decay"`` and an optimizer its decay is what counts after the first call.

    Raises:
        ValueError: λ is zero, negative or not finite, or there is none.
    """

    def __init__(self, source: Source, units: Sequence[Unit], places: Places, penalty: Penalty) -> None:
        self.source, self.units = source, units
        self.by_optimizer = penalty == "decay" and bool(places)
        if source is None and not self.by_optimizer:
            raise ValueError(
                "lam: expected a number, or an optimizer whose decay holds it, received neither. Pass lam."
            )
        self.given = self._decay(places) if source is None else self._read()
        if not callable(source) and source is not None and 0 in self.given.values():
            raise ValueError(
                "lam: expected a strength > 0, received 0, for which no group ever goes to zero. For "
                "a schedule that starts at zero leave lam out, or pass a function."
            )
        self.now = dict(self.given)
        self.top = dict(self.given)

    @property
    def constant(self) -> dict[str, float] | None:
        """λ where it is a number; ``None`` where it may follow a schedule."""
        return None if callable(self.source) or self.source is None else self.given

    def note(self) -> None:
        """Read the λ of this step, where it is not the optimizer that holds it."""
        if callable(self.source) and not self.by_optimizer:
            self.now = self._read()
            self.top = {name: max(self.top[name], lam) for name, lam in self.now.items()}

    def look(self, places: Places) -> dict[str, float]:
        """λ now, from wherever it is."""
        if self.by_optimizer:
            self.now = self._decay(places)
        return self.now

    def kappa(self, unit: Unit) -> float:
        r"""The decay of the factors of a unit, :math:`2\lambda/D`."""
        return weight_decay_of(self.now[unit.groups], unit.depth)

    def top_kappa(self, unit: Unit, places: Places) -> float:
        """The largest decay so far."""
        if self.by_optimizer:
            return places[id(unit.gamma)].top_decay
        return weight_decay_of(self.top[unit.groups], unit.depth)

    def _read(self) -> dict[str, float]:
        given = self.source() if callable(self.source) else self.source
        if given is None:
            raise TypeError("lam: expected a function that returns a number, or one per Groups.name, received None.")
        return lam_by_groups(given, list(self.units))

    def _decay(self, places: Places) -> dict[str, float]:
        return {
            u.groups: float(places[id(u.gamma)].settings.get("weight_decay", 0.0)) * u.depth / 2 for u in self.units
        }
