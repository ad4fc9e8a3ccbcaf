"""What is written is what was read, and protobuf reads it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import pytest

import twinquant_caffe.write
from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant_caffe.load import load_net
from twinquant_caffe.net import Blob, Layer
from twinquant_caffe.prototxt import Message, make
from twinquant_caffe.values import ArrayValues
from twinquant_caffe.write import write_net

TEXT = """name: "net"  # from a fork
fork_setting { deep: [1, 2] }
input: "data"
input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
# the first one
layer {
  name: "conv"
  type: "Convolution"   # comments stay
  bottom: "data"
  top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 fork_dilation: { x: 1 } }
}
layer {
  name: "relu" type: "ReLU" bottom: "conv" top: "conv"
}
layer {
  name: "odd"
  type: "ForkLayer"
  bottom: "conv"
  top: "odd"
  fork_param < alpha: .5  mode: FAST; table: "\\200\\001" >
}
layer { name: "old_clip" type: "Clip" bottom: "odd" top: "clip" clip_param { min: 0 max: 6 } }
layer { name: "pool" type: "Pooling" bottom: "clip" top: "pool"
  pooling_param { kernel_size: 2 round_mode: FLOOR ceil_mode: false } }
"""
RANDOM = np.random.default_rng(7)
WEIGHT = RANDOM.standard_normal((4, 3, 3, 3)).astype(np.float32)
BIAS = RANDOM.standard_normal(4).astype(np.float32)
ODD = RANDOM.standard_normal((2, 5))


@pytest.fixture
def pair(tmp_path):
    return nets.small_net(tmp_path, TEXT, {"conv": [WEIGHT, BIAS], "odd": [ODD]})


def rewrite(pair, folder):
    folder.mkdir()
    return write_net(load_net(pair), folder, "out.prototxt", "out.caffemodel")


def test_an_unchanged_net_is_written_letter_for_letter(pair, tmp_path):
    prototxt, _ = rewrite(pair, tmp_path / "out")
    assert prototxt == tmp_path / "out" / "out.prototxt"
    assert prototxt.read_text() == TEXT


def test_an_unchanged_caffemodel_holds_the_same_for_protobuf(pair, tmp_path):
    _, weights = rewrite(pair, tmp_path / "out")
    assert nets.read_caffemodel(weights) == nets.read_caffemodel(pair[1])


def test_doubles_and_legacy_shapes_are_written_as_they_were(tmp_path):
    pair = nets.small_net(tmp_path, TEXT, {"conv": [WEIGHT.astype(float), BIAS], "odd": [ODD]}, legacy=True)
    _, weights = rewrite(pair, tmp_path / "out")
    assert nets.read_caffemodel(weights) == nets.read_caffemodel(pair[1])
    assert nets.stored_arrays(weights)["conv"][0].dtype == np.float64


def test_unknown_fields_of_the_caffemodel_survive_byte_for_byte(pair, tmp_path):
    def field(number, content):
        key = number * 8 + 2
        return bytes([key & 0x7F | 0x80, key >> 7, len(content)]) + content

    # 148 is clip_param in one schema and smooth_l1_loss_param in another; what it holds is nobody's business.
    of_layer = field(148, b"\x0d\x00\x00\x80\x3f") + field(555, b"\xff\x00anything")
    of_net = field(777, bytes(range(100)))
    stored = nets.read_caffemodel(pair[1])
    stored.layer[-1].MergeFromString(of_layer)
    stored.MergeFromString(of_net)
    pair[1].write_bytes(stored.SerializeToString())
    _, weights = rewrite(pair, tmp_path / "out")
    assert of_layer in weights.read_bytes()
    assert of_net in weights.read_bytes()
    assert load_net((pair[0], weights)).layer("pool").rest == of_layer


def test_what_is_written_is_read_again_alike(pair, tmp_path):
    again = load_net(rewrite(pair, tmp_path / "out"))
    net = load_net(pair)
    assert again.head == net.head
    assert [layer.message for layer in again.layers] == [layer.message for layer in net.layers]
    assert again.outputs == net.outputs


def test_layers_of_the_training_phase_are_left_out(tmp_path):
    text = TEXT + 'layer { name: "loss" type: "Loss" bottom: "pool" top: "l" include { phase: TRAIN } }\n'
    prototxt, weights = rewrite(
        nets.small_net(tmp_path, text, {"conv": [WEIGHT, BIAS], "odd": [ODD]}), tmp_path / "out"
    )
    assert "loss" not in prototxt.read_text()
    assert [layer.name for layer in nets.read_caffemodel(weights).layer][-1] == "pool"


def test_a_changed_layer_is_written_with_its_new_names(pair, tmp_path):
    net = load_net(pair)
    layers = list(net.layers)
    layers[0] = replace(layers[0], tops=("conv/int32",))
    layers.insert(1, Layer("scale", "Scale", ("conv/int32",), ("conv",), make(scale_param=make(bias_term=False))))
    layers[1] = replace(layers[1], blobs=(Blob((4,), ArrayValues(np.float32([1, 2, 3, 4]))),))
    layers.insert(3, Layer("bare", "Power", ("conv",), ("conv",), Message()))
    (tmp_path / "out").mkdir()
    prototxt, weights = write_net(net.with_layers(layers), tmp_path / "out", "n.prototxt", "n.caffemodel")
    read, stored = nets.read_prototxt(prototxt), nets.read_caffemodel(weights)
    for layer in (read.layer[0], stored.layer[0]):
        assert (layer.name, list(layer.top)) == ("conv", ["conv/int32"])
    for layer in (read.layer[1], stored.layer[1]):
        assert (layer.name, layer.type, layer.bottom, layer.top) == ("scale", "Scale", ["conv/int32"], ["conv"])
    assert (read.layer[3].name, read.layer[3].type) == ("bare", "Power")
    assert "bias_term: false" in prototxt.read_text()
    assert 'fork_param < alpha: .5  mode: FAST; table: "\\200\\001" >' in prototxt.read_text()
    np.testing.assert_array_equal(nets.stored_arrays(weights)["scale"][0], [1, 2, 3, 4])
    np.testing.assert_array_equal(nets.stored_arrays(weights)["conv"][0], WEIGHT)


class Integers:
    """int8 values of a deploy net."""

    field, size, payload_size = 10, 4, 4

    def __init__(self, content):
        self.content = content

    def payload(self):
        yield self.content


def with_integers(net, content):
    blob = Blob((4,), Integers(content))
    return net.with_layers([replace(layer, blobs=(blob,)) if layer.blobs else layer for layer in net.layers])


def test_integers_are_written_to_their_field(pair, tmp_path):
    _, weights = write_net(with_integers(load_net(pair), b"\x80\xff\x00\x7f"), tmp_path, "o.prototxt", "o.caffemodel")
    np.testing.assert_array_equal(nets.stored_arrays(weights)["conv"][0], np.int8([-128, -1, 0, 127]))


def test_values_of_another_length_than_they_said_are_an_error(pair, tmp_path):
    with pytest.raises(ModelFileError, match="gave 3 bytes instead of 4"):
        write_net(with_integers(load_net(pair), b"\x80\xff\x00"), tmp_path, "o.prototxt", "o.caffemodel")


def test_a_caffemodel_that_caffe_could_not_read_is_not_written(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(twinquant_caffe.write, "MODEL_BYTES", 100)
    with pytest.raises(UnsupportedModelError, match="Caffe reads no more than 100"):
        write_net(load_net(pair), tmp_path, "o.prototxt", "o.caffemodel")
    assert not (tmp_path / "o.caffemodel").exists()


PEAK = """
import sys
from pathlib import Path
from twinquant_caffe.load import load_net
from twinquant_caffe.write import write_net
folder = Path(sys.argv[1])
(folder / "out").mkdir()
write_net(load_net(folder / "net.prototxt"), folder / "out", "o.prototxt", "o.caffemodel")
print([int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line][0])
"""


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_large_net_passes_through_in_blocks(tmp_path):
    text = (
        'input: "x"\nlayer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" '
        "inner_product_param { num_output: %d bias_term: false } }"
    )
    peaks = []
    for outputs in (1, 20_000):
        pair = nets.small_net(tmp_path / str(outputs), text % outputs, {"fc": [np.ones((outputs, 1024), np.float32)]})
        result = subprocess.run(
            [sys.executable, "-c", PEAK, str(pair[0].parent)], capture_output=True, text=True, check=True
        )
        peaks.append(int(result.stdout) * 1024)
        assert (pair[0].parent / "out" / "o.caffemodel").stat().st_size >= outputs * 4096
    assert peaks[1] - peaks[0] < 20_000_000  # of 80 MB


def test_opencv_computes_the_same_with_what_was_written(tmp_path):
    cv2 = pytest.importorskip("cv2")
    text = """
    input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
      convolution_param { num_output: 4 kernel_size: 3 } }
    layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
    """
    pair = nets.small_net(tmp_path, text, {"conv": [WEIGHT, BIAS]}, legacy=True)
    image = RANDOM.standard_normal((1, 3, 8, 8)).astype(np.float32)
    results = []
    for prototxt, weights in (pair, rewrite(pair, tmp_path / "out")):
        net = cv2.dnn.readNetFromCaffe(str(prototxt), str(weights))
        net.setInput(image)
        results.append(net.forward())
    assert results[0].max() > 0.1
    np.testing.assert_array_equal(results[0], results[1])
