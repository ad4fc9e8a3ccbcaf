"""The scale that leads back from the accumulator to real values, and the parameter that carries it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["dequant_scale", "float16_scale", "pack_dequant_parameter", "unpack_dequant_parameter"]

Float32Array = npt.NDArray[np.float32]

_FLOAT16_MANTISSA = np.uint32(0xFFFFE000)


def dequant_scale(scale_w: Float32Array, scale_d: float) -> Float32Array:
    """Return `float32(scale_w) * float32(scale_d)`: float32 `(n,)`. The product may overflow or underflow."""
    with np.errstate(over="ignore", under="ignore"):
        product: Float32Array = scale_w.astype(np.float32, copy=False) * np.float32(scale_d)
    return product


def float16_scale(scale: Float32Array) -> Float32Array:
    """Cut a scale to the 10 mantissa bits of float16: its float32 bits are masked with 0xFFFFE000."""
    masked: Float32Array = (np.ascontiguousarray(scale, np.float32).view(np.uint32) & _FLOAT16_MANTISSA).view(
        np.float32
    )
    return masked


def pack_dequant_parameter(scale: Float32Array) -> npt.NDArray[np.uint64]:
    """Pack scales into dequantization parameters.

    Args:
        scale: float32 `(n,)`.

    Returns:
        uint64 `(n,)`: the float32 bits in bits 31..0; the shift N in bits 39..32 and the weight offset in bits 47..40
        are 0.
    """
    return np.ascontiguousarray(scale, np.float32).view(np.uint32).astype(np.uint64)


def unpack_dequant_parameter(
    parameter: npt.NDArray[np.uint64],
) -> tuple[Float32Array, npt.NDArray[np.uint8], npt.NDArray[np.int8]]:
    """Take dequantization parameters apart.

    Args:
        parameter: uint64 `(n,)`.

    Returns:
        scale (float32), shift N (uint8) and weight offset (int8), each `(n,)`.
    """
    values = np.ascontiguousarray(parameter, np.uint64)
    scale = (values & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    shift = ((values >> np.uint64(32)) & np.uint64(0xFF)).astype(np.uint8)
    offset = ((values >> np.uint64(40)) & np.uint64(0xFF)).astype(np.uint8).view(np.int8)
    return scale, shift, offset
