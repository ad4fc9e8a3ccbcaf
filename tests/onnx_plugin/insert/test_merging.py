"""One quantization for layers that read one tensor with equal factors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper


def readers(kit, rng, count=3, op_types=None):
    """`count` convolutions that read x; their names are a, b, c."""
    names = "abcd"[:count]
    w = rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node((op_types or ["Conv"] * count)[i], ["x", f"w{name}"], [f"y{name}"], name)
        for i, name in enumerate(names)
    ]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, [f"y{n}" for n in names], {f"w{n}": w for n in names})
    return model, rng.normal(size=(1, 2, 3, 3)).astype(np.float32), kit.scale_of(w)


def quants(twin):
    return [node.name for node in twin.graph.node if node.op_type == "AscendQuant"]


def test_equal_factors_share_the_node_of_the_first_layer_in_graph_order(kit, rng):
    model, x, scale_w = readers(kit, rng)
    made = kit.record(scale_w)
    twins = kit.twins(model, {"c": made, "b": made, "a": made})
    assert quants(twins.deploy) == ["a.quant"]
    assert {kit.node(twins.deploy, name).input[0] for name in "abc"} == {"a.quant.output0"}
    assert [n for n in kit.names(twins.fake) if n.endswith(".round")] == ["a.quant.fakequant.round"]
    kit.match(model, twins, {"x": x}, within=0.05)


def test_an_absent_activation_type_equals_int8(kit, rng):
    model, x, scale_w = readers(kit, rng)
    records = {
        "a": kit.record(scale_w),
        "b": kit.record(scale_w, act_type="INT8"),
        "c": kit.record(scale_w, dst_type="INT8"),
    }
    twins = kit.twins(model, records)
    assert quants(twins.deploy) == ["a.quant"]
    kit.match(model, twins, {"x": x}, within=0.05)


@pytest.mark.parametrize(
    "change", [{"offset_d": 4}, {"scale_d": 0.051}, {"act_type": "INT16"}, {"act_type": "INT4"}], ids=str
)
def test_other_factors_keep_their_own_node(kit, rng, change):
    model, x, scale_w = readers(kit, rng)
    made, other = kit.record(scale_w), kit.record(scale_w, **change)
    twins = kit.twins(model, {"a": made, "b": other, "c": made})
    assert quants(twins.deploy) == ["a.quant", "b.quant"]
    assert kit.node(twins.deploy, "c").input[0] == "a.quant.output0"
    kit.match(model, twins, {"x": x}, within=1)


def test_scales_are_compared_as_float32(kit, rng):
    model, _, scale_w = readers(kit, rng, 2)
    first = kit.record(scale_w)
    second = {**kit.record(scale_w), "scale_d": 0.05}  # the float64 nearest to the same decimal
    assert first["scale_d"] != second["scale_d"]
    assert quants(kit.twins(model, {"a": first, "b": second}).deploy) == ["a.quant"]


def test_other_weight_factors_do_not_hinder_merging(kit, rng):
    model, x, scale_w = readers(kit, rng, 3, ["Conv", "ConvTranspose", "Conv"])
    records = {
        "a": kit.record(scale_w),
        "b": kit.record(scale_w * np.float32(2.1), wts_type="INT7"),
        "c": kit.record([scale_w, scale_w], fakequant_precision_mode="FORCE_FP16_QUANT"),
    }
    twins = kit.twins(model, records)
    assert quants(twins.deploy) == ["a.quant"]
    kit.match(model, twins, {"x": x}, within=0.1)


def test_a_float_reader_of_the_tensor_keeps_the_floats(kit, rng):
    model, x, scale_w = readers(kit, rng, 2)
    model.graph.node.append(helper.make_node("Relu", ["x"], ["r"], "r"))
    model.graph.output.append(helper.make_tensor_value_info("r", 1, (1, 2, 3, 3)))
    twins = kit.twins(model, {"a": kit.record(scale_w), "b": kit.record(scale_w)})
    assert kit.node(twins.deploy, "r").input[0] == "x"
    kit.match(model, twins, {"x": x}, within=0.05)


def test_different_tensors_are_not_merged(kit, rng):
    w = rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], "a"), helper.make_node("Conv", ["h", "w"], ["y"], "b")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], {"w": w})
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w)), "b": kit.record(kit.scale_of(w), scale_d=0.5)})
    assert quants(twins.deploy) == ["a.quant", "b.quant"]
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}, within=0.1)


def test_the_shared_node_stands_before_the_first_reader(kit, rng):
    """The Pad of the last layer is the first to read the shared tensor."""
    x, w = rng.uniform(size=(1, 2, 4, 4)).astype(np.float32), rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"], "pool_pad"),
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("AveragePool", ["p"], ["b"], "pool", kernel_shape=[2, 2]),
    ]
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    model = kit.model(nodes, {"x": x.shape}, ["a", "b"], {"w": w, "pads": pads})
    factors = {"scale_d": 1 / 240, "offset_d": -120}
    twins = kit.twins(model, {"conv": kit.record(kit.scale_of(w), **factors), "pool": kit.record(1.0, **factors)})
    assert kit.names(twins.deploy)[:3] == ["conv.quant", "pool_pad", "conv"]
    assert kit.node(twins.deploy, "pool_pad").input[0] == "conv.quant.output0"
    kit.match(model, twins, {"x": x}, within=0.05)
    onnx.checker.check_model(twins.fake, full_check=True)


def test_layers_on_the_output_of_a_quantized_layer_share_its_dequantized_tensor(kit, rng):
    w = rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "first"),
        helper.make_node("Conv", ["h", "v"], ["y"], "a"),
        helper.make_node("Conv", ["h", "v"], ["z"], "b"),
    ]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y", "z"], {"w": w, "v": w})
    made = kit.record(kit.scale_of(w), scale_d=0.5)
    twins = kit.twins(model, {"first": made, "a": made, "b": made})
    assert kit.node(twins.deploy, "a.quant").input[0] == "first.dequant.output0"
    assert quants(twins.deploy) == ["first.quant", "a.quant"]
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}, within=0.1)
