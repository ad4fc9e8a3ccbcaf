"""The smallest and the largest value, and the factors of a range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.observer import ActivationFactors, Float32Array, Stage, State
from twinquant.calibration.options import ObserverOptions
from twinquant.errors import CalibrationError
from twinquant.numerics import SMALLEST_SCALE, activation_offset, activation_scale, symmetric_scale

__all__ = ["Extremes", "factors_of_range", "factors_of_scale"]


class Extremes(Stage):
    """The smallest and the largest of all values."""

    def __init__(self, low: float = np.inf, high: float = -np.inf) -> None:
        self.low = low
        self.high = high

    def take(self, block: Float32Array, low: float, high: float) -> None:
        """Widen the range."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, other: Extremes) -> None:
        """Widen the range to hold the other one."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def arrays(self) -> State:
        """Return both ends."""
        return {"low": np.array(self.low), "high": np.array(self.high)}

    @classmethod
    def restore(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Extremes:
        """Return the stage that `arrays` was asked of."""
        return cls(float(arrays["low"]), float(arrays["high"]))

    def fresh(self) -> Extremes:
        """Return an empty range."""
        return Extremes()

    @property
    def nbytes(self) -> int:
        """That of two numbers."""
        return 2 * np.dtype(np.float64).itemsize


def factors_of_range(low: float, high: float, options: ObserverOptions) -> ActivationFactors:
    """Return the min-max factors of a range, which is widened to hold 0 first.

    Args:
        low: the smallest value that is to be represented.
        high: the largest one.
        options: number of bits, and whether the offset may differ from 0.

    Raises:
        CalibrationError: the range is too wide.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if options.asymmetric:
        scale = activation_scale(low, high, options.num_bits)
    else:
        scale = symmetric_scale(low, high, options.num_bits)
    return factors_of_scale(low, scale, options)


def factors_of_scale(low: float, scale: float, options: ObserverOptions) -> ActivationFactors:
    """Return the factors of a known scale: the offset follows from the lower end of the range.

    Raises:
        CalibrationError: the scale is not below 1 / 1.19e-7.
    """
    if not scale < 1.0 / SMALLEST_SCALE:
        raise CalibrationError(
            f"the activation's scale would be {scale:.6g}, the largest that can be represented is "
            f"{1.0 / SMALLEST_SCALE:.6g}; leave the layer out, or scale its input down in the model"
        )
    offset = activation_offset(low, scale, options.num_bits) if options.asymmetric else 0
    return ActivationFactors(float(np.float32(scale)), offset, options.num_bits)
