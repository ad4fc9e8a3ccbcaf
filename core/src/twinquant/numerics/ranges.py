"""The scale and the offset that a range of values is quantized with, and the errors that this makes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twinquant.numerics.bits import integer_range

__all__ = ["SMALLEST_SCALE", "activation_offset", "activation_scale", "clipped_grid_errors", "symmetric_scale"]

SMALLEST_SCALE = 1.19e-7
"""Scales below this are replaced by 1, and their reciprocals limit scales from above: nothing is left to resolve."""


def activation_scale(low: float, high: float, num_bits: int) -> float:
    """Return `(high - low) / (2^b - 1)`, or 1 where that is below `SMALLEST_SCALE`.

    Args:
        low: lower end of the range, <= 0.
        high: upper end of the range, >= 0.
        num_bits: b.
    """
    scale = (high - low) / ((1 << num_bits) - 1)
    return 1.0 if scale < SMALLEST_SCALE else scale


def symmetric_scale(low: float, high: float, num_bits: int) -> float:
    """Return the scale with offset 0 that spends the larger side of the integers on the larger side of the values.

    `high / (2^(b-1) - 1)` if `high >= -low`, else `-low / 2^(b-1)`; 1 where that is below `SMALLEST_SCALE`.

    Args:
        low: the smallest value; counts as 0 where it is positive.
        high: the largest value; counts as 0 where it is negative.
        num_bits: b.

    Source:
        measured on the reference implementation for weights; activations follow the same rule.
    """
    smallest, largest = integer_range(num_bits)
    scale = high / largest if abs(high) >= abs(low) else low / smallest
    return 1.0 if abs(scale) < SMALLEST_SCALE else abs(scale)


def activation_offset(low: float, scale: float, num_bits: int) -> int:
    """Return the integer that stands for 0.0: `-rint(low / scale) - 2^(b-1)`, ties to even, saturated.

    Args:
        low: lower end of the range, <= 0; it becomes the smallest integer.
        scale: > 0.
        num_bits: b.
    """
    smallest, largest = integer_range(num_bits)
    return int(np.clip(-np.rint(low / scale) + smallest, smallest, largest))


def clipped_grid_errors(
    values: npt.NDArray[np.float64], scale: float, low: float, high: float, out: npt.NDArray[np.float64]
) -> None:
    """Write the squared errors that clipping to a range and rounding to multiples of a scale make.

    `(rint(clip(v, low, high) / scale) * scale - v)^2`, ties to even, without saturation to a number of bits.

    Args:
        values: float64, any shape.
        scale: > 0.
        low: lower end of the range.
        high: upper end of the range.
        out: float64, the shape of `values`; overwritten.
    """
    np.multiply(values, 1.0 / scale, out=out)
    np.rint(out, out=out)
    # Rounding keeps order, so the ends of the range can be rounded instead of every clipped value.
    np.clip(out, np.rint(low / scale), np.rint(high / scale), out=out)
    np.multiply(out, scale, out=out)
    np.subtract(out, values, out=out)
    np.multiply(out, out, out=out)
