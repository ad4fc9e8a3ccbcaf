"""A small module, and what is needed around it."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnxruntime
import pytest

# The others say so themselves. Without torch the plugin recognizes its models, which is tested in any case.
collect_ignore = [] if find_spec("torch") else ["test_adaround.py", "test_distributed.py"]


@pytest.fixture
def torch():
    """The module; without it there is nothing to test."""
    return pytest.importorskip("torch")


@pytest.fixture
def small_net(torch):
    """A stem, two residual blocks, a pooling and a fully connected layer: with statistics, in evaluation mode."""

    class Block(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(channels)
            self.act = torch.nn.ReLU()

        def forward(self, x):
            return self.act(self.bn1(self.conv1(x)) + x)

    class SmallNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.layer1 = torch.nn.Sequential(Block(4), Block(4))
            self.pool = torch.nn.AvgPool2d(2)
            self.fc = torch.nn.Linear(4 * 16, 5)

        def forward(self, x):
            return self.fc(self.pool(self.layer1(self.stem(x))).flatten(1))

    torch.manual_seed(3)
    net = SmallNet()
    with torch.no_grad():
        net(torch.randn(16, 3, 8, 8))
    return net.eval()


@pytest.fixture
def batches(torch):
    """Eight batches of four images."""
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(8)]


@pytest.fixture
def state_of():
    """Everything about a module that a call could change."""

    def state(module):
        hooks = [
            len(inner._forward_hooks) + len(inner._forward_pre_hooks) + len(inner._backward_hooks)
            for inner in module.modules()
        ]
        tensors = {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}
        return repr(module), [inner.training for inner in module.modules()], hooks, tensors

    return state


@pytest.fixture
def run():
    """Run an ONNX file on tensors in the order of its inputs; return its outputs as arrays."""

    def run_file(path, *tensors):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feeds = {value.name: np.asarray(tensor) for value, tensor in zip(session.get_inputs(), tensors, strict=True)}
        return session.run(None, feeds)

    return run_file
