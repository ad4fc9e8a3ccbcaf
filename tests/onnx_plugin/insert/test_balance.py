"""Balance factors: the activation is divided by them; the weight has been multiplied already."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from twinquant.errors import RecordValueError

LAYERS = {
    "MatMul": ((2, 4), (4, 3), {}, (1, 4)),
    "MatMul of rank 3": ((2, 5, 4), (4, 3), {}, (1, 4)),
    "Gemm": ((2, 4), (4, 3), {}, (1, 4)),
    "Gemm transB": ((2, 4), (3, 4), {"transB": 1}, (1, 4)),
    "Conv 1d": ((1, 4, 6), (3, 4, 2), {}, (1, 4, 1)),
    "Conv 2d": ((1, 4, 6, 6), (3, 4, 2, 2), {}, (1, 4, 1, 1)),
    "Conv 3d": ((1, 4, 3, 3, 3), (3, 4, 2, 2, 2), {}, (1, 4, 1, 1, 1)),
    "Conv grouped": ((1, 4, 6, 6), (2, 2, 2, 2), {"group": 2}, (1, 4, 1, 1)),
    "Conv depthwise": ((1, 4, 6, 6), (4, 1, 2, 2), {"group": 4}, (1, 4, 1, 1)),
    "ConvTranspose 2d": ((1, 4, 6, 6), (4, 3, 2, 2), {}, (1, 4, 1, 1)),
    "ConvTranspose grouped": ((1, 4, 6, 6), (4, 3, 2, 2), {"group": 2}, (1, 4, 1, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_multiplication_by_the_reciprocals_stands_before_the_quantization(kit, rng, name):
    x_shape, w_shape, settings, shape = LAYERS[name]
    x, w = rng.normal(size=x_shape).astype(np.float32), rng.normal(size=w_shape).astype(np.float32)
    factors = np.float32([0.5, 2.0, 3.0, 0.7])
    model = kit.model(
        [helper.make_node(name.split()[0], ["x", "w"], ["y"], "l", **settings)], {"x": x.shape}, ["y"], {"w": w}
    )
    scale_w = kit.scale_of(w)
    twins = kit.twins(model, {"l": kit.record(scale_w, scale_d=0.05, tensor_balance_factor=factors)})
    for twin, first in ((twins.fake, "l.quant.fakequant.mul"), (twins.deploy, "l.quant")):
        held = kit.node(twin, "l.tensor_balance_factor")
        assert (held.op_type, list(held.output)) == ("Constant", ["l.tensor_balance_factor.output0"])
        value = kit.array(twin, "l.tensor_balance_factor.output0")
        np.testing.assert_array_equal(value, (np.float32(1) / factors).reshape(shape), strict=True)
        mul = kit.node(twin, "l.mul")
        assert (mul.op_type, list(mul.input), list(mul.output)) == (
            "Mul",
            ["x", "l.tensor_balance_factor.output0"],
            ["l.mul.output0"],
        )
        assert kit.node(twin, first).input[0] == "l.mul.output0"
    expected = kit.integers(w.T if "transB" in settings else w, scale_w)
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), expected)

    channel_axis = 1 if len(shape) > 2 else x.ndim - 1
    along = [1] * x.ndim
    along[channel_axis] = 4
    divided = x * (np.float32(1) / factors).reshape(along)
    kit.match(model, twins, {"x": x * factors.reshape(along)}, within=10)
    wanted = kit.run(model, {"x": divided})["y"]
    got = kit.run(twins.fake, {"x": x})["y"]
    assert np.abs(got - wanted).max() < 0.06 * np.abs(wanted).max()
    onnx.checker.check_model(twins.fake, full_check=True)


def test_an_activation_of_rank_1_keeps_its_rank(kit, rng):
    x, w = rng.normal(size=4).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    model = kit.model([helper.make_node("MatMul", ["x", "w"], ["y"], "l")], {"x": (4,)}, ["y"], {"w": w})
    twins = kit.twins(model, {"l": kit.record(kit.scale_of(w), tensor_balance_factor=[1, 1, 1, 1])})
    kit.match(model, twins, {"x": x}, within=0.05)


def test_a_float16_layer_gets_its_factors_as_float16(kit, rng):
    x, w = rng.normal(size=(2, 4)).astype(np.float16), rng.normal(size=(4, 3)).astype(np.float16)
    model = kit.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "l")],
        {"x": kit.Typed(TensorProto.FLOAT16, (2, 4))},
        {"y": TensorProto.FLOAT16},
        {"w": w},
    )
    factors = np.float32([1, 2, 4, 0.3])
    twins = kit.twins(model, {"l": kit.record(kit.scale_of(w), tensor_balance_factor=factors)})
    value = kit.array(twins.deploy, "l.tensor_balance_factor.output0")
    np.testing.assert_array_equal(value, (1 / factors).astype(np.float16).reshape(1, 4), strict=True)
    assert kit.run(twins.fake, {"x": x})["y"].dtype == np.float16


def test_a_factor_whose_reciprocal_leaves_float16_is_refused(kit, rng):
    from twinquant.errors import TwinQuantError

    model = kit.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "l")],
        {"x": kit.Typed(TensorProto.FLOAT16, (2, 2))},
        {"y": TensorProto.FLOAT16},
        {"w": np.ones((2, 3), np.float16)},
    )
    with pytest.raises(TwinQuantError, match=r"'l'.*tensor_balance_factor.*float16"):
        kit.twins(model, {"l": kit.record(0.1, tensor_balance_factor=[1, 2.0**-20])})


def test_balanced_layers_on_one_tensor_are_not_merged(kit, rng):
    w = rng.normal(size=(4, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], [out], out) for out in ("a", "b", "c", "d")]
    model = kit.model(nodes, {"x": (2, 4)}, ["a", "b", "c", "d"], {"w": w})
    balanced = kit.record(kit.scale_of(w), tensor_balance_factor=[1, 2, 3, 4])
    twins = kit.twins(
        model, {"a": balanced, "b": balanced, "c": kit.record(kit.scale_of(w)), "d": kit.record(kit.scale_of(w))}
    )
    quants = [node.name for node in twins.deploy.graph.node if node.op_type == "AscendQuant"]
    assert quants == ["a.quant", "b.quant", "c.quant"]
    assert kit.node(twins.deploy, "d").input[0] == "c.quant.output0"
    kit.match(model, twins, {"x": rng.normal(size=(2, 4)).astype(np.float32)}, within=1)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_another_number_of_factors_than_input_channels_is_refused(kit, count):
    model = kit.model(
        [helper.make_node("Conv", ["x", "w"], ["y"], "l", group=2)],
        {"x": (1, 4, 3, 3)},
        ["y"],
        {"w": np.ones((2, 2, 1, 1), np.float32)},
    )
    with pytest.raises(RecordValueError, match=rf"tensor_balance_factor.*has {count} value.*4 input channels"):
        kit.twins(model, {"l": kit.record(tensor_balance_factor=[1.0] * count)})
