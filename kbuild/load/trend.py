"""Whether a row of measurements grows: a trend of all of them, never one sample against a threshold. No I/O.

Growth is what two things say that fail in different ways:

* The slope by Theil and Sen, the median of the slopes between all pairs of samples, is above zero with ALPHA to spare:
  so is the lower end of Sen's confidence interval, which rests on Kendall's S and its variance with ties (P. K. Sen,
  Estimates of the Regression Coefficient Based on Kendall's Tau, JASA 63, 1968, section 6). A few odd samples, and how
  what is measured scatters, do not matter.
* It goes on: the median of each quarter is above that of the quarter before. A pool that fills once in the beginning,
  or one object that is kept from some moment on, makes a slope in the eyes of Kendall's S, and is no leak.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

ALPHA = 1e-4
"""How often a row that only scatters may seem to grow: some 80 rows are looked at in one order."""
MIN_SAMPLES = 12
"""Three for each quarter; with fewer not even a steady growth is sure with ALPHA and some scatter."""
PARTS = 4


@dataclass(frozen=True)
class Growth:
    """By how much a row grows from sample to sample."""

    slope: float
    at_least: float
    """The lower end of the confidence interval."""


def growth(samples: Sequence[int]) -> Growth | None:
    """How a row grows; None where it does not, or where nobody can be sure that it does."""
    count = len(samples)
    if count < MIN_SAMPLES:
        return None
    slopes = sorted((samples[j] - samples[i]) / (j - i) for i, j in itertools.combinations(range(count), 2))
    ties = Counter(samples).values()
    variance = (_spread(count) - sum(map(_spread, ties))) / 18
    below = (len(slopes) - NormalDist().inv_cdf(1 - ALPHA) * variance**0.5) / 2
    at_least = slopes[max(0, int(below) - 1)]
    if at_least <= 0 or not _goes_on(samples):
        return None
    return Growth(median(slopes), at_least)


def _spread(count: int) -> int:
    return count * (count - 1) * (2 * count + 5)


def _goes_on(samples: Sequence[int]) -> bool:
    ends = [len(samples) * part // PARTS for part in range(PARTS + 1)]
    medians = [median(samples[start:end]) for start, end in itertools.pairwise(ends)]
    return all(earlier < later for earlier, later in itertools.pairwise(medians))
