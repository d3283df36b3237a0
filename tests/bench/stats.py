"""Medians and their intervals; pure.

Law: no normal distribution is assumed anywhere. The interval of a median is between two order
statistics, and its coverage follows from the binomial distribution alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """A median between two of the values it was taken from.

    `coverage` is the probability (0 to 1) that the interval holds the true median.
    """

    low: float
    middle: float
    high: float
    coverage: float


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle. Raises ValueError for none."""
    if not values:
        raise ValueError("the median of nothing")
    ordered = sorted(values)
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The narrowest symmetric interval of order statistics that covers the median with `level`.

    With fewer than six values none reaches 95 per cent; then it is the whole range, and
    `coverage` says how much that is worth (75 per cent with three). Raises ValueError for none.
    """
    middle = median(values)
    ordered = sorted(values)
    count = len(ordered)
    cut, coverage = 0, _coverage(count, 0)
    while cut + 1 < (count + 1) // 2 and _coverage(count, cut + 1) >= level:
        cut += 1
        coverage = _coverage(count, cut)
    return Interval(ordered[cut], middle, ordered[count - 1 - cut], coverage)


def _coverage(count: int, cut: int) -> float:
    """The probability that the median lies between the values left when `cut` fall at each end."""
    outside = sum(math.comb(count, below) for below in range(cut + 1))
    return float(max(0.0, 1 - 2 * outside / 2**count))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotients round by round. Both must have the same rounds, none of `below` may be zero."""
    return [one / other for one, other in zip(above, below, strict=True)]
