"""ResNet-18 and ResNet-50 as ONNX, with the layers, shapes and initialization of torchvision's and seeded weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Blocks in each of the four stages, and how many times as many channels a block makes as its inner convolutions have.
RESNETS = {"resnet18": ((2, 2, 2, 2), 1), "resnet50": ((3, 4, 6, 3), 4)}

IMAGE = (1, 3, 224, 224)
_EPSILON = 1e-5


@dataclass
class _Net:
    """A model under construction."""

    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def conv(self, x: str, name: str, channels: int, filters: int, kernel: int, stride: int = 1) -> str:
        """A convolution without bias, and the BatchNormalization behind it."""
        fan_out = filters * kernel * kernel
        weight = self.generator.standard_normal((filters, channels, kernel, kernel)) * np.sqrt(2 / fan_out)
        y = self.node(
            "Conv",
            [x, self.constant(f"{name}.weight", weight)],
            name,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
        )
        # As after training: no two channels alike.
        statistics = {
            "gamma": self.generator.uniform(0.5, 1.0, filters),
            "beta": self.generator.normal(0.0, 0.2, filters),
            "mean": self.generator.normal(0.0, 0.2, filters),
            "var": self.generator.uniform(1.0, 3.0, filters),
        }
        others = [self.constant(f"{name}.{key}", values) for key, values in statistics.items()]
        return self.node("BatchNormalization", [y, *others], f"{name}.bn", epsilon=_EPSILON)

    def block(self, x: str, name: str, channels: int, inner: int, expansion: int, stride: int) -> str:
        filters = inner * expansion
        if expansion == 1:
            shapes = [(channels, inner, 3, stride), (inner, filters, 3, 1)]
        else:
            shapes = [(channels, inner, 1, 1), (inner, inner, 3, stride), (inner, filters, 1, 1)]
        y = x
        for number, shape in enumerate(shapes, 1):
            y = self.conv(y, f"{name}.conv{number}", *shape)
            if number < len(shapes):
                y = self.node("Relu", [y], f"{name}.relu{number}")
        if stride > 1 or channels != filters:
            x = self.conv(x, f"{name}.downsample", channels, filters, 1, stride)
        return self.node("Relu", [self.node("Add", [y, x], f"{name}.add")], f"{name}.relu")


def write_resnet(name: str, path: Path) -> None:
    """Write one of RESNETS: the same bytes every time, input `x`, output `logits`."""
    blocks, expansion = RESNETS[name]
    net = _Net()
    x = net.node("Relu", [net.conv("x", "conv1", 3, 64, 7, 2)], "relu")
    x = net.node("MaxPool", [x], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, count in enumerate(blocks):
        for number in range(count):
            stride = 2 if stage and not number else 1
            inner = 64 << stage
            x = net.block(x, f"layer{stage + 1}.{number}", channels, inner, expansion, stride)
            channels = inner * expansion
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "avgpool")], "flatten")
    weight = net.constant("fc.weight", net.generator.uniform(-1, 1, (1000, channels)) / np.sqrt(channels))
    net.nodes.append(
        helper.make_node("Gemm", [x, weight, net.constant("fc.bias", np.zeros(1000))], ["logits"], "fc", transB=1)
    )
    graph = helper.make_graph(
        net.nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])],
        net.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def write_images(count: int, path: Path) -> None:
    """Write seeded images, normalized as ImageNet's are: float32 `(count, 3, 224, 224)`.

    Each is random at seven sizes of detail, as photographs are, and not white noise.
    """
    generator = np.random.default_rng(1)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, *IMAGE[1:]))
    for image in images:
        image[:] = 0.0
        for cells in (4, 7, 14, 28, 56, 112, 224):
            coarse = generator.standard_normal((3, cells, cells), dtype=np.float32)
            image += np.repeat(np.repeat(coarse, 224 // cells, 1), 224 // cells, 2) * np.float32(0.4)
    images.flush()
