r"""Pure maths of the penalty :math:`\|W\|_{2,q}^q = \sum_j \|W_j\|_2^q`, ``q = 2/D``: value, prox, decay, time budget.

Functions of numbers and tensors, to be read beside the paper. Nothing here knows of modules.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from dgating._checks import check_dense, check_real

FLOAT32_EPS = 1.1920929e-07  # the paper's threshold for "zero" in float32
MOST_GROUPS = 2**28  # one number is held for each label up to the largest


def weight_decay_of(lam: float, depth: int) -> float:
    r"""Coupled weight decay on every factor that realises the strength λ: :math:`2\lambda/D`.

    >>> weight_decay_of(0.3, 3)
    0.19999999999999998
    """
    return 2 * lam / depth


def effective_penalty_of(norms: Tensor, depth: int) -> Tensor:
    r""":math:`\sum_j \|W_j\|_2^{2/D}` from the ``(J,)`` group norms."""
    return norms.pow(2 / depth).sum()


def prox_threshold(tau: float, q: float) -> float:
    r"""Norm below which the group prox of :math:`\tau\|\cdot\|_2^q` is zero.

    .. math:: r^* = \frac{2-q}{2(1-q)} [2\tau(1-q)]^{1/(2-q)} \quad (q < 1), \qquad r^* = \tau \quad (q = 1)

    Args:
        tau: step size times λ, ``>= 0``.
        q: exponent ``2/D`` in ``(0, 1]``.

    Raises:
        ValueError: ``q`` outside ``(0, 1]`` or ``tau`` negative.

    Example:
        >>> prox_threshold(1.0, 1.0), round(prox_threshold(1.0, 0.5), 6)
        (1.0, 1.5)
    """
    _check_prox(tau, q)
    if q == 1:
        return tau
    return (2 - q) / (2 * (1 - q)) * (2 * tau * (1 - q)) ** (1 / (2 - q))


def prox_norm(norms: Tensor, tau: float, q: float) -> Tensor:
    r"""The norm after the prox: :math:`t^*(r) = \mathrm{arg\,min}_{t \ge 0} \tfrac12 (t-r)^2 + \tau t^q`.

    Soft thresholding for ``q = 1`` and closed forms for ``q = 2/3`` (D = 3) and ``q = 1/2`` (D = 4); Newton's method
    from ``t = r``, which converges to the right root, for any other ``q`` in ``(0, 1)``.

    Args:
        norms: group norms ``r >= 0``, any shape.
        tau: step size times λ.
        q: exponent ``2/D``.

    Returns:
        ``t*`` of the same shape; zero up to :func:`prox_threshold`, with a jump there when ``q < 1``.

    Raises:
        ValueError: ``q`` outside ``(0, 1]`` or ``tau`` negative.

    Example:
        >>> import torch
        >>> prox_norm(torch.tensor([0.5, 3.0]), 1.0, 1.0).tolist()
        [0.0, 2.0]

    Reference: half and two-thirds thresholding, Xu et al. 2012 and Cao et al. 2013.
    """
    check_real("norms", norms)
    threshold, tau = prox_threshold(tau, q), float(tau)
    if tau == 0:
        return norms.clone()
    if q == 1:
        return (norms - tau).clamp_min(0)
    alive = norms > threshold
    r = torch.where(alive, norms, torch.full_like(norms, 2 * threshold))  # a harmless value where the answer is zero
    if math.isclose(q, 2 / 3):
        t = _prox_two_thirds(r, tau)
    elif q == 0.5:
        angle = torch.arccos(tau / 4 * (r / 3).pow(-1.5))
        t = 2 / 3 * r * (1 + torch.cos(2 * math.pi / 3 - 2 / 3 * angle))
    else:
        t = _prox_newton(r, tau, q)
    return torch.where(alive, t, torch.zeros_like(norms))


def _prox_two_thirds(r: Tensor, tau: float) -> Tensor:
    angle = torch.arccosh(27 / 16 * r.square() * (2 * tau) ** -1.5)
    a = 2 / math.sqrt(3) * (2 * tau) ** 0.25 * torch.cosh(angle / 3).sqrt()
    return ((a + (2 * r / a - a.square()).sqrt()) / 2).pow(3)


def _prox_newton(r: Tensor, tau: float, q: float) -> Tensor:
    # t - r + tau q t^(q-1) is convex, and increasing right of its largest root: Newton from r descends to that root
    t = r.clone()
    for _ in range(60):
        step = (t - r + tau * q * t.pow(q - 1)) / (1 + tau * q * (q - 1) * t.pow(q - 2))
        t = t - step
        if bool((step.abs() <= 4 * torch.finfo(r.dtype).eps * t).all()):
            break
    return t


def group_prox(weight: Tensor, labels: Tensor, tau: float, q: float) -> Tensor:
    r"""Prox of :math:`\tau \sum_j \|w_j\|_2^q` for groups given by labels.

    Args:
        weight: any tensor.
        labels: integer group of each entry, of the same shape; ``-1`` entries are returned unchanged.
        tau: step size times λ.
        q: exponent ``2/D``.

    Returns:
        A tensor of the same shape.

    Raises:
        TypeError: labels that are not integers.
        ValueError: labels of another shape, ``q`` outside ``(0, 1]``, ``tau`` negative.

    Example:
        >>> import torch
        >>> group_prox(torch.tensor([3., 4., 0.1]), torch.tensor([0, 0, 1]), 1.0, 1.0).tolist()
        [2.4000000953674316, 3.200000047683716, 0.0]
    """
    check_labels(labels, check_real("weight", weight).shape)
    flat, lab = weight.reshape(-1), labels.reshape(-1).long()
    gated = lab >= 0
    index = torch.where(gated, lab, torch.zeros_like(lab))
    squares = torch.where(gated, flat.square(), torch.zeros_like(flat))
    norms = flat.new_zeros(int(index.max()) + 1).index_add(0, index, squares).sqrt()
    ratio = prox_norm(norms, tau, q) / torch.where(norms == 0, torch.ones_like(norms), norms)
    return torch.where(gated, flat * ratio[index], flat).view_as(weight)


def check_labels(labels: Tensor, shape: torch.Size) -> None:
    """Raise unless ``labels`` are integers of exactly this shape."""
    check_dense("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integers, received {labels.dtype}.")
    if labels.shape != shape:
        raise ValueError(f"labels: expected shape {tuple(shape)}, one label an entry, received {tuple(labels.shape)}.")
    if labels.numel() and int(labels.max()) >= MOST_GROUPS:
        raise ValueError(f"labels: expected numbers below {MOST_GROUPS:,}, received {int(labels.max())}.")


def check_finite(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, received {type(value).__name__}.")
    if not 0 <= value <= sys.float_info.max:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a finite number >= 0, received {str(value)[:40]}.")


def _check_prox(tau: float, q: float) -> None:
    for name, value in {"tau": tau, "q": q}.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: expected a number, received {type(value).__name__}.")
        if abs(value) > sys.float_info.max and value not in (math.inf, -math.inf):
            raise ValueError(f"{name}: expected a finite number, received one beyond the floats.")
    if not 0 < q <= 1:
        raise ValueError(f"q: expected an exponent 2/D in (0, 1], received {q!r}.")
    if not (math.isfinite(tau) and tau >= 0):
        raise ValueError(f"tau: expected a finite number >= 0, received {tau!r}.")


@dataclass(frozen=True)
class TimeBudget:
    r"""Whether a run is long enough for exact-looking zeros; made by :func:`time_budget`.

    Attributes:
        exponent: :math:`2\lambda\tau`: a group of norm one without any signal ends at :math:`e^{-\text{exponent}}`.
        norm: that end norm.
        needed: the exponent that reaches ``tol``.
        reachable: ``exponent >= needed``.
        lam_needed: smallest λ for which this schedule reaches ``tol``.
        steps_needed: steps for which this λ reaches ``tol``, the schedule stretched alike.
    """

    exponent: float
    norm: float
    needed: float
    reachable: bool
    lam_needed: float
    steps_needed: float

    def __str__(self) -> str:
        verdict = "zeros are reachable" if self.reachable else "too short for zeros by a threshold"
        return (
            f"{verdict}: a group without signal falls to {self.norm:.1e} "
            f"(exponent {self.exponent:.1f} of {self.needed:.1f} needed); "
            f"needs lam >= {self.lam_needed:.2g} or {self.steps_needed:.0f} steps"
        )


def time_budget(
    lam: float,
    lr: float,
    steps: int,
    momentum: float = 0.0,
    schedule: str | Callable[[int], float] | Sequence[float] = "constant",
    tol: float = FLOAT32_EPS,
) -> TimeBudget:
    r"""Will a group without signal fall below ``tol`` within this run of (S)GD?

    Each of its D factors decays as :math:`e^{-2\lambda\tau/D}`, so the group as

    .. math:: \|W_j\| \propto e^{-2\lambda\tau}, \qquad \tau = \sum_t \eta_t / (1 - \mu),

    independent of D. (A group with a residual gradient is slower; the absorption certificate does not have to wait.)

    Args:
        lam: strength λ for a mean loss.
        lr: initial learning rate.
        steps: number of optimizer steps.
        momentum: μ of heavy ball or Nesterov momentum.
        schedule: ``"constant"``, ``"cosine"`` or ``"linear"`` (both to zero), a function of the step that multiplies
            ``lr``, or the sequence of multipliers.
        tol: the norm that counts as zero, from a norm of one.

    Returns:
        A :class:`TimeBudget`.

    Raises:
        ValueError: a negative or non-finite number, momentum outside ``[0, 1)``, an unknown schedule.

    Example:
        >>> budget = time_budget(lam=0.021, lr=0.05, steps=1500, momentum=0.9, schedule="cosine")
        >>> budget.reachable, round(budget.exponent, 2), round(budget.steps_needed)
        (False, 15.75, 1518)

    Reference: derived from arXiv 2509.23898, eq. (12), for groups whose data gradient vanishes.
    """
    numbers = {"lam": lam, "lr": lr, "steps": steps, "momentum": momentum, "tol": tol}
    for name, value in numbers.items():
        check_finite(name, value)
    if steps != int(steps):
        raise ValueError(f"steps: expected a whole number, received {steps!r}.")
    if not momentum < 1:
        raise ValueError(f"momentum: expected a number in [0, 1), received {momentum!r}.")
    if not 0 < tol < 1:
        raise ValueError(f"tol: expected a number in (0, 1), received {tol!r}.")
    tau = lr * _mean_multiplier(schedule, steps) * steps / (1 - momentum)
    exponent, needed = 2 * lam * tau, -math.log(tol)
    return TimeBudget(
        exponent=exponent,
        norm=math.exp(-exponent),
        needed=needed,
        reachable=exponent >= needed,
        lam_needed=needed / (2 * tau) if tau else math.inf,
        steps_needed=steps * needed / exponent if exponent else math.inf,
    )


def _mean_multiplier(schedule: str | Callable[[int], float] | Sequence[float], steps: int) -> float:
    if isinstance(schedule, str):
        known = {"constant": 1.0, "cosine": 0.5, "linear": 0.5}
        if schedule not in known:
            raise ValueError(
                f"schedule: expected one of {sorted(known)}, a function or a sequence, received {schedule!r}."
            )
        return known[schedule]
    values = [schedule(t) for t in range(steps)] if callable(schedule) else list(schedule)
    if len(values) != steps:
        raise ValueError(f"schedule: expected {steps} multipliers, one a step, received {len(values)}.")
    for t, value in enumerate(values):
        check_finite(f"schedule, step {t}", value)
    return sum(values) / steps if steps else 0.0
