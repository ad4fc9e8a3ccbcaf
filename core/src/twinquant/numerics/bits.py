"""The integer types that values are quantized to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["integer_range", "storage_dtype"]


def integer_range(num_bits: int) -> tuple[int, int]:
    """Return the smallest and the largest signed integer of `num_bits` bits: `[-2^(b-1), 2^(b-1) - 1]`."""
    return -(1 << (num_bits - 1)), (1 << (num_bits - 1)) - 1


def storage_dtype(num_bits: int) -> npt.DTypeLike:
    """Return the NumPy type that holds one value of `num_bits` bits: int8 up to 8 bits, int16 above."""
    return np.int8 if num_bits <= 8 else np.int16
