"""Running a model on ONNX Runtime piece by piece, so that neither weights nor activations pile up in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

from twinquant.errors import VerificationError
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.sessions import ORT_ERRORS, PieceSessions, from_value, is_array, node_reads, to_value

__all__ = ["ArrayStep", "Pipeline"]

Array = npt.NDArray[Any]

_WEIGHT_BYTES = 64 << 20
"""A piece ends when its weights reach this size."""

_WANTED = 24
"""A piece ends when it makes this many of the tensors that are asked for."""


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
        self._inputs = {value.name for value in graph.model.graph.input} if inputs is None else set(inputs)
        self._sessions = PieceSessions(graph)
        self._wanted = tuple(dict.fromkeys(wanted))
        self._steps = self._cut(self._needed(work))
        self._keep_sessions = sum(self._sessions.sizes.values()) <= 2 * _WEIGHT_BYTES
        self._last_read = self._connect()

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
            reads = {name for name in _reads(item) if name in self._sessions.sizes}
            added = sum(self._sessions.sizes[name] for name in reads - weights)
            current = steps[-1] if steps else None
            if not isinstance(current, _Piece) or made >= _WANTED or size + added > _WEIGHT_BYTES:
                current, weights, made = _Piece([]), set(), 0
                size, added = 0, sum(self._sessions.sizes[name] for name in reads)
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
                    if name in inside or (self._sessions.is_constant(name) and isinstance(step, _Piece)):
                        continue
                    if name not in known and not self._sessions.is_constant(name):
                        who = (
                            f"node {item.name!r}"
                            if isinstance(item, onnx.NodeProto)
                            else f"the layer making {item.writes}"
                        )
                        raise VerificationError(f"{who} reads tensor {name!r}, which nothing before it makes")
                    reads.append(name)
                    last[name] = number
                inside.update(_writes(item))
            known |= inside
            if isinstance(step, _Piece):
                step.reads = tuple(dict.fromkeys(reads))
        for name in self._wanted:
            if name not in known and not self._sessions.is_constant(name):
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
            tensor names and arrays, bfloat16 widened to float32; what is no array of numbers is left out.

        Raises:
            VerificationError: ONNX Runtime cannot run a piece; its own words are in the message.
        """
        missing = [n for n in self._inputs if n in self._last_read and n not in feeds]
        if missing:
            raise VerificationError(f"the model reads input {missing[0]!r}, for which no array is given")
        values: dict[str, Any] = {name: to_value(name, array) for name, array in feeds.items()}
        wanted = set(self._wanted)
        for name in self._wanted:
            if name in feeds:
                yield name, feeds[name]
            elif self._sessions.is_constant(name):
                yield name, self._constant(name)
        for number, step in enumerate(self._steps):
            if isinstance(step, ArrayStep):
                arrays = [from_value(values[n]) if n in values else self._constant(n) for n in step.reads]
                results = step.compute(arrays)
                values.update({n: to_value(n, array) for n, array in zip(step.writes, results, strict=True)})
                writes = step.writes
            else:
                writes = step.writes
                values.update(zip(writes, self._run_piece(step, values), strict=True))
            for name in writes:
                if name in wanted and is_array(values[name]):
                    yield name, from_value(values[name])
            for name in (*step.reads, *writes):
                if self._last_read.get(name, -1) <= number:
                    values.pop(name, None)

    def _constant(self, name: str) -> Array:
        piece = _Piece([onnx.helper.make_node("Identity", [name], ["value"])], (), ("value",))
        return from_value(self._run_piece(piece, {})[0])

    def _run_piece(self, piece: _Piece, values: Mapping[str, Any]) -> list[Any]:
        if not piece.writes:
            return []
        types = tuple(values[name].data_type() for name in piece.reads)
        first = piece.nodes[0]
        try:
            if piece.session is None or piece.types != types:
                piece.session, piece.weights, piece.types = (
                    *self._sessions.build(piece.nodes, piece.reads, types, piece.writes),
                    types,
                )
            outputs = piece.session.run_with_ort_values(list(piece.writes), {n: values[n] for n in piece.reads})
        except ORT_ERRORS as error:
            where = f"the part of {len(piece.nodes)} node(s) that begins with {first.op_type} {first.name!r}"
            raise VerificationError(f"ONNX Runtime cannot run {where}: {error}") from error
        if not self._keep_sessions:
            piece.session, piece.weights = None, []
        return list(outputs)


def _reads(item: onnx.NodeProto | ArrayStep) -> list[str]:
    if isinstance(item, ArrayStep):
        return list(item.reads)
    return node_reads(item)


def _writes(item: onnx.NodeProto | ArrayStep) -> list[str]:
    return list(item.writes) if isinstance(item, ArrayStep) else [name for name in item.output if name]
