"""A layer's float weight as calibration reads it."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from twinquant.registry import LayerWeight
from twinquant_caffe.geometry import DECONVOLUTION, read_convolution
from twinquant_caffe.layers import weight_shape
from twinquant_caffe.net import CaffeNet
from twinquant_caffe.values import Values

__all__ = ["layer_weight"]


def layer_weight(net: CaffeNet, name: str) -> LayerWeight:
    """Return the weight of a Convolution, a Deconvolution or an InnerProduct."""
    layer = net.layer(name)
    rows, columns, *window = weight_shape(layer)
    view = _WeightView(layer.blobs[0].floats, (rows, columns, prod(window)))
    if layer.type == "InnerProduct":
        return LayerWeight(view)
    return LayerWeight(view, out_axis=int(layer.type == DECONVOLUTION), groups=read_convolution(layer).group)


class _WeightView:
    """A weight of rank 3 that reads what is sliced from it.

    Attributes:
        shape: its shape.
    """

    def __init__(self, values: Values, shape: tuple[int, int, int]) -> None:
        self.shape: tuple[int, ...] = shape
        self._values = values

    def __getitem__(self, where: tuple[slice, ...], /) -> npt.NDArray[np.float32]:
        spans = [part.indices(length) for part, length in zip(where, self.shape, strict=True)]
        lengths = [max(0, stop - start) for start, stop, _ in spans]
        inner = next((axis for axis in (2, 1) if lengths[axis] != self.shape[axis]), 0)
        if prod(lengths[:inner]) != 1:  # the rows of the block do not follow each other
            first, last, _ = spans[0]
            if lengths[0] == 1:
                first, last, _ = spans[1]
                parts = [self[where[0], slice(column, column + 1), where[2]] for column in range(first, last)]
                return np.concatenate(parts, axis=1)
            return np.concatenate([self[slice(row, row + 1), where[1], where[2]] for row in range(first, last)])
        start = int(np.ravel_multi_index([span[0] for span in spans], self.shape))
        return self._values.read(start, start + prod(lengths)).reshape(lengths)
