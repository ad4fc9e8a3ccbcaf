"""The whole range."""

from __future__ import annotations

from typing import cast

from twinquant.calibration.extremes import Extremes, factors_of_range
from twinquant.calibration.observer import ActivationFactors, Observer, Stage

__all__ = ["MinMaxObserver"]


class MinMaxObserver(Observer):
    """Represents every value: the range is from the smallest to the largest one, widened to hold 0. One pass.

    Source:
        the min-max calibration that all tools share (ONNX Runtime `MinMaxCalibrater`), over all batches at once and not
        averaged over them.
    """

    stages = (Extremes,)

    def first_stage(self) -> Stage:
        """Return an empty range."""
        return Extremes()

    def next_stage(self, stage: Stage, count: int) -> ActivationFactors:
        """Return the factors of the range."""
        extremes = cast(Extremes, stage)
        return factors_of_range(extremes.low, extremes.high, self.options)
