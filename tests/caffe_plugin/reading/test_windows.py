"""Lengths that stock Caffe refuses when it builds or runs a net are errors; those that it takes are not."""

import numpy as np
import pytest
from nets import small_net

from twinquant.errors import ModelFileError
from twinquant_caffe.load import load_net
from twinquant_caffe.net import BlobVersion
from twinquant_caffe.shapes import infer_shapes

HEAD = 'name: "n" input: "data" input_shape { dim: 2 dim: 4 dim: 8 dim: 8 }\n'
TAKEN = {
    "Pooling": {
        "kernel_size: 9 stride: 2": (1, 1),  # ceil((8 - 9) / 2) + 1
        "kernel_size: 10 pad: 1 stride: 2": (1, 1),
        "kernel_h: 2 kernel_w: 3 pad_h: 1 pad_w: 0 stride: 2": (5, 4),
    },
    "Convolution": {
        "kernel_size: 3 pad: 9": (24, 24),
        "kernel_size: 3 pad_h: 1": (8, 6),
        "kernel_size: 3 stride_h: 2": (3, 6),
        "kernel_size: [8, 1]": (1, 8),
    },
    "Deconvolution": {"kernel_size: 3 stride: 2 pad: 1": (15, 15)},
}
REFUSED = {
    "Pooling": {
        "": "kernel_size is missing",
        "kernel_h: 3": "kernel_h is given without kernel_w",
        "kernel_w: 3": "kernel_w is given without kernel_h",
        "kernel_size: 3 kernel_h: 3 kernel_w: 3": "kernel_size and kernel_h are both given",
        "kernel_size: 9": r"nothing is left of 'data', whose shape is \[2, 4, 8, 8\]: it would write \[0, 0\]",
        "kernel_size: 3 pad: 3": "padding has to be less than its kernel, got 3 and 3",
        "kernel_size: 3 pad_h: 3 pad_w: 0": "padding has to be less than its kernel, got 3 and 3",
        "kernel_size: 3 pad_w: 1": "pad_w is given without pad_h",
        "kernel_size: 3 pad: 1 pad_h: 1 pad_w: 1": "pad and pad_h are both given",
        "kernel_size: 3 stride_h: 2": "stride_h is given without stride_w",
        "kernel_size: 3 kernel_size: 2": "kernel_size has 2 values",
    },
    "Convolution": {
        "": "kernel_size is missing",
        "kernel_h: 3": "kernel_h is given without kernel_w",
        "kernel_size: 3 kernel_h: 3 kernel_w: 3": "kernel_size and kernel_h are both given",
        "kernel_size: 3 pad_h: 1 pad: 1": "pad and pad_h are both given",
        "kernel_size: 3 stride: 1 stride_h: 1 stride_w: 1": "stride and stride_h are both given",
        "kernel_size: 3 stride: [1, 2, 1]": "stride has 3 values, but 'data' has 2 axes",
        "kernel_size: [3, 3, 3]": "kernel has 3 values, but 'data' has 2 axes",
        "kernel_size: 9": r"it would write \[0, 0\]",
        "kernel_size: 3 dilation: 4": r"it would write \[0, 0\]",
        "kernel_size: 3 axis: 5": r"axis is 5, but 'data' has the shape \[2, 4, 8, 8\]",
    },
    "Deconvolution": {"kernel_size: 2 pad: 5": r"it would write \[-1, -1\]"},
}


def text_of(kind, parameters, head=HEAD):
    name = "pooling_param { pool: AVE" if kind == "Pooling" else "convolution_param { num_output: 4"
    return f'{head}layer {{ name: "it" type: "{kind}" bottom: "data" top: "it" {name} {parameters} }} }}'


def cases(table):
    return [(kind, parameters, outcome) for kind, rows in table.items() for parameters, outcome in rows.items()]


@pytest.mark.parametrize(("kind", "parameters", "problem"), cases(REFUSED))
def test_what_caffe_refuses_is_an_error_that_says_why(tmp_path, kind, parameters, problem):
    with pytest.raises(ModelFileError, match=rf"layer 'it' \({kind}\): .*{problem}"):
        load_net(small_net(tmp_path, text_of(kind, parameters)))


@pytest.mark.parametrize(("kind", "parameters", "lengths"), cases(TAKEN))
def test_what_caffe_takes_is_taken(tmp_path, kind, parameters, lengths):
    kernel = {"kernel_size: [8, 1]": (8, 1)}.get(parameters, (3, 3))
    blobs = {} if kind == "Pooling" else {"it": [np.ones((4, 4, *kernel), np.float32), np.ones(4, np.float32)]}
    shapes = infer_shapes(load_net(small_net(tmp_path, text_of(kind, parameters), blobs)))
    assert shapes[BlobVersion("it", 0)] == (2, 4, *lengths)


@pytest.mark.parametrize(
    "head",
    [
        'input: "data" input_dim: 0 input_dim: 4 input_dim: 8 input_dim: 8\n',
        'input: "data" input_shape { dim: 2 dim: 4 dim: 0 dim: 8 }\n',
        'layer { name: "d" type: "Input" top: "data" input_param { shape { dim: 2 dim: -1 dim: 8 dim: 8 } } }\n',
    ],
)
def test_an_input_without_a_length_is_an_error(tmp_path, head):
    with pytest.raises(
        ModelFileError, match=r"the input .data. has the shape \[.*\]; every length has to be at least 1"
    ):
        load_net(small_net(tmp_path, text_of("Pooling", "kernel_size: 1", head)))


@pytest.mark.filterwarnings("ignore")  # pycaffe's own
@pytest.mark.parametrize(("kind", "parameters", "lengths"), cases(TAKEN))
def test_caffe_writes_as_much(tmp_path, kind, parameters, lengths):
    caffe = pytest.importorskip("caffe")
    pair = small_net(tmp_path, text_of(kind, parameters))
    net = caffe.Net(str(pair[0]), caffe.TEST)
    assert net.forward()["it"].shape == (2, 4, *lengths)
