"""Which tensor a layer's factors are measured on, and what a batch leaves behind that the model fails on."""

import numpy as np
import pytest

import twinquant
import twinquant_torch.amct as amct
from twinquant.errors import CalibrationError, DataError, RecordFileError, UnsupportedModelError
from twinquant.records import parse_record_file

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  torch may be absent
from torch.nn import functional as F  # noqa: E402  see above
from torch.nn.utils import parametrizations  # noqa: E402  see above

import twinquant_torch.batch  # noqa: E402  see above
from twinquant_torch import TorchModel  # noqa: E402  see above
from twinquant_torch.framework import TorchFramework  # noqa: E402  see above
from twinquant_torch.hooks import is_observable  # noqa: E402  see above

MINMAX = {"activation_algorithm": "minmax"}


class ScalingLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x * 7, self.weight, self.bias)


class ScalingConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x * 7, weight, bias)


class Named(nn.Linear):
    """A subclass that leaves forward alone."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(*shape):
    return torch.linspace(-1, 3, int(np.prod(shape))).reshape(shape)


def replaced_forward():
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: F.linear(x * 7, layer.weight, layer.bias)
    return layer


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: ScalingLinear(4, 4), (6, 4)),
        (lambda: ScalingConv(4, 4, 1), (2, 4, 3, 3)),
        (replaced_forward, (6, 4)),
    ],
    ids=["forward of a subclass", "_conv_forward of a subclass", "forward of one module"],
)
def test_a_layer_with_a_forward_of_its_own_has_the_factors_of_what_it_computes_with(folder, make, shape):
    torch.manual_seed(0)
    net, x = nn.Sequential(make()).eval(), values(*shape)
    assert not is_observable(net[0])
    records = twinquant.calibrate(net, [x], "record.txt", config=MINMAX, batch_num=1, example_inputs=x).records
    (record,) = records.values()
    assert record.scale_d == pytest.approx(7 * 4 / 255, rel=1e-6)


def test_modules_with_torchs_own_forward_are_watched_themselves():
    assert is_observable(nn.Linear(4, 4))
    assert is_observable(Named(4, 4))
    assert is_observable(parametrizations.weight_norm(nn.Linear(4, 4)))
    assert not is_observable(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))


def test_a_module_that_computes_two_layers_in_one_call_is_refused_for_that():
    class Double(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(F.conv2d(x, self.weight), self.weight)

    graph = TorchFramework().load(
        TorchModel(nn.Sequential(Double(4, 4, 1), nn.Conv2d(4, 2, 1)).eval(), values(1, 4, 3, 3))
    )
    reasons = [layer.refusal for layer in graph.layers if layer.kind is not None and layer.refusal]
    assert len(reasons) == 2
    assert all("computes 2 such layers in one call" in reason for reason in reasons)


def test_a_module_whose_forward_is_called_directly_is_measured_all_the_same(folder):
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc.forward(x)

    x = values(6, 4)
    records = twinquant.calibrate(
        Direct().eval(), [x], "record.txt", config=MINMAX, batch_num=1, example_inputs=x
    ).records
    assert next(iter(records.values())).scale_d == pytest.approx(4 / 255, rel=1e-6)


class Dividing(nn.Module):
    """Changes its input in place, or not; the second layer is no module."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.weight, self.in_place = nn.Linear(4, 4), nn.Parameter(torch.randn(3, 4)), in_place

    def forward(self, x):
        x = x.div_(10.0) if self.in_place else x / 10.0
        return F.linear(self.fc(x), self.weight)


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
def test_a_model_that_changes_its_input_has_the_factors_of_one_that_does_not(folder, algorithm):
    found = {}
    for in_place in (False, True):
        net, x = Dividing(in_place).eval(), 10 * values(8, 4)
        settings = folder / "settings.cfg"
        extra = "common_config { hfmg_quantize { num_of_bins: 4096 } }" if algorithm == "hfmg" else ""
        settings.write_text(f"batch_num: 1\n{extra}")
        amct.create_quant_config("config.json", net, x, config_defination=settings)
        assert torch.equal(x, 10 * values(8, 4))
        amct.quantize_model("config.json", "modified.onnx", "record.txt", net, x)(x.clone())
        assert torch.equal(x, 10 * values(8, 4))
        found[in_place] = (folder / "record.txt").read_text()
    assert found[True] == found[False]


def test_the_users_data_stay_as_they_are(folder):
    data = (10 * values(8, 4)).numpy()
    twinquant.quantize(Dividing(True).eval(), [data], "model", example_inputs=torch.from_numpy(data), batch_num=1)
    assert np.array_equal(data, (10 * values(8, 4)).numpy())


class Failing(nn.Module):
    """Fails between its two layers, if it is told to."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.error = nn.Linear(4, 4), nn.Linear(4, 4), None

    def forward(self, x):
        x = self.first(x)
        if self.error is not None:
            raise self.error
        return self.second(x)


def calibrating(net, x, batch_num=1):
    amct.create_quant_config("config.json", net, x, batch_num=batch_num)
    return amct.quantize_model("config.json", "modified.onnx", "record.txt", net, x)


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()], ids=["RuntimeError", "Ctrl-C"])
def test_a_batch_that_the_model_fails_on_neither_counts_nor_leaves_anything(folder, error):
    net, x = Failing().eval(), values(2, 4)
    module = calibrating(net, x, 2)
    module(x)
    module(x / 2)
    expected = (folder / "record.txt").read_text()
    module = calibrating(net, x, 2)
    module(x)
    module.model.error = error
    with pytest.raises(type(error)):
        module(1000 * x)
    assert "1 of 2 batches seen" in (folder / "record.txt").read_text()
    module.model.error = None
    module(x / 2)
    assert (folder / "record.txt").read_text() == expected


@pytest.mark.parametrize("most_waiting", [0, 40])
def test_a_batch_whose_values_are_too_large_to_wait_counts_the_same(folder, monkeypatch, most_waiting):
    def record():
        module = calibrating(Failing().eval(), values(2, 4), 2)
        module(values(2, 4))
        module.model.error = RuntimeError("no memory")
        with pytest.raises(RuntimeError, match="no memory"):
            module(1000 * values(2, 4))
        module.model.error = None
        module(values(2, 4) / 2)
        return (folder / "record.txt").read_text()

    expected = record()
    monkeypatch.setattr(twinquant_torch.batch, "_MOST_WAITING", most_waiting)
    assert record() == expected


def test_a_model_that_catches_exceptions_does_not_hide_values_without_factors(folder):
    class Catching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            try:
                return self.fc(x)
            except Exception:  # noqa: BLE001  as models do
                return x

    module = calibrating(Catching().eval(), values(2, 4))
    with pytest.raises(CalibrationError, match="NaN"):
        module(values(2, 4) * float("nan"))
    with pytest.raises(RecordFileError, match="NaN"):
        parse_record_file("record.txt")


def test_a_calibration_that_is_interrupted_in_a_later_pass_says_so(folder):
    x = values(2, 4)
    settings = folder / "settings.cfg"
    settings.write_text("batch_num: 1\ncommon_config { hfmg_quantize { num_of_bins: 4096 } }")
    amct.create_quant_config("config.json", Failing().eval(), x, config_defination=settings)
    module = amct.quantize_model("config.json", "modified.onnx", "record.txt", Failing().eval(), x)
    calls = []
    module.model.second.register_forward_hook(lambda *_: calls.append(1) or (len(calls) == 2 and stop()))
    with pytest.raises(KeyboardInterrupt):
        module(x)
    with pytest.raises(CalibrationError, match="KeyboardInterrupt"):
        module(x)
    with pytest.raises(RecordFileError, match="not finished: KeyboardInterrupt"):
        parse_record_file("record.txt")


def stop():
    raise KeyboardInterrupt


class Flagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, flag=True):
        return self.one(x) if flag else self.two(x)


def test_another_plain_argument_than_the_examples_is_refused_with_both_values(folder):
    x = values(2, 4)
    module = calibrating(Flagged().eval(), (x, True))
    with pytest.raises(DataError, match=r"exported with the value True, this call has False"):
        module(x, False)
    module(x, True)


def test_an_argument_by_name_instead_of_by_position_is_shown(folder):
    module = calibrating(Flagged().eval(), (values(2, 4), True))
    with pytest.raises(
        DataError, match=r"with \(Tensor \[2, 4\], True\) as inputs, this call has \(Tensor.*flag=True\)"
    ):
        module(values(2, 4), flag=True)


def test_an_empty_batch_is_refused_and_does_not_count(folder):
    module = calibrating(nn.Sequential(nn.Linear(4, 4)).eval(), values(2, 4))
    with pytest.raises(DataError, match=r"the batch is empty, its shape is \[0, 4\]"):
        module(torch.zeros(0, 4))
    module(values(2, 4))
    assert list(parse_record_file("record.txt").records) == ["0"]


def test_a_part_of_the_calibration_model_in_training_mode_is_named(folder):
    module = calibrating(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), values(2, 4))
    module.model[1].train()
    with pytest.raises(UnsupportedModelError, match=r"'1' in the calibration model was put into training mode"):
        module(values(2, 4))
