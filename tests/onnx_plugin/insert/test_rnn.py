"""LSTM and GRU: the device's operator in the deploy twin, float between quantized inputs in the fake twin."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from twinquant.errors import RecordLayerError

SEQ, BATCH, INPUT, HIDDEN = 3, 2, 4, 6  # as kit.rnn makes them
GATES = {"LSTM": 4, "GRU": 3}
STATES = {"LSTM": ["h0", "c0"], "GRU": ["h0"]}
OUTPUTS = {"LSTM": ["y", "hn", "cn"], "GRU": ["y", "hn"]}


def rows_of(scale, rows):
    return np.repeat(scale, rows // scale.size)


@pytest.mark.parametrize("lens", [False, True], ids=["", "sequence_lens"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("how", ["gate", "row"])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_the_deploy_twin_holds_the_devices_operator(kit, rng, op_type, how, bias, lens):
    model, _, constants = kit.rnn(rng, op_type, bias=bias, lens=lens)
    made = kit.rnn_record(constants, op_type, how)
    deploy = kit.twins(model, {"l": made}).deploy
    (node,) = deploy.graph.node
    assert (node.op_type, node.name, node.domain) == (f"Basic{op_type}InplaceFillWindowCache", "l", "")
    assert list(node.input) == [
        "x",
        "w",
        "r",
        *STATES[op_type],
        "b" if bias else "",
        "lens" if lens else "",
        "",
        "l.dequant.param",
    ]
    assert list(node.output) == OUTPUTS[op_type]
    before_or_forget = {"LSTM": {"input_forget": 0}, "GRU": {"linear_before_reset": 1}}[op_type]
    assert kit.attributes(node) == {
        "hidden_size": HIDDEN,
        "activation_alpha": [],
        "activation_beta": [],
        "activations": [],
        "clip": -1.0,
        "direction": b"forward",
        **before_or_forget,
        "quant_sqrt_mode_x": 0,
        "quant_sqrt_mode_h": 0,
        "quant_scale_x": float(np.float32(1) / np.float32(0.03)),
        "quant_offset_x": 2.0,
        "quant_scale_h": float(np.float32(1) / np.float32(1 / 127)),
        "quant_offset_h": -4.0,
        "quant_dtype": 2,
    }
    kinds = {attribute.name: attribute.type for attribute in node.attribute}
    proto = onnx.AttributeProto
    assert (kinds["activation_alpha"], kinds["activation_beta"], kinds["activations"]) == (
        proto.FLOATS,
        proto.FLOATS,
        proto.STRINGS,
    )
    assert {kinds[f"quant_{what}_{side}"] for what in ("scale", "offset") for side in "xh"} == {proto.FLOAT}

    rows = GATES[op_type] * HIDDEN
    weights = {}
    for name, scale in (("w", made["scale_w"]), ("r", made["scale_r"])):
        weights[name] = kit.integers(constants[name], rows_of(scale, rows).reshape(1, rows, 1))
        np.testing.assert_array_equal(kit.array(deploy, name), weights[name], strict=True)
    ds = made["scale_w"] * np.float32(0.03), made["scale_r"] * np.float32(1 / 127)
    parameter = np.concatenate(ds).view(np.uint32).astype(np.uint64)
    np.testing.assert_array_equal(kit.array(deploy, "l.dequant.param"), parameter, strict=True)
    if bias:
        per_value = np.concatenate([rows_of(part, rows) for part in ds])
        wanted = np.rint(constants["b"] / per_value).astype(np.int32)
        np.testing.assert_array_equal(kit.array(deploy, "b"), wanted, strict=True)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("how", ["gate", "row"])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_the_fake_twin_runs_in_float_between_quantized_inputs(kit, rng, op_type, how, bias):
    model, feeds, constants = kit.rnn(rng, op_type, bias=bias, lens=True)
    made = kit.rnn_record(constants, op_type, how)
    fake = kit.twins(model, {"l": made}).fake
    steps = ["mul", "round", "add", "clip", "sub"]
    assert kit.names(fake) == [
        *(f"l.quant.fakequant.{step}" for step in steps),
        "l.anti_quant.fake_antiquant.mul",
        *(f"l.quant1.fakequant.{step}" for step in steps),
        "l.anti_quant1.fake_antiquant.mul",
        "l",
    ]
    node = kit.node(fake, "l")
    assert node.op_type == op_type
    assert node.attribute == kit.node(model, "l").attribute
    rows = GATES[op_type] * HIDDEN
    floats = {}
    for name, scale in (("w", made["scale_w"]), ("r", made["scale_r"])):
        per_row = rows_of(scale, rows).reshape(1, rows, 1)
        floats[name] = kit.integers(constants[name], per_row).astype(np.float32) * per_row
        np.testing.assert_array_equal(kit.array(fake, name), floats[name], strict=True)
    if bias:
        per_value = np.concatenate(
            [rows_of(made["scale_w"] * np.float32(0.03), rows), rows_of(made["scale_r"] * np.float32(1 / 127), rows)]
        )
        floats["b"] = np.rint(constants["b"] / per_value).astype(np.float32) * per_value
        np.testing.assert_array_equal(kit.array(fake, "b"), floats["b"], strict=True)
    quantized = {
        **feeds,
        "x": kit.activation(feeds["x"], 0.03, 2) * np.float32(0.03),
        "h0": kit.activation(feeds["h0"], 1 / 127, -4) * np.float32(1 / 127),
    }
    in_float = onnx.ModelProto()
    in_float.CopyFrom(model)
    for tensor in in_float.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(floats[tensor.name], tensor.name))
    wanted, got, original = kit.run(in_float, quantized), kit.run(fake, feeds), kit.run(model, feeds)
    for name in OUTPUTS[op_type]:
        np.testing.assert_array_equal(got[name], wanted[name])
        assert np.abs(got[name] - original[name]).max() < 0.1
    onnx.checker.check_model(fake, full_check=True)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_16_bit_activations_have_their_number_and_range(kit, rng, op_type):
    model, _, constants = kit.rnn(rng, op_type)
    made = kit.rnn_record(constants, op_type, act_type="INT16", offset_d=-30000, offset_h=30000)
    twins = kit.twins(model, {"l": made})
    attributes = kit.attributes(kit.node(twins.deploy, "l"))
    assert (attributes["quant_dtype"], attributes["quant_offset_x"], attributes["quant_offset_h"]) == (
        6,
        -30000.0,
        30000.0,
    )
    for chain in ("quant", "quant1"):
        assert kit.array(twins.fake, f"l.{chain}.fakequant.max_val.output0").item() == 32767.0


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_4_bit_weights_are_packed_along_their_columns(kit, rng, op_type):
    model, _, constants = kit.rnn(rng, op_type)
    made = kit.rnn_record(constants, op_type, bits=4, wts_type="INT4")
    deploy = kit.twins(model, {"l": made}).deploy
    rows = GATES[op_type] * HIDDEN
    for name, scale in (("w", made["scale_w"]), ("r", made["scale_r"])):
        q = kit.integers(constants[name], rows_of(scale, rows).reshape(1, rows, 1), 4).astype(np.int32)
        packed = ((q[..., ::2] & 15) | ((q[..., 1::2] & 15) << 4)).astype(np.uint8).view(np.int8)
        np.testing.assert_array_equal(kit.array(deploy, name), packed, strict=True)


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_the_float16_precision_mode_does_not_touch_the_parameter(kit, rng, op_type):
    model, _, constants = kit.rnn(rng, op_type)
    plain = kit.twins(model, {"l": kit.rnn_record(constants, op_type)})
    forced = kit.twins(model, {"l": kit.rnn_record(constants, op_type, fakequant_precision_mode="FORCE_FP16_QUANT")})
    assert plain == forced


def test_a_gru_keeps_its_clip(kit, rng):
    model, feeds, constants = kit.rnn(rng, "GRU", clip=0.5)
    twins = kit.twins(model, {"l": kit.rnn_record(constants, "GRU")})
    assert kit.attributes(kit.node(twins.deploy, "l"))["clip"] == 0.5
    assert kit.attributes(kit.node(twins.fake, "l"))["clip"] == 0.5
    assert np.abs(kit.run(twins.fake, feeds)["y"] - kit.run(model, feeds)["y"]).max() < 0.1


def test_any_linear_before_reset_but_0_becomes_1(kit, rng):
    model, _, constants = kit.rnn(rng, "GRU", linear_before_reset=5)
    twins = kit.twins(model, {"l": kit.rnn_record(constants, "GRU")})
    assert kit.attributes(kit.node(twins.deploy, "l"))["linear_before_reset"] == 1


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_the_hidden_size_is_that_of_the_weight_where_it_is_not_given(kit, rng, op_type):
    model, _, constants = kit.rnn(rng, op_type, hidden_size=None)
    twins = kit.twins(model, {"l": kit.rnn_record(constants, op_type)})
    assert kit.attributes(kit.node(twins.deploy, "l"))["hidden_size"] == HIDDEN


@pytest.mark.parametrize("settings", [{"direction": "forward"}, {"layout": 0}, {"input_forget": 0}], ids=str)
def test_defaults_that_are_written_out_are_accepted(kit, rng, settings):
    model, _, constants = kit.rnn(rng, "LSTM", **settings)
    assert kit.twins(model, {"l": kit.rnn_record(constants, "LSTM")}).deploy.graph.node[0].name == "l"


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_a_float16_layer_runs_in_float32_between_casts(kit, rng, op_type):
    model, feeds, constants = kit.rnn(rng, op_type, kind=TensorProto.FLOAT16)
    twins = kit.twins(model, {"l": kit.rnn_record(constants, op_type)})
    for name in ("w", "r", "b"):
        assert kit.array(twins.fake, name).dtype == np.float32
    in_float, _, _ = kit.rnn(rng, op_type)
    for tensor in in_float.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(constants[tensor.name].astype(np.float32), tensor.name))
    got = kit.run(twins.fake, feeds)
    wanted = kit.run(in_float, {name: value.astype(np.float32) for name, value in feeds.items()})
    assert set(got) == set(wanted)
    for name, values in got.items():
        assert values.dtype == np.float16
        assert np.abs(values.astype(np.float32) - wanted[name]).max() < 0.1
    onnx.checker.check_model(twins.fake, full_check=True)


def test_one_tensor_can_be_both_weights(kit, rng):
    model, feeds, _constants = kit.rnn(rng, "GRU")
    square = rng.normal(size=(1, 3 * HIDDEN, HIDDEN)).astype(np.float32)
    node = model.graph.node[0]
    node.input[1] = node.input[2] = "r"
    for tensor in list(model.graph.initializer):
        if tensor.name == "w":
            model.graph.initializer.remove(tensor)
        elif tensor.name == "r":
            tensor.CopyFrom(onnx.numpy_helper.from_array(square, "r"))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = HIDDEN
    feeds["x"] = rng.normal(size=(SEQ, BATCH, HIDDEN)).astype(np.float32)
    made = kit.rnn_record({"w": square, "r": square}, "GRU")
    made["scale_r"] = made["scale_r"] * np.float32(1.1)
    twins = kit.twins(model, {"l": made})
    rows = 3 * HIDDEN
    for slot, scale in ((1, made["scale_w"]), (2, made["scale_r"])):
        wanted = kit.integers(square, rows_of(scale, rows).reshape(1, rows, 1))
        np.testing.assert_array_equal(kit.array(twins.deploy, kit.node(twins.deploy, "l").input[slot]), wanted)
    assert np.abs(kit.run(twins.fake, feeds)["y"] - kit.run(model, feeds)["y"]).max() < 0.1


def test_x_is_quantized_for_the_rnn_alone(kit, rng):
    """The device quantizes an RNN's input itself, so that nothing can be shared with other layers."""
    model, feeds, constants = kit.rnn(rng, "GRU")
    v = rng.normal(size=(INPUT, 3)).astype(np.float32)
    model.graph.node.append(helper.make_node("MatMul", ["x", "v"], ["z"], "m"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(v, "v"))
    model.graph.output.append(helper.make_tensor_value_info("z", 1, (SEQ, BATCH, 3)))
    made = kit.rnn_record(constants, "GRU")
    twins = kit.twins(model, {"l": made, "m": kit.record(kit.scale_of(v), scale_d=0.03, offset_d=2)})
    assert [node.name for node in twins.deploy.graph.node] == ["l", "m.quant", "m", "m.dequant"]
    assert kit.node(twins.deploy, "l").input[0] == "x"
    assert np.abs(kit.run(twins.fake, feeds)["z"] - kit.run(model, feeds)["z"]).max() < 0.2


@pytest.mark.parametrize("name", ["rnn{0}", "rnn{}", "a.{b}"])
def test_braces_in_the_name_do_no_harm(kit, rng, name):
    model, _, constants = kit.rnn(rng, "GRU")
    model.graph.node[0].name = name
    twins = kit.twins(model, {name: kit.rnn_record(constants, "GRU")})
    assert kit.names(twins.fake)[0] == f"{name}.quant.fakequant.mul"


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_a_hidden_size_that_is_not_that_of_the_weight_is_refused(kit, rng, op_type):
    model, _, constants = kit.rnn(rng, op_type, hidden_size=HIDDEN + 1)
    with pytest.raises(RecordLayerError, match=f"its hidden_size is {HIDDEN + 1}, but its recurrence weight has shape"):
        kit.twins(model, {"l": kit.rnn_record(constants, op_type)})
