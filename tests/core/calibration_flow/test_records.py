"""What ends up in the record."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest

import twinquant
from twinquant.config import QuantConfig, create_config
from twinquant.errors import ArgumentError, CalibrationError, CapabilityError, ConfigError, DataError, OutputPathError
from twinquant.plan import LayerInfo, LayerKind
from twinquant.records import parse_record_file
from twinquant.registry import ModelInput

WEIGHT = np.array([[1.0, -2.0], [0.5, 0.25], [-0.125, 4.0]], np.float32)
"""The weight of both layers, (in, out); that of layer 'a' is doubled by fusion."""

MINMAX = {"activation_algorithm": "minmax"}


def calibrate(model, data, config=MINMAX, **options):
    return twinquant.calibrate(model, data, model.with_name("record.txt"), config=config, **options).records


def test_a_minmax_record_holds_the_formulas_of_the_range(toy, model, batches):
    record = calibrate(model, batches, batch_num=4)["b"]
    low, high = min(b.min() for b in batches), max(b.max() for b in batches)
    scale = (float(high) - float(low)) / 255
    assert record.scale_d == pytest.approx(scale, rel=1e-6)
    assert record.offset_d == round(-float(low) / scale) - 128
    np.testing.assert_allclose(record.scale_w, [4.0 / 127], rtol=1e-6)
    assert record.offset_w.tolist() == [0]
    assert (record.act_type, record.wts_type) == ("INT8", "INT8")


def test_the_file_holds_what_is_returned(toy, model, batches):
    records = calibrate(model, batches, batch_num=4)
    read = parse_record_file(model.with_name("record.txt")).records
    assert list(read) == list(records) == ["a", "b"]
    assert read["a"].scale_d == pytest.approx(records["a"].scale_d, rel=1e-7)


def test_weights_are_measured_after_fusion(toy, model, batches):
    record = calibrate(model, batches, batch_num=4)["a"]
    np.testing.assert_allclose(record.scale_w, [8.0 / 127], rtol=1e-6)


@pytest.mark.parametrize("config", [{"do_fusion": False}], ids=["switched off"])
def test_without_fusion_weights_are_those_of_the_model(toy, model, batches, config):
    record = calibrate(model, batches, {**MINMAX, **config}, batch_num=4)["a"]
    np.testing.assert_allclose(record.scale_w, [4.0 / 127], rtol=1e-6)


def test_layers_that_are_skipped_have_no_record(toy, model, batches):
    assert list(calibrate(model, batches, {**MINMAX, "skip_layers": ["a"]}, batch_num=4)) == ["b"]


def test_layers_that_read_one_tensor_are_watched_once(toy, model, batches):
    records = calibrate(model, batches, batch_num=4)
    assert toy.runs == [("a",)]
    assert records["a"].scale_d == records["b"].scale_d


def test_a_second_pass_that_looks_at_the_same_tensors_does_not_build_the_session_again(toy, model, batches):
    calibrate(model, batches, {"activation_algorithm": "hfmg"}, batch_num=4)
    assert toy.runs == [("a",)]


def test_layers_that_read_one_tensor_with_other_settings_are_watched_apart(toy, model, batches):
    config = {**MINMAX, "layers": {"b": {"asymmetric": False}}}
    records = calibrate(model, batches, config, batch_num=4)
    assert toy.runs == [("a", "b")]
    assert records["b"].offset_d == 0
    largest = max(float(np.abs(batch).max()) for batch in batches)
    assert records["b"].scale_d == pytest.approx(largest / 127, rel=0.01)


def test_the_precision_mode_is_in_every_record(toy, model, batches):
    records = calibrate(model, batches, {**MINMAX, "fakequant_precision_mode": "FORCE_FP16_QUANT"}, batch_num=4)
    assert {record.fakequant_precision_mode for record in records.values()} == {"FORCE_FP16_QUANT"}


def test_bits_are_written_as_types(toy, model, batches):
    config = {**MINMAX, "layers": {"b": {"activation_bits": 16}}}
    record = calibrate(model, batches, config, batch_num=4)["b"]
    low, high = min(b.min() for b in batches), max(b.max() for b in batches)
    assert record.act_type == "INT16"
    assert record.scale_d == pytest.approx((float(high) - float(low)) / 65535, rel=1e-6)


def test_balance_factors_move_uneven_channels_into_the_weights(toy, model, batches):
    uneven = [batch * np.float32([1, 100, 0.01]) for batch in batches]
    config = {**MINMAX, "dmq_migration_strength": 0.5, "do_fusion": False}
    record = calibrate(model, uneven, config, batch_num=4)["b"]
    largest = np.max([np.abs(batch).max(axis=0) for batch in uneven], axis=0).astype(np.float64)
    factors = np.sqrt(largest / np.abs(WEIGHT).max(axis=1))
    np.testing.assert_allclose(record.tensor_balance_factor, factors, rtol=1e-6)
    divided = np.concatenate(uneven) / factors
    assert record.scale_d == pytest.approx((divided.max() - divided.min()) / 255, rel=1e-5)
    balanced = WEIGHT * factors[:, None]
    assert record.scale_w[0] == pytest.approx(np.abs(balanced).max() / 127, rel=0.01)


def test_the_model_that_the_record_is_for_can_be_written(toy, model, batches, tmp_path):
    config = {**MINMAX, "layers": {"b": {"dmq_migration_strength": 0.5}}}
    records = calibrate(model, batches, config, batch_num=4, prepared_model=tmp_path / "out" / "prepared.toy")
    prepared = json.loads((tmp_path / "out" / "prepared.toy").read_text())
    np.testing.assert_allclose(prepared["a"], WEIGHT * 2)
    np.testing.assert_allclose(prepared["b"], WEIGHT * records["b"].tensor_balance_factor[:, None], rtol=1e-6)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prepared.toy"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "with its normalizations folded (layers that differ: 1)"),
        (
            {"do_fusion": False, "layers": {"b": {"dmq_migration_strength": 0.5}}},
            "with its weights balanced (layers that differ: 1)",
        ),
        (
            {"dmq_migration_strength": 0.5},
            "with its normalizations folded and its weights balanced (layers that differ: 2)",
        ),
    ],
)
def test_a_record_for_a_changed_model_is_a_warning_that_says_what_changed_and_what_to_do(
    toy, model, batches, caplog, config, told
):
    with caplog.at_level(logging.WARNING):
        calibrate(model, batches, {**MINMAX, **config}, batch_num=4)
    assert told in caplog.text
    assert "prepared_model" in caplog.text


def test_a_record_for_the_users_own_model_is_no_warning(toy, model, batches, caplog):
    calibrate(model, batches, {**MINMAX, "do_fusion": False}, batch_num=4)
    assert not caplog.records


@pytest.mark.parametrize("algorithm", ["minmax", "ifmr", "hfmg", "percentile", "entropy", "mse"])
def test_batches_of_another_size_and_order_give_the_same_bytes(toy, model, batches, algorithm):
    config = {"activation_algorithm": algorithm}
    calibrate(model, batches, config, batch_num=4)
    expected = model.with_name("record.txt").read_bytes()
    samples = np.random.default_rng(0).permutation(np.concatenate(batches))
    for data, batch_num in ((iter(np.split(samples, 8)), 8), ({"x": samples}, 1), (samples, 20)):
        calibrate(model, data, config, batch_num=batch_num)
        assert model.with_name("record.txt").read_bytes() == expected


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0], ids=["zero", "positive", "negative"])
@pytest.mark.parametrize("algorithm", ["minmax", "ifmr", "hfmg", "percentile", "entropy", "mse"])
def test_a_constant_activation_gives_a_record_that_represents_it(toy, model, algorithm, value):
    data = [np.full((10, 3), value, np.float32)] * 2
    record = calibrate(model, data, {"activation_algorithm": algorithm}, batch_num=2, allow_constant=True)["b"]
    grid = (np.arange(-128, 128) - record.offset_d) * record.scale_d
    assert np.abs(grid - value).min() <= record.scale_d
    assert record.scale_d > 0


@pytest.mark.parametrize("value", [0.0, 3.5])
@pytest.mark.parametrize("algorithm", ["minmax", "ifmr", "hfmg"])
def test_a_constant_activation_is_an_error_that_names_layer_and_value(toy, model, algorithm, value):
    data = [np.full((10, 3), value, np.float32)] * 2
    with pytest.raises(CalibrationError, match=rf"in all 2 batches.*: layers 'a', 'b': {value:g}\. .*allow_constant"):
        calibrate(model, data, {"activation_algorithm": algorithm}, batch_num=2)
    assert not model.with_name("record.txt").exists()


@pytest.mark.parametrize("value", [0.0, 3.5])
@pytest.mark.parametrize("algorithm", ["minmax", "ifmr", "hfmg"])
def test_a_constant_activation_that_is_allowed_is_a_warning(toy, model, caplog, algorithm, value):
    data = [np.full((10, 3), value, np.float32)] * 2
    with caplog.at_level(logging.WARNING):
        calibrate(model, data, {"activation_algorithm": algorithm}, batch_num=2, allow_constant=True)
    assert f"layers 'a', 'b': every value of the activation is {value:g}, in all 2 batches" in caplog.text


def test_batches_that_are_constant_but_differ_are_no_warning(toy, model, caplog):
    data = [np.full((10, 3), value, np.float32) for value in (1.0, 2.0)]
    with caplog.at_level(logging.WARNING):
        calibrate(model, data, batch_num=2)
    assert "every value" not in caplog.text


def test_the_folder_of_the_record_is_made(toy, model, batches, tmp_path):
    twinquant.calibrate(model, batches, tmp_path / "new" / "folder" / "record.txt", batch_num=4)
    assert (tmp_path / "new" / "folder" / "record.txt").exists()


@pytest.mark.parametrize("which", ["record_file", "prepared_model"])
@pytest.mark.parametrize("source", ["net.toy", "data.npz", "config.cfg"])
def test_no_output_replaces_what_is_read(toy, model, batches, tmp_path, which, source):
    np.savez(tmp_path / "data.npz", x=batches[0])
    (tmp_path / "config.cfg").write_text("batch_num: 1")
    outputs = {"record_file": tmp_path / "record.txt", which: tmp_path / source}
    before = (tmp_path / source).read_bytes()
    with pytest.raises(OutputPathError, match=r"would replace an input"):
        twinquant.calibrate(model, tmp_path / "data.npz", config=tmp_path / "config.cfg", **outputs)
    assert (tmp_path / source).read_bytes() == before
    assert toy.runs == []


def test_one_name_for_both_outputs_is_an_error(toy, model, batches, tmp_path):
    with pytest.raises(OutputPathError, match=r"record_file and prepared_model are both '.*one'"):
        twinquant.calibrate(model, batches, tmp_path / "one", batch_num=4, prepared_model=tmp_path / "one")
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("which", ["record_file", "prepared_model"])
def test_a_file_where_a_folder_is_needed_is_an_error_before_anything_runs(toy, model, batches, tmp_path, which):
    outputs = {"record_file": tmp_path / "record.txt", which: model / "folder" / "output"}
    with pytest.raises(OutputPathError, match=r"folder' cannot be made: '.*net\.toy' is a file"):
        twinquant.calibrate(model, batches, batch_num=4, **outputs)
    assert toy.runs == []


def test_a_folder_as_record_is_an_error_before_anything_runs(toy, model, batches, tmp_path):
    with pytest.raises(OutputPathError, match="is a folder; give the name of a file"):
        twinquant.calibrate(model, batches, tmp_path, batch_num=4)
    assert toy.runs == []


# what is wrong with the data


def test_a_nan_is_an_error_that_names_layers_and_batch(toy, model, batches):
    batches[2][4, 1] = np.nan
    with pytest.raises(twinquant.TwinQuantError, match="layers 'a', 'b', batch 3: the activation holds 1 NaN"):
        calibrate(model, batches, batch_num=4)


def test_an_infinity_is_an_error_that_names_layer_and_batch(toy, model, batches):
    batches[0][0, 0] = -np.inf
    with pytest.raises(twinquant.TwinQuantError, match="batch 1: the activation holds 0 NaN and 1 infinite"):
        calibrate(model, batches, batch_num=4)


@pytest.mark.parametrize("make", [list, iter], ids=["list", "generator"])
def test_too_few_batches_are_an_error_that_says_how_many_there_were(toy, model, batches, make):
    with pytest.raises(DataError, match=r"only 4 batches, but calibration wants 5 \(batch_num\); .* batch_num to 4"):
        calibrate(model, make(batches), batch_num=5)


def test_a_generator_without_any_batch_is_an_error(toy, model):
    with pytest.raises(DataError, match="only 0 batches, but calibration wants 32"):
        calibrate(model, iter([]))


def test_a_loader_that_promises_too_little_is_not_even_started(toy, model, batches):
    class Loader:
        def __len__(self):
            return 3

        def __iter__(self):
            yield from ()

    with pytest.raises(DataError, match="only 3 batches, but calibration wants 4"):
        calibrate(model, Loader(), batch_num=4)
    assert toy.runs == []


def four_at_once(_graph):
    return [ModelInput("x", "float32", (4, 3))]


@pytest.mark.parametrize(("batch_num", "told"), [(1, False), (2, True)])
def test_samples_that_do_not_fill_a_batch_are_a_warning_where_all_others_are_used(
    toy, model, batches, monkeypatch, caplog, batch_num, told
):
    monkeypatch.setattr(toy, "model_inputs", four_at_once)
    with caplog.at_level(logging.WARNING):
        calibrate(model, batches[0], batch_num=batch_num)
    expected = "the last 2 of 10 samples do not fill a batch of 4, which the model fixes; they are left out"
    assert (expected in caplog.text) == told


def test_samples_that_do_not_fill_a_batch_are_part_of_the_error_about_too_few(toy, model, batches, monkeypatch):
    monkeypatch.setattr(toy, "model_inputs", four_at_once)
    with pytest.raises(DataError, match=r"only 2 batches, but .* wants 3 \(batch_num\), and the last 2 of 10 samples"):
        calibrate(model, batches[0], batch_num=3)


def test_an_error_leaves_the_old_record_as_it_was(toy, model, batches):
    model.with_name("record.txt").write_text("the old record")
    batches[3][0, 0] = np.nan
    with pytest.raises(twinquant.TwinQuantError):
        calibrate(model, batches, batch_num=4)
    assert model.with_name("record.txt").read_text() == "the old record"


def test_batches_beyond_those_wanted_are_not_asked_for(toy, model, batches):
    def endless():
        yield from batches
        raise AssertionError("a fifth batch was asked for")

    assert list(calibrate(model, endless(), {}, batch_num=4)) == ["a", "b"]


def test_training_the_rounding_is_an_error_that_names_the_layer(toy, model, batches):
    with pytest.raises(ConfigError, match="layer 'a': ada_quantize trains the rounding of weights"):
        calibrate(model, batches, {**MINMAX, "weight_algorithm": "ada_quantize"}, batch_num=4)
    assert toy.runs == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("batch_num", value) for value in (0, 1.5, "3", True)],
        *[("workers", value) for value in (0, -1, 2.0, "2", None, True, np.int64(0))],
    ],
)
def test_impossible_numbers_are_an_error_before_the_model_is_loaded(toy, model, batches, option, value, monkeypatch):
    if option == "workers":
        monkeypatch.setattr(toy, "load", lambda _: pytest.fail("the model was loaded"))
    with pytest.raises(
        ArgumentError, match=rf"{option}: must be a whole number above 0.*, got {re.escape(repr(value))}"
    ):
        calibrate(model, batches, **{option: value})


def test_numbers_of_numpy_are_numbers_of_workers_and_batches(toy, model, batches):
    assert list(calibrate(model, batches, workers=np.int64(1), batch_num=np.int64(4))) == ["a", "b"]


def test_a_plugin_that_cannot_calibrate_is_an_error(toy, model, batches):
    toy.capabilities = frozenset()
    with pytest.raises(CapabilityError, match="the toy plugin cannot calibrate"):
        calibrate(model, batches)


@pytest.mark.parametrize("asymmetric", [True, False])
def test_an_activation_too_small_for_a_scale_is_a_warning_that_names_its_layers(
    toy, model, batches, caplog, asymmetric
):
    # 4 * 1e-6 / 127 is below 1.19e-7, as 8 * 1e-6 / 255 is.
    small = [batch.clip(-4, 4) * np.float32(1e-6) for batch in batches]
    record = calibrate(model, small, {**MINMAX, "asymmetric": asymmetric}, batch_num=4)["a"]
    assert record.scale_d == 1.0
    (warned,) = [line.getMessage() for line in caplog.records if "too close to 0" in line.getMessage()]
    assert warned.startswith("layers 'a', 'b': the values of the activation lie between -")
    assert "e-06" in warned


def test_an_activation_whose_scale_is_1_by_itself_is_no_warning(toy, model, caplog):
    batch = np.array([[0.0, 100.0, 255.0]], np.float32)
    assert calibrate(model, [batch], batch_num=1)["a"].scale_d == 1.0
    assert not [line for line in caplog.records if "too close to 0" in line.getMessage()]


UNQUANTIZABLE = [
    LayerInfo("product", "Dense", LayerKind.GEMM, refusal="its weight is not constant"),
    LayerInfo("square", "Dense", LayerKind.GEMM, refusal="its weight is not constant"),
    LayerInfo("deep", "Conv", LayerKind.CONV, refusal="its weight has 7 axes"),
]


@pytest.fixture
def with_unquantizable_layers(toy, monkeypatch):
    layers = toy.layers
    monkeypatch.setattr(toy, "layers", lambda graph: [*layers(graph), *UNQUANTIZABLE])


def test_layers_that_cannot_be_quantized_are_told_with_their_reasons_in_one_warning(
    toy, with_unquantizable_layers, model, batches, caplog
):
    calibrate(model, batches, {**MINMAX, "do_fusion": False}, batch_num=4)
    assert [line.getMessage() for line in caplog.records] == [
        "layers that cannot be quantized and stay float: 3: 'product', 'square': its weight is not constant; 'deep': "
        "its weight has 7 axes"
    ]


def test_layers_that_the_configuration_skips_are_not_told(toy, with_unquantizable_layers, model, batches, caplog):
    off = {"product": {"quant_enable": False}, "square": {"quant_enable": False}}
    calibrate(model, batches, {**MINMAX, "do_fusion": False, "layers": off, "skip_layer_types": ["Conv"]}, batch_num=4)
    assert not caplog.records


def test_a_configuration_of_another_model_is_an_error(toy, model, batches):
    other = create_config([LayerInfo("conv", "Conv", LayerKind.CONV, weight_shape=(2, 2, 1, 1))])
    with pytest.raises(ConfigError, match=r"the QuantConfig, \$\.conv: neither a setting nor a layer of the model"):
        calibrate(model, batches, other)


def test_a_configuration_without_layers_is_an_error(toy, model, batches):
    with pytest.raises(ConfigError, match="no layer is left to quantize"):
        calibrate(model, batches, QuantConfig(batch_num=4))


def test_layers_that_a_finished_configuration_leaves_out_stay_float(toy, model, batches):
    config = create_config(toy.layers(None), batch_num=4)
    assert list(calibrate(model, batches, replace(config, layers={"b": config.layers["b"]}))) == ["b"]


@pytest.mark.parametrize("wrong", [{"num_bits": 5}, {"algorithm": "foo"}, {"search_step": 0.0}])
def test_an_impossible_setting_of_a_finished_configuration_has_its_path(toy, model, batches, wrong):
    config = create_config(toy.layers(None), batch_num=4)
    layers = {
        name: replace(layer, activation=replace(layer.activation, **wrong)) for name, layer in config.layers.items()
    }
    with pytest.raises(ConfigError) as caught:
        calibrate(model, batches, replace(config, layers=layers))
    name = {"algorithm": "act_algo"}.get(*wrong, *wrong)
    assert caught.value.path == f"$.a.activation_quant_params.{name}"


def test_a_model_in_which_fusion_leaves_nothing_to_quantize_is_an_error(toy, model, batches, monkeypatch):
    layers, fuse = toy.layers, toy.fuse
    monkeypatch.setattr(toy, "fuse", lambda graph, skip: ("fused", fuse(graph, skip)[1]))
    monkeypatch.setattr(toy, "layers", lambda graph: [] if graph == "fused" else layers(graph))
    with pytest.raises(ConfigError, match="no layer is left to quantize"):
        calibrate(model, batches, batch_num=4)
