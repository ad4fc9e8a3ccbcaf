"""Quantization in front of a layer."""

from __future__ import annotations

import numpy as np
import onnx

from twinquant.numerics import integer_range, reciprocal_scale
from twinquant.plan import ActivationQuant, LayerPlan
from twinquant_onnx.constants import ELEMENT_TYPES
from twinquant_onnx.insert.twin import Twin
from twinquant_onnx.layers import Site
from twinquant_onnx.operators import ascend_quant, cast, make_node, set_attribute

__all__ = ["ROUNDING_MAGIC", "add_fake_quant_chain", "insert_activation_quant"]

ROUNDING_MAGIC = 12582912.0
"""1.5 * 2^23: adding and subtracting it rounds a float32 of moderate size to the nearest integer, ties to even."""


def insert_activation_quant(twin: Twin, site: Site, layer: LayerPlan, before: int, quantized: dict[str, str]) -> None:
    """Quantize a layer's input, with the balance factors before it, or share the node of an earlier layer.

    Args:
        twin: the twin under construction.
        site: the layer.
        layer: its plan.
        before: position of the first node that reads the quantized tensor.
        quantized: the quantized tensor by owner; the layer's own is added.
    """
    quant = layer.activation
    reader = site.activation
    node = twin.node(reader.node)
    if quant.owner != layer.name:
        node.input[reader.slot] = quantized[quant.owner]
    else:
        tensor = node.input[reader.slot]
        if quant.balance is not None:
            tensor = _insert_balance(twin, site, layer, before, tensor)
        name = twin.new_node_name(f"{layer.name}.quant")
        if twin.fake:
            output = add_fake_quant_chain(twin, before, name, tensor, quant, site.element_type)
        else:
            output = twin.new_tensor_name(f"{name}.output0")
            made = ascend_quant(
                name, tensor, output, float(reciprocal_scale(quant.scale)), quant.offset, quant.num_bits
            )
            twin.insert_before(before, made)
        quantized[layer.name] = output
        node.input[reader.slot] = output
    if reader.node != site.index:
        if twin.changes_type(site.element_type):
            twin.retype(node.output[0])
        if twin.fake and site.element_type != "float32" and len(node.input) > 2:
            # The constant a Pad adds is 0, the default; the given one has the type of the tensor before the cast.
            node.input[2] = ""


def _insert_balance(twin: Twin, site: Site, layer: LayerPlan, before: int, tensor: str) -> str:
    """Divide the activation by the balance factors: multiply by their reciprocals."""
    factors = layer.activation.balance
    weight = site.weight
    if factors is None or weight is None:
        raise ValueError(f"layer {layer.name!r} has no balance factors or no weight")
    rank = len(weight.stored_shape)
    shape = (-1,) if site.input_rank == 1 else (1, -1) + (1,) * (rank - 2)
    values = (np.float32(1.0) / factors).reshape(shape)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(ELEMENT_TYPES[site.element_type])
    constant = twin.add_constant(before, f"{layer.name}.tensor_balance_factor", values.astype(dtype))
    name = twin.new_node_name(f"{layer.name}.mul")
    output = twin.new_tensor_name(f"{name}.output0")
    twin.insert_before(before, make_node("Mul", name, [tensor, constant], [output]))
    return output


def add_fake_quant_chain(
    twin: Twin, index: int, quant_name: str, tensor: str, quant: ActivationQuant, element_type: str
) -> str:
    """Put the standard operators that imitate a quantization before a node and return the result's name.

    The result is `clip(round(x * s) + o) - o`: integers without the offset, as float32.
    """
    base = f"{quant_name}.fakequant"
    low, high = (np.float32(value) for value in integer_range(quant.num_bits))

    def value(name: str, number: float) -> str:
        return twin.add_constant(index, f"{base}.{name}", np.asarray(number, np.float32))

    def step(op_type: str, name: str, *inputs: str) -> tuple[onnx.NodeProto, str]:
        node_name = twin.new_node_name(f"{base}.{name}")
        output = twin.new_tensor_name(f"{node_name}.output0")
        node = make_node(op_type, node_name, list(inputs), [output])
        twin.insert_before(index, node)
        return node, output

    scale, offset = value("scale", float(reciprocal_scale(quant.scale))), value("offset", quant.offset)
    if element_type != "float32":
        name = twin.new_node_name(f"{base}.cast")
        output = twin.new_tensor_name(f"{name}.output0")
        twin.insert_before(index, cast(name, tensor, output, onnx.TensorProto.FLOAT))
        tensor = output
    _, tensor = step("Mul", "mul", tensor, scale)
    if twin.opset >= 11:
        _, tensor = step("Round", "round", tensor)
    else:
        magic = value("magic", ROUNDING_MAGIC)
        _, tensor = step("Add", "round.shift", tensor, magic)
        _, tensor = step("Sub", "round", tensor, magic)
    _, tensor = step("Add", "add", tensor, offset)
    if twin.opset >= 11:
        _, tensor = step("Clip", "clip", tensor, value("min_val", low), value("max_val", high))
    else:
        clip, tensor = step("Clip", "clip", tensor)
        set_attribute(clip, "min", float(low))
        set_attribute(clip, "max", float(high))
    _, tensor = step("Sub", "sub", tensor, offset)
    return tensor
