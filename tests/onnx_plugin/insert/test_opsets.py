"""Operator sets 7 to 21: the deploy twin keeps its own; the fake twin uses only what it has."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from twinquant.errors import UnsupportedModelError


def network(kit, rng, opset, domain=""):
    x, w = rng.normal(size=(1, 2, 6, 6)).astype(np.float32), rng.normal(size=(3, 2, 3, 3)).astype(np.float32)
    b, v = rng.normal(size=3).astype(np.float32), rng.normal(size=(12, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("AveragePool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "v"], ["m"], "mm"),
        helper.make_node("Add", ["m", "a"], ["s"], "add"),
        helper.make_node("Gemm", ["s", "g", "h"], ["y"], "fc", transB=1),
    ]
    constants = {"w": w, "b": b, "v": v, "a": np.ones(4, np.float32), "g": v[:5], "h": np.ones(5, np.float32)}
    constants["g"] = rng.normal(size=(5, 4)).astype(np.float32)
    model = kit.model(nodes, {"x": x.shape}, ["y"], constants, opset=opset, domain=domain, ir_version=7)
    records = {
        "conv": kit.record(kit.scale_of(w), scale_d=np.abs(x).max() / 120),
        "pool": kit.record(1.0, scale_d=0.1, offset_d=-128),
        "mm": kit.record(kit.scale_of(v), scale_d=0.1),
        "fc": kit.record(kit.scale_of(constants["g"]), scale_d=0.4),
    }
    return model, x, records


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 17, 18, 21])
def test_every_operator_set_from_7_on_works(kit, rng, opset):
    model, x, records = network(kit, rng, opset)
    twins = kit.twins(model, records)
    assert list(twins.deploy.opset_import) == list(model.opset_import)
    kit.match(model, twins, {"x": x}, within=0.2)
    onnx.checker.check_model(twins.fake, full_check=True)


@pytest.mark.parametrize("opset", [7, 10])
def test_old_operator_sets_clip_by_attributes_and_round_ties_to_even(kit, opset):
    model = kit.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
        {"x": (9, 1)},
        ["y"],
        {"w": np.ones((1, 1), np.float32)},
        opset=opset,
    )
    twins = kit.twins(model, {"m": kit.record(1.0, scale_d=1.0, offset_d=0)})
    assert kit.attributes(kit.node(twins.fake, "m.quant.fakequant.clip")) == {"min": -128.0, "max": 127.0}
    x = np.float32([[0.5], [1.5], [2.5], [-0.5], [-1.5], [1e9], [-1e30], [127.5], [3.0]])
    assert kit.run(twins.fake, {"x": x})["y"].reshape(-1).tolist() == [0, 2, 2, 0, -2, 127, -128, 127, 3]


@pytest.mark.parametrize("opset", [10, 13])
def test_16_bits_saturate_at_their_own_limits(kit, opset):
    model = kit.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
        {"x": (4, 1)},
        ["y"],
        {"w": np.ones((1, 1), np.float32)},
        opset=opset,
    )
    twins = kit.twins(model, {"m": kit.record(1.0, scale_d=1.0, offset_d=32767, act_type="INT16")})
    x = np.float32([[1], [-65535], [-65536], [-65534.5]])
    assert kit.run(twins.fake, {"x": x})["y"].reshape(-1).tolist() == [0, -65535, -65535, -65534]


@pytest.mark.parametrize("opset", [1, 6])
def test_older_operator_sets_are_refused_with_the_way_out(kit, opset):
    model = kit.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")], {"x": (1, 1)}, ["y"], {"w": np.ones((1, 1), np.float32)}
    )
    model.opset_import[0].version = opset
    with pytest.raises(UnsupportedModelError, match=rf"operator set {opset}.*version_converter"):
        kit.twins(model, {"m": kit.record()})


def test_a_model_without_the_main_operator_set_is_refused(kit):
    model = kit.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")], {"x": (1, 1)}, ["y"], {"w": np.ones((1, 1), np.float32)}
    )
    model.opset_import[0].domain = "my.ops"
    with pytest.raises(UnsupportedModelError, match=r"operator set"):
        kit.twins(model, {"m": kit.record()})


def test_the_long_spelling_of_the_main_domain_is_understood(kit, rng):
    model, x, records = network(kit, rng, 13, domain="ai.onnx")
    for node in model.graph.node:
        node.domain = "ai.onnx"
    twins = kit.twins(model, records)
    assert list(twins.deploy.opset_import) == list(model.opset_import)
    assert kit.names(twins.deploy)[:3] == ["conv.quant", "conv", "conv.dequant"]
    kit.match(model, twins, {"x": x}, within=0.2)
