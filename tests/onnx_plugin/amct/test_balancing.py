"""`quantize_preprocess`: balance factors first, then scales of what they leave."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import twinquant
from twinquant.errors import ArgumentError, ConfigError, RecordValueError, UnsupportedModelError
from twinquant.records import parse_record_file
from twinquant_onnx import amct
from twinquant_onnx.load import load_model
from twinquant_onnx.modified.removal import without_calibration
from twinquant_onnx.write import write_model

STRENGTH = 0.5


def balance_all(layer):
    layer["dmq_balancer_param"] = STRENGTH


@pytest.fixture
def balancing(folder, kit):
    """The folder with balanced layers and with channels of very different ranges, after `quantize_preprocess`."""
    onnx.save(kit.convolutions(spread=8.0), folder / "model.onnx")
    kit.change_config(folder / "config.json", balance_all)
    amct.quantize_preprocess(
        folder / "config.json", folder / "record.txt", folder / "model.onnx", folder / "balancing.onnx"
    )
    return folder


@pytest.fixture
def balanced(balancing, kit):
    """The same after its batches, and after `quantize_model`."""
    kit.run_all(balancing / "balancing.onnx", kit.batches(spread=8.0))
    amct.quantize_model(
        balancing / "config.json", balancing / "model.onnx", balancing / "modified.onnx", balancing / "record.txt"
    )
    return balancing


def fused_weight(folder):
    """The first weight with the normalization folded in, by the definition of BatchNormalization."""
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(folder / "model.onnx").graph.initializer}
    return tensors["w1"] * (tensors["gamma"] / np.sqrt(tensors["var"] + 1e-5)).reshape(-1, 1, 1, 1)


def test_the_record_holds_the_balance_factors_alone(balancing, kit):
    data = kit.batches(spread=8.0)
    kit.run_all(balancing / "balancing.onnx", data)
    records = parse_record_file(balancing / "record.txt").records
    activation = np.abs(np.concatenate(data)).max(axis=(0, 2, 3))
    weight = np.abs(fused_weight(balancing)).max(axis=(0, 2, 3))
    expected = activation**STRENGTH / weight ** (1 - STRENGTH)
    np.testing.assert_allclose(records["conv1"].tensor_balance_factor, expected, rtol=1e-5)
    assert [record.scale_d for record in records.values()] == [None] * 3
    assert [record.tensor_balance_factor.size for record in records.values()] == [3, 8, 96]


def test_the_balancing_model_computes_the_float_results(balancing, kit):
    data = kit.batches(spread=8.0)
    expected = ort.InferenceSession(str(balancing / "model.onnx")).run(None, {"x": data[0]})[0]
    np.testing.assert_allclose(kit.run_all(balancing / "balancing.onnx", data)[0], expected, rtol=1e-4, atol=1e-4)


def test_the_modified_model_computes_nearly_the_float_results_with_balanced_weights(balanced, kit):
    data = kit.batches(spread=8.0)
    expected = ort.InferenceSession(str(balanced / "model.onnx")).run(None, {"x": data[0]})[0]
    found = kit.run_all(balanced / "modified.onnx", data)[0]
    assert 1e-5 < np.abs(found - expected).max() / np.abs(expected).max() < 0.02


def test_balanced_weights_are_multiplied_before_they_are_rounded(balanced, kit):
    kit.run_all(balanced / "modified.onnx", kit.batches(spread=8.0))
    record = parse_record_file(balanced / "record.txt").records["conv1"]
    graph = onnx.load(balanced / "modified.onnx").graph
    (weight,) = (onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == "w1")
    scale = record.scale_w.reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(weight, np.rint(weight / scale) * scale)
    multiplied = fused_weight(balanced) * record.tensor_balance_factor.reshape(1, 3, 1, 1)
    assert (np.abs(weight - multiplied) <= 0.5001 * scale).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tensor_balance_factor: ", "tensor_balance_factor: 1 tensor_balance_factor: ", "6 values.*3 input channels"),
        ("tensor_balance_factor: ", "tensor_balance_factor: 0 # ", r"must be in \[2\^-23, 2\^23\], got 0"),
    ],
    ids=["too many", "zero"],
)
def test_impossible_factors_of_the_record_are_refused(balancing, kit, old, new, message):
    kit.run_all(balancing / "balancing.onnx", kit.batches(spread=8.0))
    record = balancing / "record.txt"
    first, _, rest = record.read_text().partition("}\n}")
    assert first.count(old) == 3
    record.write_text(first.replace(old, new) + "}\n}" + rest)
    with pytest.raises(RecordValueError, match=message):
        amct.quantize_model(balancing / "config.json", balancing / "model.onnx", balancing / "modified.onnx", record)
    assert not (balancing / "modified.onnx").exists()


def test_the_record_keeps_the_factors_until_the_batches_are_seen(balanced):
    records = parse_record_file(balanced / "record.txt").records
    assert [record.tensor_balance_factor.size for record in records.values()] == [3, 8, 96]


def test_scales_are_those_of_divided_activations_and_multiplied_weights(balanced, kit):
    data = kit.batches(spread=8.0)
    kit.run_all(balanced / "modified.onnx", data)
    record = parse_record_file(balanced / "record.txt").records["conv1"]
    factor = record.tensor_balance_factor.reshape(1, 3, 1, 1)
    divided = np.concatenate(data) / factor
    assert record.scale_d == pytest.approx((divided.max() - divided.min()) / 255, rel=1e-5)
    multiplied = fused_weight(balanced) * factor
    low, high = multiplied.min(axis=(1, 2, 3)), multiplied.max(axis=(1, 2, 3))
    np.testing.assert_allclose(record.scale_w, np.where(high >= -low, high / 127, -low / 128), rtol=1e-5)


def test_the_twins_agree_and_stay_near_the_float_model(balanced, kit):
    data = kit.batches(spread=8.0)
    kit.run_all(balanced / "modified.onnx", data)
    amct.save_model(balanced / "modified.onnx", balanced / "record.txt", balanced / "out" / "m")
    twins = [balanced / "out" / f"m_{flavor}_model.onnx" for flavor in ("fake_quant", "deploy")]
    assert twinquant.verify(*twins).agree
    expected = ort.InferenceSession(str(balanced / "model.onnx")).run(None, {"x": data[0]})[0]
    quantized = ort.InferenceSession(str(twins[0])).run(None, {"x": data[0]})[0]
    assert np.abs(quantized - expected).max() < 0.05 * np.abs(expected).max()


def test_the_record_is_near_the_one_of_twinquant_calibrate(balanced, kit):
    data = kit.batches(spread=8.0)
    kit.run_all(balanced / "modified.onnx", data)
    direct = twinquant.calibrate(
        balanced / "model.onnx",
        data,
        balanced / "direct.txt",
        config=balanced / "config.json",
        prepared_model=balanced / "prepared.onnx",
    )
    for name, record in parse_record_file(balanced / "record.txt").records.items():
        np.testing.assert_array_equal(record.tensor_balance_factor, direct.records[name].tensor_balance_factor)
        np.testing.assert_array_equal(record.scale_w, direct.records[name].scale_w)
        assert record.scale_d == pytest.approx(direct.records[name].scale_d, rel=0.02)
    first = parse_record_file(balanced / "record.txt").records["conv1"]
    assert first.scale_d == pytest.approx(direct.records["conv1"].scale_d, rel=1e-6)  # no weight is before it


def test_a_configuration_that_switches_a_folded_layer_off_is_followed(balancing, kit):
    content = json.loads((balancing / "config.json").read_text()) | {"bn1": {"quant_enable": False}}
    (balancing / "config.json").write_text(json.dumps(content))
    amct.quantize_preprocess(
        balancing / "config.json", balancing / "record.txt", balancing / "model.onnx", balancing / "balancing.onnx"
    )
    kit.run_all(balancing / "balancing.onnx", kit.batches(spread=8.0))
    assert list(parse_record_file(balancing / "record.txt").records) == ["conv1", "conv2", "fc"]


def same(first, second):
    """Whether two record files hold the same factors, but for what a division and a product may change."""
    first, second = (parse_record_file(path).records for path in (first, second))
    assert first.keys() == second.keys()
    for name, record in first.items():
        np.testing.assert_array_equal(record.tensor_balance_factor, second[name].tensor_balance_factor)
        np.testing.assert_allclose(record.scale_w, second[name].scale_w, rtol=1e-6)
        assert record.scale_d == pytest.approx(second[name].scale_d, rel=1e-6)
        assert record.offset_d == second[name].offset_d


@pytest.fixture
def vendors(balanced, kit):
    """The same after its batches; and `vendors.onnx`, a modified model as the vendor's tool writes it.

    It has balanced and rounded weights, no operator of ours, and no trace of the division of its activations.
    """
    kit.run_all(balanced / "modified.onnx", kit.batches(spread=8.0))
    plain = without_calibration(load_model(balanced / "modified.onnx"))
    write_model(plain, balanced, "", "vendors")
    (balanced / "vendors_model.onnx").rename(balanced / "vendors.onnx")
    amct.create_quant_config(balanced / "vendors.json", balanced / "vendors.onnx", batch_num=3)
    kit.change_config(balanced / "vendors.json", kit.use_minmax)
    kit.change_config(balanced / "vendors.json", balance_all)
    return balanced


@pytest.mark.parametrize(("model", "told"), [("vendors", True), ("modified", False), ("modified", True)])
def test_a_model_with_balanced_weights_and_its_record_are_calibrated_again(vendors, kit, model, told):
    shutil.copy(vendors / "record.txt", vendors / "again.txt")
    amct.quantize_model(
        vendors / "vendors.json",
        vendors / f"{model}.onnx",
        vendors / "again.onnx",
        vendors / "again.txt",
        weights_balanced=told,
    )
    data = kit.batches(spread=8.0)
    expected = ort.InferenceSession(str(vendors / "model.onnx")).run(None, {"x": data[0]})[0]
    found = kit.run_all(vendors / "again.onnx", data)[0]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    same(vendors / "record.txt", vendors / "again.txt")
    for name in ("again", "modified"):
        amct.save_model(vendors / f"{name}.onnx", vendors / "record.txt", vendors / name / "m")
    first, second = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name[0] == "w"}
        for path in (vendors / name / "m_deploy_model.onnx" for name in ("again", "modified"))
    )
    assert {weight.dtype for weight in first.values()} == {np.dtype(np.int8)}
    assert all(np.array_equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.parametrize(("model", "told"), [("vendors", True), ("modified", False)])
def test_balanced_weights_without_factors_in_the_configuration_are_refused(vendors, kit, model, told):
    kit.change_config(vendors / "vendors.json", lambda layer: layer.pop("dmq_balancer_param"))
    with pytest.raises(
        ConfigError, match="no layer has a dmq_balancer_param, but the weights of the model are balanced"
    ):
        amct.quantize_model(
            vendors / "vendors.json",
            vendors / f"{model}.onnx",
            vendors / "again.onnx",
            vendors / "record.txt",
            weights_balanced=told,
        )


def test_balancing_is_refused_before_its_factors_are_measured(folder, kit):
    kit.change_config(folder / "config.json", balance_all)
    with pytest.raises(ConfigError, match=r"'conv1' is to be balanced.*call quantize_preprocess"):
        amct.quantize_model(folder / "config.json", folder / "model.onnx", folder / "m.onnx", folder / "record.txt")


def test_preprocessing_is_refused_where_nothing_is_balanced(folder):
    with pytest.raises(ConfigError, match="no layer has a dmq_balancer_param"):
        amct.quantize_preprocess(
            folder / "config.json", folder / "record.txt", folder / "model.onnx", folder / "balancing.onnx"
        )


def test_only_layers_that_the_configuration_balances_are_balanced(folder, kit):
    content = json.loads((folder / "config.json").read_text())
    content["conv2"]["dmq_balancer_param"] = 0.3
    (folder / "config.json").write_text(json.dumps(content))
    amct.quantize_preprocess(
        folder / "config.json", folder / "record.txt", folder / "model.onnx", folder / "balancing.onnx"
    )
    kit.run_all(folder / "balancing.onnx", kit.batches())
    assert list(parse_record_file(folder / "record.txt").records) == ["conv2"]


def test_the_balancing_model_itself_is_not_saved(balancing, kit):
    kit.run_all(balancing / "balancing.onnx", kit.batches(spread=8.0))
    with pytest.raises(ArgumentError, match="call quantize_model"):
        amct.save_model(balancing / "balancing.onnx", balancing / "record.txt", balancing / "out" / "m")


@pytest.mark.parametrize("do_fusion", [True, False], ids=["fused", "not fused"])
def test_a_balanced_model_is_not_calibrated_as_if_it_were_a_float_model(balanced, kit, do_fusion):
    before = (balanced / "record.txt").read_bytes()
    with pytest.raises(UnsupportedModelError, match=r"balanced already: .* in a session with AMCT_SO"):
        twinquant.calibrate(
            balanced / "modified.onnx",
            kit.batches(),
            balanced / "record.txt",
            config={"do_fusion": do_fusion},
            batch_num=3,
        )
    assert (balanced / "record.txt").read_bytes() == before
