"""Builders of the nodes that are inserted: the device's operators, and the standard ones that imitate them."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx
from onnx import helper

__all__ = [
    "ACTIVATION_BITS",
    "AttributeValue",
    "ascend_dequant",
    "ascend_quant",
    "cast",
    "constant",
    "make_node",
    "set_attribute",
]

AttributeValue = int | float | str | list[int] | list[float] | list[str]

_ACTIVATION_TYPES = {4: "INT4", 8: "INT8", 16: "INT16"}

ACTIVATION_BITS = {name.encode(): num_bits for num_bits, name in _ACTIVATION_TYPES.items()}
"""How many bits the attribute `dst_type` of an AscendQuant stands for."""


def make_node(op_type: str, name: str, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
    """Return a node of the main domain without attributes."""
    return onnx.NodeProto(op_type=op_type, name=name, input=inputs, output=outputs)


def ascend_quant(name: str, tensor: str, output: str, reciprocal: float, offset: int, num_bits: int) -> onnx.NodeProto:
    """Return an AscendQuant: `clip(rint(x * scale) + offset)`.

    Args:
        name: the node's name.
        tensor: the tensor to quantize.
        output: the quantized tensor.
        reciprocal: the attribute `scale`: float32 value of 1 / scale_d.
        offset: the attribute `offset`.
        num_bits: 4, 8 or 16.
    """
    node = make_node("AscendQuant", name, [tensor], [output])
    set_attribute(node, "scale", float(reciprocal))
    set_attribute(node, "offset", float(offset))
    set_attribute(node, "dst_type", _ACTIVATION_TYPES[num_bits])
    return node


def ascend_dequant(name: str, tensor: str, parameter: str, output: str, *, to_float16: bool) -> onnx.NodeProto:
    """Return an AscendDequant: accumulator * the scale packed in `parameter`, as float32 or float16."""
    node = make_node("AscendDequant", name, [tensor, parameter], [output])
    set_attribute(node, "dtype", int(to_float16))
    return node


def cast(name: str, tensor: str, output: str, to: int) -> onnx.NodeProto:
    """Return a Cast to an ONNX element type."""
    node = make_node("Cast", name, [tensor], [output])
    set_attribute(node, "to", to)
    return node


def constant(name: str, output: str, value: npt.NDArray[Any]) -> onnx.NodeProto:
    """Return a Constant that holds an array."""
    node = make_node("Constant", name, [], [output])
    attribute = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
    attribute.t.dims.extend(value.shape)
    attribute.t.raw_data = value.tobytes()
    return node


def set_attribute(node: onnx.NodeProto, name: str, value: AttributeValue, kind: int | None = None) -> None:
    """Set an attribute, in place if it exists, else as the last one. Edits `node`.

    Args:
        node: the node.
        name: the attribute's name.
        value: its value.
        kind: its type, which an empty list does not tell.
    """
    made = helper.make_attribute(name, value, attr_type=kind)
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.CopyFrom(made)
            return
    node.attribute.append(made)
