"""A small model with something to fuse, in a folder of its own, and sessions that calibrate it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant_onnx import amct


def make_model(nodes, constants, inputs, outputs):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def convolutions(seed=0, spread=1.0):
    """Conv + BatchNormalization + Relu + Conv (unnamed Relu) + Gemm; the channels of the input are `spread` apart."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    constants = {
        "w1": normal(8, 3, 3, 3) / np.float32(spread) ** np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1),
        "gamma": np.abs(normal(8)) + np.float32(0.5),
        "beta": normal(8),
        "mean": normal(8),
        "var": np.abs(normal(8)) + np.float32(0.5),
        "w2": normal(6, 4, 3, 3) / 6,
        "b2": normal(6),
        "w3": normal(5, 96) / 10,
        "b3": normal(5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="conv1"),
        helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "var"], ["n1"], name="bn1"),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", group=2),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y"], name="fc", transB=1),
    ]
    return make_model(nodes, constants, {"x": (TensorProto.FLOAT, ["n", 3, 8, 8])}, ["y"])


def batches(count=3, seed=1, spread=1.0):
    random = np.random.default_rng(seed)
    scale = np.float32(spread) ** np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1)
    return [random.normal(size=(2, 3, 8, 8)).astype(np.float32) * scale for _ in range(count)]


def change_config(path, change):
    """Change a configuration file: every layer's activation and weight settings go through a function."""
    content = json.loads(path.read_text())
    for value in content.values():
        if isinstance(value, dict):
            change(value)
    path.write_text(json.dumps(content))


def use_minmax(layer):
    asymmetric, bits = (layer["activation_quant_params"][name] for name in ("asymmetric", "num_bits"))
    layer["activation_quant_params"] = {"num_bits": bits, "act_algo": "minmax", "asymmetric": asymmetric}


def run_all(path, data, options=None):
    """Run a model on batches, in a session that knows our operators."""
    session = ort.InferenceSession(str(path), options or amct.AMCT_SO)
    name = session.get_inputs()[0].name
    return [session.run(None, {name: batch})[0] for batch in data]


@pytest.fixture
def folder(tmp_path):
    """A folder with the model, and its configuration for three batches with the minmax algorithm."""
    onnx.save(convolutions(), tmp_path / "model.onnx")
    amct.create_quant_config(tmp_path / "config.json", tmp_path / "model.onnx", batch_num=3)
    change_config(tmp_path / "config.json", use_minmax)
    return tmp_path


@pytest.fixture
def prepared(folder):
    """The folder after `quantize_model`."""
    amct.quantize_model(folder / "config.json", folder / "model.onnx", folder / "modified.onnx", folder / "record.txt")
    return folder


@pytest.fixture
def kit():
    """The functions of this file: test modules cannot import a conftest."""
    return SimpleNamespace(
        batches=batches,
        change_config=change_config,
        convolutions=convolutions,
        make_model=make_model,
        run_all=run_all,
        use_minmax=use_minmax,
    )
