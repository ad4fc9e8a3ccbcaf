"""Small models, and a check that a fused one computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from twinquant_onnx.fuse import fuse_model
from twinquant_onnx.load import load_model
from twinquant_onnx.write import write_model


def make_model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    *,
    inputs: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] = ("y",),
    dtype: type = np.float32,
    opset: int = 13,
    ir_version: int = 8,
) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in (inputs or {"x": (2, 4, 6, 6)}).items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    model.graph.ClearField("output")
    model.graph.output.extend(inferred)
    return model


def run(model: bytes | str, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))


class Fusion:
    """One fusion, written to a file and read back.

    Attributes:
        model: the fused model with its weights.
        fused: what was folded, by layer.
    """

    def __init__(self, model: onnx.ModelProto, path: str, fused: dict[str, tuple[str, ...]]) -> None:
        self.model = model
        self.path = path
        self.fused = fused

    @property
    def op_types(self) -> list[str]:
        return [node.op_type for node in self.model.graph.node]

    @property
    def initializers(self) -> dict[str, np.ndarray]:
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}


@pytest.fixture
def fuse(tmp_path) -> Callable[..., Fusion]:
    """Fuse a model, and check that ONNX Runtime computes the same from both."""

    def fuse(model: onnx.ModelProto, *, skip: Sequence[str] = (), tolerance: float = 1e-5) -> Fusion:
        before = model.SerializeToString(deterministic=True)
        loaded = load_model(model)
        graph, fused = fuse_model(loaded, skip=skip)
        (path, *_) = write_model(graph, tmp_path, "fused", "deploy")
        assert model.SerializeToString(deterministic=True) == before, "the input model was modified"
        result = onnx.load(path)
        onnx.checker.check_model(result)
        rng = np.random.default_rng(5)
        feeds = {}
        constants = {tensor.name for tensor in model.graph.initializer}
        for value in model.graph.input:
            if value.name not in constants:
                shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
                dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                feeds[value.name] = rng.normal(size=shape).astype(dtype)
        for expected, got in zip(run(before, feeds), run(str(path), feeds), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())
        return Fusion(result, str(path), {each.layer: each.folded for each in fused})

    return fuse


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def batch_norm_constants(rng: np.random.Generator, channels: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {
        "gamma": rng.uniform(0.5, 2, channels).astype(dtype),
        "beta": rng.normal(size=channels).astype(dtype),
        "mean": rng.normal(size=channels).astype(dtype),
        "var": rng.uniform(0.1, 3, channels).astype(dtype),
    }


def batch_norm(source: str = "c", target: str = "y", name: str = "bn", **attributes: float) -> onnx.NodeProto:
    return helper.make_node(
        "BatchNormalization", [source, "gamma", "beta", "mean", "var"], [target], name=name, **attributes
    )


def convolution(weight: str = "w", bias: str | None = None, **attributes: int) -> onnx.NodeProto:
    inputs = ["x", weight] + ([bias] if bias else [])
    return helper.make_node("Conv", inputs, ["c"], name="conv", **attributes)


@pytest.fixture
def kit() -> SimpleNamespace:
    """The builders above, by name."""
    return SimpleNamespace(
        model=make_model, batch_norm=batch_norm, batch_norm_constants=batch_norm_constants, convolution=convolution
    )
