r"""Running bounds of the monitor: what was seen of each group's gradient, and what was certified with it.

All vectors have one entry a group, over all groups of a model side by side, so that a step costs a dozen small
operations whatever the number of layers. Nothing here waits for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEWEST = 8  # a bound from fewer non-zero gradients than this certifies nothing
SLACK = 0.99  # a certificate's bound, as a share of the largest for which the condition holds: rounding may follow
LARGE = 1e30  # the largest bound of a certificate; an infinite one stands for none
SHORTEST = 500  # observations in the first windows, when their length is not given


class Bounds:
    r"""The bound :math:`G` of every group, from windows of observations, and the certificates given with it.

    An *observation* of a group is a step in which its gradient was finite and not exactly zero. A window of a group
    ends after ``window`` observations of this group, so that a feature that is rare in the data has a long window.
    With ``window=None`` a window has as many observations as half of all before it, and at least ``SHORTEST``: the
    bound then always covers a third of what was seen.

    Attributes:
        current: ``(J,)`` largest norm in the open window.
        count: ``(J,)`` observations in the open window.
        total: ``(J,)`` observations in the windows that have ended.
        previous: ``(J,)`` largest norm of the last window that has ended; infinite before there is one.
        granted: ``(J,)`` bound of the certificate of a group, the largest for which it holds; infinite without one.
        exceeded: ``(J,)`` whether a gradient was ever larger than the bound of a certificate that was in force.
        ever: ``(J,)`` whether the group was ever certified.
    """

    names = ("current", "count", "total", "previous", "granted", "exceeded", "ever")

    def __init__(self, n_groups: int, device: torch.device, dtype: torch.dtype, window: int | None) -> None:
        numbers = {"device": device, "dtype": dtype}
        self.window = None if window is None else max(window, FEWEST)
        self.until_check = self.stride = max(1, (self.window or SHORTEST) // 20)
        self.current = torch.zeros(n_groups, **numbers)
        self.count = torch.zeros(n_groups, dtype=torch.int64, device=device)
        self.total = torch.zeros_like(self.count)
        self.previous = torch.full((n_groups,), math.inf, **numbers)
        self.granted = self.previous.clone()
        self.exceeded = torch.zeros(n_groups, dtype=torch.bool, device=device)
        self.ever = self.exceeded.clone()

    def observe(self, norms: Tensor, again: bool = False) -> None:
        """Take in the gradient norms of a step; zero stands for "not observed".

        Args:
            norms: ``(J,)``.
            again: they are of the same step as those before, and count once with them.
        """
        broken = norms > self.granted
        self.exceeded |= broken
        self.granted.masked_fill_(broken, math.inf)
        torch.maximum(self.current, norms, out=self.current)
        if again:
            return
        self.count += norms > 0
        self.until_check -= 1
        if self.until_check == 0:
            self.until_check = self.stride
            self._end_windows()

    def _end_windows(self) -> None:
        if self.window is None:
            ended = self.count >= (self.total // 2).clamp_min(SHORTEST)
        else:
            ended = self.count >= self.window
        self.previous = torch.where(ended, self.current, self.previous)
        self.total += self.count * ended
        self.current.masked_fill_(ended, 0)
        self.count.masked_fill_(ended, 0)

    @property
    def largest(self) -> Tensor:
        """``(J,)`` largest norm of the open window and the one before; infinite before a window has ended."""
        return torch.maximum(self.current, self.previous)

    def grant(self, ratio: Tensor, safety: float) -> Tensor:
        r"""Give and withdraw certificates; which groups have one afterwards.

        A certificate is given when the condition holds for ``safety`` times the largest norm seen. It then holds
        for every bound below :math:`\kappa / \prod b`, and the sizes :math:`b` only shrink, so that this bound is kept.
        It ends when a gradient exceeds that, or when the sizes no longer meet the condition for it (λ has fallen, or
        the step size has risen).

        Args:
            ratio: ``(J,)`` margin of each group for a bound of one: :math:`\prod b / \kappa`.
            safety: factor on the largest norm seen.
        """
        fresh = safety * self.largest
        kept = _times(self.granted, ratio) < 1
        dead = kept | (_times(fresh, ratio) < 1)
        most = (SLACK / ratio).clamp_max(LARGE)
        bound = torch.maximum(torch.where(kept, self.granted, fresh), most)
        self.granted = torch.where(dead, bound, math.inf)
        self.ever |= dead
        return dead

    def in_force(self, safety: float) -> Tensor:
        """``(J,)`` the smaller of the certificate's bound and the one that would be given now."""
        return torch.minimum(self.granted, safety * self.largest)

    def forget(self, groups: Tensor) -> None:
        """Start again for some groups, as if they had never been observed."""
        for name in ("current", "count", "total"):
            getattr(self, name).masked_fill_(groups, 0)
        self.previous.masked_fill_(groups, math.inf)
        self.granted.masked_fill_(groups, math.inf)


def _times(bound: Tensor, ratio: Tensor) -> Tensor:
    """The margin; an unknown bound is infinite, also for a ratio of zero."""
    return (bound * ratio).nan_to_num(nan=math.inf, posinf=math.inf)


class Trend:
    """Norms of the groups at the ends of windows: for D = 2, whether a group is small and still shrinking.

    Attributes:
        norm: ``(J,)`` at the end of the last window.
        last: ``(J,)`` at the end of the one before.
        peak: ``(J,)`` the largest so far.
    """

    names = ("norm", "last", "peak")

    def __init__(self, norms: Tensor) -> None:
        self.norm, self.last, self.peak = norms, norms.clone(), norms.clone()

    def follow(self, norms: Tensor) -> None:
        """The end of a window."""
        self.last, self.norm = self.norm, norms
        self.peak = torch.maximum(self.peak, norms)

    def fading(self, norms: Tensor, share: float) -> Tensor:
        """Groups below this share of their largest norm that shrank since the window before the last."""
        return (norms < share * self.peak) & (norms < self.last)

    def restart(self, norms: Tensor, groups: Tensor) -> None:
        """Norms of groups that were set by somebody else."""
        self.norm = torch.where(groups, norms, self.norm)
        self.last = torch.where(groups, norms, self.last)
