"""The range that keeps most information."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from twinquant.calibration.extremes import factors_of_range
from twinquant.calibration.grid import Grid
from twinquant.calibration.observer import ActivationFactors, Observer, Stage

__all__ = ["EntropyObserver", "divergences"]

# Of the magnitudes, 1024 to 2048 bins are in use; twice as many with values on both sides of 0.
_MAGNITUDE_BINS = 2048


class EntropyObserver(Observer):
    """Clips magnitudes where the quantized distribution diverges least from the clipped one (Kullback-Leibler).

    One pass, on the histogram of the magnitudes; the innermost bin counts as many as its neighbour. For each threshold
    from 2^(b-1) bins up to all of them: P is the histogram up to the threshold, its last bin also holding everything
    beyond; Q is the same without what is beyond, merged into 2^(b-1) levels of equally many bins (the last level takes
    the rest), each level spread evenly over its bins that P fills. The threshold with the smallest KL(P, Q) wins, the
    first one if several do. The range is then cut to the values that occur.

    The innermost bin holds the zeros that a ReLU makes, half of all values and more. Every scale represents them
    exactly, but Q would spread them over all bins of its first level: a divergence that grows with the threshold, as if
    zeros were worth clipping a tenth of the others.

    Differences from the published method: that of the innermost bin, as in NVIDIA's tool; a Q of 0 under a filled bin
    makes a divergence infinite instead of being smoothed with a small constant; the bins are a power of two wide, so
    that merging observers is exact. With 16 bits there are more levels than bins, and the whole range is kept.

    Source:
        S. Migacz, 8-bit Inference with TensorRT (GTC 2017); ONNX Runtime's `EntropyCalibrater` (its default of 128 bins
        leaves no threshold to choose); the `entropy` method of NVIDIA's pytorch-quantization toolkit.
    """

    stages = (Grid,)

    def first_stage(self) -> Stage:
        """Return an empty grid."""
        return Grid(2 * _MAGNITUDE_BINS, sums=False)

    def next_stage(self, stage: Stage, count: int) -> ActivationFactors:
        """Return the factors of the range between the two thresholds."""
        histogram = cast(Grid, stage).histogram()
        counts, width = histogram.magnitudes(), histogram.width
        if counts.size > _MAGNITUDE_BINS:
            counts, width = np.append(counts, 0)[: (counts.size + 1) // 2 * 2].reshape(-1, 2).sum(axis=1), 2.0 * width
        levels = 1 << (self.options.num_bits - 1)
        if counts.size <= levels:
            return factors_of_range(histogram.low, histogram.high, self.options)
        counts[0] = counts[1]
        limit = (levels + int(np.argmin(divergences(counts, levels)))) * width
        return factors_of_range(max(histogram.low, -limit), min(histogram.high, limit), self.options)


def divergences(counts: npt.NDArray[np.int64], levels: int) -> npt.NDArray[np.float64]:
    """Return KL(P, Q) for every threshold.

    KL is `sum p log(p / q)` over the filled bins. q is the same in all bins of a level, so it needs the sums of each
    level only; these are differences of running sums, one row of levels for each threshold.

    Args:
        counts: int64 `(n,)`, n >= levels: values in each bin of magnitudes.
        levels: levels of the quantized distribution.

    Returns:
        float64 `(n - levels + 1,)`: for the thresholds behind the bin `levels - 1`, ..., `n - 1`; inf where P holds
        what Q cannot.
    """
    thresholds = np.arange(levels, counts.size + 1)[:, None]
    before = np.append(0, np.cumsum(counts))
    filled_before = np.append(0, np.cumsum(counts > 0))
    logs_before = np.append(0.0, np.cumsum(counts * np.log(np.maximum(counts, 1))))
    edges = np.arange(levels + 1) * (thresholds // levels)
    edges[:, -1] = thresholds[:, 0]
    masses = np.diff(before[edges], axis=1)
    filled = np.diff(filled_before[edges], axis=1)
    total = before[-1]
    beyond = total - before[thresholds[:, 0]]
    last = counts[thresholds[:, 0] - 1]
    # Everything beyond the threshold is added to P's last bin, which that may fill.
    filled[:, -1] += (last == 0) & (beyond > 0)
    piled = last + beyond
    logs = logs_before[thresholds[:, 0]] - last * np.log(np.maximum(last, 1)) + piled * np.log(np.maximum(piled, 1))
    weights = masses.copy()
    weights[:, -1] += beyond
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = np.where(weights > 0, weights * np.log(masses / filled), 0.0).sum(axis=1)
        divergence = (logs - cross) / total - np.log(total) + np.log(total - beyond)
    return np.where(beyond < total, divergence, np.inf)
