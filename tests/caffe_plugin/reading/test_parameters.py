"""Layers have the parameters that they need, their own or shared ones."""

import nets
import numpy as np
import pytest

from twinquant.errors import ModelFileError
from twinquant_caffe.load import load_net

HEAD = 'input: "x" input_shape { dim: 1 dim: 4 dim: 4 dim: 4 }\n'


def ones(*shape):
    return np.ones(shape, np.float32)


def layer(kind, rest="", name="it", bottom='bottom: "x"', top="y"):
    return f'layer {{ name: "{name}" type: "{kind}" {bottom} top: "{top}" {rest} }}\n'


def load(folder, text, **blobs):
    return load_net(nets.small_net(folder, HEAD + text, blobs))


CONV = "convolution_param { num_output: 6 kernel_size: 1 }"
FC = "inner_product_param { num_output: 6 }"


@pytest.mark.parametrize(
    ("kind", "rest"),
    [
        *((kind, CONV) for kind in ("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise", "Deconvolution")),
        ("InnerProduct", FC),
        *((kind, "") for kind in ("BatchNorm", "Scale", "Bias", "PReLU", "Embed", "LSTM")),
    ],
)
def test_a_layer_without_the_parameters_it_needs_is_named(tmp_path, kind, rest):
    with pytest.raises(ModelFileError, match=rf"no parameters for the {kind} layer 'it'"):
        load(tmp_path, layer(kind, rest))


@pytest.mark.parametrize(
    ("kind", "rest", "shapes"),
    [
        ("Convolution", CONV, [(6, 4, 1, 1), (6,)]),
        ("Convolution", CONV.replace("6", "6 bias_term: false"), [(6, 4, 1, 1)]),
        ("Convolution", CONV.replace("6", "6 group: 2"), [(6, 2, 1, 1), (6,)]),
        ("Deconvolution", CONV.replace("6", "6 group: 2"), [(4, 3, 1, 1), (6,)]),
        ("InnerProduct", FC, [(6, 64), (6,)]),
        ("InnerProduct", FC.replace("6", "6 transpose: true"), [(64, 6), (6,)]),
        ("InnerProduct", FC, [(1, 1, 6, 64), (1, 1, 1, 6)]),
        ("BatchNorm", "", [(4,), (4,), (1,)]),
        ("BatchNorm", "", [(4,), (4,), (1,), (4,), (4,)]),
        ("Scale", "", [(4,)]),
        ("Scale", "scale_param { bias_term: true }", [(4,), (4,)]),
        ("Fork", "", [(1, 2), (3,)]),
        ("Fork", "", []),
    ],
)
def test_parameters_that_fit_are_taken(tmp_path, kind, rest, shapes):
    net = load(tmp_path, layer(kind, rest), it=[ones(*shape) for shape in shapes])
    assert [blob.shape for blob in net.layer("it").blobs] == shapes


def test_a_scale_by_its_second_bottom_has_no_parameter(tmp_path):
    text = layer("Scale", bottom='bottom: "x" bottom: "x"')
    assert load(tmp_path, text).layer("it").blobs == ()


@pytest.mark.parametrize(
    ("kind", "rest", "shapes", "problem"),
    [
        ("Convolution", CONV, [(6, 4, 1, 1)], "1 of 2 parameters"),
        ("Convolution", CONV, [(6, 4, 1, 1), (6,), (6,)], "3 parameters.*takes 2"),
        ("Convolution", CONV, [(5, 4, 1, 1), (6,)], r"\[5, 4, 1, 1\], which does not fit num_output 6"),
        ("Convolution", CONV, [(6, 4, 1, 1), (5,)], r"bias has the shape \[5\]; expected \[6\]"),
        ("Convolution", CONV, [(24,), (6,)], r"\[24\], which does not fit"),
        (
            "Convolution",
            CONV.replace("num_output: 6", ""),
            [(6, 4, 1, 1), (6,)],
            "num_output has to be at least 1, got 0",
        ),
        ("Deconvolution", CONV, [(6, 4, 1, 1), (6,)], r"\[6, 4, 1, 1\], which does not fit num_output 6"),
        ("InnerProduct", FC, [(64, 6), (6,)], r"\[64, 6\], which does not fit num_output 6"),
        ("BatchNorm", "", [(4,), (3,), (1,)], r"\[4\], \[3\], \[1\]; expected"),
        ("BatchNorm", "", [(4,), (4,)], "2 of 3 parameters"),
        ("Scale", "scale_param { bias_term: true }", [(4,), (3,)], r"\[4\] and \[3\]"),
        ("Scale", "", [(4,), (4,)], "2 parameters.*takes 1"),
    ],
)
def test_parameters_of_a_wrong_number_or_shape_name_the_layer(tmp_path, kind, rest, shapes, problem):
    with pytest.raises(ModelFileError, match=problem) as caught:
        load(tmp_path, layer(kind, rest), it=[ones(*shape) for shape in shapes])
    assert "'it'" in str(caught.value)


SHARED = 'param { name: "w" } param { name: "b" } ' + CONV


def test_a_user_of_shared_parameters_gets_those_of_their_owner(tmp_path):
    text = layer("Convolution", SHARED, "left", top="l") + layer("Convolution", SHARED, "right", top="r")
    net = load(tmp_path, text, left=[ones(6, 4, 1, 1) * 3, ones(6)])
    assert net.layer("right").blobs == net.layer("left").blobs
    assert net.layer("right").blobs[0].shape == (6, 4, 1, 1)


def test_an_owner_may_stand_behind_its_users(tmp_path):
    text = layer("Convolution", SHARED, "left", top="l") + layer("Convolution", SHARED, "right", top="r")
    net = load(tmp_path, text, right=[ones(6, 4, 1, 1) * 3, ones(6)])
    assert net.layer("left").blobs == net.layer("right").blobs


def test_only_the_named_parameter_is_shared(tmp_path):
    share = 'param { name: "w" } param { lr_mult: 2 } ' + CONV
    text = layer("Convolution", share, "left", top="l") + layer("Convolution", share, "right", top="r")
    net = load(tmp_path, text, left=[ones(6, 4, 1, 1), ones(6)], right=[ones(6, 4, 1, 1) * 2, ones(6) * 2])
    left, right = net.layer("left").blobs, net.layer("right").blobs
    assert left[0].values is right[0].values
    # Caffe copies one layer after the other into the shared memory: the last one's values stay.
    assert left[0].floats.read(0, 1) == [2]
    assert left[1].floats.read(0, 1) == [1]
    assert right[1].floats.read(0, 1) == [2]


def test_shared_parameters_of_different_sizes_name_both_layers(tmp_path):
    text = layer("Convolution", SHARED, "left", top="l") + layer("Convolution", SHARED, "right", top="r")
    with pytest.raises(
        ModelFileError, match=r"layers 'right' and 'left' share the parameter 'w'.*\[6, 4, 1, 1\].*\[6, 8, 1, 1\]"
    ):
        load(tmp_path, text, left=[ones(6, 8, 1, 1), ones(6)], right=[ones(6, 4, 1, 1), ones(6)])


def test_a_user_without_an_owner_lacks_its_parameters(tmp_path):
    with pytest.raises(ModelFileError, match="no parameters for the Convolution layer 'left'"):
        load(tmp_path, layer("Convolution", SHARED, "left"))
