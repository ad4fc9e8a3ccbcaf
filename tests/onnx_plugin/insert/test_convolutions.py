"""Conv and ConvTranspose: every dimension, group and scale layout."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

CASES = {
    "1d": ((1, 4, 9), (6, 4, 3), 1),
    "2d": ((2, 4, 6, 5), (6, 4, 3, 3), 1),
    "3d": ((1, 2, 5, 4, 6), (4, 2, 2, 3, 2), 1),
    "grouped": ((1, 6, 6, 6), (4, 3, 3, 3), 2),
    "depthwise": ((1, 4, 6, 6), (4, 1, 3, 3), 4),
    "depth multiplier": ((1, 3, 6, 6), (6, 1, 2, 2), 3),
    "one output channel": ((1, 3, 5, 5), (1, 3, 2, 2), 1),
}
TRANSPOSED = {
    "1d": ((1, 4, 7), (4, 3, 3), 1),
    "2d": ((1, 4, 5, 5), (4, 3, 3, 3), 1),
    "3d": ((1, 2, 3, 4, 3), (2, 3, 2, 2, 2), 1),
    "grouped 1d": ((1, 4, 7), (4, 3, 2), 2),
    "grouped 2d": ((1, 6, 5, 5), (6, 2, 3, 3), 3),
    "grouped 3d": ((1, 4, 3, 3, 3), (4, 2, 2, 2, 2), 2),
    "depthwise": ((1, 4, 5, 5), (4, 1, 3, 3), 4),
}


def per_channel(weight, transposed, group):
    """The scale of each output channel, by a loop over the channels."""
    if not transposed:
        return np.array([np.abs(channel).max() / 127 for channel in weight], np.float32)
    grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    return np.array([np.abs(part[:, j]).max() / 127 for part in grouped for j in range(weight.shape[1])], np.float32)


def quantized(kit, weight, scale, transposed, group):
    if scale.size == 1:
        return kit.integers(weight, scale)
    if not transposed:
        return np.stack([kit.integers(channel, s) for channel, s in zip(weight, scale, strict=True)])
    out, rows = np.empty(weight.shape, np.int8), weight.shape[0] // group
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            out[i, j] = kit.integers(weight[i, j], scale[(i // rows) * weight.shape[1] + j])
    return out


@pytest.mark.parametrize("per_tensor", [True, False], ids=["per tensor", "per channel"])
@pytest.mark.parametrize(
    ("op_type", "case"),
    [("Conv", case) for case in CASES.values()] + [("ConvTranspose", case) for case in TRANSPOSED.values()],
    ids=[f"Conv {name}" for name in CASES] + [f"ConvTranspose {name}" for name in TRANSPOSED],
)
def test_a_convolution_becomes_integers_in_both_twins(kit, rng, op_type, case, per_tensor):
    x_shape, w_shape, group = case
    transposed = op_type == "ConvTranspose"
    x = rng.normal(size=x_shape).astype(np.float32)
    w = rng.normal(size=w_shape).astype(np.float32)
    channels = w_shape[1] * group if transposed else w_shape[0]
    w *= np.float32(0.01)
    b = rng.normal(size=channels).astype(np.float32)
    model = kit.model(
        [helper.make_node(op_type, ["x", "w", "b"], ["y"], "c", group=group)],
        {"x": x_shape},
        ["y"],
        {"w": w, "b": b},
    )
    scale_w = np.float32([np.abs(w).max() / 127]) if per_tensor else per_channel(w, transposed, group)
    scale_d = np.float32(np.abs(x).max() / 120)
    twins = kit.twins(model, {"c": kit.record(scale_w, scale_d=scale_d, offset_d=5)})

    weight = quantized(kit, w, scale_w, transposed, group)
    ds = scale_w * scale_d
    bias = np.rint(b / ds).astype(np.int32)
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), weight, strict=True)
    np.testing.assert_array_equal(kit.array(twins.deploy, "b"), bias, strict=True)
    np.testing.assert_array_equal(
        kit.array(twins.deploy, "c.dequant.param"), ds.view(np.uint32).astype(np.uint64), strict=True
    )
    np.testing.assert_array_equal(kit.array(twins.fake, "w"), weight.astype(np.float32), strict=True)
    np.testing.assert_array_equal(kit.array(twins.fake, "b"), bias.astype(np.float32), strict=True)
    dqscale = kit.array(twins.fake, "c.fakedequant.dqscale.output0")
    np.testing.assert_array_equal(dqscale, ds.reshape((1, -1) + (1,) * (len(w_shape) - 2)), strict=True)

    in_integers = kit.model(
        list(model.graph.node), {"x": x_shape}, ["y"], {"w": weight.astype(np.float32), "b": bias.astype(np.float32)}
    )
    wanted = kit.run(in_integers, {"x": kit.activation(x, scale_d, 5)})["y"] * dqscale
    np.testing.assert_array_equal(kit.run(twins.fake, {"x": x})["y"], wanted)
    kit.match(model, twins, {"x": x}, within=0.03)
    onnx.checker.check_model(twins.fake, full_check=True)


def test_the_nodes_around_a_convolution_have_the_documented_names_and_attributes(kit):
    model = kit.model(
        [helper.make_node("Conv", ["x", "w"], ["h"], "c"), helper.make_node("Relu", ["h"], ["y"], "r")],
        {"x": (1, 2, 4, 4)},
        ["y"],
        {"w": np.ones((3, 2, 1, 1), np.float32)},
    )
    twins = kit.twins(model, {"c": kit.record([0.1, 0.2, 0.3], scale_d=0.3, offset_d=-7)})

    quant, dequant = kit.node(twins.deploy, "c.quant"), kit.node(twins.deploy, "c.dequant")
    assert (quant.op_type, quant.domain, list(quant.input), list(quant.output)) == (
        "AscendQuant",
        "",
        ["x"],
        ["c.quant.output0"],
    )
    assert [a.name for a in quant.attribute] == ["scale", "offset", "dst_type"]
    assert [a.type for a in quant.attribute] == [1, 1, 3]  # FLOAT, FLOAT, STRING
    assert kit.attributes(quant) == {
        "scale": float(np.float32(1) / np.float32(0.3)),
        "offset": -7.0,
        "dst_type": b"INT8",
    }
    assert (dequant.op_type, dequant.domain, list(dequant.input), list(dequant.output)) == (
        "AscendDequant",
        "",
        ["h", "c.dequant.param"],
        ["c.dequant.output0"],
    )
    assert kit.attributes(dequant) == {"dtype": 0}
    assert dequant.attribute[0].type == 2  # INT
    parameter = kit.tensor(twins.deploy, "c.dequant.param")
    assert (parameter.data_type, list(parameter.dims)) == (TensorProto.UINT64, [3])
    assert list(kit.node(twins.deploy, "c").input) == ["c.quant.output0", "w"]
    assert list(kit.node(twins.deploy, "r").input) == ["c.dequant.output0"]
    assert kit.names(twins.deploy) == ["c.quant", "c", "c.dequant", "r"]

    chain = ["mul", "round", "add", "clip", "sub"]
    assert kit.names(twins.fake) == [*(f"c.quant.fakequant.{step}" for step in chain), "c", "c.fakedequant.mul", "r"]
    inputs = {
        "mul": ["x", "c.quant.fakequant.scale.output0"],
        "round": ["c.quant.fakequant.mul.output0"],
        "add": ["c.quant.fakequant.round.output0", "c.quant.fakequant.offset.output0"],
        "clip": [
            "c.quant.fakequant.add.output0",
            "c.quant.fakequant.min_val.output0",
            "c.quant.fakequant.max_val.output0",
        ],
        "sub": ["c.quant.fakequant.clip.output0", "c.quant.fakequant.offset.output0"],
    }
    for step in chain:
        made = kit.node(twins.fake, f"c.quant.fakequant.{step}")
        assert made.op_type == step.capitalize()
        assert list(made.input) == inputs[step]
        assert list(made.output) == [f"c.quant.fakequant.{step}.output0"]
    held = {
        name: kit.array(twins.fake, f"c.quant.fakequant.{name}.output0")
        for name in ("scale", "offset", "min_val", "max_val")
    }
    assert {name: value.item() for name, value in held.items()} == {
        "scale": float(np.float32(1) / np.float32(0.3)),
        "offset": -7.0,
        "min_val": -128.0,
        "max_val": 127.0,
    }
    assert all(value.dtype == np.float32 and value.shape == () for value in held.values())
    mul = kit.node(twins.fake, "c.fakedequant.mul")
    assert (mul.op_type, list(mul.input)) == ("Mul", ["h", "c.fakedequant.dqscale.output0"])
    assert list(kit.node(twins.fake, "r").input) == ["c.fakedequant.mul.output0"]


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_padding_strides_and_dilations_pass_through_and_padding_is_real_zero(kit, rng, op_type):
    x = rng.uniform(0.5, 1.5, size=(1, 2, 7, 7)).astype(np.float32)
    w = rng.normal(size=(2, 2, 3, 3)).astype(np.float32)
    settings = {"strides": [2, 1], "pads": [1, 2, 0, 1], "dilations": [1, 2], "kernel_shape": [3, 3]}
    model = kit.model([helper.make_node(op_type, ["x", "w"], ["y"], "c", **settings)], {"x": x.shape}, ["y"], {"w": w})
    twins = kit.twins(model, {"c": kit.record(np.abs(w).max() / 127, scale_d=1.5 / 255, offset_d=-128)})
    assert kit.attributes(kit.node(twins.deploy, "c")) == settings
    kit.match(model, twins, {"x": x}, within=0.02)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding_is_kept(kit, rng, auto_pad):
    x, w = rng.normal(size=(1, 2, 7, 7)).astype(np.float32), rng.normal(size=(3, 2, 3, 3)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "c", auto_pad=auto_pad, strides=[2, 2])
    model = kit.model([conv], {"x": x.shape}, ["y"], {"w": w})
    twins = kit.twins(model, {"c": kit.record(np.abs(w).max() / 127, scale_d=np.abs(x).max() / 120)})
    kit.match(model, twins, {"x": x}, within=0.03)


def test_ties_round_to_even_and_values_outside_saturate(kit):
    w = np.float32([0.5, 1.5, 2.5, -0.5, -2.5, 1000, -1000, 0]).reshape(8, 1, 1, 1)
    model = kit.model([helper.make_node("Conv", ["x", "w"], ["y"], "c")], {"x": (1, 1, 1, 1)}, ["y"], {"w": w})
    twins = kit.twins(model, {"c": kit.record(1.0)})
    assert kit.array(twins.deploy, "w").reshape(-1).tolist() == [0, 2, 2, 0, -2, 127, -128, 0]
    assert not np.signbit(kit.array(twins.fake, "w")[kit.array(twins.fake, "w") == 0]).any()


def test_weights_are_divided_and_not_multiplied_by_a_reciprocal(kit, rng):
    scale = np.float32(0.0123)
    w = (np.arange(-127, 127, dtype=np.float32) + np.float32(0.5)) * scale
    w = np.concatenate([w, np.nextafter(w, np.float32(9)), np.nextafter(w, np.float32(-9))]).reshape(-1, 1, 1)
    divided = np.clip(np.rint(w / scale), -128, 127)
    assert (divided != np.clip(np.rint(w * (np.float32(1) / scale)), -128, 127)).any()
    model = kit.model([helper.make_node("Conv", ["x", "w"], ["y"], "c")], {"x": (1, 1, 1)}, ["y"], {"w": w})
    twins = kit.twins(model, {"c": kit.record(scale)})
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), divided.astype(np.int8))


@pytest.mark.parametrize("holder", ["initializer", "Constant", "Identity of an initializer", "Identity of a Constant"])
def test_weight_and_bias_may_be_any_kind_of_constant(kit, rng, holder):
    x, w = rng.normal(size=(1, 2, 5, 5)).astype(np.float32), rng.normal(size=(3, 2, 3, 3)).astype(np.float32)
    b = rng.normal(size=3).astype(np.float32)
    nodes, constants = [], {}
    for name, value in (("w", w), ("b", b)):
        source = f"{name}0" if holder.startswith("Identity") else name
        if holder.endswith("initializer"):
            constants[source] = value
        else:
            held = onnx.numpy_helper.from_array(value)
            nodes.append(helper.make_node("Constant", [], [source], f"make_{name}", value=held))
        if source != name:
            nodes.append(helper.make_node("Identity", [source], [name], f"same_{name}"))
    model = kit.model([*nodes, helper.make_node("Conv", ["x", "w", "b"], ["y"], "c")], {"x": x.shape}, ["y"], constants)
    scale_w, scale_d = np.abs(w).max() / np.float32(127), np.abs(x).max() / np.float32(120)
    twins = kit.twins(model, {"c": kit.record(scale_w, scale_d=scale_d)})
    kit.match(model, twins, {"x": x}, within=0.03)
    source = {"w": "w0", "b": "b0"} if holder.startswith("Identity") else {"w": "w", "b": "b"}
    np.testing.assert_array_equal(kit.array(twins.deploy, source["w"]), kit.integers(w, scale_w))
    assert kit.array(twins.deploy, source["b"]).dtype == np.int32
    assert [n.name for n in nodes] == kit.names(twins.deploy, constants=True)[: len(nodes)]


def test_a_bias_given_as_value_floats_is_quantized(kit):
    made = helper.make_node("Constant", [], ["b"], "make_b", value_floats=[1.0, -2.0])
    model = kit.model(
        [
            made,
            helper.make_node("Conv", ["x", "w"], ["h"], "other"),
            helper.make_node("Conv", ["x", "w", "b"], ["y"], "c"),
        ],
        {"x": (1, 1, 2, 2)},
        ["y"],
        {"w": np.ones((2, 1, 1, 1), np.float32)},
    )
    twins = kit.twins(model, {"c": kit.record(0.5, scale_d=0.25)})
    assert kit.array(twins.deploy, "b").tolist() == [8, -16]
    assert kit.array(twins.deploy, "b").dtype == np.int32


def test_a_weight_of_another_float_type_is_widened(kit):
    w = np.float64([0.1, 0.25, -3.0]).reshape(3, 1, 1, 1)
    model = kit.model(
        [helper.make_node("Conv", ["x", "w"], ["y"], "c")],
        {"x": kit.Typed(TensorProto.DOUBLE, (1, 1, 1, 1))},
        {"y": TensorProto.DOUBLE},
        {"w": w},
    )
    twins = kit.twins(model, {"c": kit.record(0.05)})
    assert kit.array(twins.deploy, "w").reshape(-1).tolist() == [2, 5, -60]


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_a_bias_of_the_wrong_length_is_refused(kit, op_type):
    from twinquant.errors import RecordLayerError

    model = kit.model(
        [helper.make_node(op_type, ["x", "w", "b"], ["y"], "c")],
        {"x": (1, 2, 4, 4)},
        ["y"],
        {"w": np.ones((2, 2, 1, 1), np.float32), "b": np.ones(3, np.float32)},
    )
    with pytest.raises(RecordLayerError, match=r"'c'.*bias 'b' has shape \[3\].*\[2\]"):
        kit.twins(model, {"c": kit.record([0.1, 0.2])})


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose", "Gemm"])
def test_an_empty_bias_input_is_no_bias(kit, rng, op_type):
    shape, x_shape = ((2, 2), (3, 2)) if op_type == "Gemm" else ((2, 2, 1, 1), (1, 2, 3, 3))
    w, x = rng.normal(size=shape).astype(np.float32), rng.normal(size=x_shape).astype(np.float32)
    model = kit.model([helper.make_node(op_type, ["x", "w", ""], ["y"], "c")], {"x": x_shape}, ["y"], {"w": w})
    twins = kit.twins(model, {"c": kit.record(kit.scale_of(w), act_type="INT4", offset_d=0, scale_d=0.5)})
    assert list(kit.node(twins.deploy, "c").input) == ["c.quant.output0", "w", ""]
    kit.match(model, twins, {"x": x}, within=0.5)
