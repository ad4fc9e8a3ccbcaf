"""Sessions of ONNX Runtime for pieces of a graph, and the values that pass between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from twinquant.errors import VerificationError
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.topology import captured_names
from twinquant_onnx.traversal import tensors_in

__all__ = [
    "ORT_ERRORS",
    "PieceSessions",
    "from_value",
    "is_array",
    "node_reads",
    "shareable",
    "to_value",
]

Array = npt.NDArray[Any]

ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_state.EPFail,
    ort_state.EngineError,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoModel,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
    RuntimeError,
)
"""What ONNX Runtime raises; it has no common base of its own."""

_ELEMENT_TYPES = {
    "float": onnx.TensorProto.FLOAT,
    "double": onnx.TensorProto.DOUBLE,
    **{name.lower(): number for name, number in onnx.TensorProto.DataType.items() if name not in ("FLOAT", "DOUBLE")},
}


_SHAREABLE: dict[int, npt.DTypeLike] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.DOUBLE: np.float64,
    onnx.TensorProto.INT8: np.int8,
    onnx.TensorProto.INT32: np.int32,
    onnx.TensorProto.INT64: np.int64,
}


class PieceSessions:
    """Builds sessions for some of a graph's nodes; the graph's constants go with the nodes that read them.

    Attributes:
        sizes: bytes of the initializers, by name.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        main = graph.model.graph
        self._graph = graph
        self._initializers = {tensor.name: tensor for tensor in main.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in main.sparse_initializer}
        self._constant_nodes = {n.output[0]: n for n in main.node if n.op_type == "Constant" and n.output}
        self.sizes = {tensor.name: _tensor_bytes(tensor, graph.store) for tensor in main.initializer}

    def is_constant(self, tensor: str) -> bool:
        """Tell whether a tensor is an initializer or made by a Constant node."""
        return tensor in self._initializers or tensor in self._constant_nodes or tensor in self._sparse

    def build(
        self, nodes: Sequence[onnx.NodeProto], reads: Sequence[str], types: Sequence[str], writes: Sequence[str]
    ) -> tuple[ort.InferenceSession, list[Array]]:
        """Build the session of some nodes: a model of its own, not optimized.

        Args:
            nodes: the nodes, in topological order.
            reads: tensors that are fed.
            types: their types in ONNX Runtime's spelling.
            writes: tensors that are returned.

        Returns:
            the session, and the big weights that it uses in place: they must live as long as it does.
        """
        source = self._graph.model
        model = onnx.ModelProto(ir_version=source.ir_version)
        model.opset_import.extend(source.opset_import)
        model.functions.extend(source.functions)
        model.graph.name = "piece"
        shared: dict[str, Array] = {}
        for name in dict.fromkeys(name for node in nodes for name in node_reads(node) if self.is_constant(name)):
            if name in self._constant_nodes:
                model.graph.node.append(self._constant_nodes[name])
            elif name in self._sparse:
                model.graph.sparse_initializer.append(self._sparse[name])
            elif (array := shareable(self._initializers[name], self._graph.store)) is not None:
                shared[name] = array
            else:
                model.graph.initializer.append(self._initializers[name])
        model.graph.node.extend(nodes)
        for tensor, _ in tensors_in(model):
            self._graph.store.detach(tensor)
        model.graph.initializer.extend(self._initializers[name] for name in shared)
        for name, text in zip(reads, types, strict=True):
            model.graph.input.append(onnx.helper.make_value_info(name, _type(name, text)))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in writes)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Threads that spin while they wait make every session take 45 ms to end (onnxruntime 1.32).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if shared:
            handles = [ort.OrtValue.ortvalue_from_numpy(array) for array in shared.values()]
            options.add_external_initializers(list(shared), handles)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session, list(shared.values())


def node_reads(node: onnx.NodeProto) -> list[str]:
    """List the tensors that a node reads, its subgraphs included."""
    return [name for name in node.input if name] + sorted(captured_names(node))


def _tensor_bytes(tensor: onnx.TensorProto, store: TensorStore) -> int:
    stored = store.get(tensor)
    return stored.content.nbytes if stored is not None else 8 * prod(tensor.dims)


def shareable(tensor: onnx.TensorProto, store: TensorStore) -> Array | None:
    """Read a stored initializer as an array that ONNX Runtime uses in place; None if it must be in the message."""
    source = store.readable(tensor)
    if source is None or source.nbytes == 0 or tensor.data_type not in _SHAREABLE:
        return None
    return source.read_all().view(_SHAREABLE[tensor.data_type]).reshape(tuple(tensor.dims))


def _type(name: str, text: str) -> onnx.TypeProto:
    """Turn ONNX Runtime's spelling of a type, such as `seq(tensor(float))`, into ONNX's."""
    match = re.fullmatch(r"(seq\()?tensor\((\w+)\)\)?", text)
    if match is None or match[2] not in _ELEMENT_TYPES:
        raise VerificationError(
            f"tensor {name!r} is of type {text}, which cannot be handed from one node to another here"
        )
    tensor = onnx.helper.make_tensor_type_proto(_ELEMENT_TYPES[match[2]], None)
    return onnx.helper.make_sequence_type_proto(tensor) if match[1] else tensor


def to_value(name: str, array: Array) -> Any:
    """Turn an array into a value of ONNX Runtime; `name` is for the error that strings give."""
    if array.dtype.kind in "OUS":
        raise VerificationError(f"input {name!r} holds strings; models with string inputs cannot be run here")
    whole = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(whole.view(np.uint16), onnx.TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(whole)


def is_array(value: Any) -> bool:
    """Tell whether a value can be read as an array: not a sequence, and no strings."""
    return bool(value.is_tensor()) and value.data_type() != "tensor(string)"


def from_value(value: Any) -> Array:
    """Return a copy of a value as an array; bfloat16, which NumPy does not have, as float32."""
    if value.data_type() == "tensor(bfloat16)":
        value = _widen(value)
    # numpy() gives a view that does not keep the value alive (onnxruntime 1.32).
    return np.array(value.numpy())


def _widen(value: Any) -> Any:
    """Cast a value to float32."""
    cast = onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    inputs = [onnx.helper.make_value_info("x", _type("x", value.data_type()))]
    graph = onnx.helper.make_graph([cast], "widen", inputs, [onnx.ValueInfoProto(name="y")])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 13)])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run_with_ort_values(["y"], {"x": value})[0]
