"""`quantize_preprocess`: balance factors first, then scales of what they leave."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import twinquant
from twinquant.errors import ArgumentError, ConfigError, RecordValueError, UnsupportedModelError
from twinquant.records import parse_record_file
from twinquant_onnx import amct

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


def test_the_modified_model_computes_the_float_results_with_balanced_weights(balanced, kit):
    data = kit.batches(spread=8.0)
    expected = ort.InferenceSession(str(balanced / "model.onnx")).run(None, {"x": data[0]})[0]
    np.testing.assert_allclose(kit.run_all(balanced / "modified.onnx", data)[0], expected, rtol=1e-4, atol=1e-4)


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
        assert record.scale_d == pytest.approx(direct.records[name].scale_d, rel=1e-6)
        np.testing.assert_allclose(record.scale_w, direct.records[name].scale_w, rtol=1e-6)


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
