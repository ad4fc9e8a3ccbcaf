"""Who produces and who reads which tensor of the main graph, subgraphs included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx

__all__ = [
    "FIRST_IR_OF_PRIVATE_INITIALIZERS",
    "MAIN_DOMAINS",
    "Reader",
    "Topology",
    "captured_names",
    "declare_initializers",
    "defined_names",
    "node_names",
    "read_topology",
    "rename_captured",
    "subgraphs",
]

FIRST_IR_OF_PRIVATE_INITIALIZERS = 4
"""Before this version of the format, every initializer is an input of the graph too."""

MAIN_DOMAINS = ("", "ai.onnx")
"""The two spellings of ONNX's own operator domain."""


@dataclass(frozen=True, slots=True)
class Reader:
    """One place where a tensor is read: input `slot` of node `node`. Slot -1: a subgraph of that node captures it."""

    node: int
    slot: int


@dataclass(frozen=True, slots=True)
class Topology:
    """The wiring of a main graph.

    Attributes:
        names: the name of every node, in graph order; unnamed nodes have got one.
        producer: which node makes a tensor.
        readers: where a tensor is read.
        outputs: the graph's outputs.
    """

    names: tuple[str, ...]
    producer: dict[str, int]
    readers: dict[str, tuple[Reader, ...]]
    outputs: frozenset[str]

    def sole_reader(self, tensor: str) -> Reader | None:
        """Return the one place where a tensor is read, if it is one, in the main graph, and no graph output."""
        readers = self.readers.get(tensor, ())
        if len(readers) != 1 or readers[0].slot < 0 or tensor in self.outputs:
            return None
        return readers[0]


def read_topology(graph: onnx.GraphProto) -> Topology:
    """Read the wiring of a main graph in one pass."""
    producer: dict[str, int] = {}
    readers: dict[str, list[Reader]] = {}
    for index, node in enumerate(graph.node):
        for slot, tensor in enumerate(node.input):
            if tensor:
                readers.setdefault(tensor, []).append(Reader(index, slot))
        for tensor in captured_names(node):
            readers.setdefault(tensor, []).append(Reader(index, -1))
        for tensor in node.output:
            if tensor:
                producer[tensor] = index
    return Topology(
        node_names(graph),
        producer,
        {tensor: tuple(places) for tensor, places in readers.items()},
        frozenset(output.name for output in graph.output),
    )


def node_names(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Return every node's name; an unnamed node is `node_<index>`, with a suffix where another node has that name."""
    names = [node.name for node in graph.node]
    taken = set(names)
    for index, name in enumerate(names):
        if name:
            continue
        base = candidate = f"node_{index}"
        attempt = 0
        while candidate in taken:
            attempt += 1
            candidate = f"{base}_{attempt}"
        taken.add(candidate)
        names[index] = candidate
    return tuple(names)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the subgraphs of a node: the branches of an If, the body of a Loop or Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def defined_names(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that a graph itself defines."""
    names = {value.name for value in graph.input}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    names.update(output for node in graph.node for output in node.output)
    return names


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Return the tensors of outer graphs that the subgraphs of a node read."""
    captured: set[str] = set()
    for subgraph in subgraphs(node):
        used = {tensor for inner in subgraph.node for tensor in inner.input if tensor}
        used.update(value.name for value in subgraph.output)
        for inner in subgraph.node:
            used |= captured_names(inner)
        captured |= used - defined_names(subgraph)
    return captured


def rename_captured(node: onnx.NodeProto, renamed: dict[str, str]) -> None:
    """Make the subgraphs of a node read other tensors of outer graphs. Edits `node`."""
    for subgraph in subgraphs(node):
        defined = defined_names(subgraph)
        visible = {old: new for old, new in renamed.items() if old not in defined}
        for inner in subgraph.node:
            for slot, tensor in enumerate(inner.input):
                if tensor in visible:
                    inner.input[slot] = visible[tensor]
            rename_captured(inner, visible)
        for value in subgraph.output:
            if value.name in visible:
                value.name = visible[value.name]


def declare_initializers(model: onnx.ModelProto, tensors: Iterable[onnx.TensorProto]) -> None:
    """List new initializers among the inputs, where the model is so old that they must be. Edits `model`."""
    if model.ir_version < FIRST_IR_OF_PRIVATE_INITIALIZERS:
        for tensor in tensors:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
