"""The vendor's flow: configuration, calibrating module, batches, record, twins."""

import copy
import inspect
import json

import numpy as np
import onnx
import pytest

import twinquant
import twinquant_torch.amct as amct
from twinquant.errors import (
    ArgumentError,
    CalibrationError,
    ConfigError,
    DataError,
    OutputPathError,
    RecordFileError,
    UnsupportedModelError,
)
from twinquant.records import parse_record_file

torch = pytest.importorskip("torch")

SMALL_LAYERS = ["stem", "layer1.0.conv1", "layer1.1.conv1", "pool", "fc"]


@pytest.fixture
def flow(tmp_path, monkeypatch, small_net, batches):
    """Start the flow in an empty working folder, as a function of the batches wanted and settings by layer."""
    monkeypatch.chdir(tmp_path)

    def start(batch_num=2, layers=None, net=small_net, common=None):
        amct.create_quant_config("config.json", net, batches[0], batch_num=batch_num)
        config = json.loads((tmp_path / "config.json").read_text())
        for name, settings in (layers or {}).items():
            for group, values in settings.items():
                config[name][group] = values if not isinstance(values, dict) else {**config[name][group], **values}
        for name in SMALL_LAYERS if common else ():
            config[name]["activation_quant_params"] = common
        (tmp_path / "config.json").write_text(json.dumps(config))
        return amct.quantize_model(
            "config.json",
            "./tmp/modified_model.onnx",
            "./tmp/scale_offset_record.txt",
            net,
            batches[0],
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": {0: "n"}, "output": {0: "n"}},
        )

    return start


def save():
    amct.save_model(
        modfied_onnx_file="./tmp/modified_model.onnx",
        record_file="./tmp/scale_offset_record.txt",
        save_path="./results/model",
    )


def record():
    return parse_record_file("./tmp/scale_offset_record.txt").records


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            amct.create_quant_config,
            "config_file model input_data skip_layers batch_num activation_offset config_defination",
        ),
        (
            amct.quantize_model,
            "config_file modfied_onnx_file record_file model input_data input_names output_names dynamic_axes "
            "modified_onnx_file",
        ),
        (amct.quantize_preprocess, "config_file record_file model input_data"),
        (
            amct.accuracy_based_auto_calibration,
            "model model_evaluator config_file record_file save_dir input_data input_names output_names dynamic_axes "
            "strategy sensitivity",
        ),
    ],
)
def test_functions_have_the_vendors_arguments_in_the_vendors_order(function, names):
    assert list(inspect.signature(function).parameters) == names.split()


def test_the_right_spelling_of_the_modified_file_is_no_positional_argument():
    parameter = inspect.signature(amct.quantize_model).parameters["modified_onnx_file"]
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_the_whole_flow_ends_in_twins_that_verify_and_leaves_nothing_else(flow, small_net, batches, tmp_path, state_of):
    before = state_of(small_net)
    module = flow(batch_num=2)
    for batch in batches[:2]:
        module(batch)
    save()
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "tmp/modified_model.onnx",
        "tmp/scale_offset_record.txt",
        "results/model_deploy_model.onnx",
        "results/model_fake_quant_model.onnx",
    }
    assert twinquant.verify("results/model_fake_quant_model.onnx", "results/model_deploy_model.onnx").agree
    assert state_of(small_net) == before


def test_the_calibrating_module_computes_what_the_model_computes(flow, small_net, batches):
    module = flow(batch_num=2)
    for batch in batches[:3]:  # the third one comes when calibration is over
        assert torch.equal(module(batch), small_net(batch))


def test_the_modified_model_is_fused_named_and_equals_the_module(flow, small_net, batches, run):
    flow()
    model = onnx.load("tmp/modified_model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.name for node in model.graph.node} >= set(SMALL_LAYERS)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    assert max(entry.version for entry in model.opset_import if not entry.domain) >= 17
    (output,) = run("tmp/modified_model.onnx", torch.cat(batches))
    np.testing.assert_allclose(output, small_net(torch.cat(batches)).detach().numpy(), atol=1e-4)


def test_the_record_is_complete_after_exactly_batch_num_batches(flow, batches):
    module = flow(batch_num=3, common={"num_bits": 8, "act_algo": "minmax", "asymmetric": True})
    largest = [float(batch.abs().max()) for batch in batches]
    for batch in batches[:2]:
        module(batch)
    with pytest.raises(RecordFileError, match=r"calibration has not finished: 2 of 3 batches seen"):
        record()
    module(batches[2])
    found = record()["stem"]
    module(100 * batches[3])
    assert record()["stem"].scale_d == found.scale_d
    low = min(float(batch.min()) for batch in batches[:3])
    high = max(float(batch.max()) for batch in batches[:3])
    assert found.scale_d == pytest.approx((high - low) / 255, rel=1e-6)
    assert max(largest[:3]) >= 127 * found.scale_d


def test_saving_too_early_says_how_many_batches_were_seen(flow, batches, tmp_path):
    module = flow(batch_num=8)
    for batch in batches[:2]:
        module(batch)
    with pytest.raises(RecordFileError, match="2 of 8 batches seen"):
        save()
    with pytest.raises(RecordFileError, match="2 of 8 batches seen"):
        twinquant.save_model(module, "./tmp/scale_offset_record.txt", "./results/model")
    assert not (tmp_path / "results").exists()


def test_a_finished_module_is_saved_like_its_modified_model(flow, batches, tmp_path):
    module = flow(batch_num=1)
    module(batches[0])
    save()
    output = twinquant.save_model(module, "./tmp/scale_offset_record.txt", "./again/model")
    for flavor in ("deploy", "fake_quant"):
        name = f"model_{flavor}_model.onnx"
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "results" / name).read_bytes()
    assert [layer.name for layer in output.plan] == SMALL_LAYERS


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg", "minmax"])
def test_every_algorithm_finds_what_the_one_call_flow_finds(flow, small_net, batches, algorithm):
    settings = {"num_bits": 8, "act_algo": algorithm, "asymmetric": algorithm != "entropy"}
    module = flow(batch_num=2, common=settings)
    for batch in batches[:2]:
        module(batch)
    config = {"activation_algorithm": algorithm, "asymmetric": algorithm != "entropy"}
    expected = twinquant.calibrate(
        small_net, batches, "one_call.txt", config=config, batch_num=2, example_inputs=batches[0]
    )
    assert {name: (r.scale_d, r.offset_d) for name, r in record().items()} == {
        name: (r.scale_d, r.offset_d) for name, r in expected.records.items()
    }


def test_both_spellings_of_the_modified_file_are_taken_and_not_both_at_once(flow, batches):
    module = flow(batch_num=1)
    module(batches[0])
    amct.save_model(
        modified_onnx_file="./tmp/modified_model.onnx",
        record_file="./tmp/scale_offset_record.txt",
        save_path="./results/model",
    )
    with pytest.raises(ArgumentError, match="given twice"):
        amct.save_model("a.onnx", "record.txt", "./results/model", modified_onnx_file="a.onnx")


@pytest.mark.parametrize("spelling", ["modfied_onnx_file", "modified_onnx_file"])
def test_quantize_model_takes_both_spellings_of_the_file(flow, small_net, batches, tmp_path, spelling):
    flow()
    arguments = {"record_file": "r.txt", "model": small_net, "input_data": batches[0], spelling: "other.onnx"}
    amct.quantize_model("config.json", **arguments)
    assert (tmp_path / "other.onnx").is_file()
    with pytest.raises(ArgumentError, match="given twice"):
        amct.quantize_model("config.json", **{**arguments, "modfied_onnx_file": "a", "modified_onnx_file": "b"})
    del arguments[spelling]
    with pytest.raises(ArgumentError, match=r"missing modfied_onnx_file; call quantize_model\("):
        amct.quantize_model("config.json", **arguments)


def test_the_module_of_quantize_preprocess_cannot_be_saved(flow, small_net, batches, tmp_path):
    with pytest.raises(ConfigError, match="is to be balanced"):
        flow(batch_num=1, layers={"fc": {"dmq_balancer_param": 0.5}})
    measuring = amct.quantize_preprocess("config.json", "record.txt", small_net, batches[0])
    measuring(batches[0])
    amct.quantize_model("config.json", "modified.onnx", "record.txt", small_net, batches[0])(batches[0])
    with pytest.raises(ArgumentError, match=r"from quantize_preprocess.*call quantize_model"):
        twinquant.save_model(measuring, "record.txt", "./results/model")
    assert not (tmp_path / "results").exists()


class Twice(torch.nn.Module):
    """One layer of its own, and one that is used twice."""

    def __init__(self):
        super().__init__()
        self.twice, self.once = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.once(self.twice(torch.relu(self.twice(x))))


def test_layers_that_stay_in_float_are_told_of_with_the_reason(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    net, x = Twice().eval(), torch.randn(2, 4)
    amct.create_quant_config("config.json", net, x, skip_layers=["twice"])
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 2 and all("'twice" in line and "used 2 times" in line for line in told)
    caplog.clear()
    amct.quantize_model("config.json", "modified.onnx", "record.txt", net, x)
    assert sum("used 2 times" in record.getMessage() for record in caplog.records) == 2


def test_a_model_without_any_layer_is_refused_with_the_reasons(tmp_path):
    class Only(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(ConfigError, match=r"no layer that can be quantized: 'layer': its module is used 2 times"):
        amct.create_quant_config(tmp_path / "config.json", Only().eval(), torch.randn(2, 4))
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("modified", "record_file", "message"),
    [
        ("same.txt", "same.txt", "is the modified model, too"),
        ("sub/", "record.txt", "'sub/' is a folder"),
        (".", "record.txt", "is a folder"),
        ("modified.onnx", "config.json/record.txt", r"folder of .*record\.txt' cannot be made"),
    ],
)
def test_impossible_outputs_are_refused_before_anything_is_written(
    flow, small_net, batches, tmp_path, modified, record_file, message
):
    flow()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputPathError, match=message):
        amct.quantize_model("config.json", modified, record_file, small_net, batches[0])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_calibration_model_is_neither_copied_nor_stored(flow, tmp_path):
    module = flow()
    for attempt in (copy.deepcopy, lambda given: torch.save(given, tmp_path / "model.pt")):
        with pytest.raises(ArgumentError, match=r"cannot be copied or stored.*calibration_model\.model"):
            attempt(module)


def test_a_layer_that_adaround_cannot_train_is_refused_before_any_batch_runs(flow):
    with pytest.raises(ConfigError, match=r"layer 'pool': ada_quantize|'pool'"):
        flow(layers={"pool": {"weight_quant_params": {"wts_algo": "ada_quantize"}}})


def test_adaround_does_not_train_a_layer_with_a_forward_of_its_own(tmp_path, monkeypatch):
    class Scaling(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x * 7, self.weight, self.bias)

    monkeypatch.chdir(tmp_path)
    net, x = torch.nn.Sequential(Scaling(4, 4)).eval(), torch.randn(2, 4)
    amct.create_quant_config("config.json", net, x)
    config = json.loads((tmp_path / "config.json").read_text())
    config["0"]["weight_quant_params"] = {"num_bits": 8, "wts_algo": "ada_quantize"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"layer '0': ada_quantize trains .*torch's own forward"):
        amct.quantize_model("config.json", "modified.onnx", "record.txt", net, x)
    assert not (tmp_path / "modified.onnx").exists()


def test_balancing_keeps_the_results_and_reaches_record_and_twins(flow, small_net, batches, run, tmp_path):
    layers = {"fc": {"dmq_balancer_param": 0.5}}
    with pytest.raises(ConfigError, match=r"'fc' is to be balanced.*quantize_preprocess"):
        flow(batch_num=1, layers=layers)
    measuring = amct.quantize_preprocess("config.json", "./tmp/scale_offset_record.txt", small_net, batches[0])
    measuring(batches[0])
    read = []
    handle = small_net.fc.register_forward_pre_hook(lambda module, args: read.append(args[0].detach().numpy()))
    exact = small_net(batches[0]).detach().numpy()
    handle.remove()
    factors = record()["fc"].tensor_balance_factor
    expected = np.sqrt(np.abs(read[0]).max(0) / np.abs(small_net.fc.weight.detach().numpy()).max(0))
    np.testing.assert_allclose(factors, expected, rtol=1e-5)
    module = flow(batch_num=1, layers=layers)
    module(batches[0])
    np.testing.assert_array_equal(record()["fc"].tensor_balance_factor, factors)
    np.testing.assert_allclose(run("tmp/modified_model.onnx", batches[0])[0], exact, atol=1e-4)
    save()
    assert twinquant.verify("results/model_fake_quant_model.onnx", "results/model_deploy_model.onnx").agree


def test_the_module_may_run_in_another_working_folder(flow, batches, tmp_path, monkeypatch):
    module = flow(batch_num=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    module(batches[0])
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert list(parse_record_file(tmp_path / "tmp" / "scale_offset_record.txt").records) == SMALL_LAYERS


def test_nothing_to_balance_is_said(flow, small_net, batches):
    flow()
    with pytest.raises(ConfigError, match="no layer has a dmq_balancer_param"):
        amct.quantize_preprocess("config.json", "./tmp/scale_offset_record.txt", small_net, batches[0])


def test_adaround_puts_the_weights_of_the_modified_model_on_the_grid(flow, batches):
    ada = {"wts_algo": "ada_quantize", "num_bits": 4, "num_iteration": 20}
    module = flow(
        batch_num=1, layers={name: {"weight_quant_params": ada} for name in ("layer1.0.conv1", "layer1.1.conv1", "fc")}
    )
    module(batches[0])
    model = onnx.load("tmp/modified_model.onnx")
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    for name in ("layer1.0.conv1", "layer1.1.conv1", "fc"):
        weight, scale = tensors[nodes[name].input[1]], record()[name].scale_w
        steps = weight / scale.reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(steps - np.rint(steps)).max() < 1e-3
        assert np.abs(steps).max() < 8.001
    save()
    assert twinquant.verify("results/model_fake_quant_model.onnx", "results/model_deploy_model.onnx").agree


class Evaluator(amct.ModelEvaluator):
    """Lets the model lose as much as a test allows."""

    def __init__(self, batches, allowed):
        self.batches, self.allowed = batches, allowed
        self.kinds = []

    def calibration(self, model):
        for batch in self.batches[:2]:
            model(batch)

    def evaluate(self, model):
        self.kinds.append(type(model).__name__)
        with torch.no_grad():
            return model(torch.cat(self.batches[2:])).numpy()

    def metric_eval(self, original, new):
        loss = float(np.abs(original - new).max())
        return loss <= self.allowed, loss


def test_the_search_leaves_layers_in_float_until_the_accuracy_holds(flow, small_net, batches, tmp_path):
    flow(batch_num=2, layers={"fc": {"activation_quant_params": {"num_bits": 8}}})
    strict = Evaluator(batches, 0.0)
    exact = strict.evaluate(small_net)
    arguments = ("config.json", "record.txt", "./results/model", batches[0], ["input"], None, {"input": {0: "n"}})
    with pytest.raises(CalibrationError, match=r"none of the .* trials holds the accuracy"):
        amct.accuracy_based_auto_calibration(small_net, strict, *arguments)
    trials = json.loads((tmp_path / "results" / "accuracy_based_auto_calibration_record.json").read_text())["trials"]
    losses = sorted(trial["loss"] for trial in trials)
    assert losses[0] < losses[-1]
    generous = Evaluator(batches, (losses[0] + losses[-1]) / 2)
    amct.accuracy_based_auto_calibration(small_net, generous, *arguments)
    assert generous.kinds[0] == "SmallNet" and set(generous.kinds[1:]) == {"TwinModule"}
    kept = parse_record_file("record.txt").records
    assert 0 < len(kept) < len(SMALL_LAYERS)
    assert np.isfinite(exact).all()
    assert twinquant.verify("results/model_fake_quant_model.onnx", "results/model_deploy_model.onnx").agree


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x: (x.double(),), r"input 'input': the tensor is torch.float64, the model takes torch.float32"),
        (lambda x: (x[:, :2],), r"input 'input': the tensor has shape \[4, 2, 8, 8\], the model takes \[\?, 3, 8, 8\]"),
        (lambda x: (x[0],), r"the tensor has shape \[3, 8, 8\]"),
        (lambda x: (x, x), r"call it with as many arguments as the example inputs had"),
        (lambda x: (x.numpy(),), r"input 'input': must be a tensor, got ndarray"),
        (lambda x: (x.to("meta"),), r"the tensor is on meta, the model on cpu; move it"),
    ],
    ids=["type", "shape", "rank", "arity", "array", "device"],
)
def test_wrong_inputs_are_named_and_do_not_end_the_calibration(flow, batches, arguments, message):
    module = flow(batch_num=1)
    with pytest.raises(DataError, match=message):
        module(*arguments(batches[0]))
    module(batches[0])
    assert list(record()) == SMALL_LAYERS


def test_values_that_are_not_finite_end_the_calibration_and_the_record_says_why(flow, batches):
    module = flow(batch_num=2)
    with pytest.raises(CalibrationError, match=r"layer 'stem', batch 1: .*NaN"):
        module(batches[0] * float("nan"))
    with pytest.raises(RecordFileError, match=r"has not finished: layer 'stem', batch 1: .*NaN"):
        record()


def test_a_configuration_of_another_model_is_refused(flow, batches):
    flow()
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3)).eval()
    with pytest.raises(ConfigError, match="neither a setting nor a layer of the model"):
        amct.quantize_model("config.json", "m.onnx", "r.txt", other, batches[0])


def test_an_output_that_is_the_configuration_is_refused(flow, small_net, batches):
    flow()
    with pytest.raises(OutputPathError, match="is the configuration"):
        amct.quantize_model("config.json", "config.json", "r.txt", small_net, batches[0])


def test_a_calibrating_module_in_training_mode_is_refused(flow, batches):
    module = flow(batch_num=1)
    with pytest.raises(UnsupportedModelError, match=r"training mode.*\.eval\(\)"):
        module.train()(batches[0])


def test_a_model_in_training_mode_is_refused_before_anything_is_written(small_net, batches, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedModelError, match="SmallNet is in training mode"):
        amct.create_quant_config("config.json", small_net.train(), batches[0])
    assert list(tmp_path.iterdir()) == []


def test_what_is_inside_data_parallel_is_quantized(flow, small_net, batches):
    module = flow(batch_num=1, net=torch.nn.DataParallel(small_net))
    module(batches[0])
    assert list(record()) == SMALL_LAYERS


def test_a_calibration_under_inference_mode_is_the_same(flow, batches):
    module = flow(batch_num=2)
    for batch in batches[:2]:
        module(batch)
    expected = {name: r.scale_d for name, r in record().items()}
    module = flow(batch_num=2)
    with torch.inference_mode():
        for batch in batches[:2]:
            module(batch)
    assert {name: r.scale_d for name, r in record().items()} == expected
