"""Numbers of bits of activations and weights, and the float16 precision mode."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from twinquant.errors import RecordValueError

KINDS = ["Conv", "ConvTranspose", "Gemm", "Gemm transB", "MatMul", "MatMul Transpose"]


def layer(kit, rng, kind, cin=6, cout=5, ir_version=10, opset=13):
    """One layer of a kind, its data, the axis of its stored weight along which 4-bit values are packed."""
    op_type, _, detail = kind.partition(" ")
    shape = {"Conv": (cout, cin, 3, 3), "ConvTranspose": (cin, cout, 3, 3)}.get(op_type, (cin, cout))
    if detail:
        shape = shape[::-1]
    w = rng.normal(size=shape).astype(np.float32)
    x = rng.normal(size=(1, cin, 5, 5) if "Conv" in op_type else (4, cin)).astype(np.float32)
    inputs, nodes, settings, constants = ["x", "w"], [], {}, {"w": w}
    if op_type != "MatMul":
        constants["b"] = rng.normal(size=cout).astype(np.float32)
        inputs.append("b")
    if detail == "transB":
        settings["transB"] = 1
    if detail == "Transpose":
        nodes.append(helper.make_node("Transpose", ["w"], ["wt"], "t"))
        inputs[1] = "wt"
    nodes.append(helper.make_node(op_type, inputs, ["y"], "l", **settings))
    model = kit.model(nodes, {"x": x.shape}, ["y"], constants, ir_version=ir_version, opset=opset)
    axis = {"Conv": 1, "MatMul Transpose": 1}.get(kind, 0)
    return model, x, w, axis


def stored(w, kind):
    return w.T if kind == "Gemm transB" else w


def pairs(values, axis):
    """Pack by the definition: the even index in the low half, the odd one in the high half."""
    even, odd = (
        np.take(values, range(0, values.shape[axis], 2), axis),
        np.take(values, range(1, values.shape[axis], 2), axis),
    )
    return ((even.astype(np.int32) & 15) | ((odd.astype(np.int32) & 15) << 4)).astype(np.uint8).view(np.int8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("wts_type", "bits"), [("INT6", 6), ("INT7", 7), ("INT8", 8)])
def test_narrow_weights_are_int8_with_a_smaller_range(kit, rng, kind, wts_type, bits):
    model, x, w, _ = layer(kit, rng, kind)
    scale_w = kit.scale_of(w, bits) * np.float32(0.9)  # the largest value saturates
    made = kit.record(scale_w, scale_d=np.abs(x).max() / 120, wts_type=wts_type)
    twins = kit.twins(model, {"l": made})
    expected = kit.integers(stored(w, kind), scale_w, bits)
    assert np.abs(expected).max() >= 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), expected, strict=True)
    kit.match(model, twins, {"x": x}, within=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_4_bit_weights_of_8_bit_activations_are_packed_along_the_input_channels(kit, rng, kind):
    model, x, w, axis = layer(kit, rng, kind)
    scale_w = kit.scale_of(w, 4)
    twins = kit.twins(model, {"l": kit.record(scale_w, scale_d=np.abs(x).max() / 120, wts_type="INT4")})
    expected = kit.integers(stored(w, kind), scale_w, 4)
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), pairs(expected, axis), strict=True)
    np.testing.assert_array_equal(kit.array(twins.fake, "w"), expected.astype(np.float32), strict=True)
    kit.match(model, twins, {"x": x}, within=0.5, packed_axes={"w": axis})


@pytest.mark.parametrize("kind", KINDS)
def test_4_bit_weights_with_an_odd_number_of_input_channels_are_refused(kit, rng, kind):
    model, *_ = layer(kit, rng, kind, cin=5, cout=6)
    with pytest.raises(RecordValueError, match=r"odd number.*\(5\)"):
        kit.twins(model, {"l": kit.record(0.1, wts_type="INT4")})


def test_the_input_channels_of_a_group_count_for_packing(kit, rng):
    w = rng.normal(size=(4, 1, 3, 3)).astype(np.float32)
    model = kit.model([helper.make_node("Conv", ["x", "w"], ["y"], "l", group=4)], {"x": (1, 4, 5, 5)}, ["y"], {"w": w})
    with pytest.raises(RecordValueError, match=r"odd number.*\(1\)"):
        kit.twins(model, {"l": kit.record(wts_type="INT4")})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cin", [6, 5])
def test_dst_type_int4_makes_a_4_bit_tensor_of_unchanged_dims(kit, rng, kind, cin):
    model, x, w, _ = layer(kit, rng, kind, cin=cin, opset=21)
    scale_w, scale_d = kit.scale_of(w, 4), np.abs(x).max() / np.float32(7)
    twins = kit.twins(model, {"l": kit.record(scale_w, scale_d=scale_d, offset_d=-1, dst_type="INT4")})
    expected = kit.integers(stored(w, kind), scale_w, 4)
    held = kit.tensor(twins.deploy, "w")
    assert (held.data_type, tuple(held.dims)) == (TensorProto.INT4, expected.shape)
    flat = np.append(expected.reshape(-1), [0] * (expected.size % 2))
    assert held.raw_data == pairs(flat, 0).tobytes()
    assert kit.attributes(kit.node(twins.deploy, "l.quant"))["dst_type"] == b"INT4"
    low, high = (kit.array(twins.fake, f"l.quant.fakequant.{end}_val.output0").item() for end in ("min", "max"))
    assert (low, high) == (-8, 7)
    kit.match(model, twins, {"x": x}, within=0.7)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("fields", [{"act_type": "INT4"}, {"dst_type": "INT4"}], ids=str)
def test_4_bit_activations_read_their_bias_through_a_cast_in_the_deploy_twin(kit, rng, kind, fields):
    model, x, w, _ = layer(kit, rng, kind)
    twins = kit.twins(model, {"l": kit.record(kit.scale_of(w, 4), scale_d=np.abs(x).max() / 7, offset_d=0, **fields)})
    cast = kit.node(twins.deploy, "l.bias_quant")
    assert (cast.op_type, list(cast.input), list(cast.output)) == ("Cast", ["b"], ["l.bias_quant.output0"])
    assert kit.attributes(cast) == {"to": TensorProto.FLOAT}
    assert kit.node(twins.deploy, "l").input[2] == "l.bias_quant.output0"
    assert kit.array(twins.deploy, "b").dtype == np.int32
    assert kit.node(twins.fake, "l").input[2] == "b"
    assert not [name for name in kit.names(twins.fake) if "bias_quant" in name]
    kit.match(model, twins, {"x": x}, within=0.7)


def test_8_bit_activations_read_their_bias_directly(kit, rng):
    model, *_ = layer(kit, rng, "Conv")
    twins = kit.twins(model, {"l": kit.record()})
    assert kit.names(twins.deploy) == ["l.quant", "l", "l.dequant"]


@pytest.mark.parametrize("kind", KINDS)
def test_16_bit_activations_have_their_range_and_a_16_bit_offset(kit, rng, kind):
    model, x, w, _ = layer(kit, rng, kind)
    if "Conv" in kind:
        x = x[:, :, :3, :3]
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 3
        model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 3
        model.graph.output[0].type.tensor_type.ClearField("shape")
    scale_w, scale_d = kit.scale_of(w), np.abs(x).max() / np.float32(2000)
    made = kit.record(scale_w, scale_d=scale_d, offset_d=-30000, act_type="INT16")
    twins = kit.twins(model, {"l": made})
    quant = kit.attributes(kit.node(twins.deploy, "l.quant"))
    assert (quant["dst_type"], quant["offset"]) == (b"INT16", -30000.0)
    low, high = (kit.array(twins.fake, f"l.quant.fakequant.{end}_val.output0").item() for end in ("min", "max"))
    assert (low, high) == (-32768, 32767)
    kit.match(model, twins, {"x": x}, within=0.02)


def test_dst_type_decides_both_and_the_other_types_are_ignored(kit, rng):
    model, x, w, _ = layer(kit, rng, "Conv")
    made = kit.record(
        kit.scale_of(w), scale_d=np.abs(x).max() / 120, dst_type="INT8", act_type="INT16", wts_type="INT6"
    )
    twins = kit.twins(model, {"l": made})
    assert kit.attributes(kit.node(twins.deploy, "l.quant"))["dst_type"] == b"INT8"
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), kit.integers(w, kit.scale_of(w)))


def test_dst_type_int4_wins_over_a_packed_weight_type(kit, rng):
    model, _, w, _ = layer(kit, rng, "MatMul", opset=21)
    twins = kit.twins(model, {"l": kit.record(kit.scale_of(w, 4), dst_type="INT4", wts_type="INT8")})
    assert kit.tensor(twins.deploy, "w").data_type == TensorProto.INT4


@pytest.mark.parametrize("fields", [{"act_type": "INT4"}, {"act_type": "INT16"}, {"dst_type": "INT4"}], ids=str)
def test_pooling_takes_every_activation_type(kit, rng, fields):
    x = rng.normal(size=(1, 2, 4, 4)).astype(np.float32)
    model = kit.model([helper.make_node("AveragePool", ["x"], ["y"], "l", kernel_shape=[2, 2])], {"x": x.shape}, ["y"])
    twins = kit.twins(model, {"l": kit.record(1.0, scale_d=np.abs(x).max() / 7, offset_d=0, **fields)})
    kit.match(model, twins, {"x": x}, within=0.3)


def test_forced_float16_cuts_the_dequantization_scale_but_not_that_of_the_bias(kit, rng):
    model, x, w, _ = layer(kit, rng, "Conv")
    scale_w, scale_d = kit.scale_of(w, axes=(1, 2, 3)), np.abs(x).max() / np.float32(120)
    made = kit.record(scale_w, scale_d=scale_d, fakequant_precision_mode="FORCE_FP16_QUANT")
    twins = kit.twins(model, {"l": made})
    ds = scale_w * scale_d
    cut = ds.view(np.uint32) & 0xFFFFE000
    assert (cut != ds.view(np.uint32)).all()
    np.testing.assert_array_equal(kit.array(twins.deploy, "l.dequant.param"), cut.astype(np.uint64))
    dqscale = kit.array(twins.fake, "l.fakedequant.dqscale.output0")
    np.testing.assert_array_equal(dqscale.reshape(-1).view(np.uint32), cut)
    bias = next(t for t in model.graph.initializer if t.name == "b")
    wanted = np.rint(onnx.numpy_helper.to_array(bias) / ds).astype(np.int32)
    np.testing.assert_array_equal(kit.array(twins.deploy, "b"), wanted)
    kit.match(model, twins, {"x": x}, within=0.04)


def test_the_default_precision_mode_changes_nothing(kit, rng):
    model, _, w, _ = layer(kit, rng, "Conv")
    plain = kit.twins(model, {"l": kit.record(kit.scale_of(w))})
    named = kit.twins(model, {"l": kit.record(kit.scale_of(w), fakequant_precision_mode="DEFAULT")})
    assert plain == named
