"""Weights in files of their own: ONNX Runtime reads them from there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from twinquant.registry import Tap
from twinquant_onnx import calibrate
from twinquant_onnx.framework import OnnxFramework

from .conftest import make_model

FRAMEWORK = OnnxFramework()
WEIGHTS = {
    name: np.random.default_rng(seed).standard_normal((4, 4)).astype(np.float32)
    for seed, name in enumerate(("w1", "w2", "w3"))
}
X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def save(tmp_path):
    """Save a chain of three MatMuls, with weights at the given places: (location, offset)."""

    def save_it(places):
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["h1"], name="one"),
            helper.make_node("MatMul", ["h1", "w2"], ["h2"], name="two"),
            helper.make_node("MatMul", ["h2", "w3"], ["y"], name="three"),
        ]
        model = make_model(nodes, WEIGHTS, {"x": ["n", 4]})
        for tensor in model.graph.initializer:
            if tensor.name not in places:
                continue
            location, offset = places[tensor.name]
            path = tmp_path / location
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            path.write_bytes(content.ljust(offset, b"\0") + tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", offset), ("length", 64)):
                tensor.external_data.add(key=key, value=str(value))
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return save_it


def activation_of_the_last(model):
    run = FRAMEWORK.activations(FRAMEWORK.load(model), [Tap("three")])
    ((_, (values,)),) = run({"x": X})
    return values


EXPECTED = X @ WEIGHTS["w1"] @ WEIGHTS["w2"]


@pytest.mark.skipif(not calibrate._READS_FILES, reason="ONNX Runtime before 1.21 is handed the weights as arrays")
@pytest.mark.parametrize(
    "places",
    [
        {"w1": ("a.bin", 0), "w2": ("a.bin", 64)},
        {"w1": ("a.bin", 0), "w2": ("sub/folder/b.bin", 128)},
        {"w1": ("one/a.bin", 0), "w2": ("two/b.bin", 0), "w3": ("c.bin", 0)},
        {"w2": ("a.bin", 0)},
    ],
    ids=["one file", "subfolder", "two folders", "one weight"],
)
def test_weights_are_left_to_onnx_runtime_wherever_they_lie(save, monkeypatch, places):
    def refuse(*_):
        raise AssertionError("an external weight was read")

    monkeypatch.setattr("twinquant_onnx.tensors.FileRange.read_into", refuse)
    np.testing.assert_allclose(activation_of_the_last(save(places)), EXPECTED, rtol=1e-5)


def test_a_weight_that_does_not_lie_on_a_boundary_is_read(save):
    np.testing.assert_allclose(activation_of_the_last(save({"w1": ("a.bin", 3)})), EXPECTED, rtol=1e-5)


def test_a_weight_that_is_computed_when_it_is_read_is_not_left_to_onnx_runtime(save):
    factors = np.float32([1, 2, 4, 8])
    graph = FRAMEWORK.balance(FRAMEWORK.load(save({"w1": ("a.bin", 0)})), {"one": factors})
    ((_, (values,)),) = calibrate.tap_model(graph, [Tap("three")], None)({"x": X / factors})
    np.testing.assert_allclose(values, EXPECTED, rtol=1e-5)
