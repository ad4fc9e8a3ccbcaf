"""Shapes that are found without running, against those of OpenCV."""

import numpy as np
import pytest
from nets import small_net
from runs import forward

from twinquant_caffe.load import load_net
from twinquant_caffe.net import BlobVersion
from twinquant_caffe.shapes import infer_shapes

HEAD = 'input: "data" input_shape { dim: 2 dim: 4 dim: 7 dim: 9 }\n'
LAYERS = {
    "convolution": (
        'type: "Convolution" convolution_param { num_output: 3 kernel_size: 3 stride: 2 pad: 1 dilation: 2 }',
        [(3, 4, 3, 3), (3,)],
    ),
    "separate lengths": (
        'type: "Convolution" convolution_param { num_output: 3 kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 1 '
        "pad_h: 0 pad_w: 1 }",
        [(3, 4, 1, 3), (3,)],
    ),
    "deconvolution": (
        'type: "Deconvolution" convolution_param { num_output: 3 kernel_size: 4 stride: 2 pad: 1 }',
        [(4, 3, 4, 4), (3,)],
    ),
    "pooling rounds up": ('type: "Pooling" pooling_param { pool: MAX kernel_size: 2 stride: 2 }', []),
    "padded pooling": ('type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }', []),
    "pooling rounds down": (
        'type: "Pooling" pooling_param { pool: MAX kernel_size: 2 stride: 2 ceil_mode: false }',
        [],
    ),
    "global pooling": ('type: "Pooling" pooling_param { pool: AVE global_pooling: true }', []),
    "inner product": ('type: "InnerProduct" inner_product_param { num_output: 5 }', [(5, 252), (5,)]),
    "flatten": ('type: "Flatten"', []),
    "partial flatten": ('type: "Flatten" flatten_param { axis: 1 end_axis: 2 }', []),
    "reshape": ('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 9 } }', []),
    "permute": ('type: "Permute" permute_param { order: 0 order: 2 order: 3 order: 1 }', []),
    "relu": ('type: "ReLU"', []),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_shape_is_what_opencv_computes(tmp_path, name):
    body, shapes = LAYERS[name]
    text = f'{HEAD}layer {{ name: "it" bottom: "data" top: "it" {body} }}'
    pair = small_net(tmp_path, text, {"it": [np.ones(shape, np.float32) for shape in shapes]} if shapes else None)
    found = infer_shapes(load_net(pair))[BlobVersion("it", 0)]
    assert found == forward(pair, {"data": np.zeros((2, 4, 7, 9), np.float32)}).shape


@pytest.mark.parametrize(("padding", "height"), [("pad_h: 0 pad_w: 1", 2), ("", 3)])
def test_a_last_window_beyond_the_image_is_left_out_on_both_axes_if_either_is_padded(tmp_path, padding, height):
    """By PoolingLayer::Reshape of Caffe: ceil((7 - 1) / 4) + 1 = 3 windows, of which the last one starts at 8 >= 7."""
    param = f"pool: AVE kernel_h: 1 kernel_w: 3 stride_h: 4 stride_w: 2 {padding}"
    text = f'{HEAD}layer {{ name: "it" type: "Pooling" bottom: "data" top: "it" pooling_param {{ {param} }} }}'
    assert infer_shapes(load_net(small_net(tmp_path, text)))[BlobVersion("it", 0)][2] == height


def test_concat_adds_the_lengths_along_its_axis(tmp_path):
    text = HEAD + (
        'layer { name: "a" type: "ReLU" bottom: "data" top: "a" }'
        'layer { name: "it" type: "Concat" bottom: "data" bottom: "a" top: "it" }'
    )
    pair = small_net(tmp_path, text)
    found = infer_shapes(load_net(pair))[BlobVersion("it", 0)]
    assert found == forward(pair, {"data": np.zeros((2, 4, 7, 9), np.float32)}).shape == (2, 8, 7, 9)


def test_slice_cuts_at_its_points(tmp_path):
    text = HEAD + (
        'layer { name: "it" type: "Slice" bottom: "data" top: "a" top: "b" slice_param { axis: 1 slice_point: 1 } }'
    )
    shapes = infer_shapes(load_net(small_net(tmp_path, text)))
    assert (shapes[BlobVersion("a", 0)], shapes[BlobVersion("b", 0)]) == ((2, 1, 7, 9), (2, 3, 7, 9))


def test_behind_an_unknown_layer_nothing_is_claimed(tmp_path):
    text = HEAD + (
        'layer { name: "fork" type: "OfAFork" bottom: "data" top: "x" }'
        'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    )
    assert set(infer_shapes(load_net(small_net(tmp_path, text)))) == {BlobVersion("data", 0)}


def test_an_input_without_a_shape_has_none(tmp_path):
    text = 'input: "data" layer { name: "r" type: "ReLU" bottom: "data" top: "y" }'
    assert infer_shapes(load_net(small_net(tmp_path, text))) == {}
