"""A model is refused that would not compute what its module computes."""

import pytest

import twinquant_torch.amct as amct
from twinquant.errors import UnsupportedModelError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  torch may be absent
from torch.nn import functional as F  # noqa: E402

import twinquant_torch.export  # noqa: E402
from twinquant_torch import TorchModel  # noqa: E402
from twinquant_torch.framework import TorchFramework  # noqa: E402


class Layered(nn.Module):
    """A convolution, and something behind it."""

    def __init__(self, then):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.then = nn.Conv2d(3, 2, 1), then

    def forward(self, x):
        return self.then(self.conv(x))


def image(dtype=torch.float32):
    return torch.linspace(-1, 1, 3 * 36).reshape(1, 3, 6, 6).to(dtype)


def load(module, x):
    return TorchFramework().load(TorchModel(module.eval(), x))


def test_a_divisor_of_its_own_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match=r"module 'then' .*AvgPool2d.*divisor_override=5"):
        load(Layered(nn.AvgPool2d(2, divisor_override=5)), image())


class Pooling(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, 2, divisor_override=5)


def test_an_option_that_the_exporter_loses_is_found_by_its_result(tmp_path):
    net = Layered(Pooling()).eval()
    with pytest.raises(UnsupportedModelError, match=r"exported model does not compute.*'\w+' differs by up to .*span"):
        load(net, image())
    amct.create_quant_config(tmp_path / "config.json", net, image())
    with pytest.raises(UnsupportedModelError, match="the modified model does not compute"):
        amct.quantize_model(tmp_path / "config.json", tmp_path / "m.onnx", tmp_path / "r.txt", net, image())
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("exporter", ["first", "TorchScript"])
def test_an_active_dropout_is_refused(exporter, monkeypatch):
    class Dropping(nn.Module):
        def forward(self, x):
            return F.dropout(x)

    if exporter == "TorchScript":
        monkeypatch.setattr(twinquant_torch.export, "_FIRST_DYNAMO", (99, 0))
    with pytest.raises(UnsupportedModelError, match=r"Layered drops values at random.*training=self\.training"):
        load(Layered(Dropping()), image())


def test_a_program_exported_in_training_mode_is_refused():
    if not any(name == "dynamo" for name, _ in twinquant_torch.export._exporters(nn.Identity())):
        pytest.skip("this torch has no exporter for exported programs")
    program = torch.export.export(Layered(nn.Dropout(0.5)).train(), (image(),))
    with pytest.raises(UnsupportedModelError, match="the exported program drops values at random"):
        TorchFramework().load(program)


def test_dropout_that_drops_nothing_is_fine():
    load(Layered(nn.Dropout(0.5)), image())
    load(Layered(nn.Dropout(0.0)), image())


def test_half_precision_is_compared_as_exactly_as_it_computes():
    load(Layered(nn.ReLU()).half(), image(torch.float16))


def test_a_model_that_onnx_runtime_cannot_run_is_told_of(caplog):
    load(Layered(nn.ReLU()).double(), image(torch.float64))
    assert any("was not compared with the module" in line and "cannot be run" in line for line in caplog.messages)
