"""Dropping constants that an edit has left without a reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, MutableSequence
from typing import Any

import onnx

from twinquant_onnx.topology import captured_names

__all__ = ["drop_unread"]


def drop_unread(graph: onnx.GraphProto, tensors: Iterable[str]) -> None:
    """Drop those of the tensors that nobody reads, with the nodes and initializers that only served to make them.

    Edits `graph`; what is left keeps its order. Nodes without a name are then at other positions: name them before.
    """
    reads = Counter(value.name for value in graph.output)
    for node in graph.node:
        reads.update(node.input)
        reads.update(captured_names(node))
    makers = {tensor: node for node in graph.node for tensor in node.output}
    gone: set[str] = set()
    pending = list(tensors)
    while pending:
        tensor = pending.pop()
        maker = makers.get(tensor)
        made = [tensor] if maker is None else list(maker.output)
        if tensor in gone or any(reads[each] for each in made):
            continue
        gone.update(made)
        if maker is not None:
            reads.subtract(maker.input)
            pending.extend(maker.input)
    _drop(graph.node, [index for index, node in enumerate(graph.node) if gone.intersection(node.output)])
    for values in (graph.initializer, graph.input, graph.value_info):
        _drop(values, [index for index, value in enumerate(values) if value.name in gone])


def _drop(values: MutableSequence[Any], indices: Collection[int]) -> None:
    for index in sorted(indices, reverse=True):
        del values[index]
