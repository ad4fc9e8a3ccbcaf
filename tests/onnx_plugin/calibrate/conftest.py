"""A small network with normalization, and what ONNX Runtime and NumPy say about it on their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper


def make_model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str] = ("y",),
    *,
    dtype: type = np.float32,
    opset: int = 13,
) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    model.graph.ClearField("output")
    model.graph.output.extend(inferred)
    return model


def tensors(model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute tensors of a model with ONNX Runtime, without any optimization."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.ClearField("output")
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


def ifmr(values: np.ndarray, num_bits: int = 8, *, asymmetric: bool = True) -> tuple[float, int]:
    """The definition of IFMR, literally, with every value at hand."""
    ordered = np.sort(values.astype(np.float64).reshape(-1))
    rank = ordered.size - int(0.999999 * ordered.size)
    high, low = max(ordered[-rank], 0.0), min(ordered[rank - 1], 0.0)
    best = (np.inf, 1.0, 0)
    for factor in np.arange(0.7, 1.3, 0.01):
        if asymmetric:
            first, last = low, high * factor
            scale = (last - first) / (2**num_bits - 1)
        else:
            last = max(high, -low) * factor
            first = -last
            scale = last / (2 ** (num_bits - 1) - (1 if high >= -low else 0))
        scale = scale if scale >= 1.19e-7 else 1.0
        error = np.mean((np.rint(np.clip(ordered, first, last) / scale) * scale - ordered) ** 2)
        if error < best[0]:
            best = (error, scale, int(-np.rint(low / scale) - 2 ** (num_bits - 1)) if asymmetric else 0)
    return best[1], best[2]


@pytest.fixture(scope="session")
def network():
    """Conv, BatchNormalization, Relu, Conv, GlobalAveragePool, Gemm, with seeded weights."""
    random = np.random.default_rng(3)

    def normal(*shape, scale=1.0):
        return (random.standard_normal(shape) * scale).astype(np.float32)

    constants = {
        "conv1.w": normal(8, 3, 3, 3, scale=0.3),
        "gamma": random.uniform(0.5, 2, 8).astype(np.float32),
        "beta": normal(8, scale=0.2),
        "mean": normal(8, scale=0.2),
        "var": random.uniform(0.5, 2, 8).astype(np.float32),
        "conv2.w": normal(8, 4, 3, 3, scale=0.2),
        "conv2.b": normal(8, scale=0.1),
        "fc.w": normal(5, 8, scale=0.4),
        "fc.b": normal(5, scale=0.1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv1.w"], ["c1"], "conv1", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "var"], ["n1"], "norm1"),
        helper.make_node("Relu", ["n1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "conv2.w", "conv2.b"], ["c2"], "conv2", group=2),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["y"], "fc", transB=1),
    ]
    model = make_model(nodes, constants, {"x": ("N", 3, 12, 12)})
    x = normal(24, 3, 12, 12)
    return SimpleNamespace(model=model, constants=constants, x=x, reads={"conv1": "x", "conv2": "r1", "fc": "f"})


@pytest.fixture
def network_file(network, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(network.model, path)
    return path
