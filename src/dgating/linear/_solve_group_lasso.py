r"""Solver of one group lasso problem: accelerated proximal gradient that finds the support, Newton steps on it.

.. math:: \min_W f(XW) + \sum_j \mu_j \|W_j\|_F

Proximal gradient steps are cheap and find out which groups are zero, but converge slowly where μ is small. On a fixed
support the problem is smooth as long as no group reaches zero, so a few Newton steps there end at full precision. The
two take turns: Newton comes when the proximal steps since last time have cost as much as one of its steps, so a problem
that proximal steps solve quickly pays for no large matrix, and another soon gets its Newton steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgating.linear._losses import Loss, Squared, by_output

NEWTON_SIZE = 3000  # coefficients; the matrix then takes 72 MB
STEP_OVERHEAD = 4e5  # multiplications in the time that the calls of one proximal step take
FIRST_CHECK = 10  # proximal steps before the first look at the gap; a look costs about two steps
NEWTON_STEPS = 12  # from one support; quadratic convergence needs far fewer, a changing support is not Newton's work


@dataclass(frozen=True)
class State:
    """Where a point stands.

    Attributes:
        objective: penalised objective.
        gap: bound of its distance from the optimum, see :meth:`Problem.state`.
        gradients: norm of the loss gradient of each group, ``(m,)``.
    """

    objective: float
    gap: float
    gradients: Tensor


@dataclass(frozen=True)
class Problem:
    r"""Columns in groups, and the strength μ of each group (0: free).

    Attributes:
        X: ``(n, p)`` columns.
        labels: ``(p,)`` group of each column, ``0 <= label < m``.
        strengths: ``(m,)`` factors μ of the norms.
        loss: the loss with its targets and row weights.
        step: step size, the inverse of the largest curvature.
        gram: ``X.T @ (share * X)`` for the squared loss where that is smaller than ``X``, else ``None``.
        moment: ``X.T @ (share * y)``, with ``gram``.
        power: q of the penalty :math:`\mu_j \|W_j\|^q`; 1 but for :mod:`_solve_group_bridge`.
    """

    X: Tensor
    labels: Tensor
    strengths: Tensor
    loss: Loss
    step: float
    gram: Tensor | None = None
    moment: Tensor | None = None
    power: float = 1.0

    def part(self, groups: Tensor) -> tuple[Problem, Tensor]:
        """The problem of the marked ``(m,)`` groups alone, the rest at zero; and the places of its columns."""
        places = groups[self.labels].nonzero()[:, 0]
        if len(places) == len(self.labels):
            return self, places
        X = self.X[:, places]
        gram, moment = self.gram, self.moment
        if gram is not None and moment is not None:
            gram, moment = gram[places][:, places], moment[places]
        renumbered = (groups.cumsum(0) - 1)[self.labels[places]]
        part = replace(self, X=X, labels=renumbered, strengths=self.strengths[groups], gram=gram, moment=moment)
        return part.with_gram(), places

    def with_gram(self) -> Problem:
        """The same problem with its Gram matrix, if the loss is quadratic and the matrix not much larger than ``X``."""
        n, p = self.X.shape
        if self.gram is not None or not self.quadratic or p > 2 * n:
            return self
        weighted = (self.loss.share * self.X).T
        return replace(self, gram=weighted @ self.X, moment=weighted @ self.loss.y)

    @property
    def quadratic(self) -> bool:
        """Whether the Hessian is the same everywhere."""
        return isinstance(self.loss, Squared)

    def norms(self, w: Tensor) -> Tensor:
        """Frobenius norm of each group of ``w``."""
        return self.products(w, w).sqrt_()

    def products(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product of each group of ``a`` with that of ``b``."""
        return a.new_zeros(len(self.strengths)).index_add_(0, self.labels, (a * b).sum(1))

    def gradient(self, w: Tensor) -> Tensor:
        """Gradient of the loss, ``(p, k)``."""
        if self.gram is not None and self.moment is not None:
            return self.gram @ w - self.moment
        return self.X.T @ (self.loss.share * self.loss.residual(self.X @ w))

    def curvatures(self, direction: Tensor) -> Tensor:
        """Bound of the loss' second derivative along each group of ``direction``; exact for the squared loss."""
        unit = direction / self.norms(direction).clamp_min(1e-300)[self.labels].unsqueeze(1)
        moved = self.X.new_zeros(len(self.X), len(self.strengths))
        total = self.strengths.new_zeros(len(self.strengths))
        for output in unit.T:
            moved.zero_().index_add_(1, self.labels, self.X * output)
            total += (self.loss.share * moved.square()).sum(0)
        return self.loss.curvature * total

    def objective(self, w: Tensor) -> float:
        """Penalised objective."""
        return float(self.loss.value(self.X @ w) + self.strengths @ self.norms(w).pow(self.power))

    def pull(self, norms: Tensor) -> Tensor:
        r"""Derivative of the penalty of each group in its norm, :math:`q \mu_j \|W_j\|^{q-1}`."""
        return self.strengths * self.power * norms.clamp_min(1e-100).pow(self.power - 1)

    def prox(self, w: Tensor) -> Tensor:
        """Group soft thresholding at step size times strength."""
        norms = self.norms(w).clamp_min(1e-300)  # zero over zero otherwise
        return w * (1 - self.step * self.strengths / norms).clamp_min_(0)[self.labels].unsqueeze(1)

    def state(self, w: Tensor) -> State:
        r"""Objective and duality gap.

        The dual point is the residual, shrunk until :math:`\|\nabla_j\| \le \mu_j` for every penalised group. The dual
        also wants :math:`\nabla_j = 0` for the free ones, which scaling cannot give: see :meth:`missing`.
        """
        eta = self.X @ w
        residual = self.loss.residual(eta)
        gradient = self.X.T @ (self.loss.share * residual)
        gradients, norms = self.norms(gradient), self.norms(w)
        free = self.strengths == 0
        ratio = torch.where(free, 0.0, gradients / self.strengths.clamp_min(1e-300))
        scale = 1 / torch.cat([ratio, ratio.new_ones(1)]).max()
        objective = float(self.loss.value(eta) + self.strengths @ norms)
        gap = max(objective - float(self.loss.dual(residual, scale)), 0.0) + self.missing(gradients, norms)
        return State(objective, gap, gradients)

    def missing(self, gradients: Tensor, norms: Tensor) -> float:
        r"""What a gradient of the free groups may be worth: :math:`\|\nabla_{free}\|` times the way they have to go.

        The way is not known. The estimate is the size of the coefficients and a gradient step. After a Newton step the
        gradient, and so the whole, is of the order of rounding.
        """
        free = self.strengths == 0
        slope = gradients[free].norm()
        return float(slope * (norms[free].norm() + self.step * slope))

    def newton_work(self, w: Tensor) -> float:
        """Multiplications of one Newton step on the support of ``w``; infinite without support or if too large."""
        size = int((w != 0).any(1).sum()) * w.shape[1]
        if not 0 < size <= NEWTON_SIZE:
            return math.inf
        assemble = 0 if self.gram is not None else len(self.X) * size**2
        return assemble + size**3 / 3

    def step_work(self, k: int) -> float:
        """Multiplications of one proximal step."""
        n, p = self.X.shape
        return STEP_OVERHEAD + (p * p if self.gram is not None else 2 * n * p) * k


def inverse_curvature(X: Tensor, loss: Loss) -> float:
    """Step size of proximal gradient, by power iteration on the weighted Gram matrix.

    Power iteration errs on the small side, by a few percent. That is harmless: the accelerated step is stable up to
    4/3 of the inverse curvature, and 10 % are added.
    """
    v = torch.randn(X.shape[1], 1, dtype=X.dtype, generator=torch.Generator().manual_seed(0)).to(X.device)
    largest = 0.0
    for _ in range(60):
        v = X.T @ (loss.share * (X @ (v / v.norm().clamp_min(1e-300))))
        largest = float(v.norm())
    return 1 / max(1.1 * largest * loss.curvature, 1e-300)  # X may be zero


def solve(problem: Problem, w: Tensor, tol: float, floor: float, max_iter: int) -> tuple[Tensor, State, int, int]:
    """Minimise from the start ``w``.

    Args:
        problem: what to minimise.
        w: ``(p, k)`` start.
        tol: stop at a gap of ``tol`` times the objective ...
        floor: ... or of this.
        max_iter: give up after so many steps.

    Returns:
        The minimiser, where it stands, and the numbers of proximal and of Newton steps.
    """
    z, t = w, 1.0
    proximal = newton = 0
    chunk, work = FIRST_CHECK, 0.0
    while True:
        state = problem.state(w)
        if state.gap <= max(tol * state.objective, floor) or proximal + newton >= max_iter:
            return w, state, proximal, newton
        if work > 0 and work >= problem.newton_work(w):
            w, steps = newton_steps(problem, w, tol, max(tol * state.objective, floor))
            newton += steps
            z, t, work, chunk = w, 1.0, 0.0, FIRST_CHECK
            continue
        for _ in range(chunk):
            new = problem.prox(z - problem.step * problem.gradient(z))
            change = new - w
            if float(((z - new) * change).sum()) > 0:
                t = 1.0  # the momentum points uphill: restart
            grown = (1 + math.sqrt(1 + 4 * t * t)) / 2
            w, z, t = new, new + (t - 1) / grown * change, grown
        proximal += chunk
        work += chunk * problem.step_work(w.shape[1])
        chunk = min(chunk + FIRST_CHECK, 10 * FIRST_CHECK)


def newton_steps(problem: Problem, w: Tensor, tol: float, goal: float) -> tuple[Tensor, int]:
    """Newton's method on the support of ``w``, never uphill beyond rounding; groups that would turn round become zero.

    Args:
        problem: what to minimise.
        w: ``(p, k)`` start.
        tol: stop where the gradient of every penalised group is within a tenth of this share of its pull ...
        goal: ... and free ones add less than a tenth of this to the gap.

    Returns:
        The new point and the number of steps.
    """
    value = problem.objective(w)
    rounding = 1e-12 * value  # near the end the objective cannot tell a better point from a worse one
    for done in range(NEWTON_STEPS):
        alive = (problem.norms(w) > 0) | (problem.strengths == 0)
        part, places = problem.part(alive)
        v = w[places]
        slope, direction = newton_direction(part, v)
        slopes = part.norms(slope)
        small = (slopes <= part.pull(part.norms(v)) * tol / 10) | (part.strengths == 0)
        if bool(small.all()) and part.missing(slopes, part.norms(v)) <= goal / 10:
            return w, done
        descent = float((slope * direction).sum())
        for length in step_lengths(part, v, direction):
            trial = v + length * direction
            turned = part.products(trial, v) <= 1e-12 * part.products(v, v)
            trial = trial.masked_fill((turned & (part.strengths > 0))[part.labels].unsqueeze(1), 0.0)
            reached = part.objective(trial)
            if reached <= value + 1e-4 * length * descent + rounding:
                break
        else:
            return w, done + 1
        w, value = torch.zeros_like(w).index_copy_(0, places, trial), reached
    return w, NEWTON_STEPS


def step_lengths(part: Problem, v: Tensor, direction: Tensor) -> list[float]:
    """Lengths for the line search: halved a few times, then from where the first group would turn round.

    Where many groups want to turn, zeros for all of them are often too much at any of the usual lengths.
    """
    crossing = -part.products(v, v) / part.products(direction, v)
    crossing = crossing[(crossing > 0) & (part.strengths > 0)]
    first = min(1.0, float(crossing.min())) if len(crossing) else 1.0
    return [1.0, 0.5, 0.25, 0.125, first] + [0.9 * first * 0.5**i for i in range(8)]


def newton_direction(part: Problem, v: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradient and Newton direction of the objective where every penalised group is non-zero.

    A group adds :math:`q \mu_j \|W_j\|^{q-2} (I - (2 - q)\, u_j u_j^\top)` to the Hessian, with
    :math:`u_j = W_j / \|W_j\|`. Where q < 1 that is concave along the group, and the second derivative along it is
    taken as zero unless the loss makes up for it: the direction must point downhill.

    Returns:
        Both ``(s, k)``.
    """
    s, k = v.shape
    norms = part.norms(v).clamp_min(1e-300)
    weight = (part.pull(norms) / norms)[part.labels].unsqueeze(1)
    slope = part.gradient(v) + weight * v
    matrix = part.loss.hessian(part.X, part.X @ v) if part.gram is None else by_output(part.gram, k)
    diagonal = matrix.diagonal()
    damping = 1e-12 * float(diagonal.mean()) + 1e-300
    diagonal += weight.expand(s, k).reshape(-1)
    spokes = v.new_zeros(s * k, len(norms))  # one column a group: outer products as one product of matrices
    spokes[torch.arange(s * k), part.labels.repeat_interleave(k)] = (
        v * (weight.sqrt() / norms[part.labels, None])
    ).reshape(-1)
    radial, along = 2 - part.power, spokes @ spokes.T
    while True:  # the free columns may be linearly dependent, and the classes of a multinomial always are
        diagonal += damping
        factor, failed = torch.linalg.cholesky_ex(matrix - radial * along)
        if not int(failed):
            return slope, -torch.cholesky_solve(slope.reshape(-1, 1), factor).view(s, k)
        radial = 1.0
        damping *= 100
