"""Layers with a BatchNormalization behind them. The fixture `fuse` compares both models on ONNX Runtime."""

import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "weight", "group"),
    [
        ((2, 4, 9), (6, 4, 3), 1),
        ((2, 4, 6, 6), (6, 4, 3, 3), 1),
        ((2, 4, 6, 6), (6, 2, 3, 3), 2),
        ((2, 4, 6, 6), (4, 1, 3, 3), 4),
        ((1, 3, 5, 6, 7), (5, 3, 2, 3, 2), 1),
    ],
)
def test_a_convolution_of_any_rank(kit, fuse, rng, shape, weight, group, bias):
    constants = {"w": rng.normal(size=weight).astype(np.float32), **kit.batch_norm_constants(rng, weight[0])}
    if bias:
        constants["b"] = rng.normal(size=weight[0]).astype(np.float32)
    nodes = [kit.convolution(bias="b" if bias else None, group=group), kit.batch_norm()]
    result = fuse(kit.model(nodes, constants, inputs={"x": shape}))
    assert result.fused == {"conv": ("bn",)}
    assert result.op_types == ["Conv"]
    assert set(result.initializers) == {"w", "b" if bias else "conv.bias"}


@pytest.mark.parametrize(
    ("shape", "weight", "group"),
    [
        ((2, 4, 9), (4, 6, 3), 1),
        ((2, 4, 5, 5), (4, 3, 2, 2), 1),
        ((2, 4, 5, 5), (4, 3, 2, 2), 2),
        ((2, 6, 5, 5), (6, 1, 3, 3), 6),
        ((1, 4, 3, 4, 3), (4, 2, 2, 2, 2), 2),
    ],
)
def test_a_transposed_convolution_of_any_rank_and_grouping(kit, fuse, rng, shape, weight, group):
    constants = {
        "w": rng.normal(size=weight).astype(np.float32),
        **kit.batch_norm_constants(rng, weight[1] * group),
    }
    node = helper.make_node("ConvTranspose", ["x", "w"], ["c"], name="up", group=group)
    result = fuse(kit.model([node, kit.batch_norm()], constants, inputs={"x": shape}))
    assert result.op_types == ["ConvTranspose"]
    assert result.fused == {"up": ("bn",)}


@pytest.fixture
def constants(kit, rng):
    return {"w": rng.normal(size=(6, 4, 3, 3)).astype(np.float32), **kit.batch_norm_constants(rng, 6)}


def test_weight_and_bias_are_those_of_the_definition(kit, fuse, constants, rng):
    constants["b"] = rng.normal(size=6).astype(np.float32)
    result = fuse(kit.model([kit.convolution(bias="b"), kit.batch_norm(epsilon=0.5)], constants))
    factor = constants["gamma"].astype(np.float64) / np.sqrt(constants["var"].astype(np.float64) + 0.5)
    np.testing.assert_allclose(result.initializers["w"], constants["w"] * factor[:, None, None, None], rtol=1e-6)
    bias = (constants["b"] - constants["mean"]) * factor + constants["beta"]
    np.testing.assert_allclose(result.initializers["b"], bias, rtol=1e-5, atol=1e-6)


def test_without_the_attribute_epsilon_is_1e_minus_5(kit, fuse, constants):
    constants["var"] = np.full(6, 1e-6, np.float32)
    result = fuse(kit.model([kit.convolution(), kit.batch_norm()], constants))
    factor = constants["gamma"] / np.sqrt(1.1e-5)
    np.testing.assert_allclose(result.initializers["w"], constants["w"] * factor[:, None, None, None], rtol=1e-5)


def test_the_fused_layer_makes_the_last_nodes_output_under_its_own_name(kit, fuse, constants):
    nodes = [kit.convolution(), kit.batch_norm(target="n"), helper.make_node("Relu", ["n"], ["y"], name="relu")]
    model = kit.model(nodes, constants)
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 6, 4, 4)) for name in ("c", "n")
    )
    result = fuse(model)
    assert [(node.name, list(node.output)) for node in result.model.graph.node] == [("conv", ["n"]), ("relu", ["y"])]
    assert [value.name for value in result.model.graph.value_info] == ["n"]


def test_a_fused_bias_takes_a_free_name(kit, fuse, constants):
    nodes = [kit.convolution(), kit.batch_norm(target="n"), helper.make_node("Neg", ["n"], ["conv.bias"], name="neg")]
    result = fuse(kit.model(nodes, constants, outputs=["conv.bias"]))
    assert list(result.model.graph.node[0].input) == ["x", "w", "conv.bias_1"]


def test_parameters_that_somebody_else_reads_stay(kit, fuse, constants):
    nodes = [kit.convolution(), kit.batch_norm(), helper.make_node("Neg", ["gamma"], ["z"], name="neg")]
    result = fuse(kit.model(nodes, constants, outputs=["y", "z"]))
    assert set(result.initializers) == {"w", "conv.bias", "gamma"}


def test_constants_nobody_ever_read_stay(kit, fuse, constants):
    result = fuse(kit.model([kit.convolution(), kit.batch_norm()], {**constants, "spare": np.ones(3, np.float32)}))
    assert "spare" in result.initializers


def test_initializers_that_are_inputs_go_from_both_lists(kit, fuse, constants):
    inputs = {"x": (2, 4, 6, 6), **{name: value.shape for name, value in constants.items()}}
    result = fuse(kit.model([kit.convolution(), kit.batch_norm()], constants, inputs=inputs))
    assert [value.name for value in result.model.graph.input] == ["x", "w"]


def test_in_old_models_a_new_bias_is_an_input_too(kit, fuse, constants):
    inputs = {"x": (2, 4, 6, 6), **{name: value.shape for name, value in constants.items()}}
    nodes = [kit.convolution(), kit.batch_norm()]
    result = fuse(kit.model(nodes, constants, inputs=inputs, opset=8, ir_version=3))
    assert [value.name for value in result.model.graph.input] == ["x", "w", "conv.bias"]


def test_constants_of_every_form_are_found_and_removed(kit, fuse, constants):
    def constant(name):
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(constants.pop(name)))

    nodes = [
        constant("w"),
        constant("gamma"),
        helper.make_node("Identity", ["beta0"], ["beta"], name="identity"),
        kit.convolution(),
        kit.batch_norm(),
    ]
    constants["beta0"] = constants.pop("beta")
    result = fuse(kit.model(nodes, constants))
    assert result.op_types == ["Conv"]
    assert set(result.initializers) == {"w.conv", "conv.bias"}


def test_layers_that_share_a_weight_get_one_each(kit, fuse, constants, rng):
    other = {f"{name}2": value for name, value in kit.batch_norm_constants(rng, 6).items()}
    nodes = [
        kit.convolution(),
        kit.batch_norm(),
        helper.make_node("Conv", ["x", "w"], ["d"], name="conv2"),
        helper.make_node("BatchNormalization", ["d", *other], ["z"], name="bn2"),
    ]
    result = fuse(kit.model(nodes, {**constants, **other}, outputs=["y", "z"]))
    assert result.fused == {"conv": ("bn",), "conv2": ("bn2",)}
    assert set(result.initializers) == {"w.conv", "conv.bias", "w.conv2", "conv2.bias"}


def test_a_weight_that_an_unfused_layer_reads_too_stays_beside_the_fused_one(kit, fuse, constants):
    nodes = [kit.convolution(), kit.batch_norm(), helper.make_node("Conv", ["x", "w"], ["z"], name="conv2")]
    result = fuse(kit.model(nodes, constants, outputs=["y", "z"]))
    assert set(result.initializers) == {"w", "w.conv", "conv.bias"}
    np.testing.assert_array_equal(result.initializers["w"], constants["w"])


def test_normalizations_in_a_row_are_all_folded(kit, fuse, constants):
    nodes = [kit.convolution(), kit.batch_norm(target="n"), kit.batch_norm("n", name="bn2")]
    result = fuse(kit.model(nodes, constants))
    assert result.fused == {"conv": ("bn", "bn2")}


def test_float16(kit, fuse, rng):
    constants = {
        "w": rng.normal(size=(6, 4, 3, 3)).astype(np.float16),
        **kit.batch_norm_constants(rng, 6, np.float16),
    }
    model = kit.model([kit.convolution(), kit.batch_norm()], constants, dtype=np.float16)
    result = fuse(model, tolerance=5e-3)
    assert result.initializers["w"].dtype == result.initializers["conv.bias"].dtype == np.float16


def test_float64_is_computed_in_float64(kit, fuse, rng):
    constants = {
        "w": rng.normal(size=(6, 4, 3, 3)),
        **kit.batch_norm_constants(rng, 6, np.float64),
    }
    # ONNX Runtime has no Conv in float64: the numbers are those of the definition.
    from twinquant_onnx.fuse import fuse_model
    from twinquant_onnx.load import load_model

    graph, _ = fuse_model(load_model(kit.model([kit.convolution(), kit.batch_norm()], constants, dtype=np.float64)))
    tensors = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    stored = graph.store.get(tensors["w"])
    weight = np.frombuffer(b"".join(bytes(block) for block in stored.content.blocks()), np.float64)
    factor = constants["gamma"] / np.sqrt(constants["var"] + np.float32(1e-5))
    expected = constants["w"] * factor[:, None, None, None]
    np.testing.assert_allclose(weight.reshape(expected.shape), expected, rtol=1e-10)
    bias = numpy_helper.to_array(tensors["conv.bias"])
    np.testing.assert_allclose(bias, constants["beta"] - constants["mean"] * factor, rtol=1e-10)


@pytest.mark.parametrize("opset", [7, 8, 9, 14, 15])
def test_every_operator_set(kit, fuse, constants, opset):
    attributes = {"spatial": 1} if opset < 9 else {"training_mode": 0} if opset > 13 else {}
    result = fuse(kit.model([kit.convolution(), kit.batch_norm(**attributes)], constants, opset=opset))
    assert result.op_types == ["Conv"]


def unfused(kit, nodes, constants, caplog, **kwargs):
    """Fuse a model of which nothing may be fused, and return what the log says."""
    from twinquant_onnx.fuse import fuse_model
    from twinquant_onnx.load import load_model

    model = kit.model(nodes, constants, **kwargs)
    with caplog.at_level(logging.INFO, "twinquant_onnx.fuse"):
        graph, fused = fuse_model(load_model(model))
    assert fused == ()
    assert [node.op_type for node in graph.model.graph.node] == [node.op_type for node in nodes]
    return caplog.text


def test_extra_outputs_of_old_operator_sets_that_nobody_reads_are_no_obstacle(kit, constants):
    from twinquant_onnx.fuse import fuse_model
    from twinquant_onnx.load import load_model

    node = helper.make_node("BatchNormalization", ["c", *list(constants)[1:]], ["y", "m", "v", "sm", "sv"], name="bn")
    graph, fused = fuse_model(load_model(kit.model([kit.convolution(), node], constants, opset=9)))
    assert [each.folded for each in fused] == [("bn",)]
    assert [list(node.output) for node in graph.model.graph.node] == [["y"]]


def test_an_extra_output_that_is_read(kit, constants, caplog):
    node = helper.make_node("BatchNormalization", ["c", *list(constants)[1:]], ["y", "m"], name="bn")
    nodes = [kit.convolution(), node, helper.make_node("Neg", ["m"], ["z"])]
    text = unfused(kit, nodes, constants, caplog, opset=9, outputs=["y", "z"])
    assert "'bn' cannot be folded: its output 'm' is read" in text


def test_training_mode(kit, constants, caplog):
    nodes = [kit.convolution(), kit.batch_norm(training_mode=1)]
    assert "it is in training mode" in unfused(kit, nodes, constants, caplog, opset=15)


def test_a_normalization_of_every_position_by_itself(kit, constants, caplog):
    nodes = [kit.convolution(), kit.batch_norm(spatial=0)]
    assert "spatial = 0" in unfused(kit, nodes, constants, caplog, opset=8)


def test_another_reader_of_the_tensor_in_between(kit, constants, caplog):
    nodes = [kit.convolution(), kit.batch_norm(), helper.make_node("Relu", ["c"], ["z"])]
    text = unfused(kit, nodes, constants, caplog, outputs=["y", "z"])
    assert "the BatchNormalization behind it is not its only reader" in text


def test_a_tensor_in_between_that_is_an_output_of_the_graph(kit, constants, caplog):
    nodes = [kit.convolution(), kit.batch_norm()]
    assert "not its only reader" in unfused(kit, nodes, constants, caplog, outputs=["y", "c"])


def test_a_subgraph_that_captures_the_tensor_in_between(kit, constants, caplog):
    def branch(name):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 6, 4, 4))
        return helper.make_graph([helper.make_node("Neg", ["c"], [name])], name, [], [out])

    nodes = [
        kit.convolution(),
        kit.batch_norm(),
        helper.make_node("If", ["yes"], ["z"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    constants["yes"] = np.array(True)
    assert "not its only reader" in unfused(kit, nodes, constants, caplog, outputs=["y", "z"])


def test_a_weight_that_is_an_input(kit, constants, caplog):
    del constants["w"]
    inputs = {"x": (2, 4, 6, 6), "w": (6, 4, 3, 3)}
    nodes = [kit.convolution(), kit.batch_norm()]
    assert "its weight is not constant" in unfused(kit, nodes, constants, caplog, inputs=inputs)


def test_a_bias_that_is_an_input(kit, constants, caplog):
    inputs = {"x": (2, 4, 6, 6), "b": (6,)}
    nodes = [kit.convolution(bias="b"), kit.batch_norm()]
    assert "its bias is not constant" in unfused(kit, nodes, constants, caplog, inputs=inputs)


def test_a_parameter_that_is_an_input(kit, constants, caplog):
    del constants["beta"]
    inputs = {"x": (2, 4, 6, 6), "beta": (6,)}
    nodes = [kit.convolution(), kit.batch_norm()]
    assert "its input 'beta' is not constant" in unfused(kit, nodes, constants, caplog, inputs=inputs)


def test_a_negative_variance(kit, constants, caplog):
    constants["var"] = np.full(6, -1, np.float32)
    assert "not finite" in unfused(kit, [kit.convolution(), kit.batch_norm()], constants, caplog)


def test_a_bias_that_overflows_float16(kit, rng, caplog):
    constants = {"w": np.ones((6, 4, 3, 3), np.float16), **kit.batch_norm_constants(rng, 6, np.float16)}
    constants["mean"] = np.full(6, 60000, np.float16)
    constants["gamma"] = np.full(6, 100, np.float16)
    text = unfused(kit, [kit.convolution(), kit.batch_norm()], constants, caplog, dtype=np.float16)
    assert "its fused bias does not fit into float16" in text


def test_a_skipped_layer(kit, fuse, constants, caplog):
    with caplog.at_level(logging.INFO, "twinquant_onnx.fuse"):
        result = fuse(kit.model([kit.convolution(), kit.batch_norm()], constants), skip=["conv"])
    assert result.op_types == ["Conv", "BatchNormalization"]
    assert result.fused == {}
    assert "layer 'conv': nothing is folded into it: it is skipped as configured" in caplog.text


def test_a_normalization_behind_nothing_that_is_a_layer_stays(kit, fuse, constants):
    nodes = [kit.convolution(), helper.make_node("Relu", ["c"], ["r"], name="relu"), kit.batch_norm("r")]
    assert fuse(kit.model(nodes, constants)).op_types == ["Conv", "Relu", "BatchNormalization"]


def test_unnamed_nodes_keep_the_names_that_their_positions_gave_them(kit, fuse, constants):
    nodes = [kit.convolution(), kit.batch_norm(target="n"), helper.make_node("Relu", ["n"], ["y"])]
    for node in nodes:
        node.name = ""
    result = fuse(kit.model(nodes, constants))
    assert result.fused == {"node_0": ("node_1",)}
    assert [node.name for node in result.model.graph.node] == ["node_0", "node_2"]


def test_a_normalization_inside_a_subgraph_stays(kit, fuse, constants):
    inner = [kit.convolution(), kit.batch_norm(target="inner")]
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, (2, 6, 4, 4))
    branches = {
        "then_branch": helper.make_graph(inner, "then", [], [out]),
        "else_branch": helper.make_graph(inner, "else", [], [out]),
    }
    nodes = [helper.make_node("If", ["yes"], ["y"], name="if", **branches)]
    result = fuse(kit.model(nodes, {**constants, "yes": np.array(True)}))
    assert isinstance(result.model, onnx.ModelProto)
    assert result.fused == {}
    assert set(result.initializers) == {*constants, "yes"}
