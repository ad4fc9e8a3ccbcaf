"""Dequantization behind a layer."""

from __future__ import annotations

import onnx

from twinquant.numerics import pack_dequant_parameter
from twinquant.plan import LayerKind, LayerPlan
from twinquant_onnx.constants import ELEMENT_TYPES
from twinquant_onnx.insert.twin import Twin
from twinquant_onnx.layers import Site
from twinquant_onnx.operators import ascend_dequant, cast, make_node

__all__ = ["insert_output_dequant"]


def insert_output_dequant(twin: Twin, site: Site, layer: LayerPlan, graph_outputs: frozenset[str]) -> None:
    """Dequantize behind the layer, or behind the Add that holds its bias, and lead all readers to the result."""
    producer = twin.node(site.output_node)
    result = producer.output[0]
    changed = twin.changes_type(site.element_type)
    if changed and site.output_node != site.index:
        twin.retype(twin.node(site.index).output[0])
    raw = result
    if result in graph_outputs:
        raw = twin.new_tensor_name(f"{twin.names[site.output_node]}_output0")
        producer.output[0] = raw
    elif changed:
        twin.retype(result)
    final = (_fake_dequant if twin.fake else _deploy_dequant)(twin, site, layer, raw)
    if raw != result:
        final.output[0] = result
    else:
        twin.redirect(result, final.output[0])


def _deploy_dequant(twin: Twin, site: Site, layer: LayerPlan, raw: str) -> onnx.NodeProto:
    parameter = twin.add_initializer(f"{layer.name}.dequant.param", pack_dequant_parameter(layer.output.scale))
    name = twin.new_node_name(f"{layer.name}.dequant")
    to_float16 = site.element_type == "float16"
    node = ascend_dequant(name, raw, parameter, twin.new_tensor_name(f"{name}.output0"), to_float16=to_float16)
    twin.insert_behind(site.output_node, node)
    if site.element_type in ("float32", "float16"):
        return node
    return _cast_back(twin, site, f"{name}.cast", node.output[0])


def _fake_dequant(twin: Twin, site: Site, layer: LayerPlan, raw: str) -> onnx.NodeProto:
    base = f"{layer.name}.fakedequant"
    scale = layer.output.scale.reshape(_scale_shape(site))
    constant = twin.add_constant(site.output_node, f"{base}.dqscale", scale, behind=True)
    name = twin.new_node_name(f"{base}.mul")
    node = make_node("Mul", name, [raw, constant], [twin.new_tensor_name(f"{name}.output0")])
    twin.insert_behind(site.output_node, node)
    if site.element_type == "float32":
        return node
    return _cast_back(twin, site, f"{base}.cast", node.output[0])


def _cast_back(twin: Twin, site: Site, wanted: str, tensor: str) -> onnx.NodeProto:
    """Return to the model's own element type."""
    name = twin.new_node_name(wanted)
    node = cast(name, tensor, twin.new_tensor_name(f"{name}.output0"), ELEMENT_TYPES[site.element_type])
    twin.insert_behind(site.output_node, node)
    return node


def _scale_shape(site: Site) -> tuple[int, ...]:
    """Return the shape in which scales broadcast over a layer's output without changing its rank."""
    if site.operator.kind in (LayerKind.CONV, LayerKind.CONV_TRANSPOSE) and site.weight is not None:
        return (1, -1) + (1,) * (len(site.weight.stored_shape) - 2)
    if site.operator.kind is LayerKind.MATMUL and site.input_rank in (None, 1):
        return (-1,)
    return (1, -1)
