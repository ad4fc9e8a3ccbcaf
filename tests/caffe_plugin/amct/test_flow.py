"""The vendor's flow: configuration, init, quantize_model, forward passes, save_model."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import ModuleType

import numpy as np
import pytest
from amct_flow import LAYERS, Blob, batch, caffe_layer, set_algorithm, settings_of
from nets import read_prototxt, small_net, stored_arrays
from runs import assert_equal_to, forward

import twinquant
from twinquant.errors import (
    ArgumentError,
    CalibrationError,
    ConfigError,
    OutputPathError,
    OutputWriteError,
    RecordFileError,
    RecordLayerError,
    RecordValueError,
)
from twinquant.records import parse_record_file
from twinquant_caffe import amct
from twinquant_caffe.modified import placing

OUTPUTS = [
    "model_deploy_model.prototxt",
    "model_deploy_weights.caffemodel",
    "model_fake_quant_model.prototxt",
    "model_fake_quant_weights.caffemodel",
    "model_quant.json",
]


def folder_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_whole_flow_writes_five_files(flow, run_opencv):
    graph = flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    amct.save_model(graph=graph, save_type="Both", save_path=str(flow.folder / "out" / "model"))
    assert folder_names(flow.folder / "out") == OUTPUTS
    assert list(parse_record_file(flow.record).records) == LAYERS
    data = batch(7, rows=5)
    wanted = forward(flow.pair, {"data": data})
    found = forward(tuple(flow.folder / "out" / name for name in OUTPUTS[2:4]), {"data": data})
    assert (wanted * found).sum() / np.linalg.norm(wanted) / np.linalg.norm(found) > 0.99


def cosine(one, two):
    return float((one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two))


def calibrate_skipping(folder, run_opencv, **settings):
    """Calibrate first -> BatchNorm -> second, where `first` stays float; return the float pair and the graph."""
    text = """input: "data" input_shape { dim: 2 dim: 3 dim: 6 dim: 6 }
    layer { name: "first" type: "Convolution" bottom: "data" top: "c"
            convolution_param { num_output: 4 kernel_size: 3 } }
    layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }
    layer { name: "second" type: "Convolution" bottom: "c" top: "out"
            convolution_param { num_output: 4 kernel_size: 3 } }
    """
    rng = np.random.default_rng(31)

    def values(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    blobs = {
        "first": [values(4, 3, 3, 3) * 100, values(4)],
        "bn": [values(4), np.float32([30000, 60000, 15000, 30000]), np.float32([1])],
        "second": [values(4, 4, 3, 3), values(4)],
    }
    pair = small_net(folder / "net", text, blobs)
    config, modified = folder / "config.json", (folder / "modified.prototxt", folder / "modified.caffemodel")
    amct.create_quant_config(config, *pair, batch_num=2)
    content = json.loads(config.read_text()) | settings
    content["first"]["quant_enable"] = False
    config.write_text(json.dumps(content))
    graph = amct.init(config, *pair, folder / "record.txt")
    amct.quantize_model(graph, *modified)
    run_opencv(modified, [batch(number) for number in range(2)])
    return pair, graph


@pytest.mark.parametrize("settings", [{"skip_fusion_layers": ["first"]}, {"do_fusion": False}])
def test_layers_that_stay_float_are_fused_in_the_twins_as_they_were_for_calibration(tmp_path, run_opencv, settings):
    pair, graph = calibrate_skipping(tmp_path, run_opencv, **settings)
    amct.save_model(graph, "Both", tmp_path / "out" / "model")
    for name in (OUTPUTS[0], OUTPUTS[2]):
        assert "bn" in {layer.name for layer in read_prototxt(tmp_path / "out" / name).layer}
    twin = tuple(tmp_path / "out" / name for name in OUTPUTS[2:4])
    data = {"data": batch(7)}
    assert cosine(forward(pair, data), forward(twin, data)) > 0.99


def test_the_record_of_a_layer_behind_a_skipped_one_fits_the_net_that_is_fused_without_knowing(tmp_path, run_opencv):
    pair, _ = calibrate_skipping(tmp_path, run_opencv, skip_fusion_layers=["first"])
    amct.convert_model(*pair, tmp_path / "record.txt", tmp_path / "out" / "model")
    twin = tuple(tmp_path / "out" / name for name in OUTPUTS[2:4])
    data = {"data": batch(7)}
    assert cosine(forward(pair, data), forward(twin, data)) > 0.99


@pytest.mark.parametrize("victim", ["net", "record"])
def test_the_twins_replace_no_input_of_the_calibration(tmp_path, run_opencv, victim):
    names = OUTPUTS[0], "model_deploy_model.caffemodel"
    pair, graph = calibrate_skipping(tmp_path, run_opencv)
    (tmp_path / "out").mkdir()
    taken = [tmp_path / "out" / name for name in names]
    for file, target in zip(pair, taken, strict=True):
        target.write_bytes(file.read_bytes())
    record = tmp_path / "out" / "model_quant.json"
    record.write_bytes(graph.record.read_bytes())
    changes = {"model": taken[0], "weights": taken[1]} if victim == "net" else {"record": record}
    before = {path: path.read_bytes() for path in (*taken, record)}
    with pytest.raises(OutputPathError, match="input"):
        amct.save_model(replace(graph, **changes), "Both", tmp_path / "out" / "model")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("save_type", "flavors"), [("fakequant", 2), ("DEPLOY", 2)])
def test_one_twin_comes_with_its_quant_json(flow, run_opencv, save_type, flavors):
    graph = flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    amct.save_model(graph, save_type, flow.folder / "out" / "model")
    names = folder_names(flow.folder / "out")
    assert "model_quant.json" in names
    assert len(names) == flavors + 1


def test_the_modified_net_has_a_calibration_layer_behind_its_input_which_keeps_its_name(flow):
    flow.start()
    net = read_prototxt(flow.modified[0])
    first, *others = net.layer
    assert (first.type, list(first.bottom), list(first.top)) == ("Python", ["data"], ["data"])
    assert not [layer for layer in others if layer.type == "Python"]
    assert not {"bn", "scale"} & {layer.name for layer in net.layer}
    text = flow.modified[0].read_text()
    assert 'module: "twinquant_caffe.calibration_layer"' in text
    assert 'layer: "CalibrationLayer"' in text
    (settings,) = settings_of(flow.modified[0])
    assert json.loads(settings)["folder"] == str(flow.batches)


def test_layers_that_read_the_same_may_be_calibrated_differently(flow, run_opencv):
    content = json.loads(flow.config.read_text())
    content["right"]["activation_quant_params"] = {"act_algo": "minmax", "asymmetric": False}
    flow.config.write_text(json.dumps(content))
    flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    records = parse_record_file(flow.record).records
    assert (records["left"].offset_d, records["right"].offset_d) == (-128, 0)


def test_the_modified_weights_are_multiples_of_their_scales(flow, run_opencv):
    flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    records = parse_record_file(flow.record).records
    found, original = stored_arrays(flow.modified[1]), stored_arrays(flow.pair[1])
    for name, axis in (("left", 0), ("right", 1), ("fc", None)):
        scale = records[name].scale_w
        if axis is not None:
            scale = scale.reshape([-1 if place == axis else 1 for place in range(4)])
        wanted = np.clip(np.rint(original[name][0] / scale), -128, 127).astype(np.float32) * scale
        np.testing.assert_array_equal(found[name][0], wanted)
        np.testing.assert_array_equal(found[name][1], original[name][1])


def test_the_modified_net_computes_almost_what_the_float_net_does(flow, run_opencv):
    flow.start()
    (found,) = run_opencv(flow.modified, [batch(0)])
    assert_equal_to(forward(flow.pair, {"data": batch(0)}), found, tolerance=0.05)


def ifmr(values):
    """The documented search, for fewer than a million values: every one of them counts."""
    high, low = max(0.0, values.max()), min(0.0, values.min())
    losses = []
    for factor in np.arange(0.7, 1.3, 0.01):
        scale = (high * factor - low) / 255
        clipped = np.clip(values, low, high * factor)
        losses.append((np.mean((np.round(clipped / scale) * scale - values) ** 2), scale))
    scale = min(losses, key=lambda item: item[0])[1]
    return scale, -round(low / scale) - 128


def minmax(values):
    high, low = max(0.0, values.max()), min(0.0, values.min())
    return (high - low) / 255, round(-128 - low / ((high - low) / 255))


@pytest.mark.parametrize(("algorithm", "wanted"), [("ifmr", ifmr), ("minmax", minmax)])
def test_factors_are_those_of_the_first_batches_together(flow, run_opencv, algorithm, wanted):
    set_algorithm(flow, act_algo=algorithm)
    flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(5)])
    seen = np.concatenate([batch(number) for number in range(3)]).astype(np.float64)
    scale, offset = wanted(seen)
    record = parse_record_file(flow.record).records["conv"]
    assert record.scale_d == pytest.approx(scale, rel=1e-5)
    assert record.offset_d == offset


def test_the_folder_of_the_batches_is_gone_when_the_record_is_complete(flow, run_opencv):
    flow.start()
    assert flow.batches.is_dir()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    assert not flow.batches.exists()
    before = flow.record.read_bytes()
    run_opencv(flow.modified, [batch(9)])
    assert flow.record.read_bytes() == before


@pytest.mark.parametrize("algorithm", ["ifmr", "minmax"])
def test_inputs_are_stored_and_no_activations(flow, run_opencv, algorithm):
    set_algorithm(flow, act_algo=algorithm)
    flow.start()
    run_opencv(flow.modified, [batch(0, rows=50), batch(1)])
    stored = sorted(flow.batches.rglob("*.npy"))
    for number, file in enumerate(stored):
        np.testing.assert_array_equal(np.load(file), batch(number, rows=50 if number == 0 else 2))
    assert len(stored) == 2


def test_the_record_is_the_one_of_all_batches_whatever_their_sizes(flow, run_opencv):
    set_algorithm(flow, act_algo="minmax")
    flow.start()
    run_opencv(flow.modified, [batch(0, rows=1), batch(1, rows=4), batch(2, rows=3)])
    seen = np.concatenate([batch(0, rows=1), batch(1, rows=4), batch(2, rows=3)])
    activation = forward(flow.pair, {"data": seen}, "relu")
    # The weights before `left` are rounded to their grid in the net that is watched.
    assert parse_record_file(flow.record).records["left"].scale_d == pytest.approx(minmax(activation)[0], rel=0.02)
    assert parse_record_file(flow.record).records["conv"].scale_d == pytest.approx(minmax(seen)[0], rel=1e-6)


def test_a_second_quantize_model_begins_anew(flow, run_opencv):
    flow.start()
    run_opencv(flow.modified, [batch(0), batch(1)])
    graph = flow.start()
    run_opencv(flow.modified, [batch(2)])
    with pytest.raises(RecordFileError, match="1 of 3 batches seen"):
        amct.save_model(graph, "Both", flow.folder / "out" / "model")


def test_batches_of_two_sessions_count_together(flow, run_opencv):
    flow.start()
    for number in range(3):
        run_opencv(flow.modified, [batch(number)])
    apart = flow.record.read_bytes()
    flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    assert flow.record.read_bytes() == apart


def test_save_model_before_the_batches_names_every_missing_layer_and_how_many_were_seen(flow, run_opencv):
    graph = flow.start()
    run_opencv(flow.modified, [batch(0), batch(1)])
    with pytest.raises(RecordFileError) as caught:
        amct.save_model(graph, "Both", flow.folder / "out" / "model")
    message = str(caught.value)
    assert "2 of 3 batches seen" in message
    assert "batch_num (3) forward passes first" in message
    assert all(f"{name} (scale_d, offset_d)" in message for name in LAYERS)
    assert not (flow.folder / "out").exists()


def test_the_unified_call_refuses_an_unfinished_record_too(flow):
    flow.start()
    with pytest.raises(RecordFileError, match="calibration has not finished"):
        twinquant.save_model(flow.pair, flow.record, flow.folder / "out" / "model")


def test_a_record_of_other_layers_names_all_that_are_missing(flow, run_opencv):
    graph = flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    blocks = flow.record.read_text().split("record {")
    flow.record.write_text("record {" + blocks[1])
    with pytest.raises(RecordValueError) as caught:
        amct.save_model(graph, "Both", flow.folder / "out" / "model")
    message = str(caught.value)
    assert "batch_num forward passes have to be run first" in message
    assert "4 layers: left (scale_d, offset_d, scale_w, offset_w);" in message
    assert "pool (scale_d, offset_d);" in message


def test_save_model_without_quantize_model_takes_a_complete_record(flow, run_opencv):
    flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    amct.save_model(flow.init(), "Both", flow.folder / "out" / "model")
    assert folder_names(flow.folder / "out") == OUTPUTS


def test_a_graph_from_elsewhere_is_refused(flow):
    for graph in (None, flow.pair, object()):
        with pytest.raises(ArgumentError, match="graph: must be what init returned"):
            amct.save_model(graph, "Both", flow.folder / "out" / "model")
        with pytest.raises(ArgumentError, match="graph: must be what init returned"):
            amct.quantize_model(graph, *flow.modified)


def test_a_wrong_save_type_is_refused_with_the_right_ones(flow):
    graph = flow.start()
    with pytest.raises(ArgumentError, match="'Both', 'Fakequant', 'Deploy', got 'All'"):
        amct.save_model(graph, "All", flow.folder / "out" / "model")


def test_an_input_that_is_not_finite_is_told_at_once_and_by_every_later_call(flow, pycaffe):
    graph = flow.start()
    bottom, top = Blob(np.full((1, 3, 6, 6), np.nan, np.float32)), Blob()
    for _ in range(2):
        layer = caffe_layer(pycaffe, settings_of(flow.modified[0])[0], bottom, top)
        with pytest.raises(CalibrationError, match=r"input 'data', batch 1: .*NaN"):
            layer.forward([bottom], [top])
        bottom.data = batch(0)
    with pytest.raises(RecordFileError, match=r"input 'data', batch 1: .*NaN"):
        amct.save_model(graph, "Both", flow.folder / "out" / "model")
    flow.start()
    caffe_layer(pycaffe, settings_of(flow.modified[0])[0], bottom, top).forward([bottom], [top])


def test_in_opencv_the_log_and_save_model_tell_of_an_input_that_is_not_finite(flow, run_opencv, caplog):
    graph = flow.start()
    run_opencv(flow.modified, [np.full((1, 3, 6, 6), np.nan, np.float32)])
    assert "calibration failed: input 'data', batch 1" in caplog.text
    with pytest.raises(RecordFileError, match=r"input 'data', batch 1: .*NaN"):
        amct.save_model(graph, "Both", flow.folder / "out" / "model")


def test_activations_without_factors_name_their_layers_and_the_batch(flow, run_opencv, caplog):
    graph = flow.start()
    run_opencv(flow.modified, [batch(0), np.full((1, 3, 6, 6), 3e38, np.float32), batch(2)])
    assert "calibration failed: layers 'left', 'right', batch 2" in caplog.text
    with pytest.raises(RecordFileError, match=r"calibration has not finished: layers 'left', 'right', batch 2"):
        amct.save_model(graph, "Both", flow.folder / "out" / "model")


def test_convert_model_takes_a_record_that_is_there(flow, run_opencv):
    flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    amct.convert_model(*flow.pair, flow.record, flow.folder / "out" / "model")
    assert folder_names(flow.folder / "out") == OUTPUTS


def test_a_record_for_a_layer_that_was_folded_away_says_so(flow, run_opencv):
    flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    flow.record.write_text(flow.record.read_text().replace('key: "conv"', 'key: "bn"'))
    with pytest.raises(RecordLayerError, match=r"'bn'.*folded into 'conv'"):
        amct.convert_model(*flow.pair, flow.record, flow.folder / "out" / "model")


def test_without_fusion_the_modified_net_and_the_twins_keep_their_normalizations(flow, run_opencv):
    content = json.loads(flow.config.read_text())
    flow.config.write_text(json.dumps({**content, "do_fusion": False}))
    graph = flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    amct.save_model(graph, "Both", flow.folder / "out" / "model")
    for prototxt in (flow.modified[0], flow.folder / "out" / OUTPUTS[2], flow.folder / "out" / OUTPUTS[0]):
        assert {"bn", "scale"} <= {layer.name for layer in read_prototxt(prototxt).layer}


def test_layers_that_are_switched_off_stay_float_and_unwatched(flow, run_opencv):
    content = json.loads(flow.config.read_text())
    content["left"]["quant_enable"] = content["pool"]["quant_enable"] = False
    flow.config.write_text(json.dumps(content))
    graph = flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    amct.save_model(graph, "Both", flow.folder / "out" / "model")
    assert list(parse_record_file(flow.record).records) == ["conv", "right", "fc"]
    np.testing.assert_array_equal(stored_arrays(flow.modified[1])["left"][0], stored_arrays(flow.pair[1])["left"][0])


def test_a_configuration_of_another_net_is_refused_by_init(flow):
    content = json.loads(flow.config.read_text())
    content["elsewhere"] = content.pop("fc")
    flow.config.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="elsewhere"):
        flow.init()


def test_inputs_are_not_overwritten(flow):
    with pytest.raises(OutputPathError, match="is an input of this call"):
        amct.quantize_model(flow.init(), flow.pair[0], flow.modified[1])
    with pytest.raises(OutputPathError, match="is an input of this call"):
        amct.quantize_model(flow.init(), flow.record, flow.modified[1])
    with pytest.raises(ArgumentError, match="give them two names"):
        amct.quantize_model(flow.init(), flow.modified[0], flow.modified[0])
    with pytest.raises(OutputPathError, match="is an input of this call"):
        amct.init(flow.config, *flow.pair, flow.pair[1])


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
@pytest.mark.parametrize("begun", [False, True])
def test_a_failure_of_quantize_model_leaves_everything_as_it_was(flow, run_opencv, monkeypatch, failing, begun):
    graph = flow.start() if begun else flow.init()
    if begun:
        run_opencv(flow.modified, [batch(0)])
    before = snapshot(flow.folder)
    moves = []

    def put(staged, target, undo):
        moves.append(target)
        placing.put(staged if len(moves) < failing else staged.with_name("gone"), target, undo)

    monkeypatch.setattr("twinquant_caffe.modified.quantize.put", put)
    with pytest.raises(OutputWriteError, match="earlier outputs are unchanged"):
        amct.quantize_model(graph, *flow.modified)
    assert len(moves) == failing
    assert snapshot(flow.folder) == before
    if begun:
        run_opencv(flow.modified, [batch(1), batch(2)])
        amct.save_model(graph, "Both", flow.folder / "out" / "model")


def test_a_folder_is_no_target_of_quantize_model(flow):
    graph = flow.init()
    (flow.folder / "taken").mkdir()
    for files in ((flow.modified[0], flow.folder / "taken"), (flow.folder / "taken", flow.modified[1])):
        with pytest.raises(OutputPathError, match=r"'.*taken' is a folder; give the path of the file"):
            amct.quantize_model(graph, *files)
    assert not list((flow.folder / "taken").iterdir())
    assert not flow.record.exists() and not flow.batches.exists()


def test_the_files_of_a_modified_net_may_lie_in_different_new_folders(flow, run_opencv):
    pair = flow.folder / "one" / "m.prototxt", flow.folder / "two" / "m.caffemodel"
    amct.quantize_model(flow.init(), *pair)
    run_opencv(pair, [batch(number) for number in range(3)])
    assert list(parse_record_file(flow.record).records) == LAYERS
    assert folder_names(flow.folder / "one") == ["m.prototxt"]
    assert folder_names(flow.folder / "two") == ["m.caffemodel"]


def test_paths_count_from_where_init_was_called(flow, run_opencv, monkeypatch):
    monkeypatch.chdir(flow.folder)
    graph = amct.init("config.json", "net/net.prototxt", "net/net.caffemodel", "sub/record.txt")
    amct.quantize_model(graph, "m.prototxt", "m.caffemodel")
    elsewhere = flow.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    pair = (flow.folder / "m.prototxt", flow.folder / "m.caffemodel")
    run_opencv(pair, [batch(number) for number in range(3)])
    assert list(parse_record_file(flow.folder / "sub" / "record.txt").records) == LAYERS


def test_modes_are_set_in_pycaffe_where_it_is_there(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(sys.modules, "caffe", None)
    amct.set_cpu_mode()
    assert "pycaffe is not installed" in caplog.text

    modes = []
    caffe = ModuleType("caffe")
    caffe.set_mode_cpu, caffe.set_mode_gpu = partial(modes.append, "cpu"), partial(modes.append, "gpu")
    monkeypatch.setitem(sys.modules, "caffe", caffe)
    amct.set_cpu_mode()
    amct.set_gpu_mode()
    assert modes == ["cpu", "gpu"]


def test_importing_the_flow_imports_neither_caffe_nor_opencv():
    code = "import sys, twinquant_caffe.amct; print([n for n in ('cv2', 'caffe', 'onnx') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"
