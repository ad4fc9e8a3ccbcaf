"""Small models of many kinds, saved as twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import twinquant


def record(name: str, scale_w: Sequence[float] | float, scale_d: float = 0.03, offset: int = 0, extra: str = "") -> str:
    """The text of one record."""
    scales = [scale_w] if isinstance(scale_w, float) else list(scale_w)
    weights = "".join(f"    scale_w: {scale!r}\n    offset_w: 0\n" for scale in scales)
    head = f"    scale_d: {scale_d!r}\n    offset_d: {offset}\n"
    return f'record {{\n  key: "{name}"\n  value {{\n{head}{weights}{extra}  }}\n}}\n'


def bits(activation: int, weight: int) -> str:
    return f'    act_type: "INT{activation}"\n    wts_type: "INT{weight}"\n'


class Builder:
    """Collects nodes, constants and records of a model with random weights."""

    def __init__(self, seed: int, dtype: type = np.float32) -> None:
        self.random = np.random.default_rng(seed)
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.records: list[str] = []

    def weight(self, name: str, *shape: int) -> str:
        self.constants[name] = self.random.uniform(-0.5, 0.5, shape).astype(self.dtype)
        return name

    def add(self, op_type: str, inputs: str, output: str, name: str, **attributes: object) -> str:
        reads = ["" if tensor == "-" else tensor for tensor in inputs.split()]
        self.nodes.append(helper.make_node(op_type, reads, output.split(), name=name, **attributes))
        return output

    def quantize(self, *args: object, **kwargs: object) -> None:
        self.records.append(record(*args, **kwargs))

    def model(
        self, inputs: Mapping[str, Sequence[int | str]], outputs: Sequence[str], opset: int = 13
    ) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def convolutions(b: Builder) -> onnx.ModelProto:
    b.add("Conv", f"x {b.weight('w1', 6, 4, 3, 3)} {b.weight('b1', 6)}", "c1", "conv1", pads=[1, 1, 0, 1])
    b.quantize("conv1", b.random.uniform(0.003, 0.005, 6).tolist(), offset=-7)
    b.add("Relu", "c1", "r1", "relu1")
    b.add("Conv", f"r1 {b.weight('w2', 6, 1, 3, 3)}", "c2", "depthwise", group=6, auto_pad="SAME_LOWER", strides=[2, 2])
    b.quantize("depthwise", 0.004, offset=-128)
    b.add("ConvTranspose", f"c2 {b.weight('w3', 6, 2, 2, 3)} {b.weight('b3', 4)}", "c3", "up", group=2, strides=[2, 1])
    b.quantize("up", b.random.uniform(0.003, 0.005, 4).tolist(), offset=11)
    b.add("Sigmoid", "c3", "y", "sigmoid")
    return b.model({"x": [1, 4, 6, 7]}, ["y"])


def pooling_and_gemm(b: Builder) -> onnx.ModelProto:
    b.constants["pads"] = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    b.add("Pad", "x pads", "p", "pool_pad")
    b.add("AveragePool", "p", "m", "pool", kernel_shape=[3, 3], strides=[2, 2])
    b.quantize("pool", 1.0, offset=5)
    b.add("Flatten", "m", "f", "flatten", axis=1)
    b.add("Gemm", f"f {b.weight('wg', 5, 12)} {b.weight('bg', 5)}", "g", "gemm", transB=1, alpha=0.5, beta=2.0)
    b.quantize("gemm", 0.004, offset=3)
    b.add("Gemm", f"g {b.weight('wh', 5, 3)} {b.weight('bh', 3)}", "y", "head")
    b.quantize("head", 0.004)
    return b.model({"x": ["batch", 3, 4, 4]}, ["y"])


def matrix_products(b: Builder) -> onnx.ModelProto:
    b.add("Transpose", b.weight("wt", 8, 6), "wq", "turn", perm=[1, 0])
    b.add("MatMul", "x wq", "q", "query")
    b.add("MatMul", f"x {b.weight('wk', 6, 8)}", "k0", "key")
    b.add("Add", f"k0 {b.weight('bk', 8)}", "k", "key_add")
    for name in ("query", "key"):
        b.quantize(name, 0.004, offset=9)
    b.add("Mul", "q k", "qk", "product")
    b.add("MatMul", f"qk {b.weight('wo', 8, 6)}", "o", "out")
    b.quantize(
        "out", 0.004, extra="".join(f"    tensor_balance_factor: {v!r}\n" for v in np.linspace(0.5, 2, 8).tolist())
    )
    b.add("Add", "o x", "y", "residual")
    return b.model({"x": [2, 3, 6]}, ["y", "k"])


def few_bits(b: Builder) -> onnx.ModelProto:
    b.add("Conv", f"x {b.weight('w1', 4, 4, 3)} {b.weight('b1', 4)}", "c1", "packed", pads=[1, 1])
    b.quantize("packed", 0.07, offset=2, extra=bits(8, 4))
    b.add("Conv", f"c1 {b.weight('w2', 4, 4, 1)} {b.weight('b2', 4)}", "c2", "four")
    b.quantize("four", 0.07, scale_d=0.3, offset=-3, extra='    dst_type: "INT4"\n')
    b.add("Conv", f"c2 {b.weight('w3', 4, 4, 3)}", "c3", "wide")
    b.quantize("wide", 0.004, scale_d=0.0001, offset=1000, extra=bits(16, 8))
    b.add("MatMul", f"c3 {b.weight('w4', 6, 4)}", "y", "six")
    b.quantize("six", 0.02, extra=bits(8, 6))
    return b.model({"x": [2, 4, 8]}, ["y"])


def half_precision(b: Builder) -> onnx.ModelProto:
    b.constants["pads"], b.constants["zero"] = np.array([0, 0, 1, 1, 0, 0, 0, 0]), np.zeros((), np.float16)
    b.add("Pad", "x pads zero", "p", "pool_pad")
    b.add("AveragePool", "p", "m", "pool", kernel_shape=[2, 2])
    b.quantize("pool", 1.0, offset=-20)
    b.add("Conv", f"m {b.weight('w', 3, 2, 2, 2)} {b.weight('b', 3)}", "c", "conv")
    b.quantize("conv", 0.004, offset=4)
    b.add("Relu", "c", "y", "relu")
    return b.model({"x": [1, 2, 4, 4]}, ["y"])


def old_operators(b: Builder) -> onnx.ModelProto:
    b.add("Conv", f"x {b.weight('w', 3, 2, 2)}", "c", "conv")
    b.quantize("conv", 0.004, offset=4)
    b.add("Clip", "c", "y", "limit", min=-0.5, max=0.5)
    return b.model({"x": [1, 2, 6]}, ["y"], opset=9)


def branches(b: Builder) -> onnx.ModelProto:
    b.add("Conv", f"x {b.weight('w', 3, 2, 2)}", "c", "conv")
    b.quantize("conv", 0.004, offset=4)
    b.constants["yes"] = np.array(True)
    result = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    half = numpy_helper.from_array(np.float32(0.5).reshape(1), "half")
    then = helper.make_graph([helper.make_node("Mul", ["c", "half"], ["r"], name="inner")], "then", [], result, [half])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["r"], name="negative")], "else", [], result)
    b.add("If", "yes", "y", "choose", then_branch=then, else_branch=other)
    return b.model({"x": [1, 2, 6]}, ["y"])


def _recurrent(b: Builder, op_type: str, gates: int, inputs: str, outputs: str, extra: str, **attributes: int) -> None:
    b.weight("W", 1, gates * 4, 6), b.weight("R", 1, gates * 4, 4), b.weight("B", 1, gates * 8)
    b.add(op_type, inputs, outputs, "rnn", hidden_size=4, **attributes)
    hidden = "    scale_h: 0.01\n    offset_h: 3\n"
    hidden += "".join(f"    scale_r: {v!r}\n    offset_r: 0\n" for v in np.linspace(0.004, 0.005, gates).tolist())
    b.quantize("rnn", np.linspace(0.004, 0.006, gates).tolist(), offset=-9, extra=hidden + extra)


def lstm(b: Builder) -> onnx.ModelProto:
    _recurrent(b, "LSTM", 4, "x W R B - h c", "y hn cn", bits(8, 8))
    return b.model({"x": [3, 2, 6], "h": [1, 2, 4], "c": [1, 2, 4]}, ["y", "hn", "cn"])


def gru(b: Builder) -> onnx.ModelProto:
    _recurrent(b, "GRU", 3, "x W R B - h", "y hn", bits(16, 8), linear_before_reset=1)
    b.records[-1] = (
        b.records[-1].replace("scale_d: 0.03", "scale_d: 0.0002").replace("scale_h: 0.01", "scale_h: 0.0001")
    )
    return b.model({"x": [3, 2, 6], "h": [1, 2, 4]}, ["y", "hn"])


ZOO = {
    "convolutions": convolutions,
    "pooling_and_gemm": pooling_and_gemm,
    "matrix_products": matrix_products,
    "few_bits": few_bits,
    "half_precision": half_precision,
    "old_operators": old_operators,
    "branches": branches,
    "lstm": lstm,
    "gru": gru,
}


class Twins:
    """Saves models of the zoo as twins, and damaged copies of deploy twins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, name: str, seed: int = 0) -> tuple[Path, Path]:
        """Save a model of the zoo; return the fake-quant and the deploy model file."""
        builder = Builder(seed, np.float16 if name == "half_precision" else np.float32)
        return self.save_model(ZOO[name](builder), "".join(builder.records), f"{name}_{seed}")

    def save_model(self, model: onnx.ModelProto, records: str, prefix: str = "m") -> tuple[Path, Path]:
        (self.folder / "record.txt").write_text(records)
        output = twinquant.save_model(model, self.folder / "record.txt", self.folder / "twins" / prefix)
        return output.fake_quant.model, output.deploy.model

    def write(self, model: onnx.ModelProto) -> Path:
        """Write a damaged model where no other is."""
        path = self.folder / "damaged.onnx"
        onnx.save(model, path)
        return path


@pytest.fixture
def twins(tmp_path: Path) -> Twins:
    return Twins(tmp_path)


@pytest.fixture
def builder() -> type[Builder]:
    return Builder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `kind` on every model of the zoo."""
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", ZOO)
