"""Dividing the activations of balanced layers inside a modified model, whose weights are multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx

from twinquant_onnx.constants import ELEMENT_TYPES
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.layers import LoadedModel
from twinquant_onnx.operators import constant, make_node

__all__ = ["divide_activations", "remove_division"]

_PREFIX = "twinquant.balance/"


def divide_activations(model: LoadedModel, factors: Mapping[str, npt.NDArray[np.float32]]) -> OnnxGraph:
    """Return the graph with a Mul by the reciprocal factors before each balanced layer.

    Args:
        model: the model, whose weights are multiplied by the factors already; it is not modified.
        factors: by layer, one factor per input channel: float32 `(Cin,)`.
    """
    edited = onnx.ModelProto()
    edited.CopyFrom(model.graph.model)
    graph = edited.graph
    nodes = []
    for index, node in enumerate(graph.node):
        site = model.sites.get(index)
        if site is not None and site.name in factors and site.weight is not None:
            rank = 1 if site.input_rank == 1 else len(site.weight.stored_shape)
            shape = (-1,) if rank == 1 else (1, -1) + (1,) * (rank - 2)
            reciprocals = (np.float32(1.0) / factors[site.name]).reshape(shape)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(ELEMENT_TYPES[site.element_type])
            name, divided = f"{_PREFIX}{site.name}.factor", f"{_PREFIX}{site.name}"
            nodes.append(constant(name, name, reciprocals.astype(dtype)))
            nodes.append(make_node("Mul", divided, [node.input[0], name], [divided]))
            node.input[0] = divided
        # An unnamed node is called by its position, which changes here.
        node.name = model.topology.names[index]
        nodes.append(node)
    return OnnxGraph.rebuilt(edited, nodes, model.graph)


def remove_division(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph without the nodes that `divide_activations` put into it; another graph as it is."""
    divided = {
        node.output[0]: node.input[0]
        for node in graph.model.graph.node
        if node.name.startswith(_PREFIX) and node.op_type == "Mul"
    }
    if not divided:
        return graph
    edited = onnx.ModelProto()
    edited.CopyFrom(graph.model)
    nodes = [node for node in edited.graph.node if not node.name.startswith(_PREFIX)]
    for node in nodes:
        if node.input and node.input[0] in divided:
            node.input[0] = divided[node.input[0]]
    return replace(OnnxGraph.rebuilt(edited, nodes, graph), undivided=True)
