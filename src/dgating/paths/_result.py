"""``RegularizationPath``: what a path found at every strength, and the choice among its points."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgating._checks import check_number, check_path
from dgating.files import refusing, warn_unsealed, write_bytes
from dgating.maths import RULES
from dgating.paths._result_file import FORMAT, NUMBERS, path_from_file, path_to_bytes

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class PathPoint:
    """The end of training at one strength.

    Attributes:
        lam: the strength λ.
        loss: mean data loss over the last steps.
        objective: that plus the penalty of the collapsed weights.
        score: on the validation rows (larger is better), ``nan`` without any; of the relaxed fit if there was one.
        standard_error: of the score, ``nan`` where the score is not a mean over rows.
        kept: which groups are left, a boolean tensor ``(J,)`` by ``Groups.name``.
        norms: their norms.
        parameters: of the model that is left, gates not counted.
        flops: for one row, two for a multiply-add.
        steps: how many it took.
        seconds: since the path began.
        state: the collapsed weights of the full-size model, zeros for what is gone; of the relaxed fit likewise.
    """

    lam: float
    loss: float
    objective: float
    score: float
    standard_error: float
    kept: dict[str, Tensor]
    norms: dict[str, Tensor]
    parameters: int
    flops: int
    steps: int
    seconds: float
    state: dict[str, Tensor] = field(repr=False)

    @property
    def n_groups(self) -> int:
        """How many groups are left."""
        return sum(int(mask.sum()) for mask in self.kept.values())


@dataclass(frozen=True, eq=False)
class RegularizationPath(Sequence[PathPoint]):
    """Made by :func:`path`: its points in the order in which they were trained, λ rising.

    Attributes:
        points: the :class:`PathPoint` of every strength.
        depth: ``D``.
        settings: everything that the path was called with and that is a number or a word.
    """

    points: tuple[PathPoint, ...]
    depth: int
    settings: dict[str, Any] = field(default_factory=dict)
    model: nn.Module | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Any:
        return self.points[index]

    def __iter__(self) -> Iterator[PathPoint]:
        return iter(self.points)

    @property
    def lams(self) -> list[float]:
        """The strengths, rising."""
        return [p.lam for p in self.points]

    def select(
        self,
        rule: str = "best",
        *,
        n_groups: int | None = None,
        max_params: int | None = None,
        max_flops: int | None = None,
        min_score: float | None = None,
        within: float = 0.01,
        standard_error: float | Sequence[float] | None = None,
    ) -> PathPoint:
        r"""Choose a point.

        Args:
            rule: ``"best"``: the largest score, of equal ones the sparsest. ``"1se"``: the sparsest point whose score
                is at least the best one minus its standard error. ``"within"``: the sparsest point whose score is at
                least the best one minus ``within``.
            n_groups: only points with at most so many groups.
            max_params: only points with at most so many parameters.
            max_flops: only points with at most so many FLOPs a row.
            min_score: only points that score at least this.
            within: for ``"within"``.
            standard_error: for ``"1se"``: that of the best score, or one a point. By default the one over the
                validation rows, for scores that are a mean over rows (accuracy and R² are).

        Raises:
            ValueError: an unknown rule, no point that meets the bounds, or no standard error.

        Reference: the one-standard-error rule, Hastie, Tibshirani, Friedman, section 7.10; arXiv 2509.23898, A.
        """
        if rule not in RULES:
            raise ValueError(f"rule: expected 'best', '1se' or 'within', received {rule!r}.")
        check_number("within", within)
        left = [
            (i, p)
            for i, p in enumerate(self.points)
            if (n_groups is None or p.n_groups <= n_groups)
            and (max_params is None or p.parameters <= max_params)
            and (max_flops is None or p.flops <= max_flops)
            and (min_score is None or p.score >= min_score)
        ]
        if not left:
            few = min((p.n_groups for p in self.points), default=0)
            raise ValueError(
                f"select: no point of this path meets the bounds; its sparsest has {few} groups. Loosen the bounds, or "
                "run the path to a larger lam."
            )
        scored = [(i, p) for i, p in left if not math.isnan(p.score)]
        if not scored:
            if rule == "best" and n_groups is not None:  # the least sparse that fits
                return max(left, key=lambda ip: (ip[1].n_groups, -ip[1].objective))[1]
            raise ValueError("select: expected points with a score, this path had no validation rows.")
        i, best = max(scored, key=lambda ip: (ip[1].score, -ip[1].n_groups, ip[0]))
        if rule == "best":
            return best
        slack = within if rule == "within" else self._standard_error(i, standard_error)
        good = [(j, p) for j, p in scored if p.score >= best.score - slack]
        return min(good, key=lambda jp: (jp[1].n_groups, -jp[0]))[1]

    def _standard_error(self, index: int, given: float | Sequence[float] | None) -> float:
        if given is not None:
            error = given[index] if isinstance(given, Sequence) else given
            check_number("standard_error", error)
            return float(error)
        error = self.points[index].standard_error
        if math.isnan(error):
            raise ValueError(
                "select: the rule '1se' needs a standard error, and the score of this path has none: pass "
                "standard_error=..., let score return one number a row, or cross-validate the path."
            )
        return error

    def leaves(self) -> dict[str, Tensor]:
        """The λ at which each group left, ``(J,)`` by ``Groups.name``; infinity for those that never did."""
        out = {}
        for name in self.points[0].kept:
            kept = torch.stack([p.kept[name] for p in self.points])
            lams = torch.tensor([*self.lams, math.inf], dtype=torch.float64)
            out[name] = lams[kept.sum(0)]  # a group that has left does not come back
        return out

    def restore(self, point: PathPoint | int, model: nn.Module | None = None) -> nn.Module:
        """A full-size, ungated model with the weights of a point.

        Args:
            point: a point of this path, or its index.
            model: a model of the right architecture; by default the one that the path began with. It is copied.

        Raises:
            ValueError: the path was loaded from a file, and no model is given.
            IndexError: no such point.
            TypeError: neither a point nor an index.
        """
        base = self.model if model is None else model
        if base is None:
            raise ValueError("restore: expected a model, as a path from a file holds none. Pass model=...")
        made = copy.deepcopy(base)
        made.load_state_dict(self._point(point).state)
        return made

    def _point(self, point: PathPoint | int) -> PathPoint:
        if isinstance(point, PathPoint):
            return point
        if isinstance(point, bool) or not isinstance(point, Integral):
            raise TypeError(f"point: expected a point of this path or its index, received {type(point).__name__}.")
        n = len(self.points)
        if not -n <= point < n:
            raise IndexError(f"point: expected an index below {n}, received {str(point)[:40]}.")
        return self.points[point]

    def to_frame(self) -> pd.DataFrame:
        """One row a strength, in order: its numbers, and how many groups it has."""
        import pandas as pd

        names = [*NUMBERS[:5], "n_groups", *NUMBERS[5:]]
        return pd.DataFrame([{n: getattr(p, n) for n in names} for p in self.points])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file with a JSON header and a checksum; nothing is pickled."""
        write_bytes(check_path("path", path), path_to_bytes(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RegularizationPath:
        """Read a path that :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another, a damaged or a changed file.

        Warns:
            UserWarning: a file of format ``dgating/path/1``, which had no checksum.
        """
        where = check_path("path", path)
        if not where.is_file():
            raise FileNotFoundError(f"RegularizationPath.load: no file {where.name!r}.")
        whole = f"RegularizationPath.load: {where.name!r} is not a whole file written by RegularizationPath.save"
        with refusing(whole, "Run the path again, or take another file."):
            header, points = path_from_file(where)
        if header["format"] != FORMAT:
            warn_unsealed("RegularizationPath.load", where)
        return cls(tuple(PathPoint(**point) for point in points), header["depth"], header["settings"])

    def __str__(self) -> str:
        lines = [f"RegularizationPath: D = {self.depth}, {len(self)} strengths"]
        for p in self.points:
            lines.append(f"  lam {p.lam:.3g}: {p.n_groups} groups, loss {p.loss:.4g}, score {p.score:.4g}")
        return "\n".join(lines)


def equal(a: RegularizationPath, b: RegularizationPath) -> bool:
    """Whether two paths hold the same numbers; seconds are not compared."""
    if len(a) != len(b):
        return False
    for p, q in zip(a, b, strict=True):
        if (p.lam, p.loss, p.objective, p.parameters) != (q.lam, q.loss, q.objective, q.parameters):
            return False
        if not all(torch.equal(t, q.state[n]) for n, t in p.state.items()):
            return False
    return True
