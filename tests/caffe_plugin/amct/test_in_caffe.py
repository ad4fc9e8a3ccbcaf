"""The vendor's flow in stock Caffe. Skipped where pycaffe is not installed: no package index has it."""

import json
import sys
from types import ModuleType

import numpy as np
import pytest
from amct_flow import LAYERS, batch
from nets import small_net

from twinquant.errors import RecordFileError
from twinquant.records import parse_record_file
from twinquant_caffe import amct

caffe = pytest.importorskip("caffe")

pytestmark = pytest.mark.filterwarnings("ignore")  # pycaffe's own


def run_caffe(pair, batches, name="data"):
    net = caffe.Net(*map(str, pair), caffe.TEST)
    for values in batches:
        net.blobs[name].reshape(*values.shape)
        net.blobs[name].data[...] = values
        net.forward()
    return net


def test_caffe_and_opencv_find_the_same_factors(flow, run_opencv):
    graph = flow.start()
    run_opencv(flow.modified, [batch(number, rows=number + 1) for number in range(3)])
    wanted = parse_record_file(flow.record)
    flow.start()
    run_caffe(flow.modified, [batch(number, rows=number + 1) for number in range(5)])
    found = parse_record_file(flow.record)
    assert list(found.records) == LAYERS
    for name in LAYERS:
        assert found.records[name].scale_d == pytest.approx(wanted.records[name].scale_d, rel=1e-5)
        assert found.records[name].offset_d == wanted.records[name].offset_d
    assert not flow.batches.exists()
    amct.save_model(graph, "Both", flow.folder / "out" / "model")


def minmax(values):
    high, low = max(0.0, values.max()), min(0.0, values.min())
    return pytest.approx((high - low) / 255, rel=1e-6)


def python_module(monkeypatch, **layers):
    """Make Python layers importable as `mine`: functions of the bottom's values, None for a source."""
    module = ModuleType("mine")

    def make(function):
        class Layer(caffe.Layer):
            def setup(self, bottom, top):
                self.number = 0

            def reshape(self, bottom, top):
                top[0].reshape(*(bottom[0].data.shape if len(bottom) else (2, 3, 6, 6)))

            def forward(self, bottom, top):
                top[0].data[...] = function(bottom[0].data if len(bottom) else self.number)
                self.number += 1

        return Layer

    for name, function in layers.items():
        setattr(module, name, make(function))
    monkeypatch.setitem(sys.modules, "mine", module)


def calibrate(folder, text, batches=2):
    """Make the modified net of a net with two convolutions, `first` on 3 channels and `second` on 4."""
    rng = np.random.default_rng(4)
    blobs = {
        "first": [rng.standard_normal((4, 3, 3, 3)).astype(np.float32)],
        "second": [rng.standard_normal((4, 4, 3, 3)).astype(np.float32)],
    }
    pair = small_net(folder / "net", text, blobs)
    config, modified = folder / "config.json", (folder / "m.prototxt", folder / "m.caffemodel")
    amct.create_quant_config(config, *pair, batch_num=batches)
    content = json.loads(config.read_text())
    for name in ("first", "second"):
        content[name]["activation_quant_params"] = {"act_algo": "minmax"}
    config.write_text(json.dumps(content))
    graph = amct.init(config, *pair, folder / "record.txt")
    amct.quantize_model(graph, *modified)
    return graph, modified


CONVOLUTION = """layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{top}"
        convolution_param {{ num_output: 4 kernel_size: 3 bias_term: false }} }}
"""
FIRST = CONVOLUTION.format(name="first", bottom="data", top="a")
HEAD = 'input: "data" input_shape { dim: 2 dim: 3 dim: 6 dim: 6 }\n'


def test_layers_that_only_caffe_knows_and_in_place_ones_are_run_again(tmp_path, monkeypatch):
    python_module(monkeypatch, Triple=lambda values: 3 * values)
    text = f"""{HEAD}{FIRST}
    layer {{ name: "triple" type: "Python" bottom: "a" top: "b" python_param {{ module: "mine" layer: "Triple" }} }}
    layer {{ name: "norm" type: "MVN" bottom: "b" top: "c" }}
    layer {{ name: "double" type: "Power" bottom: "c" top: "c" power_param {{ scale: -2 }} }}
    {CONVOLUTION.format(name="second", bottom="c", top="d")}
    layer {{ name: "later" type: "Power" bottom: "d" top: "d" power_param {{ scale: 100 }} }}
    """
    graph, modified = calibrate(tmp_path, text)
    net = run_caffe(modified, [batch(0), batch(1)])
    records = parse_record_file(graph.record).records
    # The blob `c` holds what the in-place layer left for `second`, of the last batch.
    both = [net.blobs["c"].data.copy()]
    net.blobs["data"].data[...] = batch(0)
    net.forward()
    both.append(net.blobs["c"].data.copy())
    assert records["second"].scale_d == minmax(np.concatenate(both))
    assert records["first"].scale_d == minmax(np.concatenate([batch(0), batch(1)]))


def test_what_a_layer_reads_is_what_was_there_before_a_later_layer_overwrote_it(tmp_path):
    text = f"""{HEAD}
    layer {{ name: "shift" type: "Power" bottom: "data" top: "data" power_param {{ shift: 5 }} }}
    {FIRST}
    layer {{ name: "relu" type: "ReLU" bottom: "a" top: "a" }}
    {CONVOLUTION.format(name="second", bottom="a", top="d")}
    """
    graph, modified = calibrate(tmp_path, text)
    run_caffe(modified, [batch(0), batch(1)])
    seen = np.concatenate([batch(0), batch(1)]) + 5
    assert parse_record_file(graph.record).records["first"].scale_d == minmax(seen)


def test_data_that_a_layer_of_the_net_brings_is_not_fetched_twice(tmp_path, monkeypatch):
    python_module(monkeypatch, Loader=batch)
    text = f"""layer {{ name: "data" type: "Python" top: "data" python_param {{ module: "mine" layer: "Loader" }} }}
    {FIRST}{CONVOLUTION.format(name="second", bottom="a", top="d")}"""
    graph, modified = calibrate(tmp_path, text)
    net = caffe.Net(*map(str, modified), caffe.TEST)
    net.forward()
    with pytest.raises(RecordFileError, match="1 of 2 batches seen"):
        amct.save_model(graph, "Both", tmp_path / "out" / "model")
    net.forward()
    seen = np.concatenate([batch(0), batch(1)])
    assert parse_record_file(graph.record).records["first"].scale_d == minmax(seen)


def test_rules_of_stages_do_not_change_the_net_that_is_run_again(tmp_path):
    text = f"""{HEAD}state {{ phase: TEST stage: "deploy" }}
    {FIRST}
    layer {{ name: "half" type: "Power" bottom: "a" top: "b" power_param {{ scale: 0.5 }}
             include {{ phase: TEST stage: "deploy" }} }}
    {CONVOLUTION.format(name="second", bottom="b", top="d")}"""
    graph, modified = calibrate(tmp_path, text, batches=1)
    net = caffe.Net(str(modified[0]), caffe.TEST, stages=["deploy"], weights=str(modified[1]))
    net.blobs["data"].data[...] = batch(0)
    net.forward()
    assert parse_record_file(graph.record).records["second"].scale_d == minmax(net.blobs["b"].data)


def test_values_that_are_not_finite_raise_in_forward(flow):
    graph = flow.start()
    with pytest.raises(Exception, match="input 'data', batch 1"):
        run_caffe(flow.modified, [np.full((1, 3, 6, 6), np.nan, np.float32)])
    with pytest.raises(RecordFileError, match="input 'data', batch 1"):
        amct.save_model(graph, "Both", flow.folder / "out" / "model")
