"""Quantizable layers: which operators, which of their inputs, and on which conditions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from twinquant.plan import LayerInfo, LayerKind
from twinquant_onnx.constants import FLOAT_TYPES, Constant, ConstantFinder, is_float, read_array, type_name
from twinquant_onnx.element_types import TensorTypes, infer_types
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.rnn import rnn_refusal
from twinquant_onnx.shapes import shape_refusal
from twinquant_onnx.topology import MAIN_DOMAINS, Reader, Topology, read_topology, subgraphs

__all__ = ["OPERATORS", "LoadedModel", "Operator", "Site", "analyse"]


@dataclass(frozen=True, slots=True)
class Operator:
    """How an operator type is quantized.

    Attributes:
        kind: what it computes.
        weight: which input is the weight; None: it has none.
        bias: which input is the bias; None: it has none.
        recurrence: which input is the recurrence weight of an RNN.
        weight_ranks: ranks the weight may have.
    """

    kind: LayerKind
    weight: int | None = 1
    bias: int | None = 2
    recurrence: int | None = None
    weight_ranks: tuple[int, ...] = (3, 4, 5)


OPERATORS = {
    "Conv": Operator(LayerKind.CONV),
    "ConvTranspose": Operator(LayerKind.CONV_TRANSPOSE),
    "Gemm": Operator(LayerKind.GEMM, weight_ranks=(2,)),
    "MatMul": Operator(LayerKind.MATMUL, bias=None, weight_ranks=(2,)),
    "AveragePool": Operator(LayerKind.AVERAGE_POOL, weight=None, bias=None),
    "LSTM": Operator(LayerKind.LSTM, bias=3, recurrence=2, weight_ranks=(3,)),
    "GRU": Operator(LayerKind.GRU, bias=3, recurrence=2, weight_ranks=(3,)),
}


_QUANTIZED = "it is quantized already: this model is a fake-quant twin; give the float model"

_FAKE_SCALES = {
    ".fakedequant.mul": ".fakedequant.dqscale",
    ".anti_quant.fake_antiquant.mul": ".anti_quant.fake_antiquant.scale",
}
"""The products by which a fake-quant twin returns to real values, and the constants they multiply by."""


@dataclass(frozen=True, slots=True)
class Site:
    """One quantizable layer and everything around it that quantization touches.

    Attributes:
        index: position of the layer's node.
        name: the layer's name.
        operator: how its type is quantized.
        element_type: element type of its input: "float32", "float16", "bfloat16" or "float64".
        input_rank: rank of its input, or None if unknown.
        activation: where the tensor that is quantized is read: the layer's input 0, or that of a Pad before it.
        weight: the weight.
        recurrence: the recurrence weight of an RNN.
        bias: the bias.
        bias_reader: where the bias is read: in the layer or in the Add behind it.
        output_node: position of the node behind which the output is dequantized: the layer, or the Add behind it.
        group: number of groups of a convolution.
    """

    index: int
    name: str
    operator: Operator
    element_type: str
    input_rank: int | None
    activation: Reader
    weight: Constant | None
    recurrence: Constant | None
    bias: Constant | None
    bias_reader: Reader | None
    output_node: int
    group: int = 1


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with everything that was found out about it once.

    Attributes:
        graph: the model.
        topology: its wiring.
        layers: every node as the plan sees it, in graph order; then the named nodes of subgraphs, which are refused.
        sites: the quantizable layers by position of their nodes.
    """

    graph: OnnxGraph
    topology: Topology
    layers: tuple[LayerInfo, ...]
    sites: dict[int, Site]


def analyse(graph: OnnxGraph) -> LoadedModel:
    """Describe every node and find what belongs to each quantizable layer."""
    main = graph.model.graph
    topology = read_topology(main)
    finder = ConstantFinder(main, topology)
    describer = _Describer(graph, topology, finder, infer_types(graph))
    quantized = _imitated_layers(main, topology)
    layers: list[LayerInfo] = []
    sites: dict[int, Site] = {}
    for index, node in enumerate(main.node):
        operator = OPERATORS.get(node.op_type) if node.domain in MAIN_DOMAINS else None
        if operator is None:
            foreign = node.op_type in OPERATORS
            refusal = f"it is an operator of the domain {node.domain!r}, not ONNX's own" if foreign else None
            layers.append(LayerInfo(topology.names[index], node.op_type, refusal=refusal))
            continue
        imitated = topology.names[index] in quantized
        site = _QUANTIZED if imitated else describer.describe(index, operator)
        if isinstance(site, str):
            layers.append(LayerInfo(topology.names[index], node.op_type, operator.kind, refusal=site))
        else:
            sites[index] = site
            layers.append(_info(main, site))
    own_names = set(topology.names)
    # Both branches of an If may use one name: a record that has it shall be refused for the subgraph, not the name.
    inner = {layer.name: layer for node in main.node for layer in _inner_layers(node) if layer.name not in own_names}
    layers.extend(inner.values())
    return LoadedModel(graph, topology, tuple(layers), sites)


def _imitated_layers(main: onnx.GraphProto, topology: Topology) -> set[str]:
    """Return the layers of a fake-quant twin that are quantized already: the product by their scale is there."""
    found: set[str] = set()
    for node, name in zip(main.node, topology.names, strict=True):
        for product, scale in _FAKE_SCALES.items():
            if node.op_type == "Mul" and name.endswith(product) and len(node.input) == 2:
                layer = name.removesuffix(product)
                maker = topology.producer.get(node.input[1])
                if maker is not None and topology.names[maker] == layer + scale:
                    found.add(layer)
    return found


def _inner_layers(node: onnx.NodeProto) -> Iterator[LayerInfo]:
    """Describe the named nodes inside a node's subgraphs: a record may name them, but they stay as they are."""
    for subgraph in subgraphs(node):
        for inner in subgraph.node:
            operator = OPERATORS.get(inner.op_type)
            if inner.name:
                refusal = (
                    f"it is inside a subgraph of the {node.op_type} {node.name!r}; only the main graph is quantized"
                )
                yield LayerInfo(inner.name, inner.op_type, operator.kind if operator else None, refusal=refusal)
            yield from _inner_layers(inner)


@dataclass(frozen=True, slots=True)
class _Describer:
    graph: OnnxGraph
    topology: Topology
    finder: ConstantFinder
    types: TensorTypes

    def describe(self, index: int, operator: Operator) -> Site | str:
        """Return the site of a node, or why it cannot be quantized."""
        node = self.graph.model.graph.node[index]
        if not node.input or not node.input[0]:
            return "it has no input"
        if operator.recurrence is None and not any(node.output[:1]):
            return "it has no output"
        weight = recurrence = bias = None
        if operator.weight is not None:
            found_weight = self._weight(node, operator.weight, operator)
            if isinstance(found_weight, str):
                return found_weight
            weight = found_weight
        if operator.recurrence is not None:
            found_recurrence = self._weight(node, operator.recurrence, operator, "recurrence weight")
            if isinstance(found_recurrence, str):
                return found_recurrence
            recurrence = found_recurrence
            refusal = rnn_refusal(node, self.finder)
            if refusal:
                return refusal
        if node.op_type == "Gemm" and _int_attribute(node, "transA", 0):
            return "transA is not 0"
        bias_reader, output_node = None, index
        if operator.bias is not None and len(node.input) > operator.bias and node.input[operator.bias]:
            bias = self.finder.find(node.input[operator.bias])
            if bias is None:
                return "its bias is not constant"
            bias_reader = Reader(index, operator.bias)
        elif operator.kind is LayerKind.MATMUL and weight is not None:
            found = self._bias_behind(node.output[0], weight.shape[1])
            if found is not None:
                bias, bias_reader = found
                output_node = bias_reader.node
        if bias is not None and not is_float(bias.tensor):
            return f"its bias is {type_name(bias.tensor.data_type)}, not a float type"
        group, trans_b = _int_attribute(node, "group", 1), bool(_int_attribute(node, "transB", 0))
        hidden_size = _int_attribute(node, "hidden_size", 0) or None
        misfit = shape_refusal(
            operator.kind, weight, recurrence, bias, group=group, trans_b=trans_b, hidden_size=hidden_size
        )
        if misfit:
            return misfit
        activation = self._activation(index, operator)
        element_type = self._element_type(node, activation, weight)
        if element_type not in FLOAT_TYPES:
            return f"its input is {type_name(element_type)}, not a float type"
        return Site(
            index=index,
            name=self.topology.names[index],
            operator=operator,
            element_type=FLOAT_TYPES[element_type],
            input_rank=self.types.rank.get(node.input[0]),
            activation=activation,
            weight=weight,
            recurrence=recurrence,
            bias=bias,
            bias_reader=bias_reader,
            output_node=output_node,
            group=group,
        )

    def _element_type(self, node: onnx.NodeProto, activation: Reader, weight: Constant | None) -> int:
        """Return the element type of the tensor that is quantized; where it is unknown, what it must be like."""
        read = self.graph.model.graph.node[activation.node].input[activation.slot]
        if weight is not None:
            return self.types.element.get(read, weight.tensor.data_type)
        return self.types.element.get(read, self.types.element.get(node.output[0], onnx.TensorProto.FLOAT))

    def _weight(self, node: onnx.NodeProto, slot: int, operator: Operator, what: str = "weight") -> Constant | str:
        if len(node.input) <= slot or not node.input[slot]:
            return f"it has no {what}"
        constant = self.finder.find(node.input[slot], through_transpose=operator.kind is LayerKind.MATMUL)
        if constant is None:
            return f"its {what} {node.input[slot]!r} (input {slot}) is not constant"
        if not is_float(constant.tensor):
            return f"its {what} {constant.name!r} is {type_name(constant.tensor.data_type)}, not a float type"
        if len(constant.stored_shape) not in operator.weight_ranks:
            allowed = " or ".join(map(str, operator.weight_ranks))
            return (
                f"its {what} {constant.name!r} has rank {len(constant.stored_shape)}, only rank {allowed} is supported"
            )
        if 0 in constant.stored_shape:
            return f"its {what} {constant.name!r} is empty"
        return constant

    def _bias_behind(self, output: str, length: int) -> tuple[Constant, Reader] | None:
        """Find the constant bias of the one Add that reads a MatMul's output on its input 0."""
        reader = self.topology.sole_reader(output)
        if reader is None or reader.slot != 0:
            return None
        add = self.graph.model.graph.node[reader.node]
        if add.op_type != "Add" or add.domain not in MAIN_DOMAINS:
            return None
        bias = self.finder.find(add.input[1])
        if bias is None or bias.shape != (length,) or not is_float(bias.tensor):
            return None
        return bias, Reader(reader.node, 1)

    def _activation(self, index: int, operator: Operator) -> Reader:
        """Find where the activation is quantized: before the layer, or before the Pad of an AveragePool."""
        here = Reader(index, 0)
        tensor = self.graph.model.graph.node[index].input[0]
        maker = self.topology.producer.get(tensor)
        if operator.kind is not LayerKind.AVERAGE_POOL or maker is None:
            return here
        pad = self.graph.model.graph.node[maker]
        if (
            pad.op_type != "Pad"
            or pad.domain not in MAIN_DOMAINS
            or self.topology.names[maker] != f"{self.topology.names[index]}_pad"
            or self.topology.sole_reader(tensor) is None
            or not self._pads_with_zero(pad)
        ):
            return here
        return Reader(maker, 0)

    def _pads_with_zero(self, pad: onnx.NodeProto) -> bool:
        """Tell whether what a Pad adds is the same before and after dequantization: zeros, or copies of the input."""
        attributes = {attribute.name: attribute for attribute in pad.attribute}
        if "mode" in attributes and attributes["mode"].s != b"constant":
            return True
        if "value" in attributes and attributes["value"].f != 0:
            return False
        if len(pad.input) < 3 or not pad.input[2]:
            return True
        value = self.finder.find(pad.input[2])
        if value is None or not is_float(value.tensor):
            return False
        return not read_array(value.tensor, self.graph.store).any()


def _info(main: onnx.GraphProto, site: Site) -> LayerInfo:
    """Describe a quantizable layer to the plan."""
    pad_or_layer = main.node[site.activation.node]
    kind, weight = site.operator.kind, site.weight
    out_channels = in_channels = None
    packed: tuple[int, ...] = ()
    if weight is not None:
        shape = weight.shape
        if kind is LayerKind.CONV:
            out_channels, in_channels, packed = shape[0], shape[1] * site.group, (shape[1],)
        elif kind is LayerKind.CONV_TRANSPOSE:
            out_channels, in_channels, packed = shape[1] * site.group, shape[0], (shape[0],)
        elif kind is LayerKind.MATMUL:
            in_channels, packed = shape[0], (shape[0],)
        elif kind is LayerKind.GEMM:
            inner = shape[1] if _int_attribute(main.node[site.index], "transB", 0) else shape[0]
            in_channels, packed = inner, (inner,)
        elif site.recurrence is not None:
            out_channels, in_channels, packed = shape[1], shape[2], (shape[2], site.recurrence.shape[2])
    return LayerInfo(
        name=site.name,
        op_type=main.node[site.index].op_type,
        kind=kind,
        activation=pad_or_layer.input[site.activation.slot],
        element_type=site.element_type,
        out_channels=out_channels,
        in_channels=in_channels,
        packed_lengths=packed,
        has_bias=site.bias is not None,
        weight_shape=weight.stored_shape if weight is not None else None,
    )


def _int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
