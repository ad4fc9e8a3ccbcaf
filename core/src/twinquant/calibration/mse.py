"""The range with the smallest mean squared error."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from twinquant.calibration.extremes import factors_of_range
from twinquant.calibration.grid import Grid, Histogram
from twinquant.calibration.observer import ActivationFactors, Observer, Stage
from twinquant.calibration.options import ObserverOptions
from twinquant.numerics import activation_scale, clipped_grid_errors, symmetric_scale

__all__ = ["MseObserver"]

_GRID_SIZE = 1 << 13
_THRESHOLDS = 256


class MseObserver(Observer):
    """Clips magnitudes where the mean squared quantization error is least.

    One pass, on a histogram that uses between 4096 and 8192 bins for the range widened to hold 0. Every 1/256 of the
    largest magnitude is a threshold T; the range `[max(low, -T), min(high, T)]` quantizes the bin centres, and the
    smallest count-weighted squared error wins, the widest range if several have it.

    Source:
        the `mse` calibration of NVIDIA's pytorch-quantization toolkit, which compares thresholds on bin centres the
        same way; also called MMSE or OMSE (Y. Choukroun et al., Low-bit Quantization of Neural Networks, 2019).
    """

    stages = (Grid,)

    def first_stage(self) -> Stage:
        """Return an empty grid."""
        return Grid(_GRID_SIZE, sums=False)

    def next_stage(self, stage: Stage, count: int) -> ActivationFactors:
        """Return the factors of the best range."""
        histogram = cast(Grid, stage).histogram()
        largest = max(-histogram.low, histogram.high)
        limits = largest * np.arange(_THRESHOLDS, 0, -1) / _THRESHOLDS
        ranges = [(max(histogram.low, -limit), min(histogram.high, limit)) for limit in limits.tolist()]
        errors = _errors(histogram, ranges, self.options)
        low, high = ranges[int(np.argmin(errors))]
        return factors_of_range(low, high, self.options)


def _errors(
    histogram: Histogram, ranges: list[tuple[float, float]], options: ObserverOptions
) -> npt.NDArray[np.float64]:
    indices = histogram.indices()
    filled = histogram.counts > 0
    centres = ((indices + 0.5 * np.sign(indices)) * histogram.width)[filled]
    counts = histogram.counts[filled]
    errors = np.empty(centres.size)
    sums = np.empty(len(ranges))
    scale_of = activation_scale if options.asymmetric else symmetric_scale
    for index, (low, high) in enumerate(ranges):
        clipped_grid_errors(centres, scale_of(low, high, options.num_bits), low, high, errors)
        sums[index] = (counts * errors).sum()
    return sums
