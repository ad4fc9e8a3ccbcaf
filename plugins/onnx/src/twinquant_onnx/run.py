"""Running a model on ONNX Runtime piece by piece, so that neither weights nor activations pile up in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from twinquant.errors import VerificationError
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.tensors import RandomAccess
from twinquant_onnx.topology import captured_names
from twinquant_onnx.traversal import tensors_in

__all__ = ["ORT_ERRORS", "ArrayStep", "Pipeline"]

Array = npt.NDArray[Any]

_WEIGHT_BYTES = 128 << 20
"""A piece ends when its weights reach this size."""

_WANTED = 24
"""A piece ends when it makes this many of the tensors that are asked for."""

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


@dataclass(frozen=True, slots=True, eq=False)
class ArrayStep:
    """A part of the graph that is computed on arrays, in place of nodes that ONNX Runtime does not know.

    Attributes:
        reads: tensors it needs.
        writes: tensors it makes.
        compute: takes the arrays of `reads` and returns those of `writes`.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    compute: Callable[[Sequence[Array]], Sequence[Array]]


@dataclass(slots=True, eq=False)
class _Piece:
    """Nodes that run in one session; the session is kept while the types of its inputs stay the same."""

    nodes: list[onnx.NodeProto]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    session: ort.InferenceSession | None = None
    types: tuple[str, ...] = ()
    weights: list[Array] = field(default_factory=list)


class Pipeline:
    """A graph, cut into pieces that run one after the other; nodes that nothing asked for depends on are left out.

    Args:
        graph: the model: gives constants, opset imports and functions.
        work: its nodes in topological order, Constant nodes left out or not, with steps in place of some.
        wanted: the tensors to yield.
        inputs: the tensors that are fed; None: the graph's inputs.

    Raises:
        VerificationError: something reads a tensor that nothing before it makes.
    """

    def __init__(
        self,
        graph: OnnxGraph,
        work: Sequence[onnx.NodeProto | ArrayStep],
        wanted: Iterable[str],
        inputs: Iterable[str] | None = None,
    ) -> None:
        main = graph.model.graph
        self._graph = graph
        self._inputs = {value.name for value in main.input} if inputs is None else set(inputs)
        self._initializers = {tensor.name: tensor for tensor in main.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in main.sparse_initializer}
        self._constant_nodes = {n.output[0]: n for n in main.node if n.op_type == "Constant" and n.output}
        self._wanted = tuple(dict.fromkeys(wanted))
        self._sizes = {t.name: _tensor_bytes(t, graph.store) for t in main.initializer}
        self._steps = self._cut(self._needed(work))
        self._keep_sessions = sum(self._sizes.values()) <= 2 * _WEIGHT_BYTES
        self._last_read = self._connect()

    def _is_constant(self, tensor: str) -> bool:
        return tensor in self._initializers or tensor in self._constant_nodes or tensor in self._sparse

    def _needed(self, work: Sequence[onnx.NodeProto | ArrayStep]) -> list[onnx.NodeProto | ArrayStep]:
        needed = set(self._wanted)
        chosen: list[onnx.NodeProto | ArrayStep] = []
        for item in reversed(work):
            if isinstance(item, onnx.NodeProto) and item.op_type == "Constant":
                continue
            if needed.intersection(_writes(item)):
                chosen.append(item)
                needed.update(_reads(item))
        return chosen[::-1]

    def _cut(self, work: Sequence[onnx.NodeProto | ArrayStep]) -> list[_Piece | ArrayStep]:
        steps: list[_Piece | ArrayStep] = []
        wanted = set(self._wanted)
        weights: set[str] = set()
        size = made = 0
        for item in work:
            if isinstance(item, ArrayStep):
                steps.append(item)
                continue
            reads = {name for name in _reads(item) if name in self._sizes}
            added = sum(self._sizes[name] for name in reads - weights)
            current = steps[-1] if steps else None
            if not isinstance(current, _Piece) or made >= _WANTED or size + added > _WEIGHT_BYTES:
                current, weights, made = _Piece([]), set(), 0
                size, added = 0, sum(self._sizes[name] for name in reads)
                steps.append(current)
            current.nodes.append(item)
            weights |= reads
            size += added
            made += len(wanted.intersection(item.output))
        return steps

    def _connect(self) -> dict[str, int]:
        """Find what each piece reads and must hand on; return the step that reads a tensor last."""
        last: dict[str, int] = {}
        known = set(self._inputs)
        for number, step in enumerate(self._steps):
            reads, inside = [], set()
            for item in step.nodes if isinstance(step, _Piece) else (step,):
                for name in _reads(item):
                    if name in inside or (self._is_constant(name) and isinstance(step, _Piece)):
                        continue
                    if name not in known and not self._is_constant(name):
                        who = f"node {item.name!r}" if isinstance(item, onnx.NodeProto) else f"the layer making {item.writes}"
                        raise VerificationError(f"{who} reads tensor {name!r}, which nothing before it makes")
                    reads.append(name)
                    last[name] = number
                inside.update(_writes(item))
            known |= inside
            if isinstance(step, _Piece):
                step.reads = tuple(dict.fromkeys(reads))
        for name in self._wanted:
            if name not in known and not self._is_constant(name):
                raise VerificationError(f"nothing makes tensor {name!r}")
        for number, step in enumerate(self._steps):
            if isinstance(step, _Piece):
                made = dict.fromkeys(name for node in step.nodes for name in node.output if name)
                step.writes = tuple(n for n in made if last.get(n, -1) > number or n in self._wanted)
        return last

    def run(self, feeds: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """Compute and yield the wanted tensors, each as soon as it is known.

        Args:
            feeds: an array for every input of the graph that is read.

        Yields:
            tensor names and arrays; tensors that are no arrays (sequences, bfloat16) are left out.

        Raises:
            VerificationError: ONNX Runtime cannot run a piece; its own words are in the message.
        """
        missing = [n for n in self._inputs if n in self._last_read and n not in feeds]
        if missing:
            raise VerificationError(f"the model reads input {missing[0]!r}, for which no array is given")
        values: dict[str, Any] = {name: _to_value(name, array) for name, array in feeds.items()}
        wanted = set(self._wanted)
        for name in self._wanted:
            if name in feeds:
                yield name, feeds[name]
            elif self._is_constant(name):
                yield name, self._constant(name)
        for number, step in enumerate(self._steps):
            if isinstance(step, ArrayStep):
                arrays = [_to_array(values[n]) if n in values else self._constant(n) for n in step.reads]
                results = step.compute(arrays)
                values.update({n: _to_value(n, array) for n, array in zip(step.writes, results, strict=True)})
                writes = step.writes
            else:
                writes = step.writes
                values.update(zip(writes, self._run_piece(step, values), strict=True))
            for name in writes:
                if name in wanted and _is_array(values[name]):
                    yield name, _to_array(values[name])
            for name in (*step.reads, *writes):
                if self._last_read.get(name, -1) <= number:
                    values.pop(name, None)

    def _constant(self, name: str) -> Array:
        piece = _Piece([onnx.helper.make_node("Identity", [name], ["value"])], (), ("value",))
        return _to_array(self._run_piece(piece, {})[0])

    def _run_piece(self, piece: _Piece, values: Mapping[str, Any]) -> list[Any]:
        if not piece.writes:
            return []
        types = tuple(values[name].data_type() for name in piece.reads)
        first = piece.nodes[0]
        try:
            if piece.session is None or piece.types != types:
                piece.session, piece.weights, piece.types = *self._session(piece, types), types
            outputs = piece.session.run_with_ort_values(list(piece.writes), {n: values[n] for n in piece.reads})
        except ORT_ERRORS as error:
            where = f"the part of {len(piece.nodes)} node(s) that begins with {first.op_type} {first.name!r}"
            raise VerificationError(f"ONNX Runtime cannot run {where}: {error}") from error
        if not self._keep_sessions:
            piece.session, piece.weights = None, []
        return list(outputs)

    def _session(self, piece: _Piece, types: Sequence[str]) -> tuple[ort.InferenceSession, list[Array]]:
        """Build the session of a piece: a model of its own, whose big weights are handed over without a copy."""
        source = self._graph.model
        model = onnx.ModelProto(ir_version=source.ir_version)
        model.opset_import.extend(source.opset_import)
        model.functions.extend(source.functions)
        model.graph.name = "piece"
        constants = dict.fromkeys(name for node in piece.nodes for name in _reads(node) if self._is_constant(name))
        constants.update(dict.fromkeys(name for name in piece.writes if self._is_constant(name)))
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        shared: dict[str, Array] = {}
        for name in constants:
            if name in self._constant_nodes:
                model.graph.node.append(self._constant_nodes[name])
            elif name in self._sparse:
                model.graph.sparse_initializer.append(self._sparse[name])
            else:
                model.graph.initializer.append(self._initializers[name])
                array = _shareable(model.graph.initializer[-1], self._graph.store)
                if array is not None:
                    shared[name] = array
        model.graph.node.extend(piece.nodes)
        for tensor, _ in tensors_in(model):
            if tensor.name not in shared:
                _inline(tensor, self._graph.store)
        for name, text in zip(piece.reads, types, strict=True):
            model.graph.input.append(onnx.helper.make_value_info(name, _type(name, text)))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in piece.writes)
        if shared:
            handles = [ort.OrtValue.ortvalue_from_numpy(array) for array in shared.values()]
            options.add_external_initializers(list(shared), handles)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session, list(shared.values())


def _reads(item: onnx.NodeProto | ArrayStep) -> list[str]:
    if isinstance(item, ArrayStep):
        return list(item.reads)
    return [name for name in item.input if name] + sorted(captured_names(item))


def _writes(item: onnx.NodeProto | ArrayStep) -> list[str]:
    return list(item.writes) if isinstance(item, ArrayStep) else [name for name in item.output if name]


def _tensor_bytes(tensor: onnx.TensorProto, store: TensorStore) -> int:
    stored = store.get(tensor)
    return stored.content.nbytes if stored is not None else 8 * prod(tensor.dims)


def _shareable(tensor: onnx.TensorProto, store: TensorStore) -> Array | None:
    """Read a stored initializer as an array that ONNX Runtime can use in place, or None if it must be in the message."""
    stored = store.get(tensor)
    if stored is None or stored.content.nbytes == 0 or tensor.data_type not in _SHAREABLE:
        return None
    return _stored_bytes(tensor, store).view(_SHAREABLE[tensor.data_type]).reshape(tuple(tensor.dims))


def _stored_bytes(tensor: onnx.TensorProto, store: TensorStore) -> npt.NDArray[np.uint8]:
    stored = store.get(tensor)
    if stored is None or not isinstance(stored.content, RandomAccess):
        raise TypeError(f"tensor {tensor.name!r} has no bytes that can be read")
    raw = np.empty(stored.content.nbytes, np.uint8)
    stored.content.read_into(0, raw)
    stored.content.close()
    return raw


def _inline(tensor: onnx.TensorProto, store: TensorStore) -> None:
    """Put a stored tensor's bytes into the message. Edits `tensor`."""
    if store.get(tensor) is not None:
        raw = _stored_bytes(tensor, store).tobytes()
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = raw


def _type(name: str, text: str) -> onnx.TypeProto:
    """Turn ONNX Runtime's spelling of a type, such as `seq(tensor(float))`, into ONNX's."""
    match = re.fullmatch(r"(seq\()?tensor\((\w+)\)\)?", text)
    if match is None or match[2] not in _ELEMENT_TYPES:
        raise VerificationError(f"tensor {name!r} is of type {text}, which cannot be handed from one node to another here")
    tensor = onnx.helper.make_tensor_type_proto(_ELEMENT_TYPES[match[2]], None)
    return onnx.helper.make_sequence_type_proto(tensor) if match[1] else tensor


def _to_value(name: str, array: Array) -> Any:
    if array.dtype.kind in "OUS":
        raise VerificationError(f"input {name!r} holds strings; models with string inputs cannot be run here")
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _is_array(value: Any) -> bool:
    return bool(value.is_tensor()) and value.data_type() not in ("tensor(bfloat16)", "tensor(string)")


def _to_array(value: Any) -> Array:
    # numpy() gives a view that does not keep the value alive (onnxruntime 1.32).
    return np.array(value.numpy())
