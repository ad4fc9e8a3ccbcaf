"""The range that leaves out a fixed share of the values."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from twinquant.calibration.extremes import factors_of_range
from twinquant.calibration.grid import Grid
from twinquant.calibration.observer import ActivationFactors, Observer, Stage

__all__ = ["PercentileObserver"]

_GRID_SIZE = 1 << 16


class PercentileObserver(Observer):
    """Cuts off the outermost values: half of `1 - percentile` on each side, or that share of the magnitudes.

    One pass, on a histogram that uses between 32,768 and 65,536 bins for the range widened to hold 0: a limit is the
    outer edge of the bin in which the cumulative share is reached, so it is at most that fraction of the range too far
    out, and never further out than the extreme value.

    Source:
        ONNX Runtime's `PercentileCalibrater`, which does it on 2048 bins: `searchsorted` in the cumulative histogram at
        `(1 - p) / 2` and at `1 - (1 - p) / 2`; symmetric: at p in that of the magnitudes.
    """

    stages = (Grid,)

    def first_stage(self) -> Stage:
        """Return an empty grid."""
        return Grid(_GRID_SIZE, sums=False)

    def next_stage(self, stage: Stage, count: int) -> ActivationFactors:
        """Return the factors of the range between the two limits."""
        histogram = cast(Grid, stage).histogram()
        if not self.options.asymmetric:
            share = self.options.percentile
            limit = (_bins_inside(histogram.magnitudes(), share) + 1) * histogram.width
            return factors_of_range(max(histogram.low, -limit), min(histogram.high, limit), self.options)
        share = 1.0 - (1.0 - self.options.percentile) / 2.0
        indices = histogram.indices()
        top = int(indices[_bins_inside(histogram.counts, share)])
        bottom = int(indices[-1 - _bins_inside(histogram.counts[::-1], share)])
        low = max(histogram.low, min(bottom - 1, 0) * histogram.width)
        high = min(histogram.high, max(top + 1, 0) * histogram.width)
        return factors_of_range(low, high, self.options)


def _bins_inside(counts: npt.NDArray[np.int64], share: float) -> int:
    """Return the index of the bin in which the cumulative count reaches a share of the total."""
    return int(np.searchsorted(np.cumsum(counts), share * float(counts.sum())))
