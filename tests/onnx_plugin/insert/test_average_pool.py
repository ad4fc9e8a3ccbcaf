"""AveragePool: quantization before it, or before the Pad that belongs to it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from twinquant.errors import RecordLayerError, RecordValueError


def record(kit, x, offset=-120, **fields):
    scale = np.float32(x.max() / 240)
    return {"pool": kit.record(1.0, scale_d=scale, offset_d=offset, **fields)}


def values(rng, shape=(1, 3, 6, 6)):
    return rng.uniform(0.5, 2.0, size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_shape": [2, 2]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
    ],
    ids=str,
)
def test_the_mean_of_integers_times_the_scale_is_the_result(kit, rng, settings):
    x = values(rng)
    model = kit.model([helper.make_node("AveragePool", ["x"], ["y"], "pool", **settings)], {"x": x.shape}, ["y"])
    made = record(kit, x)
    twins = kit.twins(model, made)
    scale = np.float32(made["pool"]["scale_d"])
    wanted = kit.run(model, {"x": kit.activation(x, scale, -120)})["y"] * scale
    np.testing.assert_array_equal(kit.run(twins.fake, {"x": x})["y"], wanted)
    assert kit.array(twins.deploy, "pool.dequant.param").tolist() == [int(scale.view(np.uint32))]
    assert kit.array(twins.fake, "pool.fakedequant.dqscale.output0").shape == (1, 1)
    assert kit.names(twins.deploy) == ["pool.quant", "pool", "pool.dequant"]
    kit.match(model, twins, {"x": x}, within=0.02)
    onnx.checker.check_model(twins.fake, full_check=True)


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 2, 4, 4, 4)], ids=str)
def test_pooling_over_one_and_three_dimensions_works(kit, rng, shape):
    x = values(rng, shape)
    node = helper.make_node("AveragePool", ["x"], ["y"], "pool", kernel_shape=[2] * (len(shape) - 2))
    model = kit.model([node], {"x": x.shape}, ["y"])
    kit.match(model, kit.twins(model, record(kit, x)), {"x": x}, within=0.02)


def padded(
    kit, rng, *, pad_name="pool_pad", mode=None, value=None, opset=13, more=(), outputs=("y",), kind=1, named=True
):
    x = values(rng)
    pads = [0, 0, 1, 2, 0, 0, 1, 0]
    settings = {"mode": mode} if mode else {}
    constants, inputs = {}, ["x"]
    if opset < 11:
        settings["pads"] = pads
        if value is not None:
            settings["value"] = float(value)
    else:
        constants["pads"] = np.array(pads, np.int64)
        inputs.append("pads")
        if value is not None:
            constants["value"] = np.asarray(value)
            inputs.append("value")
    nodes = [
        helper.make_node("Pad", inputs, ["p"], pad_name, **settings),
        helper.make_node("AveragePool", ["p"], ["y"], "pool", kernel_shape=[3, 3]),
        *more,
    ]
    model = kit.model(nodes, {"x": kit.Typed(kind, x.shape)}, dict.fromkeys(outputs, kind), constants, opset=opset)
    return model, x.astype(helper.tensor_dtype_to_np_dtype(kind)), kit.twins(model, record(kit, x))


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 18])
@pytest.mark.parametrize("value", [None, 0.0], ids=["default", "zero"])
def test_a_pad_of_the_pools_name_is_padded_after_quantization(kit, rng, opset, value):
    model, x, twins = padded(kit, rng, opset=opset, value=None if value is None else np.float32(value))
    assert kit.names(twins.deploy) == ["pool.quant", "pool_pad", "pool", "pool.dequant"]
    assert kit.node(twins.deploy, "pool.quant").input[0] == "x"
    assert kit.node(twins.deploy, "pool_pad").input[0] == "pool.quant.output0"
    assert kit.node(twins.deploy, "pool").input[0] == "p"
    kit.match(model, twins, {"x": x}, within=0.02)


@pytest.mark.parametrize("mode", ["edge", "reflect"])
def test_a_pad_that_repeats_values_is_padded_after_quantization(kit, rng, mode):
    model, x, twins = padded(kit, rng, mode=mode)
    assert kit.node(twins.deploy, "pool.quant").input[0] == "x"
    kit.match(model, twins, {"x": x}, within=0.02)


@pytest.mark.parametrize("opset", [10, 13])
def test_a_pad_with_another_value_than_0_is_quantized_behind(kit, rng, opset):
    model, x, twins = padded(kit, rng, opset=opset, value=np.float32(1.5))
    assert kit.names(twins.deploy) == ["pool_pad", "pool.quant", "pool", "pool.dequant"]
    kit.match(model, twins, {"x": x}, within=0.02)


def test_a_pad_of_another_name_is_quantized_behind(kit, rng):
    model, x, twins = padded(kit, rng, pad_name="pool_padding")
    assert kit.names(twins.deploy) == ["pool_padding", "pool.quant", "pool", "pool.dequant"]
    kit.match(model, twins, {"x": x}, within=0.02)


def test_a_pad_with_two_readers_is_quantized_behind(kit, rng):
    more = [helper.make_node("Neg", ["p"], ["z"], "n")]
    model, x, twins = padded(kit, rng, more=more, outputs=("y", "z"))
    assert kit.names(twins.deploy)[0] == "pool_pad"
    assert kit.node(twins.deploy, "n").input[0] == "p"
    kit.match(model, twins, {"x": x}, within=0.02)


def test_a_pad_whose_output_is_a_graph_output_is_quantized_behind(kit, rng):
    model, x, twins = padded(kit, rng, outputs=("y", "p"))
    assert kit.names(twins.deploy)[0] == "pool_pad"
    kit.match(model, twins, {"x": x}, within=0.02)


def test_a_pad_whose_value_is_computed_is_quantized_behind(kit, rng):
    x = values(rng)
    nodes = [
        helper.make_node("Pad", ["x", "pads", "v"], ["p"], "pool_pad"),
        helper.make_node("AveragePool", ["p"], ["y"], "pool", kernel_shape=[3, 3]),
    ]
    pads = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}
    model = kit.model(nodes, {"x": x.shape, "v": ()}, ["y"], pads)
    twins = kit.twins(model, record(kit, x))
    assert kit.names(twins.deploy)[0] == "pool_pad"
    kit.match(model, twins, {"x": x, "v": np.array(1, np.float32)}, within=0.02)


@pytest.mark.parametrize("value", [None, np.float16(0)], ids=["default", "zero"])
def test_a_float16_pad_loads_in_the_fake_twin(kit, rng, value):
    model, x, twins = padded(kit, rng, value=value, kind=TensorProto.FLOAT16)
    fake = kit.run(twins.fake, {"x": x})["y"]
    wanted = kit.run(model, {"x": x})["y"]
    assert fake.dtype == np.float16
    np.testing.assert_allclose(fake.astype(np.float32), wanted.astype(np.float32), atol=0.03)


def test_global_pooling_is_refused(kit):
    model = kit.model([helper.make_node("GlobalAveragePool", ["x"], ["y"], "pool")], {"x": (1, 2, 3, 3)}, ["y"])
    with pytest.raises(RecordLayerError, match=r"GlobalAveragePool"):
        kit.twins(model, {"pool": kit.record(1.0)})


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"scale_w": 0.5}, "scale_w"), ({"scale_w": [1, 1]}, "scale_w"), ({"wts_type": "INT6"}, "wts_type")],
)
def test_weight_factors_other_than_one_are_refused(kit, fields, field):
    model = kit.model(
        [helper.make_node("AveragePool", ["x"], ["y"], "pool", kernel_shape=[2, 2])], {"x": (1, 2, 4, 4)}, ["y"]
    )
    with pytest.raises(RecordValueError, match=field) as caught:
        kit.twins(model, {"pool": kit.record(**{"scale_w": 1.0, **fields})})
    assert caught.value.field == field
