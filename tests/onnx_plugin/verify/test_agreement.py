"""Twins that save_model wrote agree, in every way that is looked at."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import twinquant
from twinquant_onnx.verify import verify_twins


def test_the_twins_agree_in_every_layer(kind, twins):
    report = verify_twins(*twins.save(kind))
    problems = [problem for layer in report.layers for problem in layer.problems]
    assert report.agree, [*problems, *report.problems]


def test_every_quantized_layer_gets_a_verdict_in_graph_order(kind, twins):
    fake, deploy = twins.save(kind)
    ends = ("AscendDequant", "BasicLSTMInplaceFillWindowCache", "BasicGRUInplaceFillWindowCache")
    expected = [n.name.removesuffix(".dequant") for n in onnx.load(deploy).graph.node if n.op_type in ends]
    report = verify_twins(fake, deploy)
    assert [layer.name for layer in report.layers] == expected
    assert all(layer.max_difference is not None and layer.free_running is not None for layer in report.layers)


def test_int8_layers_are_equal_to_the_last_bit(twins):
    for kind in ("convolutions", "matrix_products", "old_operators", "branches"):
        report = verify_twins(*twins.save(kind))
        assert [(layer.max_difference, layer.tolerance) for layer in report.layers] == [(0.0, 0.0)] * len(report.layers)


def test_recurrent_layers_are_marked_as_run_in_float(twins):
    assert [layer.mode for layer in verify_twins(*twins.save("lstm")).layers] == ["float"]
    assert {layer.mode for layer in verify_twins(*twins.save("convolutions")).layers} == {"integer"}


def test_the_outputs_of_the_graph_get_their_free_running_difference(twins):
    report = verify_twins(*twins.save("matrix_products"))
    assert [(output.name, output.op_type) for output in report.outputs] == [("y", "output"), ("k", "output")]
    assert [output.free_running for output in report.outputs] == [0.0, 0.0]


def test_the_users_own_input_is_what_the_twins_are_run_on(twins):
    fake, deploy = twins.save("old_operators")
    huge = {"x": np.full((1, 2, 6), 1e6, np.float32)}
    assert verify_twins(fake, deploy, huge).agree


def test_the_public_function_reaches_the_same_report(twins, tmp_path):
    fake, deploy = twins.save("old_operators")
    feeds = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 2, 6)}
    np.savez(tmp_path / "data.npz", **feeds)
    report = twinquant.verify(fake, deploy, tmp_path / "data.npz")
    assert report == verify_twins(fake, deploy, feeds)


def test_a_shared_quantization_node_serves_both_of_its_layers(twins):
    fake, deploy = twins.save("matrix_products")
    assert [n.name for n in onnx.load(deploy).graph.node if n.op_type == "AscendQuant"] == ["query.quant", "out.quant"]
    assert verify_twins(fake, deploy).agree


def test_an_accumulator_beyond_int32_is_noted_without_being_a_disagreement(twins, builder):
    b = builder(0)
    b.constants["w"] = np.full((2048, 1), 1.27, np.float32)
    b.add("MatMul", "x w", "y", "wide")
    b.quantize("wide", 0.01, scale_d=0.001, extra='    act_type: "INT16"\n    wts_type: "INT8"\n')
    fake, deploy = twins.save_model(b.model({"x": [1, 2048]}, ["y"]), "".join(b.records))
    report = verify_twins(fake, deploy, {"x": np.full((1, 2048), 32.0, np.float32)})
    assert 2048 * 32000 * 127 > 2**31
    assert report.agree
    assert "int32" in report.layers[0].notes[0]


def test_a_bias_that_float32_cannot_hold_agrees_with_the_float32_it_rounds_to(twins, builder):
    b = builder(0)
    b.constants["b"] = np.array([0.3], np.float32)
    b.add("Gemm", f"x {b.weight('w', 4, 1)} b", "y", "gemm")
    b.quantize("gemm", 0.004, scale_d=2e-6)
    fake, deploy = twins.save_model(b.model({"x": [1, 4]}, ["y"]), "".join(b.records))
    (bias,) = (numpy_helper.to_array(t) for t in onnx.load(deploy).graph.initializer if t.name == "b")
    assert abs(int(bias[0])) > 2**24
    model = onnx.load(deploy)
    (tensor,) = (t for t in model.graph.initializer if t.name == "b")
    odd = np.array([(int(bias[0]) // 2) * 2 + 1], np.int32)
    assert int(np.float32(odd[0])) != int(odd[0])
    tensor.CopyFrom(numpy_helper.from_array(odd, "b"))
    floats = onnx.load(fake)
    (tensor,) = (t for t in floats.graph.initializer if t.name == "b")
    tensor.CopyFrom(numpy_helper.from_array(odd.astype(np.float32), "b"))
    onnx.save(floats, fake)
    assert verify_twins(fake, twins.write(model)).agree


def test_nodes_without_names_and_names_that_are_taken_are_matched(twins, builder):
    b = builder(0)
    b.add("Relu", "x", "r", "conv.quant")
    b.add("Conv", f"r {b.weight('w', 3, 2, 2)}", "c", "conv")
    b.quantize("conv", 0.004)
    b.add("Neg", "c", "n", "conv.dequant")
    b.add("Neg", "n", "m", "conv.fakedequant.mul")
    b.add("Neg", "m", "y", "")
    fake, deploy = twins.save_model(b.model({"x": [1, 2, 6]}, ["y"]), "".join(b.records))
    report = verify_twins(fake, deploy)
    assert report.agree, report
    assert [layer.name for layer in report.layers] == ["conv"]


def test_a_weight_that_two_layers_quantize_differently_is_compared_for_each(twins, builder):
    b = builder(0)
    b.weight("w", 4, 4)
    b.add("MatMul", "x w", "a", "first")
    b.add("MatMul", "a w", "c", "second")
    b.add("MatMul", "c w", "y", "third")
    b.quantize("first", 0.004)
    b.quantize("second", 0.006)
    fake, deploy = twins.save_model(b.model({"x": [2, 4]}, ["y"]), "".join(b.records))
    assert verify_twins(fake, deploy).agree


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_convolutions_of_many_shapes_agree_with_onnx_runtime(spatial, seed, twins, builder):
    b = builder(seed)
    pick = b.random.integers
    strides, kernel = pick(1, 3, spatial).tolist(), pick(1, 4, spatial).tolist()
    padding = [
        {"pads": pick(0, 2, 2 * spatial).tolist(), "dilations": pick(1, 3, spatial).tolist()},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER"},
        {"auto_pad": "VALID"},
    ]
    b.add("Conv", f"x {b.weight('w', 4, 2, *kernel)}", "c", "conv", group=2, strides=strides, **padding[seed])
    b.quantize("conv", 0.004, offset=-30)
    up = [{"pads": [1, 0] * spatial, "output_padding": [1] * spatial}, *padding[1:]]
    b.add("ConvTranspose", f"x {b.weight('v', 4, 3, *[3] * spatial)}", "y", "up", strides=[2] * spatial, **up[seed])
    b.quantize("up", 0.004, offset=17)
    fake, deploy = twins.save_model(b.model({"x": [2, 4, *[6] * spatial]}, ["c", "y"]), "".join(b.records))
    report = verify_twins(fake, deploy)
    assert report.agree, report
