"""A quantized layer: its integer weight and bias, between its quantization and its dequantization."""

from __future__ import annotations

from math import prod

import numpy as np

from twinquant.errors import ModelContentError, UnsupportedModelError
from twinquant.numerics import BiasRangeError, quantize_bias
from twinquant.plan import LayerKind, LayerPlan
from twinquant_caffe.channels import count_channels
from twinquant_caffe.geometry import read_convolution
from twinquant_caffe.insert.made import float_blob, rewired
from twinquant_caffe.insert.names import InsertedNames
from twinquant_caffe.insert.weights import QuantizedValues, pack_integers, scale_table
from twinquant_caffe.layers import weight_shape
from twinquant_caffe.net import Blob, CaffeNet, Layer
from twinquant_caffe.schema import DATA, INT8_DATA, INT32_DATA

__all__ = ["output_channels", "quantized_layer"]


def quantized_layer(layer: Layer, plan: LayerPlan, names: InsertedNames, *, integers: bool) -> Layer:
    """Return a layer that reads and writes integers.

    Args:
        layer: the float layer.
        plan: its plan.
        names: the blobs around it.
        integers: store int8 and int32; False: float32 of the same integers.

    Raises:
        ModelContentError: a bias value is NaN or does not fit int32.
    """
    blobs: list[Blob] = []
    if plan.weight is not None:
        blobs.append(_weight(layer, plan, integers=integers))
    if plan.bias is not None:
        blobs.append(_bias(layer, plan, integers=integers))
    return rewired(layer, names.quant, names.accumulator, tuple(blobs))


def output_channels(layer: Layer, plan: LayerPlan, net: CaffeNet) -> int:
    """Return how many channels a quantized layer of a net writes.

    Raises:
        UnsupportedModelError: the channels of what a Pooling reads are not known.
    """
    if plan.layer.kind is LayerKind.AVERAGE_POOL:
        channels = count_channels(net).get(layer.reads[0])
        if channels is None:
            raise UnsupportedModelError(
                f"layer {layer.name!r}: the number of channels of the blob {layer.bottoms[0]!r} cannot be found, "
                "because a layer of unknown type or an input without a shape comes before it, and no convolution "
                "between; the fake-quant net needs it. Give the input its shape, or remove the layer's record"
            )
        return channels
    if plan.layer.kind is LayerKind.GEMM:
        return weight_shape(layer)[0]
    return read_convolution(layer).num_output


def _weight(layer: Layer, plan: LayerPlan, *, integers: bool) -> Blob:
    assert plan.weight is not None
    shape = weight_shape(layer)
    groups = read_convolution(layer).group if plan.layer.kind is LayerKind.CONV_TRANSPOSE else None
    rows = shape[0]
    columns = shape[1] if groups is not None else 1
    values = QuantizedValues(
        layer.blobs[0].floats,
        scale_table(plan.weight.scale, groups=groups),
        (rows, columns, prod(shape) // (rows * columns)),
        INT8_DATA if integers else DATA,
        f"layer {layer.name!r}: the weight",
    )
    return Blob(shape, values)


def _bias(layer: Layer, plan: LayerPlan, *, integers: bool) -> Blob:
    assert plan.bias is not None
    floats = layer.blobs[1].floats
    try:
        values = quantize_bias(floats.read(0, floats.size), plan.bias.scale)
    except BiasRangeError as error:
        raise ModelContentError(
            f"layer {layer.name!r}: channel {error.index} of the bias is {error.bias!r}. It becomes {error.value!r} "
            "when it is divided by scale_w * scale_d; it must fit int32. Leave the layer unquantized: remove its "
            "record, and add it to the skip layers when you calibrate again"
        ) from error
    if integers:
        return Blob(values.shape, pack_integers(INT32_DATA, values))
    return float_blob(values.astype(np.float32))
