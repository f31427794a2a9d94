"""Which strength of a cross-validated path to take: a pure function of the scores."""

from __future__ import annotations

import math

import numpy as np

from dgating._checks import check_number

RULES = ("best", "1se", "within")


def choose(scores: np.ndarray, rule: str = "1se", within: float = 0.01) -> int:
    r"""Index of the strength that a rule takes.

    With :math:`m_l` the mean over the ``K`` folds, ``b`` the index of the largest and :math:`s` the standard deviation
    (with ``K - 1``) of the scores at ``b``, the answer is the **largest** index whose mean is at least

    .. math:: m_b \;(\text{best}), \qquad m_b - s / \sqrt K \;(\text{1se}), \qquad m_b - \delta \;(\text{within}).

    Args:
        scores: ``(K, L)``, larger is better, λ rising with the index; ``nan`` where the path of a fold had ended. Only
            strengths that every fold has a score for can be chosen.
        rule: ``"best"``, ``"1se"`` or ``"within"``.
        within: the :math:`\delta` of ``"within"``, in units of the score.

    Raises:
        ValueError: an unknown rule, no strength with a score in every fold, or ``"1se"`` of one fold.

    Example:
        >>> choose(np.array([[0.5, 0.8, 0.7, 0.1], [0.5, 0.6, 0.7, 0.1]]), "1se")
        2
    """
    scores = np.asarray(scores, dtype=np.float64)
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {list(RULES)}, received {rule!r}.")
    check_number("within", within)
    if scores.ndim != 2 or len(scores) == 0:
        raise ValueError(f"scores: expected shape (folds, strengths), received {scores.shape}.")
    means = np.where(np.isnan(scores).any(0), -math.inf, scores.mean(0))
    if not (means > -math.inf).any():
        raise ValueError(
            "scores: expected a strength that every fold has a finite score for, received none; check the scores at "
            "the smallest strength."
        )
    slack = 0.0
    if rule == "within":
        slack = within
    elif rule == "1se":
        if len(scores) < 2:
            raise ValueError("rule: '1se' needs the scores of at least two folds, received one; take rule='best'.")
        best = scores[:, int(means.argmax())]
        slack = float(best.std(ddof=1)) / math.sqrt(len(best))
    return int(np.flatnonzero(means >= means.max() - slack)[-1])


def standard_errors(scores: np.ndarray) -> np.ndarray:
    """``(L,)`` standard errors of the mean score of ``(K, L)`` scores; ``nan`` for a single fold."""
    folds = len(scores)
    return scores.std(0, ddof=1) / math.sqrt(folds) if folds > 1 else np.full(scores.shape[1], math.nan)
