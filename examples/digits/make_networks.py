"""Train the digits network with PyTorch; store it as ONNX, BatchNorms folded, and as Caffe; store digits for the demo.

Needs torch 2.13.0, scikit-learn, onnx and the Caffe plugin; see README.md beside this script.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx
import torch
from as_caffe import write_caffe
from dataset import CAFFE_NETWORK, CALIBRATION, DIGITS, ONNX_NETWORK, SEED, Digits, as_input, split
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

EPOCHS = 60
BATCH = 64

Parameters = dict[str, npt.NDArray[np.float32]]


class DigitsNet(nn.Module):
    """A small CNN with the layer kinds a quantizer meets: padded, depthwise and grouped convolutions, pooling, Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2_depthwise, self.norm2d = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.conv2_pointwise, self.norm2p = nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.pool1 = nn.AvgPool2d(2)
        self.conv3, self.norm3 = nn.Conv2d(32, 32, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(32)
        self.pool2 = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(128, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the ten scores of each image."""
        x = torch.relu(self.norm1(self.conv1(image)))
        x = torch.relu(self.norm2d(self.conv2_depthwise(x)))
        x = self.pool1(self.norm2p(self.conv2_pointwise(x)))  # linear: the factors behind it have offsets of their own
        x = self.pool2(torch.relu(self.norm3(self.conv3(x))))
        scores: torch.Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1))))
        return scores


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Move the whole batch by up to one pixel: 1,347 digits are few, and a shifted digit is still that digit."""
    down, right = (int(torch.randint(-1, 2, ())) for _ in range(2))
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def train(digits: Digits) -> DigitsNet:
    """Train from scratch; one thread and a seed make the result repeatable on one machine."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, labels = torch.from_numpy(as_input(digits.images)), torch.from_numpy(digits.labels.astype(np.int64))
    net = DigitsNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    net.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(shifted(images[batch])), labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def fold(name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Parameters:
    """Fold an eval-mode BatchNorm into the convolution before it.

    `gamma * (W x - mean) / sqrt(var + eps) + beta` is a convolution with weight `W * k` and bias `beta - mean * k`,
    where `k = gamma / sqrt(var + eps)` per output channel. Computed in float64 and rounded once.
    """
    gamma, beta, mean, var = (
        t.detach().numpy().astype(np.float64) for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    k = gamma / np.sqrt(var + norm.eps)
    weight = conv.weight.detach().numpy().astype(np.float64) * k[:, np.newaxis, np.newaxis, np.newaxis]
    return {f"{name}.weight": weight.astype(np.float32), f"{name}.bias": (beta - mean * k).astype(np.float32)}


def fused_parameters(net: DigitsNet) -> Parameters:
    """Return every weight and bias of the network after fusion, by tensor name."""
    parameters: Parameters = {}
    for name, conv, norm in (
        ("conv1", net.conv1, net.norm1),
        ("conv2_depthwise", net.conv2_depthwise, net.norm2d),
        ("conv2_pointwise", net.conv2_pointwise, net.norm2p),
        ("conv3", net.conv3, net.norm3),
    ):
        parameters |= fold(name, conv, norm)
    for name, linear in (("fc1", net.fc1), ("fc2", net.fc2)):
        parameters |= {f"{name}.weight": linear.weight.detach().numpy(), f"{name}.bias": linear.bias.detach().numpy()}
    return parameters


def layers() -> Iterable[onnx.NodeProto]:
    """Yield the nodes in graph order; every node has the name that the record uses, its output `<name>.out`."""
    previous = "image"

    def layer(op_type: str, name: str, **attributes: object) -> onnx.NodeProto:
        nonlocal previous
        weighted = [f"{name}.weight", f"{name}.bias"] if op_type in ("Conv", "Gemm") else []
        output = "scores" if name == "fc2" else f"{name}.out"
        node = helper.make_node(op_type, [previous, *weighted], [output], name=name, **attributes)
        previous = output
        return node

    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    halve = {"kernel_shape": [2, 2], "strides": [2, 2]}
    yield layer("Conv", "conv1", **same)
    yield layer("Relu", "relu1")
    yield layer("Conv", "conv2_depthwise", **same, group=16)
    yield layer("Relu", "relu2_depthwise")
    yield layer("Conv", "conv2_pointwise", kernel_shape=[1, 1])
    yield layer("AveragePool", "pool1", **halve)
    yield layer("Conv", "conv3", **same, group=4)
    yield layer("Relu", "relu3")
    yield layer("AveragePool", "pool2", **halve)
    yield layer("Flatten", "flatten")
    yield layer("Gemm", "fc1", transB=1)
    yield layer("Relu", "relu4")
    yield layer("Gemm", "fc2", transB=1)


def build_model(parameters: Parameters) -> onnx.ModelProto:
    """Write the fused network as ONNX, opset 13, with a free batch dimension."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])
    initializers = [numpy_helper.from_array(array, name) for name, array in parameters.items()]
    graph = helper.make_graph(list(layers()), "digits", [image], [scores], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="twinquant-digits")
    model.ir_version = 8  # the newest that goes with opset 13, so that old runtimes load it too
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, fuse, compare the two, and store the models, the first training digits and the held-out digits."""
    training, held_out = split()
    net = train(training)
    model = build_model(fused_parameters(net))

    onnx.save(model, ONNX_NETWORK / "digits.onnx")
    write_caffe(net, CAFFE_NETWORK)
    np.savez_compressed(DIGITS / "calibration_digits.npz", image=as_input(training.images[:CALIBRATION]))
    np.savez_compressed(DIGITS / "held_out_digits.npz", images=held_out.images, labels=held_out.labels)

    with torch.no_grad():
        trained = net(torch.from_numpy(as_input(held_out.images))).numpy()
    fused = ReferenceEvaluator(model).run(None, {"image": as_input(held_out.images)})[0]
    print(f"largest difference between the trained and the fused network: {np.abs(trained - fused).max():.2g}")
    print(f"accuracy on {len(held_out.labels)} held-out digits: {np.mean(fused.argmax(axis=1) == held_out.labels):.2%}")


if __name__ == "__main__":
    main()
