"""Looking at tensors of nets that run in OpenCV."""

import sys

import cv2
import numpy as np
import pytest
from nets import small_net
from runs import forward

from twinquant.errors import CapabilityError, UnsupportedModelError
from twinquant_caffe.load import load_net
from twinquant_caffe.net import BlobVersion
from twinquant_caffe.run import open_net

HEAD = 'input: "data" input_shape { dim: 1 dim: 2 dim: 5 dim: 5 }\n'
RNG = np.random.default_rng(3)


def values(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def layer(name, kind, bottom, top, parameters=""):
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {parameters} }}\n'


def test_every_version_of_a_blob_can_be_looked_at(tmp_path):
    text = (
        HEAD
        + layer("p", "Power", "data", "x", "power_param { scale: -2 shift: 1 }")
        + layer("r", "ReLU", "x", "x")
        + layer("q", "Power", "x", "x", "power_param { shift: 3 }")
    )
    net = load_net(small_net(tmp_path, text))
    wanted = [BlobVersion("x", number) for number in range(3)]
    data = values(2, 2, 5, 5)
    found = open_net(net, [*wanted, BlobVersion("data", 0)])({"data": data})
    first = 1 - 2 * data
    np.testing.assert_allclose(found[wanted[0]], first, rtol=1e-6)
    np.testing.assert_allclose(found[wanted[1]], np.maximum(first, 0), rtol=1e-6)
    np.testing.assert_allclose(found[wanted[2]], np.maximum(first, 0) + 3, rtol=1e-6)
    assert found[BlobVersion("data", 0)] is data


def test_an_input_that_is_overwritten_can_be_looked_at_before_and_after(tmp_path):
    net = load_net(small_net(tmp_path, HEAD + layer("r", "ReLU", "data", "data")))
    data = values(1, 2, 5, 5)
    found = open_net(net, [BlobVersion("data", 0), BlobVersion("data", 1)])({"data": data})
    np.testing.assert_array_equal(found[BlobVersion("data", 0)], data)
    np.testing.assert_array_equal(found[BlobVersion("data", 1)], np.maximum(data, 0))


def test_the_second_top_of_a_layer_can_be_looked_at(tmp_path):
    text = HEAD + 'layer { name: "cut" type: "Slice" bottom: "data" top: "a" top: "b" slice_param { axis: 1 } }'
    data = values(1, 2, 5, 5)
    found = open_net(load_net(small_net(tmp_path, text)), [BlobVersion("b", 0)])({"data": data})
    np.testing.assert_array_equal(found[BlobVersion("b", 0)], data[:, 1:])


def test_the_number_of_rows_may_change_from_batch_to_batch(tmp_path):
    net = load_net(small_net(tmp_path, HEAD + layer("r", "ReLU", "data", "y")))
    run = open_net(net, [BlobVersion("y", 0)])
    for rows in (1, 4, 2):
        assert run({"data": values(rows, 2, 5, 5)})[BlobVersion("y", 0)].shape == (rows, 2, 5, 5)


def test_layers_that_are_not_needed_may_be_unknown(tmp_path):
    text = HEAD + layer("r", "ReLU", "data", "y") + layer("fork", "OfAFork", "y", "z")
    net = load_net(small_net(tmp_path, text))
    assert open_net(net, [BlobVersion("y", 0)])({"data": values(1, 2, 5, 5)})


def test_an_unknown_layer_that_is_needed_is_named(tmp_path):
    text = HEAD + layer("fork", "OfAFork", "data", "y") + layer("r", "ReLU", "y", "z")
    net = load_net(small_net(tmp_path, text))
    with pytest.raises(UnsupportedModelError, match=r"type 'OfAFork' of the layer 'fork'.*dnn_registerLayer"):
        open_net(net, [BlobVersion("z", 0)])({"data": values(1, 2, 5, 5)})


@pytest.mark.parametrize("fields", ['fork_param { text: "x" a: 1 [ext.x]: 3 }', 'fork_text: "x"', 'f { g { h: "x" } }'])
def test_texts_that_opencv_cannot_parse_do_not_hide_that_it_does_not_know_the_layer(tmp_path, fields):
    text = HEAD + layer("fork", "OfAFork", "data", "y", fields)
    with pytest.raises(UnsupportedModelError, match=r"type 'OfAFork' of the layer 'fork'.*dnn_registerLayer"):
        open_net(load_net(small_net(tmp_path, text)), [BlobVersion("y", 0)])({"data": values(1, 2, 5, 5)})


def test_a_text_in_a_fork_s_field_of_a_layer_that_opencv_knows_is_no_obstacle(tmp_path):
    text = HEAD + layer("it", "ReLU", "data", "y", 'relu_param { negative_slope: 0.5 how: "fast" } note: "mine"')
    data = values(1, 2, 5, 5)
    found = open_net(load_net(small_net(tmp_path, text)), [BlobVersion("y", 0)])({"data": data})
    np.testing.assert_allclose(found[BlobVersion("y", 0)], np.where(data > 0, data, data / 2))


def test_a_slope_without_axes_runs_as_one_for_all_channels(tmp_path):
    text = HEAD + layer("it", "PReLU", "data", "y", "prelu_param { channel_shared: true }")
    data = values(1, 2, 5, 5)
    net = load_net(small_net(tmp_path, text, {"it": [np.array(0.25, np.float32)]}))
    assert net.layers[0].blobs[0].shape == ()
    found = open_net(net, [BlobVersion("y", 0)])({"data": data})
    np.testing.assert_allclose(found[BlobVersion("y", 0)], np.where(data > 0, data, data / 4))


class Doubling:
    def __init__(self, params, blobs):
        self.factor = 2

    def getMemoryShapes(self, inputs):
        return inputs

    def forward(self, inputs):
        return [self.factor * array for array in inputs]


def test_a_layer_that_the_user_registers_is_run(tmp_path):
    net = load_net(small_net(tmp_path, HEAD + layer("fork", "DoublingOfAFork", "data", "y")))
    cv2.dnn_registerLayer("DoublingOfAFork", Doubling)
    data = values(1, 2, 5, 5)
    try:
        found = open_net(net, [BlobVersion("y", 0)])({"data": data})
    finally:
        cv2.dnn_unregisterLayer("DoublingOfAFork")
    np.testing.assert_array_equal(found[BlobVersion("y", 0)], 2 * data)


@pytest.mark.parametrize("kind", ["DepthwiseConvolution", "ConvolutionDepthwise"])
def test_depthwise_convolutions_of_forks_run_as_grouped_ones(tmp_path, kind):
    blobs = {"it": [values(2, 1, 3, 3), values(2)]}
    grouped = layer("it", "Convolution", "data", "y", "convolution_param { num_output: 2 group: 2 kernel_size: 3 }")
    depthwise = layer("it", kind, "data", "y", "convolution_param { num_output: 2 kernel_size: 3 }")
    data = values(1, 2, 5, 5)
    found = open_net(load_net(small_net(tmp_path, HEAD + depthwise, blobs)), [BlobVersion("y", 0)])({"data": data})
    wanted = forward(small_net(tmp_path / "grouped", HEAD + grouped, blobs), {"data": data})
    np.testing.assert_allclose(found[BlobVersion("y", 0)], wanted, atol=1e-6)


def test_a_depthwise_convolution_of_several_outputs_a_group_runs_as_it_says(tmp_path):
    blobs = {"it": [values(4, 1, 3, 3), values(4)]}
    text = "convolution_param { num_output: 4 group: 2 kernel_size: 3 }"
    data = values(1, 2, 5, 5)
    net = load_net(small_net(tmp_path, HEAD + layer("it", "DepthwiseConvolution", "data", "y", text), blobs))
    found = open_net(net, [BlobVersion("y", 0)])({"data": data})
    wanted = forward(
        small_net(tmp_path / "grouped", HEAD + layer("it", "Convolution", "data", "y", text), blobs), {"data": data}
    )
    np.testing.assert_allclose(found[BlobVersion("y", 0)], wanted, atol=1e-6)


@pytest.mark.parametrize("only", ["pad_h: 2", "pad_w: 2"])
def test_a_padding_of_one_axis_alone_counts(tmp_path, only):
    # OpenCV 4.14 ignores it, unless both are there.
    other = "pad_w: 0" if "pad_h" in only else "pad_h: 0"
    blobs = {"it": [values(2, 2, 3, 3), values(2)]}
    text = "convolution_param {{ num_output: 2 kernel_h: 3 kernel_w: 3 {} }}"
    alone = layer("it", "Convolution", "data", "y", text.format(only))
    both = layer("it", "Convolution", "data", "y", text.format(f"{only} {other}"))
    data = values(1, 2, 5, 5)
    found = open_net(load_net(small_net(tmp_path, HEAD + alone, blobs)), [BlobVersion("y", 0)])({"data": data})
    wanted = forward(small_net(tmp_path / "both", HEAD + both, blobs), {"data": data})
    np.testing.assert_array_equal(found[BlobVersion("y", 0)], wanted)


def test_a_pooling_that_rounds_down_in_caffes_own_words_does_so(tmp_path):
    pool = layer("it", "Pooling", "data", "y", "pooling_param { pool: MAX kernel_size: 2 stride: 2 round_mode: FLOOR }")
    found = open_net(load_net(small_net(tmp_path, HEAD + pool)), [BlobVersion("y", 0)])({"data": values(1, 2, 5, 5)})
    assert found[BlobVersion("y", 0)].shape == (1, 2, 2, 2)


def test_a_batch_that_does_not_fit_is_an_error(tmp_path):
    text = HEAD + layer("it", "InnerProduct", "data", "y", "inner_product_param { num_output: 3 }")
    run = open_net(load_net(small_net(tmp_path, text, {"it": [values(3, 50), values(3)]})), [BlobVersion("y", 0)])
    with pytest.raises(UnsupportedModelError, match=r"OpenCV cannot run net\.prototxt"):
        run({"data": values(1, 2, 6, 5)})


def test_the_threads_of_opencv_are_what_they_were_after_a_run(tmp_path):
    run = open_net(
        load_net(small_net(tmp_path, HEAD + layer("r", "ReLU", "data", "y"))), [BlobVersion("y", 0)], threads=1
    )
    before = cv2.getNumThreads()
    run({"data": values(1, 2, 5, 5)})
    assert cv2.getNumThreads() == before


def test_without_opencv_the_error_says_what_to_install(tmp_path, monkeypatch):
    net = load_net(small_net(tmp_path, HEAD + layer("r", "ReLU", "data", "y")))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(CapabilityError, match=r'pip install "twinquant-caffe\[opencv\]"'):
        open_net(net, [BlobVersion("y", 0)])


def test_a_version_of_opencv_that_reads_no_caffe_nets_is_refused(tmp_path, monkeypatch):
    net = load_net(small_net(tmp_path, HEAD + layer("r", "ReLU", "data", "y")))
    monkeypatch.delattr(cv2.dnn, "readNetFromCaffe")
    monkeypatch.setattr(cv2, "__version__", "5.0.0")
    with pytest.raises(CapabilityError, match=r"OpenCV 5\.0\.0 reads no Caffe nets"):
        open_net(net, [BlobVersion("y", 0)])
