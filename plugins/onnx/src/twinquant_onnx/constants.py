"""Finding the constant behind a node's input: an initializer or a Constant node, maybe behind others."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import numpy_helper

from twinquant_onnx.graph import TensorStore
from twinquant_onnx.tensors import ArrayBytes, RandomAccess
from twinquant_onnx.topology import MAIN_DOMAINS, Topology

__all__ = [
    "ELEMENT_TYPES",
    "FLOAT_TYPES",
    "Constant",
    "ConstantFinder",
    "is_float",
    "raw_bytes",
    "read_array",
    "type_name",
]

FLOAT_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64",
}
"""The float types by ONNX element type, under NumPy's names."""

ELEMENT_TYPES = {name: data_type for data_type, name in FLOAT_TYPES.items()}
"""The inverse of `FLOAT_TYPES`."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant as a layer reads it.

    Attributes:
        name: the tensor that holds the data: an initializer, or the output of a Constant node.
        tensor: its data, or the reference to the store.
        initializer: position among the initializers, or None.
        node: position of the Constant node, or None.
        chain: the nodes between the data and the reader, in order: Identity, and at most one Transpose.
        transposed: the chain moves axes; it swaps the two of a matrix, and only a matrix may be used then.
    """

    name: str
    tensor: onnx.TensorProto
    initializer: int | None
    node: int | None
    chain: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the data."""
        return tuple(self.tensor.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as the reader sees it."""
        return self.stored_shape[::-1] if self.transposed else self.stored_shape


class ConstantFinder:
    """Looks constants up in one main graph."""

    def __init__(self, graph: onnx.GraphProto, topology: Topology) -> None:
        self._graph = graph
        self._topology = topology
        self._initializers = {tensor.name: index for index, tensor in enumerate(graph.initializer)}

    def find(self, tensor: str, *, through_transpose: bool = False) -> Constant | None:
        """Return the constant behind a tensor, or None if the tensor is computed.

        Args:
            tensor: the tensor's name.
            through_transpose: one Transpose may stand in between, besides Identity nodes.
        """
        chain: list[int] = []
        behind_transpose = transposed = False
        while True:
            if tensor in self._initializers:
                index = self._initializers[tensor]
                data = self._graph.initializer[index]
                return Constant(tensor, data, index, None, tuple(reversed(chain)), transposed)
            maker = self._topology.producer.get(tensor)
            if maker is None or maker in chain:
                return None
            node = self._graph.node[maker]
            if node.domain not in MAIN_DOMAINS:
                return None
            if node.op_type == "Constant":
                value = _constant_value(node)
                return Constant(tensor, value, None, maker, tuple(reversed(chain)), transposed) if value else None
            if node.op_type == "Transpose" and through_transpose and not behind_transpose:
                behind_transpose, transposed = True, _moves_axes(node)
            elif node.op_type != "Identity":
                return None
            if not node.input:
                return None
            chain.append(maker)
            tensor = node.input[0]


def _moves_axes(node: onnx.NodeProto) -> bool:
    perm = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
    return perm is None or perm != sorted(perm)


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a Constant node holds as a tensor; None for sparse and string values."""
    for attribute in node.attribute:
        if attribute.name == "value":
            value: onnx.TensorProto = attribute.t
            return value
        if attribute.name in ("value_float", "value_floats"):
            floats = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            return numpy_helper.from_array(np.asarray(floats, np.float32), node.output[0])
    return None


def is_float(tensor: onnx.TensorProto) -> bool:
    """Tell whether a tensor is of a type that can be quantized."""
    return tensor.data_type in FLOAT_TYPES


def type_name(data_type: int) -> str:
    """Return ONNX's name of an element type, such as FLOAT."""
    known = onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(data_type)) if data_type in known else f"type {data_type}"


def raw_bytes(tensor: onnx.TensorProto, store: TensorStore) -> RandomAccess:
    """Return the bytes of a float tensor, wherever they are."""
    stored = store.readable(tensor)
    if stored is not None:
        return stored
    if tensor.HasField("raw_data"):
        return ArrayBytes(np.frombuffer(tensor.raw_data, np.uint8))
    return ArrayBytes(np.ascontiguousarray(numpy_helper.to_array(tensor)))


def read_array(tensor: onnx.TensorProto, store: TensorStore) -> np.ndarray:
    """Read a whole float tensor as float32, the shape of the tensor. For small tensors, such as biases."""
    raw = raw_bytes(tensor, store).read_all()
    shape = tuple(tensor.dims)
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    dtype: dict[int, str] = {
        onnx.TensorProto.FLOAT: "<f4",
        onnx.TensorProto.FLOAT16: "<f2",
        onnx.TensorProto.DOUBLE: "<f8",
    }
    values = raw.view(dtype[tensor.data_type])
    if values.size != prod(shape):
        raise ValueError(f"tensor {tensor.name!r} holds {values.size} values, its dims say {prod(shape)}")
    with np.errstate(over="ignore"):
        return values.astype(np.float32).reshape(shape)
