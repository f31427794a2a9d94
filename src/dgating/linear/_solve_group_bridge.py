r"""Solver of one group bridge problem, the non-convex case q < 1: proximal gradient steps and Newton steps.

.. math:: \min_W f(XW) + \sum_j \mu_j \|W_j\|_F^q, \qquad 0 < q < 1

Both kinds of steps only ever go downhill. The proximal step is the one that can make a group zero, or bring it back; on
a fixed support the objective is smooth, and Newton steps end there at full precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgating.linear._solve_group_lasso import FIRST_CHECK, Problem, newton_steps
from dgating.maths import prox_norm


def prox(problem: Problem, w: Tensor) -> Tensor:
    r"""Group prox at step size times strength.

    With :math:`a = \tau^{1/(2-q)}` the prox of :math:`\tau \|\cdot\|^q` is :math:`a` times that of
    :math:`\|\cdot\|^q` at the point over :math:`a`: one call serves groups of different strengths.
    """
    size = (problem.step * problem.strengths).pow(1 / (2 - problem.power)).clamp_min(1e-100)  # 0 for a free group
    norms = problem.norms(w).clamp_min(1e-300)
    shrunk = torch.where(problem.strengths > 0, size * prox_norm(norms / size, 1.0, problem.power), norms)
    return w * (shrunk / norms)[problem.labels].unsqueeze(1)


def solve_bridge(problem: Problem, w: Tensor, goal: float, max_iter: int) -> tuple[Tensor, float, int, int]:
    r"""Descend from the start ``w`` to a fixed point of the proximal gradient step.

    Args:
        problem: what to minimise, with ``power < 1``.
        w: ``(p, k)`` start.
        goal: stop where the step :math:`\|w^+ - w\|_F / s` is at most this.
        max_iter: give up after so many steps.

    Returns:
        The point, the length of its step over the step size, and the numbers of proximal and of Newton steps.
    """
    proximal = newton = 0
    work = 0.0
    while True:
        new = prox(problem, w - problem.step * problem.gradient(w))
        length = float((new - w).norm()) / problem.step
        if length <= goal or proximal + newton >= max_iter:
            return new, length, proximal, newton  # with the exact zeros of the prox
        settled = bool(((problem.norms(new) > 0) == (problem.norms(w) > 0)).all())
        w = new
        proximal += 1
        work = work + problem.step_work(w.shape[1]) if settled else 0.0
        if proximal >= FIRST_CHECK and work >= problem.newton_work(w):  # the proximal steps are what chooses groups
            pulls = problem.pull(problem.norms(w))[problem.norms(w) > 0].norm()
            w, steps = newton_steps(problem, w, goal / max(float(pulls), 1e-300), goal * float(w.norm()))
            newton, work = newton + steps, 0.0
