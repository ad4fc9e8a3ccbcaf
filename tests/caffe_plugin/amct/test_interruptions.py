"""What a calibration in the vendor's way makes of older nets, processes that were killed, and files that are gone."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from amct_flow import LAYERS, Blob, batch, caffe_layer, set_algorithm, settings_of

from twinquant.errors import CalibrationError, ModelFileError, RecordFileError
from twinquant.records import parse_record_file
from twinquant_caffe import amct
from twinquant_caffe.modified import observation

SCRIPT = """
import sys
import cv2
import numpy as np
from twinquant_caffe.calibration_layer import CalibrationLayer

cv2.dnn_registerLayer("Python", CalibrationLayer)
net = cv2.dnn.readNetFromCaffe(sys.argv[1], sys.argv[2])
for batch in np.load(sys.argv[3]):
    net.setInput(batch, "data")
    net.forward()
"""


def run_elsewhere(flow, batches):
    """Run the modified net in a process of its own."""
    np.save(flow.folder / "data.npy", np.stack(batches))
    arguments = [str(path) for path in (*flow.modified, flow.folder / "data.npy")]
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=True, timeout=120)


class Layer:
    """The one calibration layer of a modified net, as pycaffe makes it when a net is built."""

    def __init__(self, module, prototxt):
        (settings,) = settings_of(prototxt)
        self._layer = caffe_layer(module, settings, Blob(batch(0)), Blob())

    def run(self, values):
        self._layer.forward([Blob(values)], [Blob(np.zeros_like(values))])


def wanted_record(flow, module, numbers):
    """The record of these batches, fed to one net without any interruption."""
    flow.start()
    layer = Layer(module, flow.modified[0])
    for number in numbers:
        layer.run(batch(number))
    return flow.record.read_bytes()


def save(graph, flow):
    amct.save_model(graph, "Both", flow.folder / "out" / "model")


def test_a_net_in_memory_that_is_older_than_the_record_is_refused_and_told_what_to_run(flow, pycaffe):
    flow.start()
    old = Layer(pycaffe, flow.modified[0])
    graph = flow.start()
    for _ in range(3):
        with pytest.raises(CalibrationError, match=r"older than .*record\.txt.*; run '.*modified\.prototxt'"):
            old.run(batch(0))
    with pytest.raises(RecordFileError, match="0 of 3 batches seen"):
        save(graph, flow)
    new = Layer(pycaffe, flow.modified[0])
    for number in range(3):
        new.run(batch(number))
    save(graph, flow)


def test_an_older_net_in_other_files_does_not_fill_the_record_of_a_newer_one(flow, run_opencv, caplog):
    flow.start()
    older = flow.folder / "older.prototxt", flow.folder / "older.caffemodel"
    for file, target in zip(flow.modified, older, strict=True):
        shutil.copy(file, target)
    content = json.loads(flow.config.read_text())
    content["conv"]["quant_enable"] = False
    flow.config.write_text(json.dumps(content))
    graph = flow.start()
    run_opencv(older, [batch(number) for number in range(3)])
    assert "this modified net is older than" in caplog.text
    with pytest.raises(RecordFileError, match="0 of 3 batches seen"):
        save(graph, flow)


def test_an_older_net_passes_its_values_on_when_the_calibration_is_over(flow, pycaffe):
    flow.start()
    old = Layer(pycaffe, flow.modified[0])
    before = wanted_record(flow, pycaffe, range(3))
    old.run(batch(8))
    assert flow.record.read_bytes() == before


@pytest.fixture
def killed(flow, pycaffe, monkeypatch):
    """The graph of a calibration that was killed when its record was complete and its folder still there."""
    graph = flow.start()
    layer = Layer(pycaffe, flow.modified[0])

    def kill(record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(observation, "remove_job", kill)
        for number in range(3):
            layer.run(batch(number))
    assert flow.batches.exists()
    return graph


def test_a_complete_record_is_saved_though_its_folder_was_left(flow, killed):
    save(killed, flow)
    assert (flow.folder / "out" / "model_deploy_model.prototxt").exists()
    assert not flow.batches.exists()


@pytest.mark.parametrize("left", ["everything", "one batch less", "no batches"])
def test_a_complete_record_stays_and_the_folder_that_was_left_goes_with_the_next_batch(flow, pycaffe, killed, left):
    before = flow.record.read_bytes()
    (flow.batches / "inputs" / "process.txt").unlink()  # it belonged to the process that was killed
    if left == "one batch less":
        next(flow.batches.rglob("*.npy")).unlink()
    elif left == "no batches":
        shutil.rmtree(flow.batches / "inputs")
    later = Layer(pycaffe, flow.modified[0])
    later.run(batch(9))
    assert not flow.batches.exists()
    assert flow.record.read_bytes() == before


def test_batches_of_a_process_that_ended_are_dropped_with_a_warning(flow, pycaffe, run_opencv, caplog):
    wanted = wanted_record(flow, pycaffe, range(3))
    flow.start()
    run_elsewhere(flow, [100 * batch(7), 100 * batch(8)])
    run_opencv(flow.modified, [batch(number) for number in range(3)])
    assert "2 of 3 batches that another process stored are dropped" in caplog.messages
    assert flow.record.read_bytes() == wanted


def test_another_process_at_the_same_time_is_an_error_in_the_older_one_and_nothing_is_mixed(flow, pycaffe):
    wanted_record(flow, pycaffe, range(3))
    wanted = parse_record_file(flow.record).records
    graph = flow.start()
    layer = Layer(pycaffe, flow.modified[0])
    layer.run(100 * batch(5))
    run_elsewhere(flow, [batch(0)])
    with pytest.raises(CalibrationError, match=r"another process runs '.*modified\.prototxt', too"):
        layer.run(100 * batch(6))
    with pytest.raises(RecordFileError, match="1 of 3 batches seen"):
        save(graph, flow)
    run_elsewhere(flow, [batch(number) for number in range(3)])
    for name, record in parse_record_file(flow.record).records.items():
        # Where there is a pycaffe, the other process has used it.
        assert record.scale_d == pytest.approx(wanted[name].scale_d, rel=1e-5)


def test_another_process_that_begins_during_the_calibration_is_named_as_the_reason_of_its_end(
    flow, pycaffe, monkeypatch
):
    flow.start()
    layer = Layer(pycaffe, flow.modified[0])
    fill_record = observation.fill_record

    def begin_elsewhere(job):
        run_elsewhere(flow, [batch(0)])
        fill_record(job)

    monkeypatch.setattr(observation, "fill_record", begin_elsewhere)
    with pytest.raises(CalibrationError, match="another process runs"):
        for number in range(3):
            layer.run(batch(number))
    run_elsewhere(flow, [batch(number) for number in range(3)])
    assert list(parse_record_file(flow.record).records) == LAYERS


def test_a_calibration_that_was_interrupted_goes_on_with_the_stored_batches(flow, pycaffe, monkeypatch):
    wanted = wanted_record(flow, pycaffe, range(3))
    graph = flow.start()
    layer = Layer(pycaffe, flow.modified[0])

    def interrupt(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(observation, "fill_record", interrupt)
        for number in range(3):
            layer.run(batch(number))
    with pytest.raises(RecordFileError, match="3 of 3 batches seen, but the calibration with them was cut off"):
        save(graph, flow)
    layer.run(batch(9))
    assert flow.record.read_bytes() == wanted


def test_a_modified_net_that_was_moved_says_where_it_was_and_goes_on_when_it_is_back(flow, pycaffe):
    graph = flow.start()
    layer = Layer(pycaffe, flow.modified[0])
    layer.run(batch(0))
    away = flow.folder / "away"
    flow.modified[1].rename(away)
    with pytest.raises(ModelFileError, match=r"was moved: '.*modified\.caffemodel', where it was written, is gone"):
        layer.run(batch(1))
    away.rename(flow.modified[1])
    layer.run(batch(1))
    layer.run(batch(2))
    save(graph, flow)


@pytest.mark.parametrize("changed", ["prototxt", "caffemodel"])
def test_a_modified_net_that_another_record_wrote_over_is_not_run_in_its_place(flow, pycaffe, changed):
    flow.start()
    layer = Layer(pycaffe, flow.modified[0])
    if changed == "prototxt":
        other = amct.init(flow.config, *flow.pair, flow.folder / "other.txt")
        amct.quantize_model(other, *flow.modified)
    else:
        data = bytearray(flow.modified[1].read_bytes())
        data[-40] ^= 1
        flow.modified[1].write_bytes(data)
    layer.run(batch(0))
    layer.run(batch(1))
    with pytest.raises(ModelFileError, match="was changed while it ran; write it anew with quantize_model"):
        layer.run(batch(2))
    assert flow.record.read_text().startswith("# calibration has not finished")


def test_a_layer_that_is_calibrated_by_one_pass_has_the_same_record_in_any_number_of_nets(flow, pycaffe):
    set_algorithm(flow, act_algo="minmax")
    wanted = wanted_record(flow, pycaffe, range(3))
    flow.start()
    for number in range(3):
        Layer(pycaffe, flow.modified[0]).run(batch(number))
    assert flow.record.read_bytes() == wanted
    assert list(parse_record_file(flow.record).records) == LAYERS


def test_batches_that_give_no_range_end_the_calibration_and_name_the_layers(flow, pycaffe):
    graph = flow.start()
    layer = Layer(pycaffe, flow.modified[0])
    layer.run(np.zeros_like(batch(0)))
    layer.run(np.zeros_like(batch(0)))
    with pytest.raises(CalibrationError, match=r"every value of an activation is the same.*skip_layers"):
        layer.run(np.zeros_like(batch(0)))
    with pytest.raises(RecordFileError, match="every value of an activation is the same"):
        save(graph, flow)
