"""The vendor's flow: configuration, init, quantize_model, forward passes, save_model."""

import json
import logging
import os
import subprocess
import sys
from functools import partial
from types import ModuleType

import numpy as np
import pytest
from amct_flow import LAYERS, TAPS, Blob, batch, caffe_layer, set_algorithm, settings_of
from nets import read_prototxt, stored_arrays
from runs import assert_equal_to, forward

import twinquant
from twinquant.errors import (
    ArgumentError,
    CalibrationError,
    ConfigError,
    OutputPathError,
    RecordFileError,
    RecordLayerError,
    RecordValueError,
)
from twinquant.records import parse_record_file
from twinquant_caffe import amct

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


@pytest.mark.parametrize(("save_type", "flavors"), [("fakequant", 2), ("DEPLOY", 2)])
def test_one_twin_comes_with_its_quant_json(flow, run_opencv, save_type, flavors):
    graph = flow.start()
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    amct.save_model(graph, save_type, flow.folder / "out" / "model")
    names = folder_names(flow.folder / "out")
    assert "model_quant.json" in names
    assert len(names) == flavors + 1


def test_the_modified_net_has_a_calibration_layer_before_every_quantized_layer(flow):
    flow.start()
    net = read_prototxt(flow.modified[0])
    tops = {layer.top[0]: layer for layer in net.layer}
    for layer in net.layer:
        if layer.name in LAYERS:
            assert tops[layer.bottom[0]].type == "Python"
    assert [layer.name for layer in net.layer if layer.type == "Python"] == [
        f"{name}_calibration_layer" for name in TAPS
    ]
    assert not {"bn", "scale"} & {layer.name for layer in net.layer}
    text = flow.modified[0].read_text()
    assert 'module: "twinquant_caffe.calibration_layer"' in text
    assert 'layer: "CalibrationLayer"' in text


def test_layers_that_are_calibrated_differently_get_calibration_layers_of_their_own(flow, run_opencv):
    content = json.loads(flow.config.read_text())
    content["right"]["activation_quant_params"] = {"act_algo": "minmax", "asymmetric": False}
    flow.config.write_text(json.dumps(content))
    flow.start()
    assert len(settings_of(flow.modified[0])) == len(LAYERS)
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


def test_one_pass_algorithms_keep_no_batches(flow, run_opencv):
    set_algorithm(flow, act_algo="minmax")
    flow.start()
    run_opencv(flow.modified, [batch(0, rows=50)])
    assert not list(flow.batches.rglob("*.npy"))
    assert sum(file.stat().st_size for file in flow.batches.rglob("*.npz")) < 20_000


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


def test_values_without_factors_are_told_by_every_later_call(flow, pycaffe):
    graph = flow.start()
    bottom, top = Blob(np.full((1, 3, 6, 6), np.nan, np.float32)), Blob()
    for _ in range(2):
        layer = caffe_layer(pycaffe, settings_of(flow.modified[0])[0], bottom, top)
        with pytest.raises(CalibrationError, match=r"'conv', batch 1: .*NaN"):
            layer.forward([bottom], [top])
    with pytest.raises(RecordFileError, match=r"'conv', batch 1: .*NaN"):
        amct.save_model(graph, "Both", flow.folder / "out" / "model")


def test_in_opencv_the_log_and_save_model_tell_of_values_without_factors(flow, run_opencv, caplog):
    graph = flow.start()
    run_opencv(flow.modified, [np.full((1, 3, 6, 6), np.nan, np.float32)])
    assert "calibration failed: layer 'conv', batch 1" in caplog.text
    with pytest.raises(RecordFileError, match=r"'conv', batch 1: .*NaN"):
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
