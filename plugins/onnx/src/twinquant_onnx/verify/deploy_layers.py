"""Finding the quantized layers of a deploy twin: which nodes form one layer, and where its tensors are."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from twinquant_onnx.constants import Constant
from twinquant_onnx.layers import OPERATORS
from twinquant_onnx.rnn import RNN_RULES
from twinquant_onnx.topology import MAIN_DOMAINS
from twinquant_onnx.verify.twin import Twin

__all__ = ["DEPLOY_RNN", "DeployLayer", "DeployRnn", "find_layers", "find_rnns"]

DEPLOY_RNN = {rules.deploy_op_type: op_type for op_type, rules in RNN_RULES.items()}
"""The standard operator that a recurrent operator of the device replaces."""


@dataclass(frozen=True, slots=True)
class DeployLayer:
    """The nodes of one layer, as positions in the graph.

    Attributes:
        name: the layer's name.
        op_type: its operator.
        quant: the AscendQuant.
        path: nodes between the AscendQuant and the layer, in order: at most a Pad.
        index: the layer's node.
        add: the Add that adds a MatMul's bias, or None.
        dequant: the AscendDequant.
        weight: the weight; None for AveragePool.
        bias: the bias, or None.
        bias_cast: the Cast to float through which the bias is read, or None.
        parameter: the packed dequantization parameter.
    """

    name: str
    op_type: str
    quant: int
    path: tuple[int, ...]
    index: int
    add: int | None
    dequant: int
    weight: Constant | None
    bias: Constant | None
    bias_cast: int | None
    parameter: Constant

    @property
    def nodes(self) -> tuple[int, ...]:
        """All nodes but the AscendQuant, which layers may share."""
        optional = (index for index in (self.add, self.bias_cast) if index is not None)
        return (*self.path, self.index, *optional, self.dequant)


@dataclass(frozen=True, slots=True)
class DeployRnn:
    """A recurrent operator of the device.

    Attributes:
        name: the layer's name.
        op_type: the standard operator it replaces: LSTM or GRU.
        index: its position in the graph.
        inputs: positions of its inputs by name.
    """

    name: str
    op_type: str
    index: int
    inputs: dict[str, int]


def find_layers(twin: Twin) -> tuple[list[DeployLayer], list[str]]:
    """Find all layers that end in an AscendDequant; the second result says what does not form a layer."""
    layers: list[DeployLayer] = []
    problems: list[str] = []
    for index, node in enumerate(twin.graph.model.graph.node):
        if node.op_type == "AscendDequant" and node.domain in MAIN_DOMAINS:
            found = _layer_before(twin, index)
            if isinstance(found, str):
                problems.append(f"AscendDequant {node.name!r}: {found}")
            else:
                layers.append(found)
    return layers, problems


def find_rnns(twin: Twin) -> list[DeployRnn]:
    """Find all recurrent operators of the device."""
    found: list[DeployRnn] = []
    for index, node in enumerate(twin.graph.model.graph.node):
        op_type = DEPLOY_RNN.get(node.op_type)
        if op_type is not None and node.domain in MAIN_DOMAINS:
            states = [name for name, _ in RNN_RULES[op_type].states]
            names = ["X", "W", "R", *states, "B", "sequence_lens", "reserved", "parameter"]
            found.append(DeployRnn(node.name, op_type, index, {name: slot for slot, name in enumerate(names)}))
    return found


def _layer_before(twin: Twin, dequant: int) -> DeployLayer | str:
    node = twin.node(dequant)
    if len(node.input) != 2 or len(node.output) != 1:
        return f"it has {len(node.input)} inputs and {len(node.output)} outputs, expected 2 and 1"
    parameter = twin.finder.find(node.input[1])
    if parameter is None:
        return f"its parameter {node.input[1]!r} is not constant"
    index, add = twin.producer(node.input[0]), None
    if index is not None and twin.node(index).op_type == "Add":
        add, index = index, twin.producer(_input(twin.node(index), 0))
    layer = twin.node(index) if index is not None else None
    if index is None or layer is None or layer.op_type not in OPERATORS or layer.domain not in MAIN_DOMAINS:
        return f"its input {node.input[0]!r} is not made by a quantized layer"
    if add is not None and layer.op_type != "MatMul":
        return f"its input {node.input[0]!r} is made by an Add behind a {layer.op_type}; only MatMul has its bias there"
    operator = OPERATORS[layer.op_type]
    weight = None
    if operator.weight is not None:
        tensor = _input(layer, operator.weight)
        weight = twin.finder.find(tensor, through_transpose=layer.op_type == "MatMul")
        if weight is None:
            return f"the weight {tensor!r} of layer {layer.name!r} is not constant"
    bias_name = _bias_name(twin, index, add)
    bias, bias_cast = _find_bias(twin, bias_name)
    if bias_name and bias is None:
        return f"the bias {bias_name!r} of layer {layer.name!r} is not constant"
    walked = _walk_to_quant(twin, _input(layer, 0))
    if walked is None:
        return f"the input {_input(layer, 0)!r} of layer {layer.name!r} does not come from an AscendQuant"
    quant, path = walked
    return DeployLayer(layer.name, layer.op_type, quant, path, index, add, dequant, weight, bias, bias_cast, parameter)


def _bias_name(twin: Twin, index: int, add: int | None) -> str:
    if add is not None:
        return _input(twin.node(add), 1)
    node = twin.node(index)
    slot = OPERATORS[node.op_type].bias
    return "" if slot is None else _input(node, slot)


def _input(node: onnx.NodeProto, slot: int) -> str:
    """Return the tensor that a node reads as an input; "" if that is not connected."""
    return str(node.input[slot]) if slot < len(node.input) else ""


def _find_bias(twin: Twin, tensor: str) -> tuple[Constant | None, int | None]:
    """Return the constant behind a bias, and the Cast it is read through, as 4-bit activations need it."""
    index = twin.producer(tensor)
    if index is None or twin.node(index).op_type != "Cast":
        return twin.finder.find(tensor), None
    return twin.finder.find(_input(twin.node(index), 0)), index


def _walk_to_quant(twin: Twin, tensor: str) -> tuple[int, tuple[int, ...]] | None:
    """Follow a layer's input back to its AscendQuant; a Pad may stand in between."""
    path: list[int] = []
    index = twin.producer(tensor)
    while index is not None and twin.node(index).op_type == "Pad":
        path.append(index)
        index = twin.producer(_input(twin.node(index), 0))
    if index is None or twin.node(index).op_type != "AscendQuant":
        return None
    return index, tuple(reversed(path))
