"""What a BatchNorm or a Scale does to each channel: a product and a sum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twinquant.numerics.channel_factors import NOT_FINITE, ChannelFactors
from twinquant_caffe.net import Blob, Layer

__all__ = ["read_factors"]

Float64Array = npt.NDArray[np.float64]

_EPS = 1e-5


def read_factors(layer: Layer, channels: int) -> ChannelFactors | str:
    """Return what a BatchNorm or a Scale does to a tensor with its channels on axis 1; or why it cannot be folded."""
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return f"it has {len(layer.bottoms)} bottoms and {len(layer.tops)} tops"
    found = _batch_norm(layer, channels) if layer.type == "BatchNorm" else _scale(layer, channels)
    if isinstance(found, ChannelFactors) and not found.finite:
        return NOT_FINITE
    return found


def _batch_norm(layer: Layer, channels: int) -> ChannelFactors | str:
    param = layer.message.message("batch_norm_param")
    if not param.flag("use_global_stats", True):
        return "it normalizes by its own batch (use_global_stats is false)"
    if [blob.size for blob in layer.blobs] != [channels, channels, 1]:
        sizes = ", ".join(str(blob.size) for blob in layer.blobs)
        return f"it has blobs of {sizes or 'no'} values, not of {channels}, {channels} and 1"
    mean, variance, factor = map(_read, layer.blobs)
    correction = 0.0 if factor[0] == 0 else 1.0 / factor[0]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = 1.0 / np.sqrt(variance * correction + param.number("eps", _EPS))
        return ChannelFactors(scale, -mean * correction * scale)


def _scale(layer: Layer, channels: int) -> ChannelFactors | str:
    param = layer.message.message("scale_param")
    axis, count, bias = param.integer("axis", 1), param.integer("num_axes", 1), param.flag("bias_term", False)
    if axis != 1 or count != 1:
        return f"it scales axis {axis} and {count} axes, not the channels"
    if [blob.size for blob in layer.blobs] != [channels] * (1 + bias):
        return f"it has {len(layer.blobs)} blobs, not {1 + bias} of {channels} values"
    scale = _read(layer.blobs[0])
    return ChannelFactors(scale, _read(layer.blobs[1]) if bias else np.zeros(channels))


def _read(blob: Blob) -> Float64Array:
    return blob.floats.read(0, blob.size).astype(np.float64)
