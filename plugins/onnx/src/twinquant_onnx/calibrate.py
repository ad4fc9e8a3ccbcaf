"""Running a float model on calibration data, with nothing but the tensors that are looked at as outputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from twinquant.errors import UnsupportedModelError
from twinquant.registry import ModelInput, RunBatch, Tap
from twinquant.registry.float_model import Array
from twinquant_onnx.constants import type_name
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.insert.twin import drop_op_data_type
from twinquant_onnx.layers import LoadedModel, Site
from twinquant_onnx.sessions import ORT_ERRORS, from_value, node_reads, shareable, to_value
from twinquant_onnx.tensors import FileRange
from twinquant_onnx.traversal import tensors_in

__all__ = ["describe_inputs", "tap_model"]

_INITIAL_H = 5
_ALIGNMENT = 8
"""Offsets in files that every element type can be read at in place."""
_READS_FILES = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 21)
"""Whether ONNX Runtime can be told the folder of external data, for a model that is not in a file itself."""
_PREPACKED_BYTES = 512 << 20
"""Beyond this, ONNX Runtime does not repack weights: it would hold them twice."""


def describe_inputs(graph: OnnxGraph) -> tuple[ModelInput, ...]:
    """Describe the inputs that are no initializers.

    Raises:
        UnsupportedModelError: one is no tensor of numbers.
    """
    main = graph.model.graph
    constants = {tensor.name for tensor in main.initializer}
    return tuple(_describe(value) for value in main.input if value.name not in constants)


def _describe(value: onnx.ValueInfoProto) -> ModelInput:
    kind = value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else onnx.TensorProto.UNDEFINED
    if kind in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        raise UnsupportedModelError(
            f"input {value.name!r} is no tensor of numbers but {type_name(kind)}; such models cannot be calibrated"
        )
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).name
    if not value.type.tensor_type.HasField("shape"):
        return ModelInput(value.name, dtype, None)
    # Some exporters write -1 for a length that is open.
    shape = tuple(
        int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
        for dim in value.type.tensor_type.shape.dim
    )
    return ModelInput(value.name, dtype, shape)


def _way_out(error: Exception) -> str:
    if not isinstance(error, ort_state.NotImplemented):
        return ""
    return "; it has no kernel for these types of numbers: export the model in float32, without autocast"


def tap_model(loaded: LoadedModel, taps: Sequence[Tap], threads: int | None) -> RunBatch:
    """Build one session that computes what the taps look at, and nothing else.

    Args:
        loaded: the model.
        taps: where to look.
        threads: threads of ONNX Runtime; None: its own choice.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot run the model, or it would not compute what the float model does.
    """
    if loaded.graph.undivided:
        raise UnsupportedModelError(
            "the weights of this model are balanced already: quantize_model wrote it, to be calibrated in a session "
            "with AMCT_SO; run it there, or calibrate the float model"
        )
    tapped = _tapped_graph(loaded, taps)
    try:
        session, weights = _session(tapped.model, loaded.graph, threads)
    except ORT_ERRORS as error:
        raise UnsupportedModelError(f"ONNX Runtime cannot run the model: {error}{_way_out(error)}") from error
    main = tapped.model.graph
    return _Runner(
        session,
        weights,
        tuple(value.name for value in main.input),
        tuple(value.name for value in main.output),
        tapped.places,
    ).run


@dataclass(frozen=True, slots=True)
class _Place:
    """Where values of a tap are: a tensor, of whose first axis the last element may be left out."""

    tensor: str
    without_last: bool = False

    def cut(self, array: Array) -> Array:
        return array[:-1] if self.without_last else array


@dataclass(frozen=True, slots=True, eq=False)
class _Tapped:
    """A model whose outputs are the tapped tensors, and where in its inputs and outputs each tap's values are."""

    model: onnx.ModelProto
    places: tuple[tuple[Tap, tuple[_Place, ...]], ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Runner:
    """A session and what becomes of its outputs.

    Attributes:
        session: the session; None: every tap looks at an input of the model.
        weights: the big weights, which the session uses in place.
        reads: the inputs that are fed.
        makes: the outputs.
        places: where in inputs and outputs each tap's values are.
    """

    session: ort.InferenceSession | None
    weights: tuple[Array, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    places: tuple[tuple[Tap, tuple[_Place, ...]], ...]

    def run(self, feeds: Mapping[str, Array]) -> Iterator[tuple[Tap, Sequence[Array]]]:
        """Run one batch; an output is let go as soon as no later tap looks at it."""
        values = self._outputs(feeds)
        uses = Counter(place.tensor for _, places in self.places for place in places)
        for tap, places in self.places:
            arrays = [
                place.cut(values[place.tensor] if place.tensor in values else feeds[place.tensor]) for place in places
            ]
            uses.subtract(place.tensor for place in places)
            for place in places:
                if not uses[place.tensor]:
                    values.pop(place.tensor, None)
            yield tap, arrays
            del arrays

    def _outputs(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self.session is None:
            return {}
        wanted = {name: feeds[name] for name in self.reads}
        try:
            if any(array.dtype.name == "bfloat16" for array in wanted.values()):
                handed = {name: to_value(name, array) for name, array in wanted.items()}
                values = map(from_value, self.session.run_with_ort_values(list(self.makes), handed))
            else:
                values = self.session.run(list(self.makes), wanted)
            return dict(zip(self.makes, values, strict=True))
        except ORT_ERRORS as error:
            shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in wanted.items())
            raise UnsupportedModelError(
                f"ONNX Runtime cannot run the model on this batch, with inputs of shape {shapes}; if the model takes "
                f"certain sizes only, resize the data (for images: size, --size). {str(error).strip()}"
            ) from error


def _tapped_graph(loaded: LoadedModel, taps: Sequence[Tap]) -> _Tapped:
    source = loaded.graph.model
    nodes = list(source.graph.node)
    sites = {site.name: site for site in loaded.sites.values()}
    inputs = {value.name for value in describe_inputs(loaded.graph)}
    made = {tensor for node in nodes for tensor in node.output}
    appended: list[onnx.NodeProto] = []
    outputs: dict[str, str] = {}

    def output_of(tensor: str, element_type: str) -> str:
        """Return the output, or the input, that holds a tensor's values."""
        if tensor in inputs and element_type != "bfloat16":
            return tensor
        if tensor not in outputs:
            outputs[tensor] = tensor
            if element_type == "bfloat16" or tensor not in made:  # NumPy has no bfloat16; an output is made by a node
                outputs[tensor] = f"twinquant_tap_{len(outputs)}"
                copy = onnx.helper.make_node("Identity", [tensor], [outputs[tensor]])
                if element_type == "bfloat16":
                    copy = onnx.helper.make_node("Cast", [tensor], [outputs[tensor]], to=onnx.TensorProto.FLOAT)
                appended.append(copy)
        return outputs[tensor]

    places: list[tuple[Tap, tuple[_Place, ...]]] = []
    for tap in taps:
        site = sites[tap.layer]
        if not tap.hidden:
            read = nodes[site.activation.node].input[site.activation.slot]
            places.append((tap, (_Place(output_of(read, site.element_type)),)))
            continue
        # What the steps read is the initial state and the output of every step but the last.
        node = nodes[site.index] = _with_sequence_output(nodes[site.index], site)
        steps = _Place(output_of(node.output[0], site.element_type), without_last=True)
        made.add(node.output[0])
        places.append((tap, (_Place(output_of(node.input[_INITIAL_H], site.element_type)), steps)))

    needed = _needed([*nodes, *appended], set(outputs.values()))
    model = onnx.ModelProto(ir_version=source.ir_version)
    model.opset_import.extend(source.opset_import)
    model.functions.extend(source.functions)
    model.graph.name = "calibration"
    model.graph.node.extend(needed)
    for node in model.graph.node:
        drop_op_data_type(node)
    reads = {name for node in needed for name in node_reads(node)}
    model.graph.input.extend(value for value in source.graph.input if value.name in reads & inputs)
    model.graph.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in reads)
    model.graph.sparse_initializer.extend(
        tensor for tensor in source.graph.sparse_initializer if tensor.values.name in reads
    )
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs.values())
    return _Tapped(model, tuple(places))


def _with_sequence_output(node: onnx.NodeProto, site: Site) -> onnx.NodeProto:
    """Return an RNN's node with a name for the output that holds every step."""
    if node.output[0]:
        return node
    named = onnx.NodeProto()
    named.CopyFrom(node)
    named.output[0] = f"{site.name}.twinquant_tap"
    return named


def _needed(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the wanted tensors depend on, in their order."""
    needed: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(node_reads(node))
    return needed[::-1]


def _in_files(model: onnx.ModelProto, graph: OnnxGraph) -> dict[str, FileRange]:
    """Find the initializers that ONNX Runtime can read itself: it maps the files, so that they take no memory.

    Those that it is handed as arrays it holds twice while it makes a session (onnxruntime 1.32).
    """
    found = {}
    for tensor in model.graph.initializer if _READS_FILES else ():
        stored = graph.store.get(tensor)
        if stored is None or not stored.external or not isinstance(stored.content, FileRange):
            continue
        if stored.content.nbytes and stored.content.offset % _ALIGNMENT == 0:
            found[tensor.name] = stored.content
    return found


def _refer(tensor: onnx.TensorProto, place: FileRange, folder: Path) -> None:
    """Make a tensor refer to its file. Edits `tensor`."""
    tensor.ClearField("external_data")
    entries = {"location": place.path.relative_to(folder).as_posix(), "offset": place.offset, "length": place.nbytes}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def _session(
    model: onnx.ModelProto, graph: OnnxGraph, threads: int | None
) -> tuple[ort.InferenceSession | None, tuple[Array, ...]]:
    """Return a session and the big weights that it uses in place. Edits `model`. No session without outputs."""
    if not model.graph.output:
        return None, ()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    shared: dict[str, Array] = {}
    in_files = _in_files(model, graph)
    for tensor in model.graph.initializer:
        array = None if tensor.name in in_files else shareable(tensor, graph.store)
        if array is not None:
            shared[tensor.name] = array
    for tensor, _ in tensors_in(model):
        if tensor.name not in shared and tensor.name not in in_files:
            graph.store.detach(tensor)
    if in_files:
        folder = Path(os.path.commonpath([place.path.parent for place in in_files.values()]))
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        for tensor in model.graph.initializer:
            if tensor.name in in_files:
                _refer(tensor, in_files[tensor.name], folder)
    # The arena of ONNX Runtime stays on: without it, its buffers and the observers' small arrays fragment the heap, and
    # a run over 192 images took twice the memory of one over 32.
    if threads is not None:
        options.intra_op_num_threads = threads
    if sum(array.nbytes for array in shared.values()) > _PREPACKED_BYTES:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if shared:
        handles = [ort.OrtValue.ortvalue_from_numpy(array) for array in shared.values()]
        options.add_external_initializers(list(shared), handles)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, tuple(shared.values())
