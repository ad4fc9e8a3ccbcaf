"""What the executor computes, and hands out."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import UnsupportedModelError
from twinquant.registry import Tap
from twinquant_onnx import calibrate
from twinquant_onnx.framework import OnnxFramework

from .conftest import make_model, tensors

FRAMEWORK = OnnxFramework()


def look(model, layers, feeds, *, hidden=False):
    """Return the values of the layers' taps: an array each, or several of an RNN's hidden state."""
    graph = FRAMEWORK.load(model)
    taps = [Tap(layer, hidden) for layer in layers]
    seen = {tap.layer: [array.copy() for array in arrays] for tap, arrays in FRAMEWORK.activations(graph, taps)(feeds)}
    assert list(seen) == list(layers)
    return seen


def test_taps_give_what_the_layers_read(network):
    feeds = {"x": network.x}
    expected = tensors(network.model, ["r1", "f"], feeds) | feeds
    seen = look(network.model, ["conv1", "conv2", "fc"], feeds)
    for layer, tensor in network.reads.items():
        (values,) = seen[layer]
        np.testing.assert_allclose(values, expected[tensor], rtol=1e-4, atol=1e-5)


def session_graph(monkeypatch, model, layers):
    """Return the graph that goes into the session."""
    made = []
    original = calibrate._session
    monkeypatch.setattr(
        calibrate, "_session", lambda model, *rest: (made.append(model.graph), original(model, *rest))[1]
    )
    FRAMEWORK.activations(FRAMEWORK.load(model), [Tap(layer) for layer in layers])
    return made[0]


def test_nothing_behind_the_last_tap_is_computed(network, monkeypatch):
    graph = session_graph(monkeypatch, network.model, ["conv1", "conv2"])
    assert [node.op_type for node in graph.node] == ["Conv", "BatchNormalization", "Relu"]
    assert [value.name for value in graph.output] == ["r1"]
    assert {tensor.name for tensor in graph.initializer} == {"conv1.w", "gamma", "beta", "mean", "var"}


def test_a_tap_on_the_input_runs_nothing(network, monkeypatch):
    graph = session_graph(monkeypatch, network.model, ["conv1"])
    assert len(graph.node) == 0


def test_the_attribute_of_the_vendors_exports_is_no_obstacle(network):
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    for node in model.graph.node:
        node.attribute.append(helper.make_attribute("op_data_type", "float"))
    (values,) = look(model, ["conv2"], {"x": network.x})["conv2"]
    np.testing.assert_allclose(values, tensors(network.model, ["r1"], {"x": network.x})["r1"], rtol=1e-4, atol=1e-5)


def test_what_a_subgraph_reads_from_outside_is_computed(network):
    then = helper.make_graph([helper.make_node("Mul", ["x", "two"], ["t"])], "t", [], [onnx.ValueInfoProto(name="t")])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["e"])], "e", [], [onnx.ValueInfoProto(name="e")])
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"], "add"),
        helper.make_node("If", ["flag"], ["i"], "branch", then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["i", "w"], ["y"], "product"),
    ]
    constants = {
        "one": np.float32(1),
        "flag": np.array(True),
        "w": np.ones((3, 2), np.float32),
    }
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    (values,) = look(make_model(nodes, constants, {"x": (2, 3)}), ["product"], {"x": x})["product"]
    np.testing.assert_array_equal(values, 2 * x)


def test_integer_inputs_and_several_inputs_work():
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["g"], "embed"),
        helper.make_node("Mul", ["g", "mask"], ["m"], "mul"),
        helper.make_node("MatMul", ["m", "w"], ["y"], "product"),
    ]
    table = np.arange(20, dtype=np.float32).reshape(5, 4)
    model = make_model(nodes, {"table": table, "w": np.ones((4, 2), np.float32)}, {"mask": ("N", 1)})
    model.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ("N",)))
    assert [(i.name, i.dtype, i.shape) for i in FRAMEWORK.model_inputs(FRAMEWORK.load(model))] == [
        ("mask", "float32", ("N", 1)),
        ("ids", "int64", ("N",)),
    ]
    feeds = {"ids": np.array([3, 0]), "mask": np.array([[1], [-1]], np.float32)}
    (values,) = look(model, ["product"], feeds)["product"]
    np.testing.assert_array_equal(values, [table[3], -table[0]])


def test_outputs_whose_length_depends_on_the_values_work():
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"], "nonzero"),
        helper.make_node("Cast", ["n"], ["c"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["c"], ["t"], "transpose"),
        helper.make_node("MatMul", ["t", "w"], ["y"], "product"),
    ]
    model = make_model(nodes, {"w": np.ones((2, 2), np.float32)}, {"x": (3, 3)})
    for count in (1, 4):
        x = np.zeros((3, 3), np.float32)
        x.reshape(-1)[:count] = 1
        (values,) = look(model, ["product"], {"x": x})["product"]
        assert values.shape == (count, 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_handed_out_as_they_are(dtype):
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["m"], "square"),
        helper.make_node("MatMul", ["m", "w"], ["y"], "product"),
    ]
    model = make_model(nodes, {"w": np.ones((3, 2), dtype)}, {"x": (2, 3)}, dtype=dtype)
    x = np.arange(6).reshape(2, 3).astype(dtype)
    (values,) = look(model, ["product"], {"x": x})["product"]
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, x * x)


def test_bfloat16_is_handed_out_as_float32():
    bfloat16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], "cast", to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["b", "w"], ["y"], "product"),
    ]
    model = make_model(nodes, {}, {"x": (1, 3)})
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 2), bfloat16), "w"))
    x = np.array([[1.0, 1.00390625, -2.5]], np.float32)  # the second value lies between two of bfloat16
    (values,) = look(model, ["product"], {"x": x})["product"]
    np.testing.assert_array_equal(values, [[1.0, 1.0, -2.5]])


def rnn(op_type, gates, **attributes):
    random = np.random.default_rng(11)
    states = ["h0", "c0"] if op_type == "LSTM" else ["h0"]
    node = helper.make_node(
        op_type,
        ["x", "w", "r", "b", "", *states],
        ["", "hn", "cn"][: len(states) + 1],
        "rnn",
        hidden_size=4,
        **attributes,
    )
    constants = {
        "w": random.standard_normal((1, 4 * gates, 3)).astype(np.float32),
        "r": random.standard_normal((1, 4 * gates, 4)).astype(np.float32),
        "b": random.standard_normal((1, 8 * gates)).astype(np.float32),
    }
    inputs = {"x": (5, 2, 3), **dict.fromkeys(states, (1, 2, 4))}
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
    return make_model([node], constants, inputs, ["hn"], opset=14), feeds


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_the_hidden_state_is_what_each_step_reads(op_type, gates):
    model, feeds = rnn(op_type, gates, **({"linear_before_reset": 1} if op_type == "GRU" else {}))
    seen = look(model, ["rnn"], feeds, hidden=True)["rnn"]
    # After k steps the last state is what step k + 1 reads.
    expected = [feeds["h0"]]
    shorter = onnx.ModelProto()
    shorter.CopyFrom(model)
    for steps in range(1, 5):
        shorter.graph.input[0].type.tensor_type.shape.dim[0].dim_value = steps
        expected.append(tensors(shorter, ["hn"], feeds | {"x": feeds["x"][:steps]})["hn"])
    given = np.concatenate([values.reshape(-1, 2, 4) for values in seen])
    np.testing.assert_allclose(given, np.concatenate(expected), atol=1e-6)


def test_a_model_that_does_not_run_is_an_error_with_the_words_of_onnx_runtime():
    nodes = [
        helper.make_node("Mystery", ["x"], ["m"], "mystery", domain="com.example"),
        helper.make_node("MatMul", ["m", "w"], ["y"], "product"),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 2))],
            [numpy_helper.from_array(np.ones((3, 2), np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("com.example", 1)],
        ir_version=8,
    )
    with pytest.raises(UnsupportedModelError, match=r"ONNX Runtime cannot run the model: .*Mystery"):
        look(model, ["product"], {"x": np.ones((2, 3), np.float32)})


def test_a_batch_that_does_not_run_is_an_error():
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"], "reshape"),
        helper.make_node("MatMul", ["r", "w"], ["y"], "product"),
    ]
    constants = {"shape": np.array([2, 3]), "w": np.ones((3, 2), np.float32)}
    model = make_model(nodes, constants, {"x": ("N",)})
    with pytest.raises(UnsupportedModelError, match=r"cannot run the model on this batch.*'x' \[7\].*--size.*Reshape"):
        look(model, ["product"], {"x": np.ones(7, np.float32)})


def test_string_inputs_are_refused():
    model = make_model([helper.make_node("Identity", ["x"], ["y"])], {}, {"x": (1,)})
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(UnsupportedModelError, match=re.escape("input 'x' is no tensor of numbers but STRING")):
        FRAMEWORK.model_inputs(FRAMEWORK.load(model))
