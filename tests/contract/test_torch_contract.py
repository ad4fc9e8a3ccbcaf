"""The torch plugin passes the shipped contract unchanged."""

import pytest

from twinquant.testing import FrameworkContract

torch = pytest.importorskip("torch")

from twinquant_torch import TorchModel  # noqa: E402  the plugin may be absent, too, where torch is
from twinquant_torch.framework import TorchFramework  # noqa: E402  see above


def small_module():
    """A convolution with a normalization, and a fully connected layer."""
    torch.manual_seed(11)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, bias=False),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 5),
    )
    module(torch.randn(8, 2, 4, 4))  # gives the normalization its statistics
    return module.eval()


def example():
    return torch.zeros(1, 2, 4, 4)


class TestTorchModuleContract(FrameworkContract):
    layer_names = ("0", "4")
    light_modules = frozenset({"twinquant_onnx"})  # which imports no framework either

    def framework(self):
        return TorchFramework()

    def make_source(self, folder):
        return TorchModel(small_module(), example())

    def fingerprint(self, source):
        return (
            source.module.training,
            repr(source.module),
            {name: tensor.numpy().tobytes() for name, tensor in source.module.state_dict().items()},
        )
