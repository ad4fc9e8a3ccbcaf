"""Every tensor of a model, wherever ONNX lets it stand: initializers, attributes, subgraphs, functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx

__all__ = ["HOLDERS", "Place", "graphs_in", "tensors_in"]

Place = tuple[onnx.TensorProto, onnx.NodeProto | None]
"""A tensor and the node whose attribute it is; None for an initializer."""

HOLDERS: dict[str, tuple[str, ...]] = {
    "ModelProto": ("graph", "functions"),
    "GraphProto": ("node", "initializer", "sparse_initializer"),
    "FunctionProto": ("node", "attribute_proto"),
    "NodeProto": ("attribute",),
    "AttributeProto": ("t", "g", "tensors", "graphs", "sparse_tensor", "sparse_tensors"),
    "SparseTensorProto": ("values", "indices"),
}
"""The fields that lead to tensors, by message. training_info is left out on purpose: it is copied as it is."""

_PLAIN_ATTRIBUTES = frozenset(
    onnx.AttributeProto.AttributeType.Value(name) for name in ("FLOAT", "INT", "STRING", "FLOATS", "INTS", "STRINGS")
)


def tensors_in(message: Any) -> Iterator[Place]:
    """Yield every tensor of a message that `HOLDERS` names, in the order of the model's nodes, initializers first."""
    return _TENSORS[message.DESCRIPTOR.name](message, None)


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and all graphs nested in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type not in _PLAIN_ATTRIBUTES:
                if attribute.HasField("g"):
                    yield from graphs_in(attribute.g)
                for nested in attribute.graphs:
                    yield from graphs_in(nested)


def _in_model(model: onnx.ModelProto, node: onnx.NodeProto | None) -> Iterator[Place]:
    yield from _in_graph(model.graph, node)
    for function in model.functions:
        yield from _in_function(function, node)


def _in_graph(graph: onnx.GraphProto, node: onnx.NodeProto | None) -> Iterator[Place]:
    for tensor in graph.initializer:
        yield tensor, None
    for sparse in graph.sparse_initializer:
        yield from _in_sparse(sparse, None)
    for child in graph.node:
        yield from _in_node(child, node)


def _in_function(function: onnx.FunctionProto, node: onnx.NodeProto | None) -> Iterator[Place]:
    for attribute in function.attribute_proto:
        yield from _in_attribute(attribute, node)
    for child in function.node:
        yield from _in_node(child, node)


def _in_node(node: onnx.NodeProto, _: onnx.NodeProto | None) -> Iterator[Place]:
    for attribute in node.attribute:
        if attribute.type not in _PLAIN_ATTRIBUTES:
            yield from _in_attribute(attribute, node)


def _in_attribute(attribute: onnx.AttributeProto, node: onnx.NodeProto | None) -> Iterator[Place]:
    if attribute.HasField("t"):
        yield attribute.t, node
    for tensor in attribute.tensors:
        yield tensor, node
    if attribute.HasField("sparse_tensor"):
        yield from _in_sparse(attribute.sparse_tensor, node)
    for sparse in attribute.sparse_tensors:
        yield from _in_sparse(sparse, node)
    if attribute.HasField("g"):
        yield from _in_graph(attribute.g, node)
    for graph in attribute.graphs:
        yield from _in_graph(graph, node)


def _in_sparse(sparse: onnx.SparseTensorProto, node: onnx.NodeProto | None) -> Iterator[Place]:
    for field in HOLDERS["SparseTensorProto"]:
        if sparse.HasField(field):
            yield getattr(sparse, field), node


def _itself(tensor: onnx.TensorProto, node: onnx.NodeProto | None) -> Iterator[Place]:
    yield tensor, node


_TENSORS: dict[str, Callable[[Any, onnx.NodeProto | None], Iterator[Place]]] = {
    "ModelProto": _in_model,
    "GraphProto": _in_graph,
    "FunctionProto": _in_function,
    "NodeProto": _in_node,
    "AttributeProto": _in_attribute,
    "SparseTensorProto": _in_sparse,
    "TensorProto": _itself,
}
