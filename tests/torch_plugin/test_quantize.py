"""From a module and data to verified twins, in one call."""

import numpy as np
import pytest

import twinquant
from twinquant.errors import ArgumentError, ConfigError, DataError, UnsupportedModelError
from twinquant_torch import TorchModel

torch = pytest.importorskip("torch")

from twinquant_torch.export import _exporters as exporters_for  # noqa: E402  needs torch

SMALL_LAYERS = ["stem", "layer1.0.conv1", "layer1.1.conv1", "pool", "fc"]


@pytest.fixture
def exported(small_net, batches):
    """The network as an exported program."""
    if not any(name == "dynamo" for name, _ in exporters_for(small_net)):
        pytest.skip("this torch has no exporter for exported programs")
    return torch.export.export(small_net, (batches[0],))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_module_and_a_loader_become_twins_that_verify(small_net, batches, folder, state_of):
    before = state_of(small_net)
    dataset = torch.utils.data.TensorDataset(torch.cat(batches), torch.zeros(32))
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    result = twinquant.quantize(
        small_net, loader, "./results/model", example_inputs=torch.zeros(1, 3, 8, 8), batch_num=8
    )
    assert list(result.records.records) == SMALL_LAYERS
    assert twinquant.verify(result.output.fake_quant.model, result.output.deploy.model).agree
    assert state_of(small_net) == before
    assert [path.name for path in folder.iterdir()] == ["results"]
    assert sorted(path.name for path in (folder / "results").iterdir()) == [
        "model_deploy_model.onnx",
        "model_fake_quant_model.onnx",
        "model_manifest.json",
        "model_record.txt",
    ]


def test_the_fake_quant_twin_computes_nearly_what_the_module_computes(small_net, batches, folder, run):
    source = TorchModel(small_net, batches[0])
    result = twinquant.quantize(source, batches, folder / "model", batch_num=8)
    exact = small_net(batches[0]).detach().numpy()
    (quantized,) = run(result.output.fake_quant.model, batches[0])
    assert np.abs(quantized - exact).max() < 0.05 * np.abs(exact).max()


def test_min_max_factors_are_those_of_what_the_modules_read(small_net, batches, folder):
    read = {}
    for name in SMALL_LAYERS:
        small_net.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: read.setdefault(name, []).append(args[0].detach().numpy())
        )
    with torch.no_grad():
        for batch in batches:
            small_net(batch)
    expected = {}
    for name, values in read.items():
        low, high = min(0.0, *(v.min() for v in values)), max(0.0, *(v.max() for v in values))
        expected[name] = (high - low) / 255
    config = {"activation_algorithm": "minmax"}
    records = twinquant.calibrate(
        TorchModel(small_net, batches[0]), batches, folder / "record.txt", config=config, batch_num=8
    )
    assert {name: record.scale_d for name, record in records.records.items()} == pytest.approx(expected, rel=1e-6)


def test_a_module_without_example_inputs_says_what_to_pass(small_net, batches, folder):
    with pytest.raises(ArgumentError, match=r"SmallNet needs example inputs.*example_inputs=.*TorchModel"):
        twinquant.quantize(small_net, batches, folder / "model")


def test_example_inputs_for_another_framework_are_refused(batches, folder):
    with pytest.raises(ArgumentError, match=r"example_inputs.*onnx.*no such option"):
        twinquant.quantize("model.onnx", batches, folder / "model", example_inputs=batches[0])


def test_an_exported_program_needs_no_example_inputs(exported, batches, folder):
    result = twinquant.quantize(exported, batches, folder / "model", batch_num=2)
    assert list(result.records.records) == SMALL_LAYERS
    assert twinquant.verify(result.output.fake_quant.model, result.output.deploy.model).agree


def test_an_exported_program_in_a_file_is_saved_from_there(exported, batches, folder):
    torch.export.save(exported, folder / "net.pt2")
    records = twinquant.calibrate(
        folder / "net.pt2", batches, folder / "record.txt", config={"do_fusion": False}, batch_num=1
    )
    output = twinquant.save_model(folder / "net.pt2", folder / "record.txt", folder / "model")
    assert [layer.name for layer in output.plan] == list(records.records) == SMALL_LAYERS


def test_balance_factors_are_measured_in_the_same_call(small_net, batches, folder):
    config = {"layers": {"fc": {"dmq_migration_strength": 0.5}}}
    result = twinquant.quantize(
        TorchModel(small_net, batches[0]), batches, folder / "model", config=config, batch_num=2
    )
    assert result.records.records["fc"].tensor_balance_factor.shape == (64,)
    assert twinquant.verify(result.output.fake_quant.model, result.output.deploy.model).agree


def test_adaround_lowers_the_error_of_four_bit_weights(small_net, batches, folder, run):
    exact = small_net(torch.cat(batches)).detach().numpy()
    errors = {}
    for algorithm in ("arq_quantize", "ada_quantize"):
        weight = {"weight_bits": 4, "weight_algorithm": algorithm, "num_iteration": 300}
        if algorithm == "arq_quantize":
            del weight["num_iteration"]
        config = {"layers": {"layer1.0.conv1": weight, "fc": weight}}
        result = twinquant.quantize(
            TorchModel(small_net, batches[0], dynamic_axes={"x": {0: "n"}}),
            batches,
            folder / algorithm,
            config=config,
            batch_num=8,
        )
        (quantized,) = run(result.output.fake_quant.model, torch.cat(batches))
        errors[algorithm] = float(np.square(quantized - exact).mean())
        assert twinquant.verify(result.output.fake_quant.model, result.output.deploy.model).agree
    assert errors["ada_quantize"] < errors["arq_quantize"]


def test_batches_may_be_larger_than_the_example_where_functional_layers_are_measured_too(folder):
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.weight = torch.nn.Linear(4, 4), torch.nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return torch.relu(self.fc(x)) @ self.weight

    torch.manual_seed(7)
    net, data = Mixed().eval(), [torch.randn(6, 3, 4) for _ in range(2)]
    with torch.no_grad():
        read = torch.relu(net.fc(torch.cat(data)))
    config = {
        "activation_algorithm": "minmax",
        "layers": {"fc": {"weight_algorithm": "ada_quantize", "num_iteration": 9}},
    }
    records = twinquant.calibrate(
        net, data, folder / "record.txt", config=config, batch_num=2, example_inputs=data[0][:2]
    ).records
    (functional,) = records.keys() - {"fc"}
    assert records[functional].scale_d == pytest.approx(float(read.max()) / 255, rel=1e-6)


def test_adaround_is_refused_where_there_is_no_module(exported, batches, folder):
    config = {"layers": {"fc": {"weight_algorithm": "ada_quantize"}}}
    with pytest.raises(ConfigError, match=r"trains modules.*arq_quantize"):
        twinquant.quantize(exported, batches, folder / "model", config=config, batch_num=1)


def test_a_batch_that_does_not_fit_names_the_input(small_net, folder):
    with pytest.raises(DataError, match=r"input 'x'.*\[4, 3, 9, 8\].*takes \[\?, 3, 8, 8\]"):
        twinquant.quantize(
            small_net, [torch.zeros(4, 3, 9, 8)], folder / "m", example_inputs=torch.zeros(1, 3, 8, 8), batch_num=1
        )


@pytest.mark.parametrize("part", ["model", "block"])
def test_a_module_in_training_mode_is_refused(small_net, batches, folder, part):
    (small_net if part == "model" else small_net.layer1[0].bn1).train()
    with pytest.raises(UnsupportedModelError, match=r"training mode.*statistics of each batch.*\.eval\(\)"):
        twinquant.quantize(small_net, batches, folder / "m", example_inputs=batches[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_module_on_a_gpu_is_calibrated_there(small_net, batches, folder):
    net = small_net.cuda()
    result = twinquant.quantize(net, batches, folder / "model", example_inputs=batches[0].cuda(), batch_num=8)
    assert twinquant.verify(result.output.fake_quant.model, result.output.deploy.model).agree
