"""Replacing weights and biases by quantized ones, whoever else reads them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import onnx

from twinquant_onnx.constants import Constant
from twinquant_onnx.insert.twin import Twin
from twinquant_onnx.topology import Reader, Topology

__all__ = ["Replacement", "replace_constants"]


@dataclass(frozen=True, slots=True)
class Replacement:
    """What one layer wants in the place of a constant.

    Attributes:
        constant: the constant.
        reader: where the layer reads it.
        layer: the layer's name.
        content: two layers with the same one can share the result.
        fill: turns a copy of the float tensor into the quantized one: sets type, dims and data.
    """

    constant: Constant
    reader: Reader
    layer: str
    content: Hashable
    fill: Callable[[onnx.TensorProto], None]


def replace_constants(twin: Twin, topology: Topology, replacements: list[Replacement]) -> None:
    """Quantize every constant for each layer that reads it.

    A constant that only quantized layers read is replaced where it is, under its name. Layers that need other values
    than the first, and all layers if somebody reads the floats too, get a tensor of their own.
    """
    by_source: dict[str, list[Replacement]] = {}
    for replacement in replacements:
        by_source.setdefault(replacement.constant.name, []).append(replacement)
    for source, wanted in by_source.items():
        groups: dict[tuple[tuple[int, ...], Hashable], list[Replacement]] = {}
        for replacement in wanted:
            groups.setdefault((replacement.constant.chain, replacement.content), []).append(replacement)
        pending = list(groups.values())
        copies: list[tuple[list[Replacement], onnx.TensorProto]] = []
        in_place = _nobody_reads_floats(twin, topology, source, wanted)
        for group in pending[1 if in_place else 0 :]:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(group[0].constant.tensor)
            copies.append((group, tensor))
        if in_place:
            _replace_in_place(twin, pending[0][0])
            # Nodes that other groups read through still stand behind the replaced tensor, unread.
            for index in {index for replacement in wanted for index in replacement.constant.chain}:
                twin.retype(twin.node(index).output[0])
        for group, tensor in copies:
            _replace_by_copy(twin, group, tensor)


def _nobody_reads_floats(twin: Twin, topology: Topology, source: str, wanted: list[Replacement]) -> bool:
    """Tell whether all readers of a constant, through the nodes in between, are layers that get it quantized."""
    readers = {replacement.reader for replacement in wanted}
    between = {node for replacement in wanted for node in replacement.constant.chain}
    pending = [source]
    while pending:
        tensor = pending.pop()
        if tensor in topology.outputs:
            return False
        for reader in topology.readers.get(tensor, ()):
            if reader in readers:
                continue
            if reader.node not in between or reader.slot < 0:
                return False
            pending.append(twin.node(reader.node).output[0])
    return True


def _replace_in_place(twin: Twin, replacement: Replacement) -> None:
    constant = replacement.constant
    if constant.initializer is not None:
        tensor = twin.model.graph.initializer[constant.initializer]
        replacement.fill(tensor)
    elif constant.node is not None:
        node = twin.node(constant.node)
        tensor = onnx.TensorProto()
        tensor.CopyFrom(constant.tensor)
        replacement.fill(tensor)
        del node.attribute[:]
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    twin.retype(constant.name)


def _replace_by_copy(twin: Twin, group: list[Replacement], tensor: onnx.TensorProto) -> None:
    """Give a group of layers a quantized tensor of their own, behind copies of the nodes in between."""
    first = group[0]
    name = twin.new_tensor_name(f"{first.constant.name}.{first.layer}")
    tensor.name = name
    first.fill(tensor)
    twin.model.graph.initializer.append(tensor)
    current = name
    for index in first.constant.chain:
        copy = onnx.NodeProto()
        copy.CopyFrom(twin.node(index))
        copy.name = twin.new_node_name(f"{twin.names[index]}.{first.layer}")
        copy.input[0] = current
        current = copy.output[0] = twin.new_tensor_name(f"{copy.name}.output0")
        twin.insert_before(min(replacement.reader.node for replacement in group), copy)
    for replacement in group:
        twin.node(replacement.reader.node).input[replacement.reader.slot] = current
