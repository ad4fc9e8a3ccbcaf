"""Integer layers as the device computes them: exact sums of integer products, for any framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["EXACT_LIMIT", "Accumulator", "Window", "convolve", "convolve_transposed", "multiply"]

EXACT_LIMIT = 2**24
"""Below this every integer is a float32: sums whose terms' magnitudes add up to less are exact in any order."""

_COLUMN_BLOCK = 1 << 22
"""Elements of a weight that are widened to floating point at once."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel moves over the spatial axes; one entry an axis.

    Attributes:
        strides: steps between neighbouring outputs (inputs, when transposed).
        dilations: steps between neighbouring kernel elements.
        pads_begin: zeros before each axis (outputs cut off there, when transposed).
        out_shape: lengths of the output; what the input does not reach is zero.
        groups: how many independent groups the channels form.
    """

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...]
    out_shape: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Accumulator:
    """The exact result of an integer layer.

    Attributes:
        total: integer-valued float32 or float64, exact: sum of products plus bias.
        magnitude: sum of the products' absolute values plus the bias's, the shape of `total`; None where it is proven
            to be below `EXACT_LIMIT` everywhere.
    """

    total: Array
    magnitude: Array | None


def convolve(x: Array, weight: Array, bias: Array | None, window: Window) -> Accumulator:
    """Convolve over any number of spatial axes.

    Args:
        x: integer-valued, offset subtracted, shape `(N, Cin, *spatial)`.
        weight: int8, shape `(Cout, Cin / groups, *kernel)`.
        bias: integer-valued, shape `(Cout,)`, or None.
        window: strides, dilations, pads, output lengths, groups.

    Returns:
        the accumulator, shape `(N, Cout, *out_shape)`.
    """
    spread = None if bias is None else bias.reshape(-1, *[1] * (x.ndim - 2))
    fan_in = _magnitude(weight).reshape(weight.shape[0], -1).sum(1, dtype=np.int64)
    return _accumulate(lambda a, b: _convolve(a, b, window), x, weight, spread, fan_in)


def convolve_transposed(x: Array, weight: Array, bias: Array | None, window: Window) -> Accumulator:
    """Convolve transposed over any number of spatial axes.

    Args:
        x: integer-valued, offset subtracted, shape `(N, Cin, *spatial)`.
        weight: int8, shape `(Cin, Cout / groups, *kernel)`.
        bias: integer-valued, shape `(Cout,)`, or None.
        window: strides, dilations, cut-off, output lengths, groups.

    Returns:
        the accumulator, shape `(N, Cout, *out_shape)`.
    """
    spread = None if bias is None else bias.reshape(-1, *[1] * (x.ndim - 2))
    fan_in = np.moveaxis(_magnitude(weight), 1, 0).reshape(weight.shape[1], -1).sum(1, dtype=np.int64)
    return _accumulate(lambda a, b: _convolve_transposed(a, b, window), x, weight, spread, fan_in)


def multiply(x: Array, weight: Array, bias: Array | None) -> Accumulator:
    """Multiply by a matrix, a block of columns at a time.

    Args:
        x: integer-valued, offset subtracted, shape `(..., K)`; rank 1 gives a result of rank 1.
        weight: int8, shape `(K, N)`.
        bias: integer-valued, broadcasts to the result, or None.

    Returns:
        the accumulator, shape `(..., N)`.
    """
    depth, columns = weight.shape
    step = max(1, _COLUMN_BLOCK // max(depth, 1))
    shape = (*x.shape[:-1], columns)
    addend = None if bias is None else np.broadcast_to(bias, shape)
    blocks: list[Accumulator] = []
    for start in range(0, columns, step):
        part = weight[:, start : start + step]
        bias_part = None if addend is None else addend[..., start : start + step]
        blocks.append(_accumulate(np.matmul, x, part, bias_part, _magnitude(part).sum(0, dtype=np.int64)))
    if len(blocks) == 1:
        return blocks[0]
    total = np.concatenate([block.total for block in blocks], axis=-1)
    if all(block.magnitude is None for block in blocks):
        return Accumulator(total, None)
    known = [np.zeros_like(b.total) if b.magnitude is None else b.magnitude for b in blocks]
    return Accumulator(total, np.concatenate(known, axis=-1))


def _magnitude(weight: Array) -> npt.NDArray[np.int16]:
    return np.abs(weight.astype(np.int16))


def _accumulate(
    product_of: Callable[[Array, Array], Array],
    x: Array,
    weight: Array,
    bias: Array | None,
    fan_in: npt.NDArray[np.int64],
) -> Accumulator:
    """Compute a bilinear product exactly: in float32 where that is proven exact, else in float64 (exact up to 2^53)."""
    largest_bias = float(np.abs(bias.astype(np.float64)).max()) if bias is not None and bias.size else 0.0
    largest_x = float(np.abs(x).max()) if x.size else 0.0
    exact = largest_x * float(fan_in.max(initial=0)) + largest_bias < EXACT_LIMIT
    dtype = np.float32 if exact else np.float64
    wide, kernel = x.astype(dtype, copy=False), weight.astype(dtype)
    total = product_of(wide, kernel)
    if bias is not None:
        total = total + bias.astype(dtype)
    if exact:
        return Accumulator(total, None)
    magnitude = product_of(np.abs(wide), np.abs(kernel))
    if bias is not None:
        magnitude = magnitude + np.abs(bias.astype(dtype))
    return Accumulator(total, magnitude)


def _overlap(offset: int, step: int, length: int, limit: int) -> tuple[slice, slice]:
    """Pair the indices i in [0, length) with i * step + offset, as far as those lie in [0, limit)."""
    first = max(0, -(offset // step))
    count = max(0, min(length, (limit - 1 - offset) // step + 1) - first)
    start = first * step + offset
    return slice(first, first + count), slice(start, start + (count - 1) * step + 1, step) if count else slice(0, 0)


def _kernel_positions(kernel: tuple[int, ...], window: Window) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield each kernel element's index and its distance from the window's begin, pads taken off."""
    for index in product(*map(range, kernel)):
        offsets = zip(index, window.dilations, window.pads_begin, strict=True)
        yield index, tuple(i * dilation - pad for i, dilation, pad in offsets)


def _last_axes(places: Iterable[Any]) -> tuple[Any, ...]:
    """Return the index that takes these places on the last axes and all on the others."""
    return (Ellipsis, *places)


def _convolve(x: Array, weight: Array, window: Window) -> Array:
    """Sum, over the kernel's elements, a matrix product with the shifted input: no unfolded copy of the input."""
    batch, channels, *spatial = x.shape
    groups, each = window.groups, weight.shape[0] // window.groups
    grouped = x.reshape(batch, groups, channels // groups, *spatial)
    total = np.zeros((batch, groups, each, *window.out_shape), x.dtype)
    for index, offsets in _kernel_positions(weight.shape[2:], window):
        pairs = [
            _overlap(offset, stride, out, size)
            for offset, stride, out, size in zip(offsets, window.strides, window.out_shape, spatial, strict=True)
        ]
        patch = grouped[_last_axes(read for _, read in pairs)]
        matrix = weight[_last_axes(index)].reshape(groups, each, channels // groups)
        total[_last_axes(write for write, _ in pairs)] += _mix_channels(matrix, patch)
    return total.reshape(batch, groups * each, *window.out_shape)


def _convolve_transposed(x: Array, weight: Array, window: Window) -> Array:
    """Add, for each of the kernel's elements, a matrix product of the input to the outputs it reaches."""
    batch, channels, *spatial = x.shape
    groups, each = window.groups, weight.shape[1]
    grouped = x.reshape(batch, groups, channels // groups, *spatial)
    total = np.zeros((batch, groups, each, *window.out_shape), x.dtype)
    for index, offsets in _kernel_positions(weight.shape[2:], window):
        pairs = [
            _overlap(offset, stride, size, out)
            for offset, stride, out, size in zip(offsets, window.strides, window.out_shape, spatial, strict=True)
        ]
        patch = grouped[_last_axes(read for read, _ in pairs)]
        matrix = weight[_last_axes(index)].reshape(groups, channels // groups, each).swapaxes(1, 2)
        total[_last_axes(write for _, write in pairs)] += _mix_channels(matrix, patch)
    return total.reshape(batch, groups * each, *window.out_shape)


def _mix_channels(matrix: Array, patch: Array) -> Array:
    """Apply one matrix per group `(G, out, in)` to the channels of `(N, G, in, *spatial)`."""
    batch, groups, _, *spatial = patch.shape
    if matrix.shape[2] == 1:
        return np.asarray(matrix.reshape(1, *matrix.shape[:2], *[1] * len(spatial)) * patch)
    flat = np.matmul(matrix, patch.reshape(batch, groups, matrix.shape[2], prod(spatial)))
    return np.asarray(flat.reshape(batch, groups, matrix.shape[1], *spatial))
