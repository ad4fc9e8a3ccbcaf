"""Running a graph piece by piece gives what ONNX Runtime gives for the whole."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import VerificationError
from twinquant_onnx import run as run_module
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.load import load_model
from twinquant_onnx.run import ArrayStep, Pipeline

X = np.array([[1.0, -2.0, 3.0]], np.float32)


def make_model(nodes, outputs, constants=None, opset=13):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model, wanted, work=None):
    graph = OnnxGraph(model, TensorStore())
    return dict(Pipeline(graph, list(model.graph.node) if work is None else work, wanted).run({"x": X}))


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs.split(), output.split(), name=f"{op_type}_{output}", **attributes)


@pytest.fixture
def tiny_pieces(monkeypatch):
    """Every wanted tensor ends a piece."""
    monkeypatch.setattr(run_module, "_WANTED", 1)


def test_every_tensor_on_the_way_can_be_tapped(tiny_pieces):
    model = make_model([node("Neg", "x", "a"), node("Exp", "a", "b"), node("Add", "a b", "y")], ["y"])
    got = run(model, ["x", "a", "b", "y"])
    assert list(got) == ["x", "a", "b", "y"]
    np.testing.assert_array_equal(got["a"], -X)
    np.testing.assert_allclose(got["y"], -X + np.exp(-X), rtol=1e-6)


def test_pieces_give_the_same_bits_as_the_whole(tiny_pieces):
    weights = {f"w{i}": np.random.default_rng(i).normal(size=(3, 3)).astype(np.float32) for i in range(6)}
    names = ["x", *(f"t{i}" for i in range(6))]
    model = make_model([node("MatMul", f"{names[i]} w{i}", names[i + 1]) for i in range(6)], ["t5"], weights)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    whole = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": X})[0]
    assert np.array_equal(run(model, names)["t5"], whole)


def test_a_sequence_passes_from_piece_to_piece(tiny_pieces):
    nodes = [
        node("Neg", "x", "a"),
        node("SequenceConstruct", "x a", "pair"),
        node("Abs", "a", "b"),
        node("SequenceAt", "pair one", "y"),
    ]
    got = run(make_model(nodes, ["y"], {"one": np.array(1)}), ["a", "b", "y"])
    np.testing.assert_array_equal(got["y"], -X)


def test_a_subgraph_captures_tensors_of_earlier_pieces_and_constants(tiny_pieces):
    result = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    then = helper.make_graph([node("Add", "a shift", "r")], "then", [], result)
    other = helper.make_graph([node("Identity", "x", "r")], "else", [], result)
    nodes = [node("Neg", "x", "a"), node("If", "yes", "y", then_branch=then, else_branch=other)]
    constants = {"yes": np.array(True), "shift": np.array([10.0], np.float32)}
    np.testing.assert_array_equal(run(make_model(nodes, ["y"], constants), ["a", "y"])["y"], 10 - X)


def test_constants_can_be_asked_for_and_follow_their_readers(tiny_pieces):
    value = numpy_helper.from_array(np.array([5.0], np.float32))
    nodes = [node("Constant", "", "five", value=value), node("Add", "x five", "a"), node("Mul", "a five", "y")]
    got = run(make_model(nodes, ["y"]), ["five", "a", "y"])
    assert got["five"].tolist() == [5.0]
    np.testing.assert_array_equal(got["y"], (X + 5) * 5)


def test_nodes_that_nothing_asked_for_depends_on_do_not_run():
    model = make_model([node("NoSuchOperator", "x", "dead"), node("Neg", "x", "y")], ["y"])
    assert list(run(model, ["y"])) == ["y"]


def test_a_step_on_arrays_takes_its_place_between_nodes():
    model = make_model([node("Neg", "x", "a"), node("Neg", "b", "y")], ["y"])
    step = ArrayStep(("a", "k"), ("b", "c"), lambda arrays: (arrays[0] * arrays[1], arrays[0] + 1))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2.0], np.float32), "k"))
    first, last = model.graph.node
    got = run(model, ["y", "c"], [first, step, last])
    np.testing.assert_array_equal(got["y"], 2 * X)
    np.testing.assert_array_equal(got["c"], 1 - X)


def test_bfloat16_comes_out_widened():
    model = make_model([node("Cast", "x", "y", to=TensorProto.BFLOAT16)], ["y"])
    got = run(model, ["y"])["y"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, X)


def test_external_weights_are_used_without_being_in_the_message(tmp_path):
    weight = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    model = make_model([node("MatMul", "x w", "y")], ["y"], {"w": weight})
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    graph = load_model(tmp_path / "m.onnx")
    got = dict(Pipeline(graph, list(graph.model.graph.node), ["y"]).run({"x": X}))["y"]
    np.testing.assert_allclose(got, X @ weight, rtol=1e-5, atol=1e-5)


def test_a_node_that_reads_what_comes_later_is_named():
    model = make_model([node("Neg", "late", "y"), node("Neg", "x", "late")], ["y"])
    with pytest.raises(VerificationError, match=r"'Neg_y' reads tensor 'late', which nothing before it makes"):
        run(model, ["y", "late"])


def test_a_wanted_tensor_that_nothing_makes_is_named():
    with pytest.raises(VerificationError, match="nothing makes tensor 'ghost'"):
        run(make_model([node("Neg", "x", "y")], ["y"]), ["ghost"])


def test_an_input_that_is_not_fed_is_named():
    model = make_model([node("Neg", "x", "y")], ["y"])
    pipeline = Pipeline(OnnxGraph(model, TensorStore()), list(model.graph.node), ["y"])
    with pytest.raises(VerificationError, match="input 'x'"):
        list(pipeline.run({}))


def test_an_operator_that_onnx_runtime_lacks_is_named():
    with pytest.raises(VerificationError, match="NoSuchOperator 'NoSuchOperator_y'"):
        run(make_model([node("NoSuchOperator", "x", "y")], ["y"]), ["y"])
