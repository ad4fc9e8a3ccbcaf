"""A model is refused that would not compute what its module computes."""

import onnx
import pytest

import twinquant_torch.amct as amct
from twinquant.errors import UnsupportedModelError
from twinquant.registry import Tap

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  torch may be absent
from torch.nn import functional as F  # noqa: E402  see above

import twinquant_torch.export  # noqa: E402  see above
import twinquant_torch.load  # noqa: E402  see above
from twinquant_onnx.load import load_model  # noqa: E402  see above
from twinquant_torch import TorchModel  # noqa: E402  see above
from twinquant_torch.equality import check_equal  # noqa: E402  see above
from twinquant_torch.framework import TorchFramework  # noqa: E402  see above


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


def test_an_option_that_the_exporter_loses_is_found_by_its_result(tmp_path, monkeypatch):
    net = Layered(Pooling()).eval()
    with pytest.raises(UnsupportedModelError, match=r"exported model does not compute.*'\w+' differs by up to .*span"):
        load(net, image())
    # The modified model is compared once more: it is fused and balanced.
    monkeypatch.setattr(twinquant_torch.load, "check_equal", lambda *_: None)
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


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, in run_decompositions
def test_a_program_exported_in_training_mode_is_refused():
    if not any(name == "dynamo" for name, _ in twinquant_torch.export._exporters(nn.Identity())):
        pytest.skip("this torch has no exporter for exported programs")
    program = torch.export.export(Layered(nn.Dropout(0.5)).train(), (image(),))
    with pytest.raises(UnsupportedModelError, match="the exported program drops values at random"):
        TorchFramework().load(program)
    program = torch.export.export(Layered(nn.BatchNorm2d(2)).train(), (image(),))
    for form in (program, program.run_decompositions()):
        with pytest.raises(
            UnsupportedModelError, match=r"the exported program is in training mode.*BatchNormalization"
        ):
            TorchFramework().load(form)


def test_a_program_is_compared_with_what_it_computes():
    if not any(name == "dynamo" for name, _ in twinquant_torch.export._exporters(nn.Identity())):
        pytest.skip("this torch has no exporter for exported programs")
    program = torch.export.export(Layered(Pooling()).eval(), (image(),))
    with pytest.raises(UnsupportedModelError, match=r"exported model does not compute.*differs by up to"):
        TorchFramework().load(program)
    # Statistics of each batch are what this one uses in any case.
    TorchFramework().load(torch.export.export(nn.BatchNorm2d(3, track_running_stats=False).eval(), (image(),)))


def test_a_model_that_does_not_run_is_exported_otherwise_or_refused(monkeypatch, caplog):
    exporters = twinquant_torch.export._exporters(nn.Identity())
    if len(exporters) < 2:
        pytest.skip("this torch has one exporter")
    monkeypatch.setattr(twinquant_torch.folding, "_drop_bad_biases", lambda graph: None)
    net, x = nn.Sequential(nn.Conv3d(3, 8, 1, bias=False)), torch.randn(1, 3, 2, 4, 4)
    with caplog.at_level("INFO", logger="twinquant_torch"):
        load(net, x)
    assert any("TorchScript exporter. the exported model does not run" in line for line in caplog.messages)
    monkeypatch.setattr(twinquant_torch.export, "_exporters", lambda _: exporters[:1])
    with pytest.raises(UnsupportedModelError, match=r"does not run: ONNX Runtime cannot run.*bias must be"):
        load(net, x)


@pytest.mark.parametrize(
    ("exact", "found", "message"),
    [
        (torch.arange(10), torch.arange(10), ""),
        (torch.arange(10), torch.tensor([*range(9), 0]), "1 other values of 10"),
        (torch.arange(20_000), torch.tensor([1, *range(1, 20_000)]), ""),
        (torch.tensor([True, False]), torch.tensor([True, True]), "1 other values of 2"),
        (torch.tensor([0.0, 2.0]), torch.tensor([0.0001, 2.0]), ""),
        (torch.tensor([0.0, 2.0]), torch.tensor([0.0003, 2.0]), "differs by up to 0.0003 where its values span 2"),
        (torch.tensor([0.0, 2.0]).half(), torch.tensor([0.05, 2.0]).half(), ""),
        (torch.tensor([0.0, 2.0]), torch.tensor([0.0, float("nan")]), "NaN or infinity in other places"),
        (torch.zeros(2), torch.zeros(2, 1), r"shape \[2, 1\] instead of \[2\]"),
    ],
)
def test_every_type_of_output_is_compared_as_exactly_as_it_can_be(exact, found, message):
    element_type = onnx.helper.np_dtype_to_tensor_dtype(found.numpy().dtype)
    values = [onnx.helper.make_tensor_value_info(name, element_type, list(found.shape)) for name in ("x", "y")]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "graph", [values[0]], [values[1]]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    arguments = load_model(model), {"x": found.numpy()}, [exact], "the model"
    if not message:
        check_equal(*arguments)
        return
    with pytest.raises(UnsupportedModelError, match=f"the model does not compute .*output 'y' .*{message}"):
        check_equal(*arguments)


def test_dropout_that_drops_nothing_is_fine():
    load(Layered(nn.Dropout(0.5)), image())
    load(Layered(nn.Dropout(0.0)), image())


def test_half_precision_is_compared_as_exactly_as_it_computes():
    load(Layered(nn.ReLU()).half(), image(torch.float16))


class Convolving(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(2, 2, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.kernel)


def test_a_model_that_onnx_runtime_cannot_run_is_told_of_with_the_way_out(caplog):
    graph = load(Layered(Convolving()).double(), image(torch.float64))
    (functional,) = (layer.name for layer in graph.layers if layer.kind and layer.name != "conv")
    run = TorchFramework().activations(graph, [Tap(functional)])
    with pytest.raises(UnsupportedModelError, match=r"cannot run the model: .*export the model in float32"):
        list(run(graph.origin.layout.example_feeds()))
    (told,) = (line for line in caplog.messages if "was not compared with the module" in line)
    assert "cannot be run" in told and "float32 (model.float()), without torch.autocast" in told
