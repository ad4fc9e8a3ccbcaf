"""Layers with constant Mul and Add nodes behind them. The fixture `fuse` compares both models on ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper


@pytest.fixture
def constants(rng):
    return {
        "w": rng.normal(size=(6, 4, 3, 3)).astype(np.float32),
        "b": rng.normal(size=6).astype(np.float32),
        "m": rng.uniform(0.5, 2, (6, 1, 1)).astype(np.float32),
        "a": rng.normal(size=(1, 6, 1, 1)).astype(np.float32),
    }


def mul(*inputs, target="y"):
    return helper.make_node("Mul", inputs, [target], name="mul")


def add(*inputs, target="y"):
    return helper.make_node("Add", inputs, [target], name="add")


@pytest.mark.parametrize("bias", [None, "b"])
@pytest.mark.parametrize("swapped", [False, True])
def test_mul_then_add_with_operands_in_either_order(kit, fuse, constants, bias, swapped):
    nodes = [mul("c", "m", target="s"), add("s", "a")]
    if swapped:
        nodes = [mul("m", "c", target="s"), add("a", "s")]
    result = fuse(kit.model([kit.convolution(bias=bias), *nodes], constants))
    assert result.op_types == ["Conv"]
    assert result.fused == {"conv": ("mul", "add")}


def test_add_then_mul(kit, fuse, constants):
    result = fuse(kit.model([kit.convolution(), add("c", "a", target="s"), mul("s", "m")], constants))
    assert result.fused == {"conv": ("add", "mul")}


def test_mul_only(kit, fuse, constants):
    result = fuse(kit.model([kit.convolution(bias="b"), mul("c", "m")], constants))
    np.testing.assert_allclose(result.initializers["w"], constants["w"] * constants["m"][..., None], rtol=1e-6)
    np.testing.assert_allclose(result.initializers["b"], constants["b"] * constants["m"].ravel(), rtol=1e-6)


def test_add_only_becomes_the_bias_and_leaves_the_weight(kit, fuse, constants):
    del constants["b"], constants["m"]
    result = fuse(kit.model([kit.convolution(), add("c", "a")], constants))
    np.testing.assert_array_equal(result.initializers["w"], constants["w"])
    np.testing.assert_array_equal(result.initializers["conv.bias"], constants["a"].ravel())
    assert set(result.initializers) == {"w", "conv.bias"}


def test_mul_and_add_around_a_batch_normalization(kit, fuse, constants, rng):
    constants |= kit.batch_norm_constants(rng, 6)
    nodes = [mul("c", "m", target="s"), kit.batch_norm("s", "n"), add("n", "a")]
    assert fuse(kit.model([kit.convolution(), *nodes], constants)).fused == {"conv": ("mul", "bn", "add")}


def test_one_dimensional_convolutions_take_constants_with_one_axis_behind_the_channels(kit, fuse, rng):
    constants = {
        "w": rng.normal(size=(6, 4, 3)).astype(np.float32),
        "m": rng.uniform(0.5, 2, (6, 1)).astype(np.float32),
    }
    model = kit.model([kit.convolution(), mul("c", "m")], constants, inputs={"x": (2, 4, 9)})
    assert fuse(model).op_types == ["Conv"]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (4,), (1, 1, 4), (6, 4, 4), (2, 6, 1, 1), (1, 1, 6, 1, 1)])
def test_constants_of_other_shapes_stay(kit, fuse, constants, rng, shape):
    constants["m"] = rng.uniform(0.5, 2, shape).astype(np.float32)
    assert fuse(kit.model([kit.convolution(), mul("c", "m")], constants)).op_types == ["Conv", "Mul"]


def test_the_product_of_the_layers_output_with_itself_stays(kit, fuse, constants):
    assert fuse(kit.model([kit.convolution(), mul("c", "c")], constants)).op_types == ["Conv", "Mul"]


def test_a_tensor_that_is_added_stays(kit, fuse, constants):
    inputs = {"x": (2, 4, 6, 6), "other": (1, 6, 1, 1)}
    model = kit.model([kit.convolution(), add("c", "other")], constants, inputs=inputs)
    assert fuse(model).op_types == ["Conv", "Add"]


def test_folding_stops_at_the_first_tensor_that_somebody_else_reads(kit, fuse, constants):
    nodes = [kit.convolution(), mul("c", "m", target="s"), add("s", "a"), helper.make_node("Neg", ["s"], ["z"])]
    result = fuse(kit.model(nodes, constants, outputs=["y", "z"]))
    assert result.fused == {"conv": ("mul",)}
    assert result.op_types == ["Conv", "Add", "Neg"]


def test_a_constant_of_two_layers_is_folded_into_both(kit, fuse, constants):
    nodes = [
        kit.convolution(),
        mul("c", "m"),
        helper.make_node("Conv", ["x", "w"], ["d"], name="conv2"),
        helper.make_node("Mul", ["d", "m"], ["z"], name="mul2"),
    ]
    result = fuse(kit.model(nodes, constants, outputs=["y", "z"]))
    assert result.fused == {"conv": ("mul",), "conv2": ("mul2",)}
    assert "m" not in result.initializers
