"""The ONNX plugin passes the shipped contract unchanged, with a file and with a model in memory."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from twinquant.testing import FrameworkContract
from twinquant_onnx.framework import OnnxFramework


def small_model():
    """A convolution and a fully connected layer, in opset 13."""
    rng = np.random.default_rng(11)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.uniform(-1, 1, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["conv.out"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["conv.out"], ["relu.out"], name="relu"),
        helper.make_node("Flatten", ["relu.out"], ["flat.out"], name="flatten"),
        helper.make_node("Gemm", ["flat.out", "fc.weight", "fc.bias"], ["y"], name="fc", transB=1),
    ]
    weights = [
        weight("conv.weight", 4, 2, 3, 3),
        weight("conv.bias", 4),
        weight("fc.weight", 5, 16),
        weight("fc.bias", 5),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


class TestOnnxFileContract(FrameworkContract):
    layer_names = ("conv", "fc")

    def framework(self):
        return OnnxFramework()

    def make_source(self, folder):
        path = folder / "small.onnx"
        onnx.save(small_model(), path)
        return path


class TestOnnxModelContract(TestOnnxFileContract):
    def make_source(self, folder):
        return small_model()

    def fingerprint(self, source):
        return source.SerializeToString(deterministic=True)
