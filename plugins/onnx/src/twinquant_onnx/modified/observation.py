"""Putting the operators that store a model's inputs into a graph, and taking them out again."""

from __future__ import annotations

import numpy as np
import onnx

from twinquant.errors import UnsupportedModelError
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.insert.twin import drop_op_data_type
from twinquant_onnx.modified.job import CalibrationJob
from twinquant_onnx.operators import cast, constant, make_node, set_attribute
from twinquant_onnx.topology import MAIN_DOMAINS, node_names, rename_captured

__all__ = ["DOMAIN", "FINISH", "INPUT_OPERATORS", "data_inputs", "observe_inputs", "read_job", "remove_observation"]

DOMAIN = "twinquant.calibration"
"""The domain of our operators; the names of all inserted nodes start with it and a slash."""

FINISH = "Finish"
"""The operator that closes a batch; its attribute `job` says what is wanted."""

INPUT_OPERATORS = {
    "float32": "InputFloat",
    "float64": "InputDouble",
    "int8": "InputInt8",
    "int16": "InputInt16",
    "int32": "InputInt32",
    "int64": "InputInt64",
    "uint8": "InputUint8",
    "uint16": "InputUint16",
    "uint32": "InputUint32",
    "uint64": "InputUint64",
    "bool": "InputBool",
}
"""The operator that stores an input, by its element type under NumPy's name."""

_WIDENED = {"float16": "float32"}
"""Types that Python operators cannot take, and what they are cast to without loss."""

_FIRST_EXPAND = 8
"""The first operator set that has Expand."""

_PASSED = "passed"

_FAILED = "failed, the log and save_model say why"
"""Name of the Expand node. An exception in a Python operator would end the process; an operator that failed asks for an
impossible shape instead, and the caller gets ONNX Runtime's error, with the node's name in it."""


def data_inputs(graph: OnnxGraph) -> dict[str, str]:
    """Return the element types, under NumPy's names, of the inputs that have to be fed.

    Raises:
        UnsupportedModelError: there is none, or one cannot be stored.
    """
    # Brings ONNX Runtime, which loading a model in order to save it does without.
    from twinquant_onnx.calibrate import describe_inputs

    types = {value.name: value.dtype for value in describe_inputs(graph)}
    for name, dtype in types.items():
        if dtype not in INPUT_OPERATORS and dtype not in _WIDENED:
            raise UnsupportedModelError(
                f"input {name!r} is {dtype}, which AMCT_SO cannot store; use twinquant.calibrate with the float model"
            )
    if not types:
        raise UnsupportedModelError("the model has no input, so there is nothing to calibrate it with")
    return types


def observe_inputs(graph: OnnxGraph, job: CalibrationJob) -> OnnxGraph:
    """Return the graph with the operators behind its inputs; every node of it has a name.

    The operators are chained by the number of the batch, which keeps sessions in several threads apart. The first input
    is expanded to the shape that the last operator returns, its own: so the operators run before the model does, no
    optimization of ONNX Runtime removes them, and the data itself does not go through them.

    Args:
        graph: the model; it is not modified.
        job: what is to be done with the batches; names the inputs.

    Raises:
        UnsupportedModelError: the model's operator set is too old.
    """
    opset = max((entry.version for entry in graph.model.opset_import if entry.domain in MAIN_DOMAINS), default=1)
    if opset < _FIRST_EXPAND:
        raise UnsupportedModelError(
            f"the model's operator set is {opset}, AMCT_SO needs {_FIRST_EXPAND}; convert the model with "
            "onnx.version_converter, or use twinquant.calibrate with the float model"
        )
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    main = model.graph
    nodes = [constant(_name("start"), _name("start"), np.zeros(1, np.int64))]
    token = _name("start")
    for index, (tensor, element_type) in enumerate(zip(job.inputs, job.element_types, strict=True)):
        if element_type in _WIDENED:
            element_type = _WIDENED[element_type]
            widened = _name(f"widened{index}")
            nodes.append(cast(widened, tensor, widened, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(element_type))))
            tensor = widened
        name = _name(f"input{index}")
        nodes.append(_own_node(INPUT_OPERATORS[element_type], name, [token, tensor]))
        token = name
    finish = _own_node(FINISH, _name("shape"), [token])
    set_attribute(finish, "job", job.to_text())
    first = job.inputs[0]
    passed = make_node("Expand", _name(_FAILED), [first, finish.output[0]], [_name(_PASSED)])
    for node, name in zip(main.node, node_names(main), strict=True):
        node.name = name  # nodes without one are called by their positions, which change
        drop_op_data_type(node)  # ONNX Runtime refuses a model with this attribute
        _rename(node, {first: passed.output[0]})
    # What Expand gives has no known shape; without one, ONNX Runtime optimizes the model less.
    declared = next(value for value in main.input if value.name == first)
    main.value_info.add(name=passed.output[0], type=declared.type)
    model.opset_import.add(domain=DOMAIN, version=1)
    return OnnxGraph.rebuilt(model, [*nodes, finish, passed, *main.node], graph)


def read_job(graph: OnnxGraph) -> CalibrationJob | None:
    """Return what a modified model is for; None if the graph is no such model."""
    for node in reversed(graph.model.graph.node):
        if node.domain == DOMAIN and node.op_type == FINISH:
            return CalibrationJob.from_text(node.attribute[0].s.decode())
    return None


def remove_observation(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph that `observe_inputs` was given, its nodes named; a graph without our operators as it is."""
    job = read_job(graph)
    if job is None:
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    nodes = [node for node in model.graph.node if not node.name.startswith(_name(""))]
    for node in nodes:
        _rename(node, {_name(_PASSED): job.inputs[0]})
    opsets = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    known = [value for value in model.graph.value_info if value.name != _name(_PASSED)]
    kept = onnx.ModelProto(opset_import=opsets, graph=onnx.GraphProto(value_info=known))
    model.ClearField("opset_import")
    model.graph.ClearField("value_info")
    model.MergeFrom(kept)
    return OnnxGraph.rebuilt(model, nodes, graph)


def _rename(node: onnx.NodeProto, renamed: dict[str, str]) -> None:
    """Make a node and its subgraphs read other tensors. Edits `node`."""
    for slot, tensor in enumerate(node.input):
        node.input[slot] = renamed.get(tensor, tensor)
    rename_captured(node, renamed)


def _name(what: str) -> str:
    return f"{DOMAIN}/{what}"


def _own_node(op_type: str, name: str, inputs: list[str]) -> onnx.NodeProto:
    node = make_node(op_type, name, inputs, [name])
    node.domain = DOMAIN
    return node
