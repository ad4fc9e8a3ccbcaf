"""The calibration layer in pycaffe, whose objects are imitated here."""

import shutil
import sys

import numpy as np
import pytest
from amct_flow import Blob, batch, caffe_layer, settings_of

from twinquant.records import parse_record_file


@pytest.fixture
def layers(flow, pycaffe):
    """The calibration layers of a modified net, one for its input, with a bottom and a top each."""
    flow.start()
    blobs = [(Blob(batch(0)), Blob()) for _ in settings_of(flow.modified[0])]
    return [
        (caffe_layer(pycaffe, settings, bottom, top), bottom, top)
        for settings, (bottom, top) in zip(settings_of(flow.modified[0]), blobs, strict=True)
    ]


def run_batches(layers, numbers):
    for number in numbers:
        for layer, bottom, top in layers:
            bottom.data = batch(number)
            layer.reshape([bottom], [top])
            layer.forward([bottom], [top])


def test_values_pass_unchanged(layers):
    layer, bottom, top = layers[0]
    layer.forward([bottom], [top])
    np.testing.assert_array_equal(top.data, batch(0))
    np.testing.assert_array_equal(bottom.data, batch(0))


def test_the_top_follows_the_shape_of_the_bottom(layers):
    layer, bottom, top = layers[0]
    bottom.data = batch(1, rows=7)
    layer.reshape([bottom], [top])
    assert top.shape == (7, 3, 6, 6)


def test_the_gradient_passes_where_it_is_wanted(layers):
    layer, bottom, top = layers[0]
    top.diff = batch(5)
    layer.backward([top], [False], [bottom])
    assert not bottom.diff.any()
    layer.backward([top], [True], [bottom])
    np.testing.assert_array_equal(bottom.diff, batch(5))


def test_the_record_is_complete_after_batch_num_passes(flow, layers):
    run_batches(layers, range(2))
    assert flow.record.read_text().startswith("# calibration has not finished")
    run_batches(layers, [2])
    assert all(record.scale_d for record in parse_record_file(flow.record))


def test_later_batches_do_not_count(flow, layers):
    run_batches(layers, range(3))
    before = flow.record.read_bytes()
    run_batches(layers, [7])
    assert flow.record.read_bytes() == before


def test_a_folder_that_was_removed_stops_nothing(flow, layers):
    shutil.rmtree(flow.batches)
    run_batches(layers, range(3))
    assert flow.record.read_text().startswith("# calibration has not finished")


def test_a_calibration_whose_folder_is_gone_warns_once(flow, layers, caplog):
    run_batches(layers, range(1))
    shutil.rmtree(flow.batches)
    run_batches(layers, range(3))
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "record.txt is not complete" in record.getMessage() and "call quantize_model again" in record.getMessage()


def test_a_complete_calibration_has_no_folder_and_warns_of_nothing(flow, layers, caplog):
    run_batches(layers, range(5))
    assert not flow.batches.exists()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("known", [["Convolution", "InnerProduct"], None])
def test_a_caffe_that_cannot_build_the_net_is_not_asked_as_that_would_end_the_process(flow, layers, monkeypatch, known):
    def build(*arguments):
        raise AssertionError

    monkeypatch.setattr(sys.modules["caffe"], "Net", build, raising=False)
    if known is not None:  # else it does not tell
        monkeypatch.setattr(sys.modules["caffe"], "layer_type_list", lambda: known, raising=False)
    run_batches(layers, range(3))
    assert all(record.scale_d for record in parse_record_file(flow.record))
