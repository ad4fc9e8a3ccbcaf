"""Small models, their twins, and a second way to run a deploy twin, independent of the code under test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.outputs import Flavor
from twinquant.plan import build_plan
from twinquant.records import LayerRecord, RecordSet
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.insert import build_twin
from twinquant_onnx.layers import analyse

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Typed:
    """An element type and a shape; shape None: not even the rank is known."""

    kind: int
    shape: Sequence[Any] | None


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any] | Typed],
    outputs: Sequence[str] | Mapping[str, int],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 13,
    domain: str = "",
    imports: Sequence[tuple[str, int]] = (),
    ir_version: int = 10,
) -> onnx.ModelProto:
    """Build a model; an input is a shape (float32) or a `Typed`; outputs get their inferred shapes."""
    typed = {name: spec if isinstance(spec, Typed) else Typed(TensorProto.FLOAT, spec) for name, spec in inputs.items()}
    results = outputs if isinstance(outputs, Mapping) else dict.fromkeys(outputs, TensorProto.FLOAT)
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, spec.kind, spec.shape) for name, spec in typed.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in results.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid(domain, opset), *(helper.make_opsetid(*pair) for pair in imports)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
    except onnx.shape_inference.InferenceError:
        return model  # some tests want such a model
    model.graph.ClearField("output")
    model.graph.output.extend(inferred)
    return model


def make_record(scale_w: Any = 0.02, *, scale_d: float = 0.05, offset_d: int = 3, **fields: Any) -> dict[str, Any]:
    """Build the fields of a complete record; `scale_w` None leaves both weight fields away."""
    made: dict[str, Any] = {"scale_d": float(np.float32(scale_d)), "offset_d": offset_d, **fields}
    for scale, offset in (("scale_w", "offset_w"), ("scale_r", "offset_r")):
        value = scale_w if scale == "scale_w" else fields.get(scale)
        if value is not None:
            made[scale] = np.atleast_1d(np.asarray(value, np.float32))
            made.setdefault(offset, np.zeros(made[scale].size, np.int32))
    if "tensor_balance_factor" in made:
        made["tensor_balance_factor"] = np.asarray(made["tensor_balance_factor"], np.float32)
    return made


@dataclass(frozen=True)
class Twins:
    fake: onnx.ModelProto
    deploy: onnx.ModelProto


def make_twins(model: onnx.ModelProto, records: Mapping[str, Mapping[str, Any]]) -> Twins:
    """Build both twins with all their data inside the message."""
    before = model.SerializeToString(deterministic=True)
    loaded = analyse(OnnxGraph(model, TensorStore(), ()))
    plan = build_plan(
        RecordSet({key: LayerRecord(key, **fields) for key, fields in records.items()}), loaded.layers, "onnx"
    )
    made = {}
    for flavor in Flavor:
        graph = build_twin(loaded, plan, flavor)
        made[flavor] = materialize(graph)
    assert model.SerializeToString(deterministic=True) == before, "the input model was modified"
    return Twins(made[Flavor.FAKE_QUANT], made[Flavor.DEPLOY])


def materialize(graph: OnnxGraph) -> onnx.ModelProto:
    """Write the store's bytes into the message."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    values = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in [*model.graph.initializer, *values]:
        stored = graph.store.get(tensor)
        if stored is not None:
            raw = b"".join(bytes(block) for block in stored.content.blocks())
            assert len(raw) == stored.content.nbytes
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = raw
    return model


def run(model: onnx.ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run a model on ONNX Runtime, unoptimized."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """Return the one node of a name."""
    (found,) = [candidate for candidate in model.graph.node if candidate.name == name]
    return found


def attributes(of: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes, in order."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in of.attribute}


def array(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return an initializer or what a Constant node of that output holds."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    for candidate in model.graph.node:
        if candidate.op_type == "Constant" and candidate.output[0] == name:
            return numpy_helper.to_array(candidate.attribute[0].t)
    raise KeyError(name)


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """Return the one initializer of a name."""
    (found,) = [candidate for candidate in model.graph.initializer if candidate.name == name]
    return found


def names(model: onnx.ModelProto, *, constants: bool = False) -> list[str]:
    """Return the names of all nodes in order, Constant nodes only on demand."""
    return [candidate.name for candidate in model.graph.node if constants or candidate.op_type != "Constant"]


def integers(weight: np.ndarray, scale: np.ndarray, bits: int = 8) -> np.ndarray:
    """Quantize a weight as the format says: `clip(round(w / scale), -2^(b-1), 2^(b-1) - 1)`, a float32 division."""
    half = 2 ** (bits - 1)
    divided = weight.astype(np.float32) / np.asarray(scale, np.float32)
    return np.clip(np.rint(divided), -half, half - 1).astype(np.int8)


def activation(x: np.ndarray, scale_d: float, offset: int, bits: int = 8) -> np.ndarray:
    """Quantize an activation as the format says and take the offset off again: float32 integers."""
    half = 2 ** (bits - 1)
    reciprocal = np.float32(1) / np.float32(scale_d)
    rounded = np.rint(x.astype(np.float32) * reciprocal) + np.float32(offset)
    return (np.clip(rounded, -half, half - 1) - np.float32(offset)).astype(np.float32)


def unpack_pairs(packed: np.ndarray, axis: int) -> np.ndarray:
    """Undo the packing of two 4-bit values in an int8 along an axis: even index low."""
    as_int = packed.astype(np.int32)
    low, high = (as_int & 15), ((as_int >> 4) & 15)
    both = np.stack([low, high], axis=axis + 1)
    shape = [*packed.shape]
    shape[axis] *= 2
    both = both.reshape(shape)
    return np.where(both > 7, both - 16, both).astype(np.int8)


def run_deploy(
    model: onnx.ModelProto, feeds: Feeds, packed_axes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Run a deploy twin by its documented meaning: each Ascend operator becomes NumPy-checked standard operators.

    AscendQuant yields integers without the offset, integer constants become floats, and AscendDequant multiplies by
    the scale in its parameter. All sums of the small models used here are exact in float32.
    """
    standard = onnx.ModelProto()
    standard.CopyFrom(model)
    graph = standard.graph
    makers = {out: member for member in graph.node for out in member.output}
    constants = {t.name: t for t in graph.initializer}
    for name, held in constants.items():
        value = numpy_helper.to_array(held)
        if name in (packed_axes or {}):
            value = unpack_pairs(value, (packed_axes or {})[name])
        if held.data_type in (TensorProto.INT8, TensorProto.INT32, TensorProto.INT4):
            held.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    for member in graph.node:
        if member.op_type == "Constant" and member.attribute[0].t.data_type in (TensorProto.INT8, TensorProto.INT32):
            value = numpy_helper.to_array(member.attribute[0].t).astype(np.float32)
            member.attribute[0].t.CopyFrom(numpy_helper.from_array(value))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    members = list(graph.node)
    del graph.node[:]
    for member in members:
        if member.op_type == "AscendQuant":
            graph.node.extend(_standard_quant(graph, member, opset))
        elif member.op_type == "AscendDequant":
            graph.node.extend(_standard_dequant(graph, member, makers, constants))
        else:
            graph.node.append(member)
    read = {name for member in graph.node for name in member.input}
    for position in range(len(graph.initializer) - 1, -1, -1):
        held = graph.initializer[position]
        if held.data_type == TensorProto.UINT64 and held.name not in read:
            del graph.initializer[position]
    return run(standard, feeds)


def _standard_quant(graph: onnx.GraphProto, quant: onnx.NodeProto, opset: int) -> list[onnx.NodeProto]:
    held = attributes(quant)
    bits = {b"INT4": 4, b"INT8": 8, b"INT16": 16}[held["dst_type"]]
    name = quant.output[0]
    low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    scalars = {"s": held["scale"], "o": held["offset"]} | ({"lo": low, "hi": high} if opset >= 11 else {})
    for suffix, value in scalars.items():
        graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{name}@{suffix}"))
    # Old operator sets have no Round, and Clip has attributes: doubles of this size have no fraction.
    graph.initializer.append(numpy_helper.from_array(np.float64(1.5 * 2**52), f"{name}@big"))
    limits = {"min": low, "max": high} if opset < 11 else {}
    return [
        helper.make_node("Cast", [quant.input[0]], [f"{name}@0"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}@0", f"{name}@s"], [f"{name}@1"]),
        helper.make_node("Cast", [f"{name}@1"], [f"{name}@wide"], to=TensorProto.DOUBLE),
        helper.make_node("Add", [f"{name}@wide", f"{name}@big"], [f"{name}@shifted"]),
        helper.make_node("Sub", [f"{name}@shifted", f"{name}@big"], [f"{name}@rounded"]),
        helper.make_node("Cast", [f"{name}@rounded"], [f"{name}@2"], to=TensorProto.FLOAT),
        helper.make_node("Add", [f"{name}@2", f"{name}@o"], [f"{name}@3"]),
        helper.make_node(
            "Clip", [f"{name}@3", *([] if limits else [f"{name}@lo", f"{name}@hi"])], [f"{name}@4"], **limits
        ),
        helper.make_node("Sub", [f"{name}@4", f"{name}@o"], [name]),
    ]


def _standard_dequant(
    graph: onnx.GraphProto, dequant: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: Mapping[str, Any]
) -> list[onnx.NodeProto]:
    parameter = numpy_helper.to_array(constants[dequant.input[1]])
    assert parameter.dtype == np.uint64
    assert not (parameter >> np.uint64(32)).any()
    scale = np.frombuffer(parameter.astype("<u4").tobytes(), "<f4")
    layer = makers[dequant.input[0]]
    rank = _weight_rank(layer.input[1], makers, constants) if layer.op_type in ("Conv", "ConvTranspose") else 0
    scale = scale.reshape((1, -1) + (1,) * (rank - 2)) if rank else scale
    graph.initializer.append(numpy_helper.from_array(scale, f"{dequant.output[0]}@s"))
    to = TensorProto.FLOAT16 if attributes(dequant)["dtype"] == 1 else TensorProto.FLOAT
    return [
        helper.make_node("Mul", [dequant.input[0], f"{dequant.output[0]}@s"], [f"{dequant.output[0]}@0"]),
        helper.make_node("Cast", [f"{dequant.output[0]}@0"], [dequant.output[0]], to=to),
    ]


def _weight_rank(name: str, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, Any]) -> int:
    while name not in constants:
        maker = makers[name]
        if maker.op_type == "Constant":
            return len(maker.attribute[0].t.dims)
        name = maker.input[0]
    return len(constants[name].dims)


def assert_twins_match(
    model: onnx.ModelProto, twins: Twins, feeds: Feeds, *, within: float, packed_axes: Mapping[str, int] | None = None
) -> None:
    """Check that both twins compute the same, and the float model's result but for quantization noise."""
    wanted, fake, deploy = run(model, feeds), run(twins.fake, feeds), run_deploy(twins.deploy, feeds, packed_axes)
    assert list(fake) == list(wanted) == list(deploy)
    for name, floats in wanted.items():
        assert fake[name].dtype == floats.dtype == deploy[name].dtype, name
        assert fake[name].shape == floats.shape == deploy[name].shape, name
        np.testing.assert_array_equal(fake[name], deploy[name], err_msg=name)
        error = np.abs(fake[name].astype(np.float64) - floats.astype(np.float64)).max(initial=0.0)
        spread = np.abs(floats.astype(np.float64)).max(initial=1e-9)
        assert error <= within * spread, f"{name}: off by {error / spread:.3g} of the range"


def scale_of(values: np.ndarray, bits: int = 8, axes: tuple[int, ...] | None = None) -> np.ndarray:
    """Measure a symmetric scale: the largest magnitude over the largest integer."""
    return np.float32(np.abs(values).max(axis=axes)) / np.float32(2 ** (bits - 1) - 1)


_SEQ, _BATCH, _INPUT, _HIDDEN = 3, 2, 4, 6
_GATES = {"LSTM": 4, "GRU": 3}
_STATES = {"LSTM": ["h0", "c0"], "GRU": ["h0"]}
_OUTPUTS = {"LSTM": ["y", "hn", "cn"], "GRU": ["y", "hn"]}


def make_rnn(
    rng: np.random.Generator, op_type: str, *, bias: bool = True, lens: bool = False, kind: int = 1, **settings: Any
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Build a model of one LSTM or GRU `l`, its feeds and its constants; a setting of None is left away."""
    rows = _GATES[op_type] * _HIDDEN
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = {
        "w": rng.normal(size=(1, rows, _INPUT)).astype(dtype),
        "r": rng.normal(size=(1, rows, _HIDDEN)).astype(dtype),
    }
    if bias:
        constants["b"] = rng.normal(size=(1, 2 * rows)).astype(dtype)
    inputs = {"x": Typed(kind, (_SEQ, _BATCH, _INPUT))}
    feeds = {"x": rng.normal(size=(_SEQ, _BATCH, _INPUT)).astype(dtype)}
    for state in _STATES[op_type]:
        inputs[state] = Typed(kind, (1, _BATCH, _HIDDEN))
        feeds[state] = rng.uniform(-1, 1, size=(1, _BATCH, _HIDDEN)).astype(dtype)
    if lens:
        inputs["lens"] = Typed(TensorProto.INT32, (_BATCH,))
        feeds["lens"] = np.array([3, 2], np.int32)
    defaults = {"hidden_size": _HIDDEN} | ({"linear_before_reset": 1} if op_type == "GRU" else {})
    given = {name: value for name, value in (defaults | settings).items() if value is not None}
    reads = ["x", "w", "r", "b" if bias else "", "lens" if lens else "", *_STATES[op_type]]
    nodes = [helper.make_node(op_type, reads, _OUTPUTS[op_type], "l", **given)]
    model = make_model(nodes, inputs, dict.fromkeys(_OUTPUTS[op_type], kind), constants, opset=14)
    return model, feeds, constants


def make_rnn_record(
    constants: Mapping[str, np.ndarray], op_type: str, how: str = "gate", bits: int = 8, **fields: Any
) -> dict[str, Any]:
    """Build the fields of an LSTM's or GRU's record, with weight scales per "gate" or per "row"."""

    def scales(weight: np.ndarray) -> np.ndarray:
        rows = np.abs(weight[0].astype(np.float32)).max(axis=1)
        largest = rows.reshape(_GATES[op_type], -1).max(axis=1) if how == "gate" else rows
        return largest / np.float32(2 ** (bits - 1) - 1)

    made = {"scale_h": float(np.float32(1 / 127)), "offset_h": -4, "scale_d": 0.03, "offset_d": 2, **fields}
    return make_record(scales(constants["w"]), scale_r=scales(constants["r"]), **made)


@pytest.fixture
def kit() -> SimpleNamespace:
    """Everything above, by name."""
    tools: dict[str, Callable[..., Any]] = {
        "model": make_model,
        "Typed": Typed,
        "record": make_record,
        "rnn": make_rnn,
        "rnn_record": make_rnn_record,
        "twins": make_twins,
        "run": run,
        "run_deploy": run_deploy,
        "match": assert_twins_match,
        "node": node,
        "attributes": attributes,
        "array": array,
        "tensor": tensor,
        "names": names,
        "integers": integers,
        "activation": activation,
        "scale_of": scale_of,
    }
    return SimpleNamespace(**tools)


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded source of random numbers."""
    return np.random.default_rng(20240607)
