"""Loading an `onnx_ir.Model`: it is serialized by onnx_ir itself, with references to the store for its big tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir

from twinquant.errors import UnsupportedModelError
from twinquant_onnx.completion import complete
from twinquant_onnx.external import ExternalFiles
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.lazy import LazyBytes
from twinquant_onnx.skeleton import MINIMUM_STORED_BYTES
from twinquant_onnx.tensor_sizes import stored_nbytes
from twinquant_onnx.tensors import Bytes, TensorBytes
from twinquant_onnx.traversal import graphs_in

__all__ = ["load_ir"]


def load_ir(source: onnx_ir.Model) -> OnnxGraph:
    """Load an IR model. The source is not modified and must not be modified until the twins are written.

    Raises:
        ModelFileError: a tensor is damaged, or its external data is missing or lies where it must not.
        UnsupportedModelError: onnx_ir cannot express the model in ONNX.
    """
    lowering = _Lowering()
    try:
        model = onnx_ir.serde.serialize_model(lowering.model(source))
    except onnx_ir.serde.SerdeError as error:
        raise UnsupportedModelError(f"onnx_ir cannot serialize the model: {error}") from error
    _restore_outputs(source.graph, model.graph)
    for function, message in zip(source.functions.values(), model.functions, strict=True):
        _restore_outputs(function, message)
    _drop_initializer_infos(model.graph)
    return complete(model, lowering.store, ExternalFiles(Path()), tuple(dict.fromkeys(lowering.files)))


class _Changed:
    """An object of the IR, some of its attributes replaced. onnx_ir serializes whatever has the right attributes."""

    def __init__(self, original: Any, **changes: Any) -> None:
        self.__dict__.update(changes, _original=original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class _ChangedNodes(_Changed):
    """A graph or a function: iterating over it yields its nodes."""

    nodes: list[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.nodes)


class _Lowering:
    """A view of a model in which big tensors are references to `store`.

    Attributes:
        store: the big tensors met so far.
        files: the files of external tensors met so far, resolved.
    """

    def __init__(self) -> None:
        self.store = TensorStore()
        self.files: list[Path] = []
        self._folders: dict[str, ExternalFiles] = {}

    def model(self, model: Any) -> Any:
        functions = {
            key: _ChangedNodes(function, nodes=self.nodes(function), attributes=self.attributes(function.attributes))
            for key, function in model.functions.items()
        }
        return _Changed(model, graph=self.graph(model.graph), functions=functions)

    def graph(self, graph: Any) -> _ChangedNodes:
        initializers = {name: self.initializer(value) for name, value in graph.initializers.items()}
        return _ChangedNodes(graph, nodes=self.nodes(graph), initializers=initializers)

    def nodes(self, nodes: Any) -> list[Any]:
        return [self.node(node) for node in nodes]

    def node(self, node: Any) -> Any:
        attributes = self.attributes(node.attributes)
        unchanged = all(attributes[name] is attribute for name, attribute in node.attributes.items())
        return node if unchanged else _Changed(node, attributes=attributes)

    def attributes(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.attribute(attribute) for name, attribute in attributes.items()}

    def attribute(self, attribute: Any) -> Any:
        if attribute.is_ref() or attribute.value is None:
            return attribute
        kind, value = attribute.type, attribute.value
        if kind == onnx_ir.AttributeType.TENSOR:
            tensor = self.tensor(value)
            return attribute if tensor is value else _Changed(attribute, value=tensor)
        if kind == onnx_ir.AttributeType.TENSORS:
            return _Changed(attribute, value=[self.tensor(tensor) for tensor in value])
        if kind == onnx_ir.AttributeType.GRAPH:
            return _Changed(attribute, value=self.graph(value))
        if kind == onnx_ir.AttributeType.GRAPHS:
            return _Changed(attribute, value=[self.graph(graph) for graph in value])
        return attribute

    def initializer(self, value: Any) -> Any:
        if value.const_value is None:
            return value
        tensor = self.tensor(value.const_value)
        if tensor is value.const_value:
            if tensor.name == value.name:
                return value
            # The serializer would rename the tensor itself, and this one is the user's.
            tensor = onnx_ir.serde.TensorProtoTensor(onnx_ir.serde.serialize_tensor(tensor))
        return _Changed(value, const_value=tensor)

    def tensor(self, tensor: Any) -> Any:
        """Return a small tensor as it is, and a reference to the store for a big or an external one."""
        if isinstance(tensor, onnx_ir.ExternalTensor):
            return self.reference(tensor, self.external_content(tensor), external=True)
        nbytes = stored_nbytes(tensor.dtype.value, tensor.shape.numpy())
        if nbytes is None or nbytes < MINIMUM_STORED_BYTES:
            return tensor
        return self.reference(tensor, LazyBytes(nbytes, partial(_ir_bytes, tensor)))

    def reference(self, tensor: Any, content: TensorBytes, *, external: bool = False) -> onnx_ir.ExternalTensor:
        message = onnx.TensorProto()
        self.store.attach(message, content, external=external)
        return onnx_ir.ExternalTensor(
            message.external_data[0].value,
            None,
            None,
            tensor.dtype,
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    def external_content(self, tensor: onnx_ir.ExternalTensor) -> TensorBytes:
        folder = os.fspath(tensor.base_dir)
        files = self._folders.setdefault(folder, ExternalFiles(Path(folder)))
        location = os.fspath(tensor.location)
        needed = stored_nbytes(tensor.dtype.value, tensor.shape.numpy())
        label = f"tensor {tensor.name!r}, external data {location!r}"
        content = files.range(label, location, tensor.offset or 0, tensor.length, needed)
        self.files.append(content.path)
        return content


def _ir_bytes(tensor: Any) -> Bytes:
    """Return the data of a tensor as raw data, uint8 `(n,)`; without a copy where the array is laid out like that."""
    if tensor.dtype.bitwidth >= 8:
        array = np.ascontiguousarray(tensor.numpy())
        if array.dtype.newbyteorder("<") == array.dtype:
            return array.reshape(-1).view(np.uint8)
    return np.frombuffer(tensor.tobytes(), np.uint8)


def _restore_outputs(nodes: Any, message: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Give nodes back the trailing outputs without a name, which onnx_ir 1.1 drops. Edits `message`."""
    for node, written in zip(nodes, message.node, strict=True):
        written.output.extend([""] * (len(node.outputs) - len(written.output)))
        for attribute, stored in zip(node.attributes.values(), written.attribute, strict=True):
            if attribute.is_ref():
                continue
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                _restore_outputs(attribute.value, stored.g)
            elif attribute.type == onnx_ir.AttributeType.GRAPHS:
                for graph, graph_message in zip(attribute.value, stored.graphs, strict=True):
                    _restore_outputs(graph, graph_message)


def _drop_initializer_infos(main: onnx.GraphProto) -> None:
    """Remove the value_info of initializers, which onnx_ir 1.1 adds. Edits `main`."""
    for graph in graphs_in(main):
        initializers = {tensor.name for tensor in graph.initializer}
        kept = [info for info in graph.value_info if info.name not in initializers]
        if len(kept) < len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(kept)
