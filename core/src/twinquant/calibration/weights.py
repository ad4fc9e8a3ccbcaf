"""The scales of weights (ARQ), found block by block."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from twinquant.errors import ArgumentError, ModelContentError
from twinquant.numerics import SMALLEST_SCALE, integer_range, rectangular_blocks

__all__ = ["Sliceable", "channel_maxima", "weight_scales"]

Float32Array = npt.NDArray[np.float32]


class Sliceable(Protocol):
    """A weight that may be larger than memory: an array, a memory map, or whatever reads what is sliced from it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of all axes."""

    def __getitem__(self, where: tuple[slice, ...], /) -> Any:
        """Return one block as an array of any float type."""


def weight_scales(
    weight: Sliceable, num_bits: int, axis: int | None = None, *, factors: npt.NDArray[Any] | None = None
) -> Float32Array:
    """Return the symmetric scales of a weight.

    `max / (2^(b-1) - 1)` where `|max| >= |min|`, else `|min| / 2^(b-1)`; below 1.19e-7: 1.

    Args:
        weight: any float type, any shape; read once, block by block.
        num_bits: b, 4 to 8.
        axis: the output channel axis for one scale per channel, None for one scale in all.
        factors: what the weight is multiplied by first, in float32 (balance factors): any shape that broadcasts to the
            weight's. None leaves it as it is.

    Returns:
        float32: `(n,)`, n the length of `axis`, or `(1,)`.

    Raises:
        ModelContentError: the weight holds NaN or infinity, or is so large that its scale is not below 1 / 1.19e-7.
        ArgumentError: the weight is empty.

    Source:
        measured on the reference implementation (ARQ).
    """
    kept = () if axis is None else (axis % len(weight.shape),)
    low, high = _extremes(weight, kept, factors)
    smallest, largest = integer_range(num_bits)
    scales = np.where(high >= -low, high / largest, low / smallest)
    scales[scales < SMALLEST_SCALE] = 1.0
    if scales.max() >= 1.0 / SMALLEST_SCALE:
        raise ModelContentError(
            f"the weight's scale would be {scales.max():.6g}, the largest that can be represented is "
            f"{1.0 / SMALLEST_SCALE:.6g}; leave the layer out of the quantization"
        )
    return scales.reshape(-1).astype(np.float32)


def channel_maxima(weight: Sliceable, axes: tuple[int, ...]) -> Float32Array:
    """Return the largest magnitude of a weight for each index of some axes.

    For balance factors: the input channels are axis 1 of `(Cout, Cin, ...)`; with groups, axes `(0, 2)` of
    `(groups, Cout / groups, Cin / groups, ...)`.

    Args:
        weight: any float type, any shape; read once, block by block.
        axes: which axes are kept, rising.

    Returns:
        float32, `(n,)`: n the product of their lengths, the last axis fastest.

    Raises:
        ModelContentError: the weight holds NaN or infinity.
        ArgumentError: the weight is empty.
    """
    low, high = _extremes(weight, tuple(axis % len(weight.shape) for axis in axes), None)
    return np.maximum(high, -low).reshape(-1).astype(np.float32)


def _extremes(
    weight: Sliceable, kept: tuple[int, ...], factors: npt.NDArray[Any] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return minima (at most 0) and maxima (at least 0) over all axes but the kept ones, which keep their places."""
    if 0 in weight.shape:
        raise ArgumentError(f"a weight of shape {weight.shape} has no values; leave the layer out")
    shape = tuple(length if axis in kept else 1 for axis, length in enumerate(weight.shape))
    others = tuple(axis for axis in range(len(shape)) if axis not in kept)
    low, high = np.zeros(shape), np.zeros(shape)
    spread = None if factors is None else np.broadcast_to(np.asarray(factors, np.float32), weight.shape)
    for where in rectangular_blocks(weight.shape):
        block = np.asarray(weight[where]).astype(np.float32, copy=False)
        if spread is not None:
            with np.errstate(over="ignore"):
                block = block * spread[where]
        cell = tuple(part if axis in kept else slice(None) for axis, part in enumerate(where))
        np.minimum(low[cell], block.min(axis=others, keepdims=True), out=low[cell])
        np.maximum(high[cell], block.max(axis=others, keepdims=True), out=high[cell])
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ModelContentError("the weight holds NaN or infinity and cannot be quantized; leave the layer out")
    return low, high
