"""What a quantized layer computes: exact integers in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import VerificationError
from twinquant.numerics import quantize_activation
from twinquant.verification import Accumulator, Window, convolve, convolve_transposed, multiply
from twinquant_caffe.deploy_net import DeployLayer, DeployQuant
from twinquant_caffe.geometry import (
    CONVOLUTIONS,
    DECONVOLUTION,
    convolved_length,
    pooled_lengths,
    pooling_windows,
    read_convolution,
)

__all__ = ["accumulate", "dequantize", "is_integral", "quantize", "result_shape", "spread"]

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]


def quantize(quant: DeployQuant, x: Array) -> Float32Array:
    """Quantize an activation and take the offset off again: integer-valued float32."""
    integers = quantize_activation(x, quant.reciprocal, quant.offset, 8)
    centered: Float32Array = integers.astype(np.float32) - np.float32(quant.offset)
    return centered


def accumulate(layer: DeployLayer, x: Float32Array) -> Accumulator:
    """Return what a layer makes of integers, before they are dequantized.

    Args:
        layer: the layer.
        x: integer-valued, offset taken off.

    Returns:
        the exact accumulator; a Pooling's is the mean in float64.

    Raises:
        VerificationError: the layer's parameters do not fit together, or the input does not fit the layer.
    """
    with _explained(layer, x.shape):
        return _OPERATIONS[layer.layer.type](layer, x)


def dequantize(layer: DeployLayer, accumulator: Accumulator) -> Float32Array:
    """Return what the DeQuant makes of an accumulator: float32."""
    total = accumulator.total.astype(np.float32)
    return np.multiply(total, spread(layer.scale, total.ndim), dtype=np.float32)


def spread(scale: Float32Array, rank: int) -> Float32Array:
    """Shape scales so that they broadcast along the channels of a tensor."""
    return scale.reshape(1, -1, *[1] * (rank - 2))


def is_integral(layer: DeployLayer) -> bool:
    """Tell whether a layer's accumulator holds integers; a mean does not."""
    return layer.layer.type != "Pooling"


def result_shape(layer: DeployLayer, shape: Shape) -> Shape:
    """Return the shape of what a layer makes of an input of a shape.

    Raises:
        VerificationError: the layer's parameters do not fit together.
    """
    kind = layer.layer.type
    with _explained(layer, shape):
        if kind == "InnerProduct":
            return shape[0], _weight(layer).shape[0]
        if kind == "Pooling":
            return *shape[:2], *map(len, _pooling_spans(layer, shape[2:]))
        return shape[0], read_convolution(layer.layer).num_output, *_window(layer, shape[2:]).out_shape


@contextmanager
def _explained(layer: DeployLayer, shape: Shape) -> Iterator[None]:
    """Say which layer it is that parameters or an input do not fit."""
    try:
        yield
    except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError) as error:
        raise VerificationError(
            f"layer {layer.layer.name!r} ({layer.layer.type}) of the deploy net cannot be computed on an input of "
            f"shape {list(shape)}: {error}"
        ) from error


def _convolve(layer: DeployLayer, x: Float32Array) -> Accumulator:
    return convolve(x, _weight(layer), layer.bias, _window(layer, x.shape[2:]))


def _deconvolve(layer: DeployLayer, x: Float32Array) -> Accumulator:
    return convolve_transposed(x, _weight(layer), layer.bias, _window(layer, x.shape[2:]))


def _multiply(layer: DeployLayer, x: Float32Array) -> Accumulator:
    return multiply(x.reshape(x.shape[0], -1), _weight(layer).T, layer.bias)


def _average(layer: DeployLayer, x: Float32Array) -> Accumulator:
    """Average windows as Caffe does: padding counts, what lies beyond it does not; NaN where nothing is left.

    A window that begins behind its own end counts as many values less than none: that is 0, as in Caffe.
    """
    rows, columns = _pooling_spans(layer, x.shape[2:])
    total = np.zeros((*x.shape[:2], len(rows), len(columns)))
    for row, (top, bottom, height) in enumerate(rows):
        for column, (left, right, width) in enumerate(columns):
            patch = x[:, :, top:bottom, left:right]
            count = height * width
            total[:, :, row, column] = patch.sum((2, 3), dtype=np.float64) / count if count else np.nan
    return Accumulator(total, None)


def _window(layer: DeployLayer, lengths: Shape) -> Window:
    """Return how a convolution's kernel moves over an input of these lengths."""
    param, kernel = read_convolution(layer.layer), _weight(layer).shape[2:]
    strides, pads, dilations = (_pair(values) for values in (param.stride, param.pad, param.dilation))
    transposed = layer.layer.type == DECONVOLUTION
    out_shape = tuple(
        convolved_length(*along, transposed=transposed)
        for along in zip(lengths, kernel, strides, pads, dilations, strict=True)
    )
    return Window(strides, dilations, pads, out_shape, param.group)


def _pooling_spans(layer: DeployLayer, lengths: Shape) -> list[list[tuple[int, int, int]]]:
    """Return the windows of a Pooling along both axes; see `_spans`."""
    param = layer.layer.message.message("pooling_param")
    counts, windows = pooled_lengths(param, lengths), pooling_windows(param)
    return [_spans(length, count, *along) for length, count, along in zip(lengths, counts, windows, strict=True)]


def _spans(length: int, count: int, kernel: int, stride: int, pad: int) -> list[tuple[int, int, int]]:
    """Return the windows along one axis: from where to where they reach in the input, and how much they count."""
    spans: list[tuple[int, int, int]] = []
    for index in range(count):
        start = index * stride - pad
        end = min(start + kernel, length + pad)
        spans.append((max(start, 0), min(end, length), end - start))
    return spans


def _weight(layer: DeployLayer) -> npt.NDArray[np.int8]:
    if layer.weight is None:
        raise ValueError("it has no weight")
    return layer.weight


def _pair(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return lengths * 2 if len(lengths) == 1 else lengths


_OPERATIONS: dict[str, Callable[[DeployLayer, Float32Array], Accumulator]] = {
    **dict.fromkeys(CONVOLUTIONS, _convolve),
    DECONVOLUTION: _deconvolve,
    "InnerProduct": _multiply,
    "Pooling": _average,
}
