"""The user's model stays as it is, whatever its forward does."""

import threading
import types

import pytest

import twinquant
import twinquant_torch.amct as amct
from twinquant.errors import ArgumentError, DataError, UnsupportedModelError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  torch may be absent

import twinquant_torch.export  # noqa: E402  see above
from twinquant_torch import TorchModel  # noqa: E402  see above
from twinquant_torch.framework import TorchFramework  # noqa: E402  see above
from twinquant_torch.working_copy import WorkingCopy  # noqa: E402  see above


class Counting(nn.Module):
    """Counts its calls in a buffer and in an attribute, keeps its last result, and uses random numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.calls, self.last = nn.Linear(4, 4), 0, None
        self.register_buffer("number", torch.zeros(()))

    def forward(self, x):
        self.number += 1
        self.calls += 1
        self.last = self.fc(x) + 1e-9 * torch.randn_like(x)
        return self.last + 0 * self.number


class Locked(Counting):
    """Cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.fixture
def x(tmp_path, monkeypatch):
    """A batch, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return torch.linspace(-1, 1, 8).reshape(2, 4)


def test_buffers_attributes_and_random_numbers_stay(x):
    net = Counting().eval()
    before = torch.get_rng_state()
    amct.create_quant_config("config.json", net, x)
    module = amct.quantize_model("config.json", "modified.onnx", "record.txt", net, x)
    for refused in (module, nn.Sequential(module)):
        with pytest.raises(ArgumentError, match=r"is a calibration model.*or calibration_model\.model"):
            TorchFramework().load(TorchModel(refused, x))
    twinquant.quantize(net, [x], "model", example_inputs=x, batch_num=1)
    assert (float(net.number), net.calls, net.last) == (0, 0, None)
    assert torch.equal(torch.get_rng_state(), before)
    module(x)
    assert (float(module.model.number), module.model.calls) == (1, 1)
    assert float(net.number) == 0


def test_the_copy_shares_the_memory_of_the_weights_and_nothing_else():
    net = Counting().eval()
    copy = WorkingCopy.of(net)
    assert copy.is_copy
    assert copy.module.fc.weight.data_ptr() == net.fc.weight.data_ptr()
    assert copy.module.number.data_ptr() != net.number.data_ptr()
    copy.module.double()
    assert net.fc.weight.dtype == torch.float32


def test_a_model_that_keeps_results_with_a_history_can_be_copied(x):
    net = Counting().eval()
    net(x)
    assert net.last.requires_grad
    assert WorkingCopy.of(net).is_copy
    amct.create_quant_config("config.json", net, x)


def test_a_model_that_cannot_be_copied_has_its_buffers_restored_and_that_is_said(x, caplog):
    net = Locked().eval()
    with caplog.at_level("INFO", logger="twinquant_torch"):
        amct.create_quant_config("config.json", net, x)
    assert float(net.number) == 0
    (told, *_) = (line for line in caplog.messages if "Locked cannot be copied" in line)
    assert "counters and results that it keeps as attributes are not" in told
    amct.quantize_model("config.json", "modified.onnx", "record.txt", net, x)(x)
    amct.save_model("modified.onnx", "record.txt", "model")


def test_a_forward_that_holds_on_to_the_module_is_not_run_in_a_copy(caplog):
    net = nn.Sequential(Counting())
    inner, own = net[0], net[0].forward
    inner.forward = lambda x: 2 * own(x)
    with caplog.at_level("INFO", logger="twinquant_torch"):
        assert WorkingCopy.of(net).module is net
    assert "the forward of its module '0' was replaced" in caplog.text
    inner.forward = types.MethodType(Counting.forward, inner)
    copy = WorkingCopy.of(net)
    assert copy.is_copy and copy.module[0].forward.__self__ is copy.module[0]


def test_a_model_that_takes_no_hooks_is_exported_all_the_same(x):
    if not hasattr(torch, "cond") or len(twinquant_torch.export._exporters(nn.Identity())) < 2:
        pytest.skip("this torch has no dynamo exporter")

    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = self.first(x)
            return torch.cond(x.sum() > 0, lambda a: self.one(a), lambda a: self.other(a), (x,))

    graph = TorchFramework().load(TorchModel(Choosing().eval(), x))
    assert [layer.name for layer in graph.layers if layer.kind and not layer.refusal] == ["first"]


def test_a_lazy_module_is_refused_and_stays_lazy(x):
    net = nn.Sequential(nn.LazyLinear(3)).eval()
    with pytest.raises(UnsupportedModelError, match=r"module '0' .*LazyLinear.*run the model once on a batch"):
        amct.create_quant_config("config.json", net, x)
    assert isinstance(net[0], nn.LazyLinear)


@pytest.mark.parametrize("error", [AssertionError("needs four"), AttributeError("images"), ZeroDivisionError()])
def test_whatever_forward_raises_on_the_example_becomes_an_error_about_it(x, error):
    class Raising(nn.Module):
        def forward(self, x):
            raise error

    with pytest.raises(DataError, match=f"Raising does not run on them: {type(error).__name__}: ") as caught:
        amct.create_quant_config("config.json", Raising().eval(), x)
    assert caught.value.__cause__ is error
