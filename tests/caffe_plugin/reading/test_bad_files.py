"""Files that are damaged, of another kind or of another time are refused with what to do."""

import nets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinquant.errors import ModelError, ModelFileError, UnsupportedModelError
from twinquant_caffe.load import load_net

HEAD = 'input: "x" input_shape { dim: 1 dim: 3 dim: 4 dim: 4 }\n'
CONV = (
    'layer { name: "conv" type: "Convolution" bottom: "x" top: "y" '
    "convolution_param { num_output: 2 kernel_size: 1 } }\n"
)
BLOBS = {"conv": [np.ones((2, 3, 1, 1), np.float32), np.ones(2, np.float32)]}


@pytest.fixture
def pair(tmp_path):
    return nets.small_net(tmp_path, HEAD + CONV, BLOBS)


def test_every_beginning_of_a_caffemodel_is_refused(pair):
    data = pair[1].read_bytes()
    for length in range(len(data)):
        pair[1].write_bytes(data[:length])
        with pytest.raises(ModelFileError) as caught:
            load_net(pair)
        assert str(pair[1]) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no layer"),
        (b"\x0a\x03net", "holds no layer"),
        (b"layer { name: 1 }", "truncated or no caffemodel"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'name: "net"\nlayer { name: "a" type: "ReLU" }\n', "it is a text file, perhaps a prototxt"),
        (b"# a comment\n", "it is a text file, perhaps a prototxt"),
        (bytes(range(256)), "truncated or no caffemodel"),
    ],
)
def test_a_file_of_another_kind_says_what_it_is(pair, content, problem):
    pair[1].write_bytes(content)
    with pytest.raises(ModelFileError, match=problem):
        load_net(pair)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_caffemodel_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    pair = nets.small_net(folder, HEAD + CONV, BLOBS)
    content = bytearray(pair[1].read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    pair[1].write_bytes(content)
    try:
        net = load_net(pair)
    except ModelError as error:
        assert "caffemodel" in str(error)
    else:
        assert net.layer("conv").blobs[1].floats.read(0, 2).shape == (2,)


def test_a_prototxt_syntax_error_has_line_and_column(pair):
    pair[0].write_text(HEAD + "layer {\n  name: }\n")
    with pytest.raises(ModelFileError, match=r"net\.prototxt', line 3, column 9: "):
        load_net(pair)


def test_files_in_the_wrong_places_are_recognized(pair, tmp_path):
    prototxt, weights = pair[0].rename(tmp_path / "a"), pair[1].rename(tmp_path / "b")
    with pytest.raises(ModelFileError, match="is this the caffemodel"):
        load_net((weights, prototxt))


@pytest.mark.parametrize("text", ['layers { name: "conv" type: CONVOLUTION }', HEAD + CONV + "layers { }"])
def test_nets_of_an_old_format_say_how_to_upgrade(pair, text):
    pair[0].write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"prototxt '.*' has layers of an old kind.*upgrade_net_proto_text"):
        load_net(pair)


def test_a_caffemodel_of_the_old_kind_is_read_beside_a_new_prototxt(pair):
    model = nets.CLASSES["NetParameter"]()
    layer = model.layers.add(name="conv", type=4)
    for array in BLOBS["conv"]:
        nets.fill_blob(layer.blobs.add(), array, legacy=True)
    pair[1].write_bytes(model.SerializeToString())
    assert [blob.size for blob in load_net(pair).layer("conv").blobs] == [6, 2]


def test_a_solver_is_no_net(pair):
    pair[0].write_text('net: "net.prototxt"\nbase_lr: 0.01\n')
    with pytest.raises(ModelFileError, match=r"holds no layer.*not a solver"):
        load_net(pair)


@pytest.mark.parametrize("kind", ["Quant", "DeQuant", "AntiQuant", "AscendQuant", "AscendDequant"])
def test_quantized_nets_are_refused(tmp_path, kind):
    text = HEAD + f'layer {{ name: "q" type: "{kind}" bottom: "x" top: "y" }}\n'
    with pytest.raises(UnsupportedModelError, match=rf"quantized already: layer 'q' has the type {kind}"):
        load_net(nets.small_net(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('layer { name: "a" }', "line 2 of the prototxt: layer 'a' has no type"),
        ("layer: 3", "line 2 of the prototxt: 'layer' has to be a block"),
        ('layer { name: { } type: "ReLU" }', "line 2 of the prototxt: the field 'name' has to be a text"),
        ('layer { type: "ReLU" include { phase: { } } }', "line 2 of the prototxt: the field 'phase' has to be a text"),
    ],
)
def test_a_layer_that_is_none_names_file_and_line(pair, text, problem):
    pair[0].write_text(HEAD + text)
    with pytest.raises(ModelFileError, match=problem) as caught:
        load_net(pair)
    assert str(pair[0]) in str(caught.value)


def test_what_is_wrong_with_the_prototxt_is_said_without_a_look_at_the_caffemodel(pair):
    pair[0].write_text(HEAD + CONV.replace('"x"', '"nothing"'))
    pair[1].write_bytes(b"not even protobuf")
    with pytest.raises(ModelFileError, match="reads the blob 'nothing'"):
        load_net(pair)


@pytest.mark.parametrize(
    ("kind", "field", "least"),
    [
        ("Convolution", "kernel_size: 0", 1),
        ("Convolution", "kernel_size: 1 stride: 0", 1),
        ("Deconvolution", "kernel_h: 0 kernel_w: 1", 1),
        ("DepthwiseConvolution", "kernel_size: 1 pad: -1", 0),
        ("Convolution", "kernel_size: 1 dilation: 0", 1),
        ("Pooling", "pad_w: -2 pad_h: 0 kernel_size: 2", 0),
        ("Pooling", "kernel_size: 2 stride_h: 0 stride_w: 1", 1),
    ],
)
def test_a_window_that_caffe_does_not_take_is_refused_with_layer_and_field(tmp_path, kind, field, least):
    parameter = "pooling_param" if kind == "Pooling" else "convolution_param"
    text = f'layer {{ name: "it" type: "{kind}" bottom: "x" top: "y" {parameter} {{ {field} }} }}'
    name, value = next(
        (name, value)
        for name, value in zip(field.replace(":", "").split()[::2], field.split()[1::2], strict=True)
        if int(value) < least
    )
    with pytest.raises(ModelFileError, match=rf"layer 'it' \({kind}\): {name} has to be at least {least}, got {value}"):
        load_net(nets.small_net(tmp_path, HEAD + text))


def test_the_window_of_a_global_pooling_does_not_count(tmp_path):
    text = 'layer { name: "it" type: "Pooling" bottom: "x" top: "y" pooling_param { stride: 0 global_pooling: true } }'
    assert load_net(nets.small_net(tmp_path, HEAD + text)).layers
