"""Where calibration layers are put: behind what has to be fed for the quantized layers, whoever brings it."""

import json

import numpy as np
import pytest
from amct_flow import Blob, caffe_layer, settings_of
from nets import read_prototxt, small_net

from twinquant.errors import RecordFileError, UnsupportedModelError
from twinquant.records import parse_record_file
from twinquant_caffe import amct

TWO = """input: "left" input_shape { dim: 2 dim: 3 } input: "right" input_shape { dim: 2 dim: 3 }
input: "label" input_shape { dim: 2 }
layer { name: "sum" type: "Eltwise" bottom: "left" bottom: "right" top: "sum" }
layer { name: "fc" type: "InnerProduct" bottom: "sum" top: "fc" inner_product_param { num_output: 2 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


def started(folder, text, batch_num=2):
    """Write a net with one InnerProduct, and its modified net; return the graph and every param_str."""
    weights = np.random.default_rng(3).standard_normal((2, 3)).astype(np.float32)
    pair = small_net(folder / "net", text, {"fc": [weights, np.zeros(2, np.float32)]})
    amct.create_quant_config(folder / "config.json", *pair, batch_num=batch_num)
    graph = amct.init(folder / "config.json", *pair, folder / "record.txt")
    amct.quantize_model(graph, folder / "m.prototxt", folder / "m.caffemodel")
    return graph, settings_of(folder / "m.prototxt")


def values(number):
    return np.random.default_rng(number).standard_normal((2, 3)).astype(np.float32)


@pytest.fixture
def two(tmp_path, pycaffe):
    """A graph of a net with two inputs, and functions that feed them, as Caffe does one after the other."""
    graph, settings = started(tmp_path, TWO)
    layers = [caffe_layer(pycaffe, text, Blob(values(0)), Blob()) for text in settings]
    feeds = [lambda array, layer=layer: layer.forward([Blob(array)], [Blob(np.zeros_like(array))]) for layer in layers]
    return graph, dict(zip((json.loads(text)["input"] for text in settings), feeds, strict=True))


def seen(graph, number):
    """Check how many batches were seen."""
    with pytest.raises(RecordFileError, match=f"{number} of 2 batches seen"):
        amct.save_model(graph, "Both", graph.record.parent / "out" / "model")


def test_inputs_that_no_quantized_layer_needs_are_not_stored(two):
    _, feed = two
    assert list(feed) == ["left", "right"]


def test_a_batch_counts_when_its_last_input_has_arrived(two):
    graph, feed = two
    feed["left"](values(1))
    seen(graph, 0)
    feed["right"](values(2))
    seen(graph, 1)
    feed["left"](values(3))
    seen(graph, 1)
    feed["right"](values(4))
    sums = np.concatenate([values(1) + values(2), values(3) + values(4)])
    record = parse_record_file(graph.record).records["fc"]
    assert record.scale_d == pytest.approx((sums.max() - sums.min()) / 255, rel=0.3)  # IFMR looks from 0.7 to 1.3


def test_the_batch_of_a_pass_that_was_cut_off_is_forgotten(two):
    graph, feed = two
    feed["left"](values(1))
    feed["right"](values(2))
    feed["left"](1000 * values(3))  # and its forward pass ended here
    feed["left"](values(3))
    feed["right"](values(4))
    record = parse_record_file(graph.record).records["fc"]
    sums = np.concatenate([values(1) + values(2), values(3) + values(4)])
    assert record.scale_d == pytest.approx((sums.max() - sums.min()) / 255, rel=0.3)


BRINGS = """layer {{ name: "source" {source} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param {{ num_output: 2 }} }}
"""


@pytest.mark.parametrize(
    "source",
    [
        'type: "Data" top: "x" top: "label"',
        'type: "MemoryData" top: "x" top: "label" memory_data_param { batch_size: 2 channels: 3 height: 1 width: 1 }',
        'type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } }',
        'type: "Python" top: "x" python_param { module: "mine" layer: "Loader" }',
    ],
)
def test_what_a_layer_of_data_brings_is_stored_behind_it_if_it_is_used(tmp_path, source):
    _, settings = started(tmp_path, BRINGS.format(source=source))
    assert [json.loads(text)["input"] for text in settings] == ["x"]
    names = [layer.name for layer in read_prototxt(tmp_path / "m.prototxt").layer]
    assert names == ["source", "x_calibration_layer", "fc"]


def test_the_net_that_is_run_again_asks_for_no_data_but_what_was_stored(tmp_path, pycaffe):
    graph, (settings,) = started(tmp_path, BRINGS.format(source='type: "Data" top: "x" top: "label"'))
    layer = caffe_layer(pycaffe, settings, Blob(values(0)), Blob())
    for number in range(2):
        layer.forward([Blob(values(number))], [Blob(values(number))])
    assert parse_record_file(graph.record).records["fc"].scale_d > 0


def test_a_calibration_layer_takes_no_name_of_the_net(tmp_path):
    text = BRINGS.format(source='type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } }')
    text += 'layer { name: "x_calibration_layer" type: "ReLU" bottom: "fc" top: "fc" }\n'
    started(tmp_path, text)
    names = [layer.name for layer in read_prototxt(tmp_path / "m.prototxt").layer]
    assert len(set(names)) == len(names) == 4


def test_the_weights_of_a_layer_that_stays_float_are_not_those_of_one_that_shares_them(tmp_path, run_opencv):
    text = """input: "data" input_shape { dim: 2 dim: 3 }
    layer { name: "fc" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" } param { name: "b" }
            inner_product_param { num_output: 2 } }
    layer { name: "same" type: "InnerProduct" bottom: "data" top: "b" param { name: "w" } param { name: "b" }
            inner_product_param { num_output: 2 } }
    layer { name: "out" type: "Eltwise" bottom: "a" bottom: "b" top: "out" }
    """
    weights = values(7)[:, :3]
    pair = small_net(tmp_path / "net", text, {name: [weights, np.zeros(2, np.float32)] for name in ("fc", "same")})
    amct.create_quant_config(tmp_path / "config.json", *pair, skip_layers=["same"])
    graph = amct.init(tmp_path / "config.json", *pair, tmp_path / "record.txt")
    modified = tmp_path / "m.prototxt", tmp_path / "m.caffemodel"
    amct.quantize_model(graph, *modified)
    layers = {layer.name: layer for layer in read_prototxt(modified[0]).layer}
    assert not [param.name for param in layers["fc"].param if param.name]
    run_opencv(modified, [values(1)])
    assert list(parse_record_file(tmp_path / "record.txt").records) == ["fc"]


def test_quantized_layers_that_depend_on_no_input_cannot_be_calibrated(tmp_path):
    text = """input: "data" input_shape { dim: 2 dim: 3 }
    layer { name: "constant" type: "Parameter" top: "x" parameter_param { shape { dim: 2 dim: 3 } } }
    layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param { num_output: 2 } }
    layer { name: "out" type: "Eltwise" bottom: "fc" bottom: "data" top: "out" }
    """
    pair = small_net(tmp_path / "net", text, {"fc": [values(0), np.zeros(2, np.float32)], "constant": [values(1)]})
    amct.create_quant_config(tmp_path / "config.json", *pair)
    graph = amct.init(tmp_path / "config.json", *pair, tmp_path / "record.txt")
    with pytest.raises(UnsupportedModelError, match="no quantized layer depends on an input"):
        amct.quantize_model(graph, tmp_path / "m.prototxt", tmp_path / "m.caffemodel")
    assert not (tmp_path / "record.txt").exists()
