"""Weights and biases with several readers: each quantized layer gets its integers, each float reader the floats."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper


@pytest.fixture
def x(rng):
    return rng.normal(size=(1, 3, 4, 4)).astype(np.float32)


@pytest.fixture
def w(rng):
    return rng.normal(size=(3, 3, 1, 1)).astype(np.float32)


def conv(name, source="x", weight="w", bias=None, out=None):
    return helper.make_node("Conv", [source, weight, *([bias] if bias else [])], [out or f"y{name}"], name)


def held(kit, twin, layer, slot=1):
    """What a layer reads on a slot: the integers of an initializer or Constant, through Identity nodes."""
    name = kit.node(twin, layer).input[slot]
    makers = {out: node for node in twin.graph.node for out in node.output}
    while name in makers and makers[name].op_type == "Identity":
        name = makers[name].input[0]
    return kit.array(twin, name)


def test_equal_scales_share_the_quantized_tensor_under_its_name(kit, x, w):
    model = kit.model([conv("a"), conv("b")], {"x": x.shape}, ["ya", "yb"], {"w": w})
    made = kit.record(kit.scale_of(w))
    twins = kit.twins(model, {"a": made, "b": {**made, "offset_d": 9}})
    for twin in (twins.fake, twins.deploy):
        assert [kit.node(twin, name).input[1] for name in "ab"] == ["w", "w"]
        assert len(twin.graph.initializer) == (1 if twin is twins.fake else 3)
    kit.match(model, twins, {"x": x}, within=0.05)


@pytest.mark.parametrize("change", [{"scale": 1.5}, {"wts_type": "INT7", "scale": 2.1}], ids=str)
def test_other_weight_factors_get_a_tensor_of_their_own(kit, x, w, change):
    model = kit.model([conv("a"), conv("b"), conv("c")], {"x": x.shape}, ["ya", "yb", "yc"], {"w": w})
    scale, factor = kit.scale_of(w), np.float32(change.pop("scale"))
    twins = kit.twins(
        model, {"a": kit.record(scale), "b": kit.record(scale * factor, **change), "c": kit.record(scale)}
    )
    np.testing.assert_array_equal(held(kit, twins.deploy, "a"), kit.integers(w, scale))
    np.testing.assert_array_equal(held(kit, twins.deploy, "b"), kit.integers(w, scale * factor))
    assert kit.node(twins.deploy, "a").input[1] == kit.node(twins.deploy, "c").input[1] == "w"
    kit.match(model, twins, {"x": x}, within=0.05)


def test_scales_per_channel_and_per_tensor_do_not_share(kit, x, w):
    model = kit.model([conv("a"), conv("b")], {"x": x.shape}, ["ya", "yb"], {"w": w})
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w)), "b": kit.record(kit.scale_of(w, axes=(1, 2, 3)))})
    assert kit.node(twins.deploy, "b").input[1] != "w"
    kit.match(model, twins, {"x": x}, within=0.05)


def test_a_weight_that_a_layer_without_record_reads_stays_float_for_it(kit, x, w):
    model = kit.model([conv("a"), conv("b")], {"x": x.shape}, ["ya", "yb"], {"w": w})
    twins = kit.twins(model, {"b": kit.record(kit.scale_of(w))})
    for twin in (twins.fake, twins.deploy):
        np.testing.assert_array_equal(held(kit, twin, "a"), w, strict=True)
    np.testing.assert_array_equal(held(kit, twins.deploy, "b"), kit.integers(w, kit.scale_of(w)), strict=True)
    kit.match(model, twins, {"x": x}, within=0.05)


def test_a_weight_that_an_ordinary_node_reads_stays_float_for_it(kit, x, w):
    nodes = [conv("a"), helper.make_node("Mul", ["w", "w"], ["z"], "square")]
    model = kit.model(nodes, {"x": x.shape}, ["ya", "z"], {"w": w})
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": x}, within=0.05)


def test_a_weight_that_is_a_graph_output_stays_float_there(kit, x, w):
    model = kit.model([conv("a")], {"x": x.shape}, ["ya", "w"], {"w": w})
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": x}, within=0.05)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_weight_that_a_subgraph_captures_stays_float_there(kit, x, w, depth):
    def branch(level):
        nodes = (
            [helper.make_node("Neg", ["w"], [f"z{level}"])]
            if level == 1
            else [helper.make_node("If", ["cond"], [f"z{level}"], then_branch=branch(1), else_branch=branch(1))]
        )
        return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(f"z{level}", 1, None)])

    nodes = [
        conv("a"),
        helper.make_node("If", ["cond"], ["z"], "if", then_branch=branch(depth), else_branch=branch(depth)),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["ya", "z"], {"w": w, "cond": np.array(True)})
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": x}, within=0.05)


def test_a_constant_node_with_a_float_reader_keeps_its_floats(kit, x, w):
    nodes = [
        helper.make_node("Constant", [], ["w"], "k", value=numpy_helper.from_array(w)),
        conv("a"),
        helper.make_node("Neg", ["w"], ["z"], "n"),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["ya", "z"])
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": x}, within=0.05)


def test_a_constant_node_that_only_layers_read_is_replaced_where_it_is(kit, x, w):
    nodes = [helper.make_node("Constant", [], ["w"], "k", value=numpy_helper.from_array(w)), conv("a")]
    model = kit.model(nodes, {"x": x.shape}, ["ya"])
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w))})
    assert kit.names(twins.deploy, constants=True) == ["k", "a.quant", "a", "a.dequant"]
    assert kit.array(twins.deploy, "w").dtype == np.int8


def test_a_float_reader_behind_an_identity_keeps_the_floats(kit, x, w):
    nodes = [
        helper.make_node("Identity", ["w"], ["same"], "i"),
        conv("a", weight="same"),
        helper.make_node("Neg", ["same"], ["z"], "n"),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["ya", "z"], {"w": w})
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": x}, within=0.05)
    onnx.checker.check_model(twins.fake, full_check=True)


def test_an_identity_that_is_a_graph_output_stays_float(kit, x, w):
    nodes = [helper.make_node("Identity", ["w"], ["same"], "i"), conv("a", weight="same")]
    model = kit.model(nodes, {"x": x.shape}, ["ya", "same"], {"w": w})
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": x}, within=0.05)


def test_a_weight_read_directly_and_behind_an_identity_by_two_layers(kit, x, w):
    nodes = [helper.make_node("Identity", ["w"], ["same"], "i"), conv("a", weight="same"), conv("b")]
    model = kit.model(nodes, {"x": x.shape}, ["ya", "yb"], {"w": w})
    for other in (1, 1.5):
        twins = kit.twins(
            model, {"a": kit.record(kit.scale_of(w)), "b": kit.record(kit.scale_of(w) * np.float32(other))}
        )
        kit.match(model, twins, {"x": x}, within=0.05)
        onnx.checker.check_model(twins.fake, full_check=True)


def test_one_matrix_used_directly_and_transposed(kit, rng):
    x, w = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "t"),
        helper.make_node("MatMul", ["x", "w"], ["a"], "a"),
        helper.make_node("MatMul", ["x", "t"], ["b"], "b"),
        helper.make_node("Gemm", ["x", "w"], ["c"], "c", transB=1),
        helper.make_node("Gemm", ["x", "w"], ["d"], "d"),
        helper.make_node("Neg", ["t"], ["e"], "e"),
    ]
    made = kit.record(kit.scale_of(w))
    for outputs in ("abcd", "abcde"):
        some = nodes if "e" in outputs else nodes[:-1]
        model = kit.model(some, {"x": x.shape}, list(outputs), {"w": w})
        twins = kit.twins(model, dict.fromkeys("abcd", made))
        kit.match(model, twins, {"x": x}, within=0.05)
        onnx.checker.check_model(twins.fake, full_check=True)


def test_two_layers_behind_one_transpose_with_other_scales(kit, rng):
    x, w = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "t"),
        helper.make_node("MatMul", ["x", "t"], ["a"], "a"),
        helper.make_node("MatMul", ["x", "t"], ["b"], "b"),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["a", "b"], {"w": w})
    scale = kit.scale_of(w)
    twins = kit.twins(model, {"a": kit.record(scale), "b": kit.record(scale * np.float32(1.3))})
    kit.match(model, twins, {"x": x}, within=0.05)
    assert len({node.name for node in twins.deploy.graph.node}) == len(twins.deploy.graph.node)


@pytest.mark.parametrize("scale_b", [1, 2], ids=["equal scales", "other scales"])
def test_one_bias_of_two_convolutions(kit, x, w, scale_b, rng):
    b = rng.normal(size=3).astype(np.float32)
    nodes = [conv("a", bias="b"), conv("b", weight="v", bias="b")]
    model = kit.model(nodes, {"x": x.shape}, ["ya", "yb"], {"w": w, "v": w, "b": b})
    scale = kit.scale_of(w)
    twins = kit.twins(model, {"a": kit.record(scale), "b": kit.record(scale * np.float32(scale_b))})
    ds = scale * np.float32(0.05)
    np.testing.assert_array_equal(held(kit, twins.deploy, "a", 2), np.rint(b / ds).astype(np.int32))
    ds_b = scale * np.float32(scale_b) * np.float32(0.05)
    np.testing.assert_array_equal(held(kit, twins.deploy, "b", 2), np.rint(b / ds_b).astype(np.int32))
    kit.match(model, twins, {"x": x}, within=0.05)


def test_one_bias_of_a_convolution_and_of_an_add_behind_a_matmul_and_of_an_ordinary_add(kit, rng, x, w):
    b, m, v = rng.normal(size=3).astype(np.float32), rng.normal(size=(2, 5)), rng.normal(size=(5, 3))
    nodes = [
        conv("a", bias="b"),
        helper.make_node("MatMul", ["m", "v"], ["h"], "mm"),
        helper.make_node("Add", ["h", "b"], ["z"], "add"),
        helper.make_node("Add", ["h2", "b"], ["z2"], "ordinary"),
    ]
    inputs = {"x": x.shape, "m": (2, 5), "h2": (2, 3)}
    feeds = {"x": x, "m": m.astype(np.float32), "h2": rng.normal(size=(2, 3)).astype(np.float32)}
    records = {"a": kit.record(kit.scale_of(w)), "mm": kit.record(kit.scale_of(v))}
    for some, outputs in ((nodes, ["ya", "z", "z2"]), (nodes[:-1], ["ya", "z"])):
        used = {name: feeds[name] for name in feeds if name != "h2" or "z2" in outputs}
        model = kit.model(
            some, {name: inputs[name] for name in used}, outputs, {"w": w, "b": b, "v": v.astype(np.float32)}
        )
        twins = kit.twins(model, records)
        assert kit.node(twins.deploy, "mm.dequant").input[0] != "h"
        kit.match(model, twins, used, within=0.05)


def test_one_tensor_that_is_weight_and_bias_and_activation(kit, rng):
    w = rng.normal(size=(1, 3)).astype(np.float32)
    x = rng.normal(size=(2, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "w"], ["y"], "a"),
        helper.make_node("Gemm", ["w", "v"], ["z"], "b"),
    ]
    v = rng.normal(size=(3, 2)).astype(np.float32)
    model = kit.model(nodes, {"x": x.shape}, ["y", "z"], {"w": w, "v": v})
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w)), "b": kit.record(kit.scale_of(v))})
    kit.match(model, twins, {"x": x}, within=0.06)


def test_weights_of_different_packings_do_not_share(kit, rng):
    x, w = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(4, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], [name], name) for name in "abc"]
    model = kit.model(nodes, {"x": x.shape}, ["a", "b", "c"], {"w": w}, opset=21)
    scale = kit.scale_of(w, 4)
    records = {
        "a": kit.record(scale, wts_type="INT4"),
        "b": kit.record(scale, dst_type="INT4", offset_d=0),
        "c": kit.record(scale),
    }
    twins = kit.twins(model, records)
    kinds = [kit.tensor(twins.deploy, kit.node(twins.deploy, name).input[1]) for name in "abc"]
    assert [(t.data_type, list(t.dims)) for t in kinds] == [(3, [2, 4]), (22, [4, 4]), (3, [4, 4])]
    values = [numpy_helper.to_array(t) for t in kinds]
    np.testing.assert_array_equal(values[2], kit.integers(w, scale))


def test_a_shared_weight_of_convolutions_with_other_groups(kit, rng):
    """Grouped ConvTranspose layers number their channels differently."""
    w, x = rng.normal(size=(4, 2, 1, 1)).astype(np.float32), rng.normal(size=(1, 4, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], [f"y{g}"], f"l{g}", group=g) for g in (1, 2, 4)]
    model = kit.model(nodes, {"x": x.shape}, ["y1", "y2", "y4"], {"w": w})
    records = {
        f"l{g}": kit.record([np.abs(w).max() / 127 * (1 + 0.1 * i) for i in range(2 * g)], scale_d=0.03)
        for g in (1, 2, 4)
    }
    kit.match(model, kit.twins(model, records), {"x": x}, within=0.05)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_declarations_behind_a_replaced_matrix_are_dropped_wherever_they_stand(kit, rng, dtype):
    x, w = rng.normal(size=(3, 4)).astype(dtype), rng.normal(size=(6, 4)).astype(dtype)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["g"], "g", transB=1),
        helper.make_node("Transpose", ["w"], ["t"], "t"),
        helper.make_node("MatMul", ["x", "t"], ["m"], "m"),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = kit.model(nodes, {"x": kit.Typed(element, x.shape)}, {"g": element, "m": element}, {"w": w})
    model = onnx.shape_inference.infer_shapes(model)
    assert "t" in {value.name for value in model.graph.value_info}
    made = kit.record(kit.scale_of(w.astype(np.float32)))
    twins = kit.twins(model, {"g": made, "m": made})
    for twin in (twins.fake, twins.deploy):
        assert "t" not in {value.name for value in twin.graph.value_info}
    kit.run(twins.fake, {"x": x})
