"""The candidates of the IFMR search, and which of them a histogram cannot tell from the best one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinquant.calibration.grid import Histogram
from twinquant.calibration.options import ObserverOptions
from twinquant.numerics import activation_scale, symmetric_scale

__all__ = ["Candidate", "candidates_of_limits", "contenders"]

Float64Array = npt.NDArray[np.float64]

# The bounds are sums in float64; what they cannot tell apart for that reason counts as equal. 2^-40 is a thousand times
# what was seen, and still far below any difference that matters.
_ROUNDING = 2.0**-40


@dataclass(frozen=True, slots=True)
class Candidate:
    """One range of the search: values are clipped to [low, high] and rounded to multiples of the scale."""

    low: float
    high: float
    scale: float


def candidates_of_limits(low: float, high: float, options: ObserverOptions) -> list[Candidate]:
    """Return every range that the search compares, in its order.

    Args:
        low: lower limit, <= 0, which the percentile gave.
        high: upper limit, >= 0.
        options: the search's range and step, number of bits, symmetry.
    """
    factors = np.arange(*options.search_range, options.search_step)
    if options.asymmetric:
        tops = [high * factor for factor in factors.tolist()]
        return [Candidate(low, top, activation_scale(low, top, options.num_bits)) for top in tops]
    return [
        Candidate(-limit, limit, symmetric_scale(low * factor, high * factor, options.num_bits))
        for factor in factors.tolist()
        for limit in [max(high, -low) * factor]
    ]


def contenders(histogram: Histogram, candidates: list[Candidate]) -> list[int]:
    """Return the candidates that may have the smallest mean squared error, given what the histogram knows.

    The squared distance of x to its nearest grid value is `x^2 - 2 s (sum of |x| - |t|)` over the rounding thresholds t
    between 0 and x. Summed over all values, the first part is the same for every candidate; the second is `2 s` times
    the sum over all thresholds of `H(t) = sum max(0, |x| - |t|)`, on both sides of 0. H follows exactly from the counts
    and sums of the bins beyond the threshold. In the threshold's own bin it lies between what the bin's mean gives
    (Jensen) and what values at the bin's two edges with that mean give (the chord). So every candidate has an upper and
    a lower bound, and one whose lower bound is above another's upper bound is out.

    Returns:
        indices into `candidates`, rising; the best one is always among them.
    """
    sides = [_Side(histogram, sign) for sign in (1, -1)]
    least, most = np.zeros(len(candidates)), np.zeros(len(candidates))
    for index, candidate in enumerate(candidates):
        for side, limit in zip(sides, (candidate.high, -candidate.low), strict=True):
            steps = int(np.rint(limit / candidate.scale))
            thresholds = (np.arange(steps, dtype=np.float64) + 0.5) * candidate.scale
            lower, upper = side.beyond(thresholds)
            least[index] += 2.0 * candidate.scale * lower
            most[index] += 2.0 * candidate.scale * upper
    # The gain is subtracted from the same sum of squares: the larger, the better.
    floor = least.max() - _ROUNDING * most.max()
    return [int(index) for index in np.flatnonzero(most >= floor)]


class _Side:
    """The values on one side of zero, as magnitudes."""

    def __init__(self, histogram: Histogram, sign: int) -> None:
        outward = slice(-histogram.first, None) if sign > 0 else slice(-histogram.first, None, -1)
        counts = histogram.counts[outward].astype(np.float64)
        offsets = sign * histogram.sums[outward] / float(1 << 23)
        self._width = histogram.width
        # A bin 0 of values on both sides of 0: what is on this side is not known.
        self._inner = counts[0]
        counts[0] = 0.0
        self._counts = np.append(counts, 0.0)
        self._means = np.append(np.divide(offsets, counts, out=np.zeros_like(offsets), where=counts > 0), 0.0)
        totals = counts * (np.arange(counts.size) + self._means[:-1])
        # Sums over the bins from the given one outwards.
        self._counts_from = np.append(np.cumsum(counts[::-1])[::-1], [0.0, 0.0])
        self._totals_from = np.append(np.cumsum(totals[::-1])[::-1], [0.0, 0.0])

    def beyond(self, thresholds: Float64Array) -> tuple[float, float]:
        """Return bounds of the sum over all thresholds t of `sum max(0, |x| - t)`."""
        scaled = thresholds / self._width
        scaled = scaled[scaled < self._counts.size - 1]
        bins = scaled.astype(np.int64)
        inside = scaled - bins
        exact = (self._totals_from[bins + 1] - scaled * self._counts_from[bins + 1]).sum()
        counts, means = self._counts[bins], self._means[bins]
        jensen = counts * np.maximum(0.0, means - inside)
        chord = counts * means * (1.0 - inside)
        # In bin 0 all values may be at its inner edge, or all at its outer one.
        unknown = self._inner * (1.0 - inside[bins == 0]).sum()
        return float(exact + jensen.sum()) * self._width, float(exact + chord.sum() + unknown) * self._width
