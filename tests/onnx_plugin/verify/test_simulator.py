"""The simulated deploy twin, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import VerificationError
from twinquant_onnx.verify import DeploySimulator


def parameter(*scales):
    return np.array(scales, np.float32).view(np.uint32).astype(np.uint64)


def quant(tensor, output, scale, offset, kind="INT8"):
    return helper.make_node("AscendQuant", [tensor], [output], name=output, scale=scale, offset=offset, dst_type=kind)


def dequant(tensor, output, dtype=0):
    return helper.make_node("AscendDequant", [tensor, "param"], [output], name=output, dtype=dtype)


@pytest.fixture
def run(tmp_path):
    """Write a deploy model and simulate it on one input."""

    def run(nodes, constants, x, outputs=("y",)):
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", kind, x.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, tmp_path / "deploy.onnx")
        return DeploySimulator(tmp_path / "deploy.onnx").run({"x": x})

    return run


def test_a_matrix_product_by_hand(run):
    # x / 0.5 = 2, -1 -> +3 -> 5, 2; minus the offset 2, -1; 2 * 3 - 1 * 4 = 2; plus the bias 5 = 7; times 0.25.
    nodes = [
        quant("x", "q", 2.0, 3.0),
        helper.make_node("MatMul", ["q", "w"], ["m"], name="mm"),
        helper.make_node("Add", ["m", "b"], ["a"], name="add"),
        dequant("a", "y"),
    ]
    constants = {"w": np.array([[3], [4]], np.int8), "b": np.array([5], np.int32), "param": parameter(0.25)}
    assert run(nodes, constants, np.array([[1.0, -0.5]], np.float32))["y"].tolist() == [[1.75]]


def test_rounding_goes_to_even_before_the_offset_is_added_and_values_saturate(run):
    # 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, -0.5 -> 0; with offset 100, 50 saturates at 127: 27.
    nodes = [quant("x", "q", 1.0, 100.0), helper.make_node("MatMul", ["q", "w"], ["m"], name="mm"), dequant("m", "y")]
    constants = {"w": np.eye(5, dtype=np.int8), "param": parameter(1.0)}
    x = np.array([[0.5, 1.5, 2.5, -0.5, 50.0]], np.float32)
    assert run(nodes, constants, x)["y"].tolist() == [[0.0, 2.0, 2.0, 0.0, 27.0]]


def test_zero_padding_of_a_convolution_means_real_zero(run):
    # Offset 10: 1 and 2 become 11 and 12, and what is padded 10; the sums are 1 + 2 on either side.
    nodes = [
        quant("x", "q", 1.0, 10.0),
        helper.make_node("Conv", ["q", "w"], ["c"], name="conv", pads=[1, 1]),
        dequant("c", "y"),
    ]
    constants = {"w": np.ones((1, 1, 3), np.int8), "param": parameter(1.0)}
    assert run(nodes, constants, np.array([[[1.0, 2.0]]], np.float32))["y"].tolist() == [[[3.0, 3.0]]]


def test_a_pad_between_quantization_and_layer_pads_with_the_offset(run):
    nodes = [
        quant("x", "q", 1.0, 10.0),
        helper.make_node("Pad", ["q", "pads"], ["p"], name="pool_pad"),
        helper.make_node("AveragePool", ["p"], ["m"], name="pool", kernel_shape=[2]),
        dequant("m", "y"),
    ]
    constants = {"pads": np.array([0, 0, 1, 0, 0, 1]), "param": parameter(0.5)}
    assert run(nodes, constants, np.array([[[4.0, 8.0]]], np.float32))["y"].tolist() == [[[1.0, 3.0, 2.0]]]


def test_every_channel_has_its_own_scale(run):
    nodes = [quant("x", "q", 1.0, 0.0), helper.make_node("Conv", ["q", "w"], ["c"], name="conv"), dequant("c", "y")]
    constants = {"w": np.array([[[1]], [[2]]], np.int8), "param": parameter(0.5, 4.0)}
    assert run(nodes, constants, np.array([[[3.0]]], np.float32))["y"].tolist() == [[[1.5], [24.0]]]


def test_two_4_bit_weights_share_a_byte_along_the_input_channels(run):
    # 0x7F holds -1 in the low half (even input channel) and 7 in the high half: 2 * -1 + 3 * 7 = 19.
    nodes = [quant("x", "q", 1.0, 0.0), helper.make_node("MatMul", ["q", "w"], ["m"], name="mm"), dequant("m", "y")]
    constants = {"w": np.array([[0x7F]], np.int8), "param": parameter(1.0)}
    assert run(nodes, constants, np.array([[2.0, 3.0]], np.float32))["y"].tolist() == [[19.0]]


@pytest.mark.parametrize(("dst_type", "largest"), [("INT4", 7.0), ("INT8", 127.0), ("INT16", 32767.0)])
def test_activations_saturate_at_the_range_of_their_type(dst_type, largest, run):
    nodes = [
        quant("x", "q", 1.0, 0.0, dst_type),
        helper.make_node("MatMul", ["q", "w"], ["m"], name="mm"),
        dequant("m", "y"),
    ]
    constants = {"w": np.ones((1, 1), np.int8), "param": parameter(1.0)}
    assert run(nodes, constants, np.array([[1e9], [-1e9]], np.float32))["y"].tolist() == [[largest], [-largest - 1]]


def test_alpha_and_beta_scale_product_and_bias(run):
    nodes = [
        quant("x", "q", 1.0, 0.0),
        helper.make_node("Gemm", ["q", "w", "b"], ["g"], name="gemm", alpha=0.5, beta=3.0),
        dequant("g", "y"),
    ]
    constants = {"w": np.array([[5]], np.int8), "b": np.array([2], np.int32), "param": parameter(1.0)}
    assert run(nodes, constants, np.array([[3.0]], np.float32))["y"].tolist() == [[0.5 * 15 + 3 * 2]]


def test_anti_quantization_goes_back_to_real_values(run):
    # 1 / 0.25 = 4, plus the offset 7; minus the offset and times 0.25 again.
    back = helper.make_node(
        "AscendAntiQuant", ["q"], ["y"], name="layer.anti_quant", scale=0.25, offset=7.0, dst_type="INT8"
    )
    assert run([quant("x", "q", 4.0, 7.0), back], {}, np.array([1.1, 1.0], np.float32))["y"].tolist() == [1.0, 1.0]


def test_a_dequantization_to_float16_gives_float16(run):
    nodes = [
        quant("x", "q", 1.0, 0.0),
        helper.make_node("MatMul", ["q", "w"], ["m"], name="mm"),
        dequant("m", "h", dtype=1),
        helper.make_node("Cast", ["h"], ["y"], name="cast", to=TensorProto.FLOAT),
    ]
    constants = {"w": np.full((1, 1), 127, np.int8), "param": parameter(1.0)}
    # 127 * 127 = 16129 lies between the float16 values 16128 and 16144.
    assert run(nodes, constants, np.array([[127.0]], np.float16))["y"].tolist() == [[16128.0]]


def test_float_nodes_run_in_between_and_dead_nodes_do_not_run(run):
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="neg"),
        quant("n", "q", 1.0, 0.0),
        helper.make_node("NoSuchOperator", ["x"], ["dead"], name="dead"),
        helper.make_node("MatMul", ["q", "w"], ["m"], name="mm"),
        dequant("m", "d"),
        helper.make_node("Add", ["d", "x"], ["y"], name="add"),
    ]
    constants = {"w": np.full((1, 1), 3, np.int8), "param": parameter(1.0)}
    assert run(nodes, constants, np.array([[2.0]], np.float32))["y"].tolist() == [[-6.0 + 2.0]]


def test_the_whole_network_equals_the_fake_quant_twin_on_onnx_runtime(kind, twins):
    fake, deploy = twins.save(kind)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused operators round differently
    session = ort.InferenceSession(str(fake), options)
    random = np.random.default_rng(5)
    dtype = np.float16 if kind == "half_precision" else np.float32
    shapes = {i.name: [n if isinstance(n, int) else 2 for n in i.shape] for i in session.get_inputs()}
    feeds = {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, feeds), strict=True))
    got = DeploySimulator(deploy).run(feeds)
    assert got.keys() == expected.keys()
    for name in names:
        assert got[name].dtype == expected[name].dtype
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-6 * max(1, np.abs(expected[name]).max()))


def test_a_simulator_runs_again_and_again_on_inputs_of_any_batch_size(twins):
    _, deploy = twins.save("pooling_and_gemm")
    simulator = DeploySimulator(deploy)
    x = np.random.default_rng(6).normal(size=(5, 3, 4, 4)).astype(np.float32)
    together = simulator.run({"x": x})["y"]
    alone = [simulator.run({"x": x[i : i + 1]})["y"] for i in range(5)]
    assert np.array_equal(together, np.concatenate(alone))


def test_a_layer_without_its_quantization_is_refused(run):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="mm"), dequant("m", "y")]
    with pytest.raises(VerificationError, match="does not come from an AscendQuant"):
        run(nodes, {"w": np.ones((1, 1), np.int8), "param": parameter(1.0)}, np.ones((1, 1), np.float32))


def test_an_input_that_is_not_given_is_named(twins):
    _, deploy = twins.save("lstm")
    with pytest.raises(VerificationError, match="reads input 'h'"):
        DeploySimulator(deploy).run({"x": np.zeros((3, 2, 6), np.float32), "c": np.zeros((1, 2, 4), np.float32)})
