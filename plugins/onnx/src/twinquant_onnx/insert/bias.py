"""Quantization of biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.errors import ModelContentError
from twinquant.numerics import BiasRangeError, quantize_bias
from twinquant.plan import LayerPlan
from twinquant_onnx.constants import read_array
from twinquant_onnx.insert.constants import Replacement
from twinquant_onnx.insert.twin import Twin
from twinquant_onnx.layers import Site
from twinquant_onnx.operators import cast

__all__ = ["bias_replacement", "insert_bias_cast"]

Float32Array = npt.NDArray[np.float32]


def bias_replacement(twin: Twin, site: Site, layer: LayerPlan) -> Replacement | None:
    """Return what becomes of a layer's bias, or None if it has none.

    Raises:
        ModelContentError: a value is NaN or does not fit int32.
    """
    constant, reader, quant = site.bias, site.bias_reader, layer.bias
    if constant is None or reader is None or quant is None:
        return None
    bias = read_array(constant.tensor, twin.store)
    scale = _scale_per_value(bias, quant.scale, quant.recurrence_scale)
    try:
        integers = quantize_bias(bias, scale)
    except BiasRangeError as error:
        raise ModelContentError(
            f"layer {layer.name!r}: channel {error.index} of the bias {constant.name!r} is {error.bias!r}. It becomes "
            f"{error.value!r} when it is divided by scale_w * scale_d; it must fit int32. Leave the layer unquantized: "
            "remove its record, and add it to the skip layers when you calibrate again"
        ) from error
    values: npt.NDArray[Any] = integers
    if twin.fake:
        values = integers.astype(np.float32)
        if site.recurrence is not None:
            values = values * scale
    stored = twin.store.get(constant.tensor)
    external = stored is not None and stored.external

    def fill(tensor: onnx.TensorProto) -> None:
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        twin.set_data(tensor, values, external=external)

    return Replacement(constant, reader, layer.name, (values.dtype.str, scale.tobytes()), fill)


def insert_bias_cast(twin: Twin, site: Site, layer: LayerPlan) -> None:
    """Let a deployed layer with 4-bit activations read its integer bias through a Cast to float."""
    if twin.fake or site.bias_reader is None or layer.bias is None or not layer.bias.cast_to_float:
        return
    node = twin.node(site.bias_reader.node)
    name = twin.new_node_name(f"{layer.name}.bias_quant")
    output = twin.new_tensor_name(f"{name}.output0")
    twin.insert_before(
        site.bias_reader.node, cast(name, node.input[site.bias_reader.slot], output, onnx.TensorProto.FLOAT)
    )
    node.input[site.bias_reader.slot] = output


def _scale_per_value(bias: Float32Array, scale: Float32Array, recurrence: Float32Array | None) -> Float32Array:
    """Shape a bias's scale so that it broadcasts over the bias.

    An RNN's bias `[1, 2 * rows]` has the input's half first; scales per gate are repeated over the gate's rows.
    """
    if recurrence is None:
        return scale
    rows = bias.size // 2
    halves = [np.repeat(part, rows // part.size) for part in (scale, recurrence)]
    return np.concatenate(halves).reshape(bias.shape)
