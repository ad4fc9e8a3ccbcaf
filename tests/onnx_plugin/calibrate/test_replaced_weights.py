"""Trained weights take the place of the model's own, in whatever orientation the model stores them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant_onnx.float_weights import replace_weights
from twinquant_onnx.framework import OnnxFramework

RNG = np.random.default_rng(8)
OLD = RNG.standard_normal((4, 3)).astype(np.float32)  # (out, in)
NEW = RNG.standard_normal((4, 3)).astype(np.float32)
X = RNG.standard_normal((2, 3)).astype(np.float32)


def model(nodes, weight):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in ("y", "z")],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def other(out_first):
    """A reader of the same weight that is left alone."""
    return helper.make_node("Gemm", ["x", "w"], ["z"], name="other", transB=int(out_first))


@pytest.mark.parametrize(
    ("nodes", "stored"),
    [
        ([helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", transB=1)], OLD),
        ([helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")], OLD.T.copy()),
        ([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], OLD.T.copy()),
        (
            [
                helper.make_node("Transpose", ["w"], ["wt"], name="t", perm=[1, 0]),
                helper.make_node("MatMul", ["x", "wt"], ["y"], name="fc"),
            ],
            OLD,
        ),
    ],
    ids=["Gemm, transB", "Gemm", "MatMul", "MatMul, transposed"],
)
def test_a_layer_computes_with_its_new_weight_and_others_with_the_old_one(nodes, stored, tmp_path):
    source = model([*nodes, other(stored.shape == OLD.shape)], stored)
    loaded = replace_weights(OnnxFramework().load(source), {"fc": NEW})
    path = OnnxFramework().write_float(loaded, tmp_path, "model.onnx")[0]
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    y, z = session.run(["y", "z"], {"x": X})
    np.testing.assert_allclose(y, X @ NEW.T, rtol=1e-5)
    np.testing.assert_allclose(z, X @ OLD.T, rtol=1e-5)


def test_a_transposed_convolution_keeps_its_layout(tmp_path):
    old, new = (RNG.standard_normal((2, 4, 2)).astype(np.float32) for _ in range(2))
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(old, "w")],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    loaded = replace_weights(OnnxFramework().load(source), {"up": new})
    path = OnnxFramework().write_float(loaded, tmp_path, "model.onnx")[0]
    (tensor,) = onnx.load(path).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), new)
