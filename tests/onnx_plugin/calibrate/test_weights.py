"""Weights as calibration reads and balances them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import twinquant
from twinquant.errors import ModelContentError
from twinquant_onnx.framework import OnnxFramework

from .conftest import make_model

FRAMEWORK = OnnxFramework()
RANDOM = np.random.default_rng(21)


def normal(*shape, dtype=np.float32):
    # Channels of very different size, so that a mistake in their order shows.
    values = RANDOM.standard_normal(shape)
    for axis, length in enumerate(shape[:2]):
        values *= np.geomspace(1, 4, length).reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return values.astype(dtype)


def one_layer(op_type, weight, x_shape, **attributes):
    """A model of one layer named 'layer'; a MatMul with `transposed=True` reads its weight through a Transpose."""
    nodes = []
    name = "w"
    if attributes.pop("transposed", False):
        nodes.append(helper.make_node("Transpose", ["w"], ["wt"], "turn"))
        name = "wt"
    nodes.append(helper.make_node(op_type, ["x", name], ["y"], "layer", **attributes))
    return make_model(nodes, {"w": weight}, {"x": x_shape}, dtype=weight.dtype.type)


# (op type, weight, input shape, attributes, output channels first: (out, in per group, rest))
CASES = {
    "Conv": ("Conv", normal(6, 4, 3), (1, 4, 8), {}, lambda w: w),
    "depthwise Conv": ("Conv", normal(4, 1, 3, 3), (1, 4, 8, 8), {"group": 4}, lambda w: w.reshape(4, 1, 9)),
    "grouped Conv": ("Conv", normal(6, 2, 3, 3), (1, 4, 8, 8), {"group": 2}, lambda w: w.reshape(6, 2, 9)),
    "ConvTranspose": ("ConvTranspose", normal(4, 6, 2), (1, 4, 8), {}, lambda w: w.transpose(1, 0, 2)),
    "grouped ConvTranspose": (
        "ConvTranspose",
        normal(4, 3, 2),
        (1, 4, 8),
        {"group": 2},
        lambda w: w.reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(6, 2, 2),
    ),
    "Gemm": ("Gemm", normal(4, 6), (2, 4), {}, lambda w: w.T[:, :, None]),
    "Gemm with transB": ("Gemm", normal(6, 4), (2, 4), {"transB": 1}, lambda w: w[:, :, None]),
    "MatMul": ("MatMul", normal(4, 6), (2, 4), {}, lambda w: w.T[:, :, None]),
    "transposed MatMul": ("MatMul", normal(6, 4), (2, 4), {"transposed": True}, lambda w: w[:, :, None]),
}
by_case = pytest.mark.parametrize(
    ("op_type", "weight", "x_shape", "attributes", "out_first"), CASES.values(), ids=CASES
)


def symmetric(values):
    """ARQ for 8 bits: of rows of values."""
    high, low = values.max(axis=1), values.min(axis=1)
    return np.where(high >= -low, high / 127, -low / 128)


@by_case
def test_weight_scales_are_those_of_the_output_channels(op_type, weight, x_shape, attributes, out_first, tmp_path):
    model = one_layer(op_type, weight, x_shape, **attributes)
    x = RANDOM.standard_normal(x_shape).astype(np.float32)
    record = twinquant.calibrate(model, [x], tmp_path / "r", batch_num=1).records["layer"]
    rows = out_first(weight)
    rows = rows.reshape(len(rows), -1) if "Conv" in op_type else rows.reshape(1, -1)
    np.testing.assert_allclose(record.scale_w, symmetric(rows), rtol=1e-6)


@by_case
def test_balance_factors_come_from_both_sides(op_type, weight, x_shape, attributes, out_first, tmp_path):
    model = one_layer(op_type, weight, x_shape, **attributes)
    x = (
        RANDOM.standard_normal(x_shape) * np.geomspace(1, 50, x_shape[1]).reshape(-1, *[1] * (len(x_shape) - 2))
    ).astype(np.float32)
    config = {"dmq_migration_strength": 0.3}
    record = twinquant.calibrate(model, [x], tmp_path / "r", batch_num=1, config=config).records["layer"]
    groups = attributes.get("group", 1)
    rows = out_first(weight)
    per_group = rows.reshape(groups, len(rows) // groups, rows.shape[1], -1)
    weight_max = np.abs(per_group).max(axis=(1, 3)).reshape(-1)
    x_max = np.abs(x).max(axis=tuple(axis for axis in range(x.ndim) if axis != 1))
    factors = x_max**0.3 / weight_max**0.7
    np.testing.assert_allclose(record.tensor_balance_factor, factors, rtol=1e-5)
    balanced = (per_group * factors.reshape(groups, 1, -1, 1)).reshape(len(rows), -1)
    balanced = balanced if "Conv" in op_type else balanced.reshape(1, -1)
    np.testing.assert_allclose(record.scale_w, symmetric(balanced), rtol=1e-5)


@by_case
def test_the_balanced_layer_computes_the_same_from_the_divided_input(
    op_type, weight, x_shape, attributes, out_first, tmp_path
):
    import onnxruntime as ort

    model = one_layer(op_type, weight, x_shape, **attributes)
    factors = np.geomspace(0.1, 10, x_shape[1]).astype(np.float32)
    FRAMEWORK.write_float(FRAMEWORK.balance(FRAMEWORK.load(model), {"layer": factors}), tmp_path, "balanced.onnx")
    x = RANDOM.standard_normal(x_shape).astype(np.float32)
    divided = x / factors.reshape(-1, *[1] * (len(x_shape) - 2))

    def run(source, values):
        return ort.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"x": values})[0]

    expected = run(model.SerializeToString(), x)
    np.testing.assert_allclose(run(str(tmp_path / "balanced.onnx"), divided), expected, rtol=1e-4, atol=1e-4)


def test_a_weight_that_another_layer_reads_too_is_balanced_for_one_layer_only(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "layer"),
        helper.make_node("MatMul", ["x", "w"], ["b"], "other"),
        helper.make_node("Add", ["a", "b"], ["y"], "add"),
    ]
    weight = normal(4, 6)
    graph = FRAMEWORK.load(make_model(nodes, {"w": weight}, {"x": (2, 4)}))
    factors = np.float32([1, 2, 4, 8])
    FRAMEWORK.write_float(FRAMEWORK.balance(graph, {"layer": factors}), tmp_path, "balanced.onnx")
    written = onnx.load(tmp_path / "balanced.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    weights = [constants[node.input[1]] for node in written.graph.node[:2]]
    np.testing.assert_array_equal(weights[0], weight * factors[:, None])
    np.testing.assert_array_equal(weights[1], weight)


def test_a_weight_of_its_own_is_an_input_too_where_the_format_wants_that():
    nodes = [helper.make_node("MatMul", ["x", "w"], [name], name) for name in ("one", "two")]
    model = make_model(nodes, {"w": normal(3, 3)}, {"x": (2, 3)})
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3, 3]))
    balanced = FRAMEWORK.balance(FRAMEWORK.load(model), {"two": np.full(3, 2, np.float32)}).graph.model.graph
    declared = {value.name for value in balanced.input}
    assert len(balanced.initializer) == 2
    assert declared == {"x", *(tensor.name for tensor in balanced.initializer)}


def test_the_constant_node_of_a_balanced_weight_is_left_out_and_unnamed_nodes_keep_the_names_they_got(tmp_path):
    weight = numpy_helper.from_array(normal(4, 6), "value")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("Identity", ["w"], ["alias"]),
        helper.make_node("MatMul", ["x", "alias"], ["y"]),
    ]
    model = make_model(nodes, {}, {"x": (2, 4)})
    balanced = FRAMEWORK.balance(FRAMEWORK.load(model), {"node_2": np.array([1, 2, 4, 8], np.float32)})
    FRAMEWORK.write_float(balanced, tmp_path, "balanced.onnx")
    written = onnx.load(tmp_path / "balanced.onnx").graph
    assert [(node.op_type, node.name) for node in written.node] == [("MatMul", "node_2")]
    (kept,) = written.initializer
    expected = numpy_helper.to_array(weight) * np.array([[1], [2], [4], [8]])
    np.testing.assert_allclose(numpy_helper.to_array(kept), expected, rtol=1e-6)


def test_a_constant_node_that_others_read_too_is_kept(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(normal(4, 4), "value")),
        helper.make_node("MatMul", ["x", "w"], ["a"], "layer"),
        helper.make_node("Add", ["a", "w"], ["y"]),
    ]
    model = make_model(nodes, {}, {"x": (4, 4)})
    balanced = FRAMEWORK.balance(FRAMEWORK.load(model), {"layer": np.array([1, 2, 4, 8], np.float32)})
    FRAMEWORK.write_float(balanced, tmp_path, "balanced.onnx")
    written = onnx.load(tmp_path / "balanced.onnx").graph
    assert [node.op_type for node in written.node] == ["Constant", "MatMul", "Add"]


def test_a_balanced_float16_weight_that_overflows_is_an_error_that_names_the_layer(tmp_path):
    model = one_layer("MatMul", np.full((4, 6), 60000, np.float16), (2, 4))
    graph = FRAMEWORK.balance(FRAMEWORK.load(model), {"layer": np.full(4, 2, np.float32)})
    with pytest.raises(ModelContentError, match="layer 'layer': the weight 'w' times its balance factors does not fit"):
        FRAMEWORK.write_float(graph, tmp_path, "balanced.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_an_error_that_names_the_layer(value, tmp_path):
    weight = normal(4, 6)
    weight[2, 3] = value
    model = one_layer("MatMul", weight, (2, 4))
    with pytest.raises(ModelContentError, match="layer 'layer': the weight holds NaN or infinity"):
        twinquant.calibrate(model, [np.ones((2, 4), np.float32)], tmp_path / "record.txt", batch_num=1)


def test_blocks_may_be_cut_anywhere():
    weight = normal(5, 4, 6)
    view = FRAMEWORK.weight(FRAMEWORK.load(one_layer("Conv", weight, (1, 4, 8))), "layer").values
    assert view.shape == (5, 4, 6)
    for where in (np.s_[1:3, 0:4, 0:6], np.s_[2:3, 1:3, 0:6], np.s_[0:5, 1:2, 2:5], np.s_[4:5, 3:4, 5:6]):
        np.testing.assert_array_equal(view[where], weight[where])


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize("channel_wise", [True, False], ids=["by row", "by gate"])
def test_an_rnn_has_scales_of_both_weights_and_of_its_hidden_state(op_type, gates, channel_wise, tmp_path):
    weight, recurrence = normal(1, 4 * gates, 6), normal(1, 4 * gates, 4)
    states = ["h0", "c0"] if op_type == "LSTM" else ["h0"]
    attributes = {"linear_before_reset": 1} if op_type == "GRU" else {}
    node = helper.make_node(
        op_type,
        ["x", "w", "r", "", "", *states],
        ["y", "hn", "cn"][: len(states) + 1],
        "rnn",
        hidden_size=4,
        **attributes,
    )
    inputs = {"x": (5, 2, 6), **dict.fromkeys(states, (1, 2, 4))}
    model = make_model([node], {"w": weight, "r": recurrence}, inputs, opset=14)
    feeds = {name: RANDOM.standard_normal(shape).astype(np.float32) / 4 for name, shape in inputs.items()}
    feeds["h0"][0, 0, 0] = 3.0  # larger than any output of an RNN: the range of the hidden state must hold it
    config = {"activation_algorithm": "minmax", "layers": {"rnn": {"channel_wise": channel_wise}}}
    result = twinquant.quantize(model, [feeds], tmp_path / "net", batch_num=1, config=config)
    record = result.records.records["rnn"]
    rows = 4 * gates if channel_wise else gates
    np.testing.assert_allclose(record.scale_w, symmetric(weight.reshape(rows, -1)), rtol=1e-6)
    np.testing.assert_allclose(record.scale_r, symmetric(recurrence.reshape(rows, -1)), rtol=1e-6)
    assert record.offset_w.tolist() == record.offset_r.tolist() == [0] * rows
    assert 3.0 / 255 < record.scale_h < 4.0 / 255
    assert record.offset_h < 0
    assert twinquant.verify(result.output.fake_quant.model, result.output.deploy.model, feeds).agree
