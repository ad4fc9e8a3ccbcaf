"""LSTM and GRU: replaced by the device's recurrent operator, or run in float between quantized inputs."""

from __future__ import annotations

import numpy as np
import onnx

from twinquant.numerics import pack_dequant_parameter, reciprocal_scale
from twinquant.plan import ActivationQuant, LayerPlan
from twinquant_onnx.constants import ELEMENT_TYPES
from twinquant_onnx.insert.activation import add_fake_quant_chain
from twinquant_onnx.insert.twin import Twin
from twinquant_onnx.layers import Site
from twinquant_onnx.operators import AttributeValue, cast, make_node, set_attribute
from twinquant_onnx.rnn import QUANT_DTYPES, RNN_RULES

__all__ = ["insert_rnn"]

_INITIAL_H, _INITIAL_C = 5, 6


def insert_rnn(twin: Twin, site: Site, layer: LayerPlan, graph_outputs: frozenset[str]) -> None:
    """Lower one planned LSTM or GRU."""
    if twin.fake:
        _quantize_inputs(twin, site, layer)
        _restore_element_type(twin, site, layer, graph_outputs)
    else:
        _replace_operator(twin, site, layer)


def _replace_operator(twin: Twin, site: Site, layer: LayerPlan) -> None:
    node, hidden = twin.node(site.index), layer.hidden
    if hidden is None:
        raise ValueError(f"layer {layer.name!r} has no factors of the hidden state")
    rules = RNN_RULES[node.op_type]
    inputs = dict(enumerate(node.input))
    parameter = twin.add_initializer(f"{layer.name}.dequant.param", pack_dequant_parameter(layer.output.scale))
    bias, sequence_lens = inputs.get(3, ""), inputs.get(4, "")
    states = [inputs[slot] for _, slot in rules.states]
    given = {attribute.name: attribute for attribute in node.attribute}
    hidden_size = int(given["hidden_size"].i) if "hidden_size" in given else _recurrent_columns(site)
    clip = float(given["clip"].f) if "clip" in given else -1.0
    empty_floats: AttributeValue = []
    node.op_type = rules.deploy_op_type
    del node.input[:]
    node.input.extend([inputs[0], inputs[1], inputs[2], *states, bias, sequence_lens, "", parameter])
    del node.attribute[:]
    set_attribute(node, "hidden_size", hidden_size)
    set_attribute(node, "activation_alpha", empty_floats, onnx.AttributeProto.FLOATS)
    set_attribute(node, "activation_beta", empty_floats, onnx.AttributeProto.FLOATS)
    set_attribute(node, "activations", empty_floats, onnx.AttributeProto.STRINGS)
    set_attribute(node, "clip", clip)
    set_attribute(node, "direction", "forward")
    if rules.deploy_op_type == RNN_RULES["LSTM"].deploy_op_type:
        set_attribute(node, "input_forget", 0)
    else:
        set_attribute(node, "linear_before_reset", 1)
    set_attribute(node, "quant_sqrt_mode_x", 0)
    set_attribute(node, "quant_sqrt_mode_h", 0)
    set_attribute(node, "quant_scale_x", float(reciprocal_scale(layer.activation.scale)))
    set_attribute(node, "quant_offset_x", float(layer.activation.offset))
    set_attribute(node, "quant_scale_h", float(reciprocal_scale(hidden.scale)))
    set_attribute(node, "quant_offset_h", float(hidden.offset))
    set_attribute(node, "quant_dtype", QUANT_DTYPES[layer.activation.num_bits])


def _recurrent_columns(site: Site) -> int:
    if site.recurrence is None:
        raise ValueError(f"layer {site.name!r} has no recurrence weight")
    return site.recurrence.stored_shape[2]


def _quantize_inputs(twin: Twin, site: Site, layer: LayerPlan) -> None:
    """Pass X and initial_h through quantization and back; the node itself keeps float weights."""
    node = twin.node(site.index)
    if layer.hidden is None:
        raise ValueError(f"layer {layer.name!r} has no factors of the hidden state")
    for slot, suffix, quant in ((0, "", layer.activation), (_INITIAL_H, "1", layer.hidden)):
        node.input[slot] = _quantize_and_back(twin, site, suffix, node.input[slot], quant)


def _quantize_and_back(twin: Twin, site: Site, suffix: str, tensor: str, quant: ActivationQuant) -> str:
    quant_name = f"{site.name}.quant{suffix}"
    quantized = add_fake_quant_chain(twin, site.index, quant_name, tensor, quant, site.element_type)
    base = f"{site.name}.anti_quant{suffix}.fake_antiquant"
    scale = twin.add_constant(site.index, f"{base}.scale", np.asarray(quant.scale, np.float32))
    name = twin.new_node_name(f"{base}.mul")
    output = twin.new_tensor_name(f"{name}.output0")
    twin.insert_before(site.index, make_node("Mul", name, [quantized, scale], [output]))
    return output


def _restore_element_type(twin: Twin, site: Site, layer: LayerPlan, graph_outputs: frozenset[str]) -> None:
    """Run a node of another float type in float32: cast initial_c in, and every output back."""
    if site.element_type == "float32":
        return
    node = twin.node(site.index)
    if len(node.input) > _INITIAL_C and node.input[_INITIAL_C]:
        name = twin.new_node_name(f"{layer.name}.fakequant.cast")
        output = twin.new_tensor_name(f"{name}.output0")
        twin.insert_before(site.index, cast(name, node.input[_INITIAL_C], output, onnx.TensorProto.FLOAT))
        node.input[_INITIAL_C] = output
    for slot, result in enumerate(node.output):
        if not result:
            continue
        name = twin.new_node_name(f"{layer.name}.fakedequant.cast")
        back = cast(name, result, twin.new_tensor_name(f"{name}.output0"), ELEMENT_TYPES[site.element_type])
        if result in graph_outputs:
            node.output[slot] = back.input[0] = twin.new_tensor_name(f"{layer.name}_output{slot}")
            back.output[0] = result
        else:
            twin.redirect(result, back.output[0])
            twin.retype(result)
        twin.insert_behind(site.index, back)
