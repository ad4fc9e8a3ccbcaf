"""The range that a histogram says loses least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.extremes import Extremes, factors_of_range
from twinquant.calibration.hfmg_search import best_range
from twinquant.calibration.observer import ActivationFactors, Float32Array, Observer, Stage, State
from twinquant.calibration.scratch import scratch

__all__ = ["HfmgObserver", "RangeHistogram"]


class RangeHistogram(Stage):
    """Counts values in equal bins between two limits.

    The bin of x is `trunc((x - low) * n / (high - low))` in float64, n - 1 for the upper limit itself.

    Args:
        low: lower limit.
        high: upper limit, above `low`.
        counts: int64 `(n,)`.
    """

    def __init__(self, low: float, high: float, counts: npt.NDArray[np.int64]) -> None:
        self.low = low
        self.high = high
        self.counts = counts

    def take(self, block: Float32Array, low: float, high: float) -> None:
        """Count the values of a block."""
        last = self.counts.size - 1
        bins_per_unit = self.counts.size / (self.high - self.low)
        places = scratch("places", block.size, np.float64)
        np.subtract(block, self.low, out=places, dtype=np.float64)
        np.multiply(places, bins_per_unit, out=places)
        # A runtime that is not exactly repeatable may leave the range of the first pass by a last bit.
        if low < self.low or (high - self.low) * bins_per_unit > last:
            np.clip(places, 0, last, out=places)
        # Twice as fast in two steps as in one (NumPy 2.4).
        whole, bins = scratch("whole", block.size, np.int32), scratch("bins", block.size, np.int64)
        np.copyto(whole, places, casting="unsafe")
        np.copyto(bins, whole)
        np.add.at(self.counts, bins, 1)

    def merge(self, other: RangeHistogram) -> None:
        """Add counts."""
        self.counts += other.counts

    def arrays(self) -> State:
        """Return the limits and the counts."""
        return {"limits": np.array([self.low, self.high]), "counts": self.counts}

    @classmethod
    def restore(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> RangeHistogram:
        """Return the stage that `arrays` was asked of."""
        low, high = arrays["limits"].tolist()
        return cls(low, high, arrays["counts"].copy())

    def fresh(self) -> RangeHistogram:
        """Return an empty histogram between the same limits."""
        return RangeHistogram(self.low, self.high, np.zeros_like(self.counts))

    def terms(self) -> tuple[Any, ...]:
        """Return the limits."""
        return self.low, self.high

    @property
    def nbytes(self) -> int:
        """That of the counts."""
        return self.counts.nbytes


class HfmgObserver(Observer):
    """Clips to the range of histogram bins with the smallest quantization error, found from the outside in.

    Two passes: the first finds the smallest and the largest value, the second counts in `num_of_bins` equal bins
    exactly between them. The search then narrows the range from both sides (see `ranges_of_search`) and keeps the
    one with the smallest loss (see `uniform_density_losses`). A constant activation needs one pass.

    Source:
        the search as the reference implementation describes it (none of its factors were at hand to compare with); the
        loss is that of PyTorch's HistogramObserver.
    """

    stages = (Extremes, RangeHistogram)

    def first_stage(self) -> Stage:
        """Return an empty range."""
        return Extremes()

    def next_stage(self, stage: Stage, count: int) -> Stage | ActivationFactors:
        """Count between the extremes, then search."""
        if isinstance(stage, Extremes):
            if stage.low == stage.high:
                return factors_of_range(stage.low, stage.high, self.options)
            return RangeHistogram(stage.low, stage.high, np.zeros(self.options.num_of_bins, np.int64))
        assert isinstance(stage, RangeHistogram)
        left, right = best_range(stage.counts, self.options.num_bits)
        width = (stage.high - stage.low) / stage.counts.size
        return factors_of_range(stage.low + left * width, stage.low + (right + 1) * width, self.options)
