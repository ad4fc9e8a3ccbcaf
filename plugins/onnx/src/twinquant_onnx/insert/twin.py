"""A twin under construction: a copy of the model's structure, and the edits that are collected for it."""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.outputs import Flavor
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.layers import LoadedModel
from twinquant_onnx.operators import constant
from twinquant_onnx.tensors import ArrayBytes
from twinquant_onnx.topology import FIRST_IR_OF_PRIVATE_INITIALIZERS, defined_names, rename_captured, subgraphs

__all__ = ["Twin", "drop_op_data_type"]

_INLINE_BYTES = 1024
"""Arrays up to this size go into the message itself."""


class Twin:
    """Collects edits and applies them all at once, so that a big graph is walked a fixed number of times.

    Attributes:
        model: the copy that is edited.
        store: the big tensors, old and new.
        flavor: which twin it is.
        names: the names of the original nodes.
        opset: version of ONNX's own operator set.
    """

    def __init__(self, loaded: LoadedModel, flavor: Flavor, opset: int) -> None:
        self.flavor = flavor
        self.opset = opset
        self.names = loaded.topology.names
        self.store = loaded.graph.store.copy()
        self.model = onnx.ModelProto()
        self.model.CopyFrom(loaded.graph.model)
        self._inputs = loaded.graph.inputs
        graph = self.model.graph
        self._nodes: list[onnx.NodeProto] = list(graph.node)
        self._before: dict[int, list[onnx.NodeProto]] = {}
        self._behind: dict[int, list[onnx.NodeProto]] = {}
        self._renamed: dict[str, str] = {}
        self._retyped: set[str] = set()
        self._node_names = set(self.names)
        self._tensors = set(loaded.topology.producer) | {tensor.name for tensor in graph.initializer}
        self._tensors.update(value.name for value in graph.input)
        self._tensors.update(tensor.values.name for tensor in graph.sparse_initializer)
        for node in self._nodes:
            for subgraph in subgraphs(node):
                self._take_inner_names(subgraph)
        self._suffixes: dict[str, int] = {}

    @property
    def fake(self) -> bool:
        """Whether this is the fake-quant twin."""
        return self.flavor is Flavor.FAKE_QUANT

    def changes_type(self, element_type: str) -> bool:
        """Tell whether the tensors inside a layer have another type than in the model: integers, or widened floats."""
        return not self.fake or element_type != "float32"

    def node(self, index: int) -> onnx.NodeProto:
        """Return the original node at a position, to be edited in place."""
        return self._nodes[index]

    def new_node_name(self, wanted: str) -> str:
        """Return a node name that nothing has yet: the wanted one, or with a numeric suffix."""
        return self._unique(wanted, self._node_names)

    def new_tensor_name(self, wanted: str) -> str:
        """Return a tensor name that nothing has yet: the wanted one, or with a numeric suffix."""
        return self._unique(wanted, self._tensors)

    def _unique(self, wanted: str, taken: set[str]) -> str:
        name = wanted
        while name in taken:
            self._suffixes[wanted] = self._suffixes.get(wanted, 0) + 1
            name = f"{wanted}_{self._suffixes[wanted]}"
        taken.add(name)
        return name

    def _take_inner_names(self, graph: onnx.GraphProto) -> None:
        """Reserve the names inside a subgraph: a new outer tensor of the same name would be hidden there."""
        self._tensors |= defined_names(graph)
        for node in graph.node:
            self._node_names.add(node.name)
            for subgraph in subgraphs(node):
                self._take_inner_names(subgraph)

    def insert_before(self, index: int, node: onnx.NodeProto) -> None:
        """Put a new node before an original one, behind those put there earlier."""
        self._before.setdefault(index, []).append(node)

    def insert_behind(self, index: int, node: onnx.NodeProto) -> None:
        """Put a new node behind an original one, behind those put there earlier. Its inputs are not renamed."""
        self._behind.setdefault(index, []).append(node)

    def add_constant(self, index: int, wanted: str, value: npt.NDArray[Any], *, behind: bool = False) -> str:
        """Put a Constant node before (or behind) an original node and return its output's name."""
        name = self.new_node_name(wanted)
        output = self.new_tensor_name(f"{name}.output0")
        node = constant(name, output, value)
        if behind:
            self.insert_behind(index, node)
        else:
            self.insert_before(index, node)
        return output

    def add_initializer(self, wanted: str, value: npt.NDArray[Any]) -> str:
        """Add an initializer and return its name."""
        name = self.new_tensor_name(wanted)
        tensor = self.model.graph.initializer.add(name=name, dims=value.shape)
        tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        self.set_data(tensor, value)
        return name

    def set_data(self, tensor: onnx.TensorProto, value: npt.NDArray[Any], *, external: bool = False) -> None:
        """Give a tensor the bytes of an array: in the message if they are few. Edits `tensor`; type and dims stay."""
        content = ArrayBytes(np.asarray(value))
        self.store.attach(tensor, content, external=external)
        if content.nbytes <= _INLINE_BYTES and not external:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = content.array.tobytes()

    def redirect(self, old: str, new: str) -> None:
        """Make every reader of a tensor, in subgraphs too, read another one."""
        self._renamed[old] = new

    def retype(self, tensor: str) -> None:
        """Note that a tensor's type is no longer what the model declares."""
        self._retyped.add(tensor)

    def finish(self) -> OnnxGraph:
        """Apply all edits and return the twin."""
        graph = self.model.graph
        ordered: list[onnx.NodeProto] = []
        for index, node in enumerate(self._nodes):
            node.name = self.names[index]
            drop_op_data_type(node)
            for member in (*self._before.get(index, ()), node):
                self._rename_inputs(member)
                ordered.append(member)
            ordered.extend(self._behind.get(index, ()))
        rebuilt = onnx.GraphProto(node=ordered)
        del graph.node[:]
        graph.MergeFrom(rebuilt)
        constant_inputs = {tensor.name for tensor in graph.initializer}
        if self.model.ir_version < FIRST_IR_OF_PRIVATE_INITIALIZERS:
            # ONNX Runtime 1.32 cannot load an older model with an initializer that neither the inputs nor a node names.
            constant_inputs &= {tensor for node in graph.node for tensor in node.input}
        _drop_values(graph.input, constant_inputs)
        _drop_values(graph.value_info, self._retyped)
        return OnnxGraph(self.model, self.store, self._inputs)

    def _rename_inputs(self, node: onnx.NodeProto) -> None:
        for slot, tensor in enumerate(node.input):
            if tensor in self._renamed:
                node.input[slot] = self._renamed[tensor]
        if self._renamed:
            rename_captured(node, self._renamed)


def drop_op_data_type(node: onnx.NodeProto) -> None:
    """Remove the attribute with which the torch flow notes an element type; the tensors themselves decide."""
    for subgraph in subgraphs(node):
        for inner in subgraph.node:
            drop_op_data_type(inner)
    for position, attribute in enumerate(node.attribute):
        if attribute.name == "op_data_type":
            del node.attribute[position]
            return


def _drop_values(values: MutableSequence[onnx.ValueInfoProto], names: set[str]) -> None:
    """Remove the declarations of some tensors."""
    for position in range(len(values) - 1, -1, -1):
        if values[position].name in names:
            del values[position]
