"""The range with the smallest mean squared error among multiples of a percentile."""

from __future__ import annotations

import numpy as np

from twinquant.calibration.extremes import factors_of_scale
from twinquant.calibration.grid import Grid, Histogram
from twinquant.calibration.ifmr_losses import Candidate, candidates_of_limits, contenders
from twinquant.calibration.ifmr_stages import Refinement, Settlement, Survey
from twinquant.calibration.observer import ActivationFactors, Observer, Stage
from twinquant.calibration.tails import Rank, Tail, rank_of_percentile

__all__ = ["IfmrObserver"]


class IfmrObserver(Observer):
    """Finds the range that the definition of IFMR finds with every value at hand, without keeping the values.

    The definition: the upper limit is the k-th largest of all n values, k = n - int(p n) (p within 1.19e-7 of 1:
    k = 1), and at least 0; the lower limit likewise, and at most 0. The upper limit is multiplied by each of
    `arange(first, last, step)` (symmetric: the larger limit, the range then being `[-limit, limit]`). The range with
    the smallest `mean((round(clip(x) / s) * s - x)^2)` wins, the first one if several do.

    Passes: the first one counts in a histogram of 65,536 bins, which also sums up positions inside the bins, and keeps
    the 4096 outermost values of each side. Where the limit lies deeper, one or two more passes count towards it. The
    histogram gives every candidate's loss between two bounds (see `contenders`). If they leave one candidate, that is
    the result; otherwise a last pass adds up the exact losses of those that are left. With 4 and 8 bits one pass is
    usual, and losses further apart than about 1e-4 never need the last one; with 16 bits a bin is as wide as a
    quantization step, and the last pass compares about thirty candidates.

    Source:
        measured on the reference implementation.
    """

    stages = (Survey, Refinement, Settlement)

    def first_stage(self) -> Stage:
        """Return an empty survey."""
        return Survey()

    def next_stage(self, stage: Stage, count: int) -> Stage | ActivationFactors:
        """Find the limits, then the candidates that are left, then the best of them."""
        if isinstance(stage, Settlement):
            return self._factors_of(stage.best())
        if isinstance(stage, Refinement):
            upper, lower = (rank if rank.value is not None else rank.narrowed() for rank in (stage.upper, stage.lower))
            return self._search(stage.grid, upper, lower)
        assert isinstance(stage, Survey)
        histogram = stage.grid.histogram()
        upper = _rank(stage.upper, histogram, 1, rank_of_percentile(self.options.max_percentile, count))
        lower = _rank(stage.lower, histogram, -1, rank_of_percentile(self.options.min_percentile, count))
        return self._search(stage.grid, upper, lower)

    def _search(self, grid: Grid, upper: Rank, lower: Rank) -> Stage | ActivationFactors:
        if upper.value is None or lower.value is None:
            return Refinement(grid, upper, lower)
        histogram = grid.histogram()
        candidates = candidates_of_limits(-lower.value, upper.value, self.options)
        left = [candidates[index] for index in contenders(histogram, candidates)]
        if len({candidate.scale for candidate in left}) == 1:
            return self._factors_of(left[0])
        return Settlement.between(left, histogram.low, histogram.high)

    def _factors_of(self, best: Candidate) -> ActivationFactors:
        return factors_of_scale(best.low, best.scale, self.options)


def _rank(tail: Tail, histogram: Histogram, side: int, rank: int) -> Rank:
    """Return the search for the `rank`-th outermost value of a side; it is over if the tail holds that value."""
    known = tail.largest(rank)
    if known is not None:
        return Rank.found(known)
    counts = histogram.counts[-histogram.first + 1 :] if side > 0 else histogram.counts[: -histogram.first][::-1]
    from_outside = np.cumsum(counts[::-1])
    outside = int(np.searchsorted(from_outside, rank))
    further_out = int(from_outside[outside - 1]) if outside else 0
    # Past the last bin of the side it is in bin 0.
    index = counts.size - outside
    return Rank.between(index * histogram.width, (index + 1) * histogram.width, rank - further_out)
