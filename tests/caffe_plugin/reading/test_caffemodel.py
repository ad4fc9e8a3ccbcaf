"""Blobs are read as Caffe reads them, from files that an independent writer made."""

import logging
import struct

import nets
import numpy as np
import pytest

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant_caffe.caffemodel import read_caffemodel
from twinquant_caffe.load import load_net
from twinquant_caffe.net import Blob
from twinquant_caffe.values import ArrayValues

HEAD = 'input: "x" input_shape { dim: 1 dim: 3 dim: 4 dim: 4 }\n'
CONV = (
    'layer { name: "conv" type: "Convolution" bottom: "x" top: "y" '
    "convolution_param { num_output: 2 kernel_size: 1 } }\n"
)
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1) / 7
BIAS = np.float32([1.5, -2])


def varint(value):
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def field(number, content):
    return varint(number * 8 + 2) + varint(len(content)) + content


def write_layers(path, *layers):
    """Write a caffemodel of encoded layers."""
    path.write_bytes(b"".join(field(100, content) for content in layers))
    return path


def layer_with_blob(blob, name=b"conv"):
    return field(1, name) + field(7, blob)


def only_blob(path):
    return read_caffemodel(path).layers[0].blobs[0]


def floats(blob):
    return blob.floats.read(0, blob.floats.size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_and_shapes_are_those_that_were_written(tmp_path, dtype):
    net = load_net(nets.small_net(tmp_path, HEAD + CONV, {"conv": [WEIGHT.astype(dtype), BIAS]}))
    weight, bias = net.layer("conv").blobs
    assert weight.shape == (2, 3, 1, 1)
    assert weight.floats.dtype == dtype
    np.testing.assert_array_equal(floats(weight), WEIGHT.reshape(-1))
    np.testing.assert_array_equal(floats(bias), BIAS)


def test_some_values_are_read_without_the_others(tmp_path):
    net = load_net(nets.small_net(tmp_path, HEAD + CONV, {"conv": [WEIGHT, BIAS]}))
    values = net.layer("conv").blobs[0].floats.read(2, 5)
    np.testing.assert_array_equal(values, WEIGHT.reshape(-1)[2:5])
    assert values.flags.writeable
    assert values.dtype == np.float32


def test_legacy_shapes_say_what_they_mean(tmp_path):
    net = load_net(nets.small_net(tmp_path, HEAD + CONV, {"conv": [WEIGHT, BIAS]}, legacy=True))
    weight, bias = net.layer("conv").blobs
    assert (weight.shape, weight.legacy) == ((2, 3, 1, 1), True)
    assert bias.shape == (1, 1, 1, 2)
    assert bias.meaning_shape(1) == (2,)
    assert weight.meaning_shape(4) == (2, 3, 1, 1)


def test_a_legacy_matrix_has_two_axes(tmp_path):
    text = HEAD + (
        'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" '
        "inner_product_param { num_output: 2 bias_term: false } }"
    )
    net = load_net(nets.small_net(tmp_path, text, {"fc": [np.ones((2, 48), np.float32)]}, legacy=True))
    assert net.layer("fc").blobs[0].shape == (1, 1, 2, 48)
    assert net.layer("fc").blobs[0].meaning_shape(2) == (2, 48)


def test_leading_ones_that_belong_to_the_shape_stay():
    assert Blob((2, 3), ArrayValues(np.ones(6, np.float32))).meaning_shape(1) == (2, 3)
    assert Blob((6,), ArrayValues(np.ones(6, np.float32))).meaning_shape(2) == (6,)


@pytest.mark.parametrize("kind", ["data", "double_data"])
def test_values_that_are_not_packed_are_read(tmp_path, kind):
    blob = nets.CLASSES["UnpackedBlob"](**{kind: WEIGHT.reshape(-1).tolist()})
    blob.shape.dim.extend(WEIGHT.shape)
    read = only_blob(write_layers(tmp_path / "w", layer_with_blob(blob.SerializeToString())))
    np.testing.assert_array_equal(floats(read), WEIGHT.reshape(-1))
    np.testing.assert_array_equal(read.floats.read(1, 3), WEIGHT.reshape(-1)[1:3])
    assert len(read.values.spans) == 1


def test_values_in_several_pieces_are_joined_in_their_order(tmp_path):
    shape = field(7, field(1, b"\x05"))
    content = field(5, struct.pack("<2f", 1, 2)) + shape + b"\x2d" + struct.pack("<f", 3)
    content += field(5, struct.pack("<2f", 4, 5))
    read = only_blob(write_layers(tmp_path / "w", layer_with_blob(content)))
    np.testing.assert_array_equal(floats(read), [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(read.floats.read(1, 4), [2, 3, 4])
    assert b"".join(read.values.payload()) == struct.pack("<5f", 1, 2, 3, 4, 5)


def test_lengths_that_are_not_packed_are_read(tmp_path):
    content = field(7, b"\x08\x02\x08\x03") + field(5, WEIGHT.tobytes())
    assert only_blob(write_layers(tmp_path / "w", layer_with_blob(content))).shape == (2, 3)


def test_of_repeated_single_fields_the_last_counts(tmp_path):
    legacy = b"\x08\x07\x08\x01\x10\x01\x18\x01\x20\x06" + field(5, WEIGHT.tobytes())
    path = write_layers(tmp_path / "w", field(1, b"first") + field(7, legacy) + field(1, b"conv"))
    assert read_caffemodel(path).layers[0].name == "conv"
    assert only_blob(path).shape == (1, 1, 1, 6)


def test_double_values_win_over_single_ones_as_in_caffe(tmp_path):
    content = field(7, field(1, b"\x01")) + field(5, struct.pack("<f", 1)) + field(8, struct.pack("<d", 2))
    assert floats(only_blob(write_layers(tmp_path / "w", layer_with_blob(content)))) == [2]


def test_gradients_are_dropped_and_unknown_fields_kept(tmp_path):
    unknown = field(77, b"blob's own")
    content = field(7, field(1, b"\x01")) + field(5, struct.pack("<f", 1)) + field(6, struct.pack("<f", 9)) + unknown
    path = write_layers(tmp_path / "w", layer_with_blob(content) + field(999, b"layer's own"))
    path.write_bytes(path.read_bytes() + field(55, b"net's own"))
    read = read_caffemodel(path)
    assert only_blob(path).rest == unknown
    assert read.layers[0].rest == field(999, b"layer's own")
    assert read.rest == field(55, b"net's own")


@pytest.mark.parametrize(("raw_type", "code"), [(1, "<6f"), (0, "<6d")])
def test_raw_floats_of_a_fork_are_read(tmp_path, raw_type, code):
    raw = struct.pack(code, *WEIGHT.reshape(-1))
    content = field(7, field(1, b"\x06")) + bytes([0x50, raw_type]) + b"\x58\x01" + field(12, raw) + field(13, raw)
    read = only_blob(write_layers(tmp_path / "w", layer_with_blob(content)))
    np.testing.assert_array_equal(floats(read), WEIGHT.reshape(-1))
    assert read.rest == b""


def test_float16_of_a_fork_is_refused_with_a_reason(tmp_path):
    content = field(7, field(1, b"\x06")) + b"\x50\x02" + field(12, WEIGHT.astype(np.float16).tobytes())
    with pytest.raises(UnsupportedModelError, match=r"layer 'conv', blob 0: its values are stored as FLOAT16.*float32"):
        read_caffemodel(write_layers(tmp_path / "w", layer_with_blob(content)))


@pytest.mark.parametrize("number", [10, 11, 12])
def test_integers_are_refused_as_quantized_already(tmp_path, number):
    content = field(7, field(1, b"\x01")) + field(number, b"\x01")
    with pytest.raises(UnsupportedModelError, match="quantized already"):
        read_caffemodel(write_layers(tmp_path / "w", layer_with_blob(content)))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (field(7, field(1, b"\x05")) + field(5, bytes(24)), r"shape \[5\] asks for 5 values, but it holds 6 values"),
        (field(7, field(1, b"\x05")), r"holds no float32 or float64 values.*float16"),
        (field(7, field(1, b"\xff" * 9 + b"\x01")) + field(5, bytes(4)), r"shape \[-1\]"),
        (field(7, field(1, b"\x01")) + field(5, bytes(7)), "7 bytes of values are no multiple of 4"),
    ],
)
def test_values_that_do_not_fit_their_shape_name_layer_and_blob(tmp_path, content, problem):
    with pytest.raises(ModelFileError, match=rf"layer 'conv', blob 0: .*{problem}"):
        read_caffemodel(write_layers(tmp_path / "w", layer_with_blob(content)))


def test_an_old_caffemodel_serves_a_new_prototxt(tmp_path):
    prototxt, weights = nets.small_net(tmp_path, HEAD + CONV)
    old = nets.CLASSES["NetParameter"](name="old")
    layer = old.layers.add(name="conv", type=4, bottom=["x"], top=["y"])
    for array in (WEIGHT, BIAS):
        nets.fill_blob(layer.blobs.add(), array, legacy=True)
    weights.write_bytes(old.SerializeToString())
    net = load_net((prototxt, weights))
    np.testing.assert_array_equal(floats(net.layer("conv").blobs[0]), WEIGHT.reshape(-1))
    assert net.layer("conv").rest == b""


def test_the_oldest_caffemodels_say_how_to_upgrade(tmp_path):
    path = tmp_path / "w.caffemodel"
    path.write_bytes(field(2, field(1, field(1, b"conv"))))
    with pytest.raises(UnsupportedModelError, match="upgrade_net_proto_binary"):
        read_caffemodel(path)


def test_layers_that_the_prototxt_lacks_are_logged_and_left_out(tmp_path, caplog):
    prototxt, weights = nets.small_net(tmp_path, HEAD + CONV, {"conv": [WEIGHT, BIAS]})
    weights.write_bytes(weights.read_bytes() + field(100, field(1, b"loss") + field(2, b"SoftmaxWithLoss")))
    with caplog.at_level(logging.INFO, "twinquant_caffe.load"):
        net = load_net((prototxt, weights))
    assert [layer.name for layer in net.layers] == ["conv"]
    assert "1 layers of the caffemodel" in caplog.text
    assert "loss" in caplog.text


def test_of_two_stored_layers_of_one_name_the_last_counts_as_in_caffe(tmp_path):
    prototxt, weights = nets.small_net(tmp_path, HEAD + CONV, {"conv": [WEIGHT, BIAS]})
    first = weights.read_bytes()
    nets.small_net(tmp_path, CONV.replace('"x"', '"data"'), {"conv": [WEIGHT + 1, BIAS]}, stem="other")
    weights.write_bytes(first + (tmp_path / "other.caffemodel").read_bytes())
    np.testing.assert_array_equal(floats(load_net((prototxt, weights)).layer("conv").blobs[0]), WEIGHT.reshape(-1) + 1)
