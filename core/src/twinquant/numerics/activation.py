"""Quantization of activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.numerics.bits import integer_range, storage_dtype
from twinquant.numerics.blocks import BLOCK_ELEMENTS

__all__ = ["quantize_activation", "reciprocal_scale"]


def reciprocal_scale(scale: float) -> np.float32:
    """Return `float32(1 / scale)`, the factor that activations are multiplied by; the division is done in float32."""
    reciprocal: np.float32 = np.float32(1.0) / np.float32(scale)
    return reciprocal


def quantize_activation(x: npt.NDArray[Any], reciprocal: float, offset: int, num_bits: int) -> npt.NDArray[Any]:
    """Quantize an activation: `clip(rint(float32(x * reciprocal)) + offset, lo, hi)`, ties to even.

    Args:
        x: floating point, any shape; widened or narrowed to float32 first.
        reciprocal: float32 value of 1/scale.
        offset: zero point in the signed domain.
        num_bits: 4, 8 or 16.

    Returns:
        int8 (int16 for 16 bits), the shape of `x`. NaN becomes the lowest value.

    Source:
        the documented semantics of AscendQuant: multiply by the float32 reciprocal, round, then add the offset.
    """
    low, high = integer_range(num_bits)
    out = np.empty(x.shape, storage_dtype(num_bits))
    source, target = x.reshape(-1), out.reshape(-1)
    factor, shift = np.float32(reciprocal), np.float32(offset)
    buffer = np.empty(min(source.size, BLOCK_ELEMENTS), np.float32)
    for start in range(0, source.size, BLOCK_ELEMENTS):
        part = source[start : start + BLOCK_ELEMENTS]
        block = buffer[: part.size]
        with np.errstate(over="ignore"):
            np.multiply(part.astype(np.float32, copy=False), factor, out=block)
        np.rint(block, out=block)
        np.add(block, shift, out=block)
        np.clip(block, low, high, out=block)
        np.nan_to_num(block, copy=False, nan=low)
        target[start : start + BLOCK_ELEMENTS] = block
    return out
