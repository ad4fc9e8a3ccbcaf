"""What cannot be quantized is refused with the reason, but only where a record names it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import ModelContentError, RecordLayerError, TwinQuantError


def one_layer(kit, op_type, w, b=None, x_shape=(1, 2, 4, 4), **settings):
    constants = {"w": w} if b is None else {"w": w, "b": b}
    return kit.model(
        [helper.make_node(op_type, ["x", *constants], ["y"], "l", **settings)], {"x": x_shape}, ["y"], constants
    )


@pytest.mark.parametrize("op_type", ["Relu", "Add", "Softmax", "BatchNormalization", "LayerNormalization", "RNN"])
def test_operators_that_are_never_quantized_are_refused(kit, op_type):
    node = helper.make_node(op_type, ["x"], ["y"], "l")
    model = kit.model([node], {"x": (1, 2)}, ["y"], opset=17)
    with pytest.raises(RecordLayerError, match=rf"'l'.*{op_type}"):
        kit.twins(model, {"l": kit.record()})


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("rank", [2, 6])
def test_convolutions_over_no_or_over_four_dimensions_are_refused(kit, op_type, rank):
    model = one_layer(kit, op_type, np.ones((2,) * rank, np.float32), x_shape=(2,) * rank)
    with pytest.raises(RecordLayerError, match=rf"'l'.*rank {rank}"):
        kit.twins(model, {"l": kit.record()})


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose", "Gemm"])
def test_a_computed_weight_is_refused(kit, op_type):
    nodes = [helper.make_node("Relu", ["w"], ["v"], "r"), helper.make_node(op_type, ["x", "v"], ["y"], "l")]
    shape = (2, 2) if op_type == "Gemm" else (2, 2, 1, 1)
    model = kit.model(nodes, {"x": shape}, ["y"], {"w": np.ones(shape, np.float32)})
    with pytest.raises(RecordLayerError, match=r"'l'.*weight 'v'.*not constant"):
        kit.twins(model, {"l": kit.record()})


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_a_computed_bias_is_refused(kit, op_type):
    nodes = [helper.make_node(op_type, ["x", "w", "c"], ["y"], "l")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3), "c": (2,)}, ["y"], {"w": np.ones((2, 2, 1, 1), np.float32)})
    with pytest.raises(RecordLayerError, match=r"'l'.*bias.*not constant"):
        kit.twins(model, {"l": kit.record()})


def test_a_refusable_layer_that_no_record_names_stays(kit, rng):
    w = rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["w"], ["v"], "r"),
        helper.make_node("Conv", ["x", "v"], ["h"], "dynamic"),
        helper.make_node("Conv", ["h", "u"], ["y"], "l"),
    ]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], {"w": w, "u": w})
    twins = kit.twins(model, {"l": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}, within=0.1)


@pytest.mark.parametrize("shape", [(0, 2, 1, 1), (2, 0, 1, 1), (2, 2, 0, 1)], ids=str)
def test_an_empty_weight_is_refused(kit, shape):
    model = one_layer(kit, "Conv", np.ones((2, 2, 1, 1), np.float32))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), "w"))
    with pytest.raises(RecordLayerError, match=r"'l'.*empty"):
        kit.twins(model, {"l": kit.record()})


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("group", [0, -1, 3])
def test_a_group_that_does_not_fit_the_weight_is_refused(kit, op_type, group):
    model = one_layer(kit, op_type, np.ones((4, 2, 1, 1), np.float32))
    model.graph.node[0].attribute.append(helper.make_attribute("group", group))
    for scale in (0.1, [0.1] * 2, [0.1] * 4, [0.1] * 6):
        with pytest.raises(RecordLayerError, match=rf"'l'.*group is {group}"):
            kit.twins(model, {"l": kit.record(scale)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["Conv", "Gemm transB", "MatMul"])
def test_nan_and_infinity_in_a_weight_are_refused(kit, kind, value):
    op_type, _, detail = kind.partition(" ")
    shape, x_shape = ((2, 2, 1, 1), (1, 2, 3, 3)) if op_type == "Conv" else ((2, 2), (3, 2))
    w = np.ones(shape, np.float32)
    w.flat[3] = value
    model = one_layer(kit, op_type, w, x_shape=x_shape, **({detail: 1} if detail else {}))
    with pytest.raises(ModelContentError, match=r"layer 'l'.*'w'.*NaN or infinity"):
        kit.twins(model, {"l": kit.record()})


def test_nan_in_a_weight_that_no_record_names_does_no_harm(kit):
    w = np.full((2, 2, 1, 1), np.nan, np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], "a"), helper.make_node("Conv", ["x", "v"], ["y"], "l")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["h", "y"], {"w": w, "v": np.ones((2, 2, 1, 1), np.float32)})
    kit.twins(model, {"l": kit.record(0.01)})


@pytest.mark.parametrize(
    ("value", "channel"),
    [(np.nan, 1), (np.inf, 1), (-np.inf, 0), (2147483648.0, 1), (-2147483904.0, 0), (3e9, 1)],
)
def test_a_bias_outside_int32_is_refused_naming_layer_channel_and_value(kit, value, channel):
    b = np.zeros(2, np.float32)
    b[channel] = value
    model = one_layer(kit, "Conv", np.ones((2, 2, 1, 1), np.float32), b)
    with pytest.raises(
        ModelContentError, match=rf"layer 'l'.*channel {channel} .*{float(np.float32(value))!r}.*skip"
    ) as caught:
        kit.twins(model, {"l": kit.record(1.0, scale_d=1.0)})
    assert "remove its record" in str(caught.value)


@pytest.mark.parametrize("value", [2147483520.0, -2147483648.0])
def test_a_bias_at_the_limits_of_int32_is_accepted(kit, value):
    model = one_layer(kit, "Conv", np.ones((2, 2, 1, 1), np.float32), np.float32([value, 0]))
    twins = kit.twins(model, {"l": kit.record(1.0, scale_d=1.0)})
    assert kit.array(twins.deploy, "b").tolist() == [int(value), 0]


def test_a_bias_of_another_type_is_refused(kit):
    model = one_layer(kit, "Gemm", np.ones((2, 2), np.float32), np.ones(2, np.int32), x_shape=(1, 2))
    with pytest.raises(RecordLayerError, match=r"'l'.*bias is INT32"):
        kit.twins(model, {"l": kit.record()})


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.INT4])
def test_a_weight_of_another_type_is_refused(kit, kind):
    model = one_layer(kit, "MatMul", np.ones((2, 2), np.float32), x_shape=(1, 2))
    tensor = model.graph.initializer[0]
    tensor.data_type, tensor.raw_data = kind, b"\0" * 4
    with pytest.raises(RecordLayerError, match=r"'l'.*weight 'w' is .*not a float type"):
        kit.twins(model, {"l": kit.record()})


def test_a_missing_weight_is_refused(kit):
    model = kit.model([helper.make_node("Conv", ["x", ""], ["y"], "l")], {"x": (1, 2, 3, 3)}, ["y"])
    with pytest.raises(RecordLayerError, match=r"'l'.*no weight"):
        kit.twins(model, {"l": kit.record()})


@pytest.mark.parametrize("inputs", [[], [""]])
def test_a_layer_without_input_is_refused(kit, inputs):
    model = kit.model([helper.make_node("AveragePool", inputs, ["y"], "l")], {"x": (1,)}, ["y"])
    with pytest.raises(RecordLayerError, match=r"'l'.*no input"):
        kit.twins(model, {"l": kit.record(1.0)})


@pytest.mark.parametrize("outputs", [[], [""]])
@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_a_layer_without_output_is_refused(kit, op_type, outputs):
    model = one_layer(kit, op_type, np.ones((2, 2), np.float32), x_shape=(1, 2))
    del model.graph.node[0].output[:]
    model.graph.node[0].output.extend(outputs)
    with pytest.raises(RecordLayerError, match=r"'l'.*no output"):
        kit.twins(model, {"l": kit.record()})


def test_identities_in_a_circle_end_in_an_error(kit):
    nodes = [
        helper.make_node("Identity", ["a"], ["b"], "i"),
        helper.make_node("Identity", ["b"], ["a"], "j"),
        helper.make_node("MatMul", ["x", "a"], ["y"], "l"),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", 1, (2, 2))],
            [helper.make_tensor_value_info("y", 1, (2, 2))],
        )
    )
    with pytest.raises(TwinQuantError, match=r"'l'.*not constant"):
        kit.twins(model, {"l": kit.record()})


def test_an_identity_without_input_ends_in_an_error(kit):
    nodes = [helper.make_node("Identity", [], ["a"], "i"), helper.make_node("MatMul", ["x", "a"], ["y"], "l")]
    model = kit.model(nodes, {"x": (2, 2)}, ["y"])
    with pytest.raises(TwinQuantError, match=r"'l'.*not constant"):
        kit.twins(model, {"l": kit.record()})


def test_a_layer_of_a_model_local_function_is_not_found(kit):
    model = kit.model(
        [helper.make_node("Block", ["x"], ["y"], "l", domain="local")], {"x": (1, 2)}, ["y"], imports=[("local", 1)]
    )
    body = [helper.make_node("MatMul", ["a", "a"], ["b"], "inside")]
    model.functions.append(helper.make_function("local", "Block", ["a"], ["b"], body, [helper.make_opsetid("", 13)]))
    with pytest.raises(RecordLayerError, match=r"'inside'"):
        kit.twins(model, {"inside": kit.record()})


def test_shape_inference_that_fails_does_not_stop_a_model(kit, rng):
    """The declared shapes contradict each other where nothing is quantized."""
    w = rng.normal(size=(2, 2)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["h"], "r"),
        helper.make_node("Concat", ["h", "h"], ["i"], "c", axis=7),
        helper.make_node("MatMul", ["x", "w"], ["y"], "l"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, (3, 2))],
        [helper.make_tensor_value_info("y", 1, (9, 9))],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array([5, 5], np.int64), "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
    twins = kit.twins(model, {"l": kit.record(kit.scale_of(w))})
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), kit.integers(w, kit.scale_of(w)))
