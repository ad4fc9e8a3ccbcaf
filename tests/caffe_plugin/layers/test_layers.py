"""Which layers can be quantized, under which conditions."""

import numpy as np
import pytest
from nets import small_net

from twinquant.errors import ModelFileError
from twinquant.plan import LayerKind
from twinquant_caffe.layers import describe_layers
from twinquant_caffe.load import load_net

HEAD = 'input: "data" input_shape { dim: 2 dim: 4 dim: 6 dim: 6 }\n'


def describe(folder, kind, parameters, *shapes, head=HEAD, bottoms=("data",)):
    """Return the description of a net's only layer."""
    wiring = " ".join(f'bottom: "{name}"' for name in bottoms)
    text = f'{head}layer {{ name: "it" type: "{kind}" {wiring} top: "out" {parameters} }}'
    blobs = {"it": [np.ones(shape, np.float32) for shape in shapes]} if shapes else None
    (info,) = describe_layers(load_net(small_net(folder, text, blobs)))
    return info


def test_a_convolution_tells_what_the_plan_needs(tmp_path):
    info = describe(
        tmp_path, "Convolution", "convolution_param { num_output: 6 kernel_size: 3 group: 2 }", (6, 2, 3, 3), (6,)
    )
    assert (info.kind, info.refusal, info.activation) == (LayerKind.CONV, None, "0:data")
    assert (info.out_channels, info.has_bias, info.weight_shape) == (6, True, (6, 2, 3, 3))
    assert info.input_shape == (4, 6, 6)


@pytest.mark.parametrize("kind", ["DepthwiseConvolution", "ConvolutionDepthwise"])
def test_the_depthwise_convolutions_of_forks_need_no_group(tmp_path, kind):
    info = describe(tmp_path, kind, "convolution_param { num_output: 4 kernel_size: 3 bias_term: false }", (4, 1, 3, 3))
    assert (info.kind, info.refusal, info.out_channels) == (LayerKind.CONV, None, 4)
    assert not info.has_bias


@pytest.mark.parametrize("kind", ["DepthwiseConvolution", "ConvolutionDepthwise"])
def test_the_depthwise_convolutions_of_forks_have_several_outputs_a_group_where_they_say_so(tmp_path, kind):
    info = describe(tmp_path, kind, "convolution_param { num_output: 8 kernel_size: 3 group: 4 }", (8, 1, 3, 3), (8,))
    assert (info.kind, info.refusal, info.out_channels) == (LayerKind.CONV, None, 8)


@pytest.mark.parametrize("axis", [2, -2])
def test_a_convolution_along_another_axis_has_its_channels_there(tmp_path, axis):
    text = f"convolution_param {{ num_output: 5 kernel_size: 3 axis: {axis} }}"
    info = describe(tmp_path, "Convolution", text, (5, 6, 3), (5,))
    assert info.refusal


def test_a_kernel_given_as_height_and_width_is_two_dimensional(tmp_path):
    info = describe(
        tmp_path, "Convolution", "convolution_param { num_output: 5 kernel_h: 1 kernel_w: 3 }", (5, 4, 1, 3), (5,)
    )
    assert info.refusal is None


def test_dilation_is_fine_in_a_convolution(tmp_path):
    info = describe(
        tmp_path, "Convolution", "convolution_param { num_output: 5 kernel_size: 2 dilation: 2 }", (5, 4, 2, 2), (5,)
    )
    assert info.refusal is None


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("force_nd_im2col: true", "force_nd_im2col is set"),
        ("axis: 2", "axis is 2, only 1"),
    ],
)
def test_convolutions_that_caffe_computes_otherwise_are_refused(tmp_path, parameters, reason):
    text = f"convolution_param {{ num_output: 5 kernel_size: 2 {parameters} }}"
    head = 'input: "data"\n'
    assert reason in describe(tmp_path, "Convolution", text, (5, 4, 2, 2), (5,), head=head).refusal


def test_a_three_dimensional_convolution_is_refused(tmp_path):
    head = 'input: "data" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 dim: 4 }\n'
    info = describe(
        tmp_path,
        "Convolution",
        "convolution_param { num_output: 3 kernel_size: 2 }",
        (3, 2, 2, 2, 2),
        (3,),
        head=head,
    )
    assert info.refusal == "its kernel has 3 dimensions, only 2 are supported"


def test_a_convolution_of_two_blobs_at_once_is_refused(tmp_path):
    text = (
        'input: "a" input_shape { dim: 1 dim: 4 dim: 6 dim: 6 } input: "b" input_shape { dim: 1 dim: 4 dim: 6 dim: 6 }'
        'layer { name: "it" type: "Convolution" bottom: "a" bottom: "b" top: "x" top: "y" '
        "convolution_param { num_output: 5 kernel_size: 1 } }"
    )
    blobs = {"it": [np.ones((5, 4, 1, 1), np.float32), np.ones(5, np.float32)]}
    (info,) = describe_layers(load_net(small_net(tmp_path, text, blobs)))
    assert "2 bottoms and 2 tops" in info.refusal


def test_a_deconvolution_has_its_output_channels_behind_its_input_channels(tmp_path):
    info = describe(
        tmp_path, "Deconvolution", "convolution_param { num_output: 6 kernel_size: 3 group: 2 }", (4, 3, 3, 3), (6,)
    )
    assert (info.kind, info.refusal, info.out_channels) == (LayerKind.CONV_TRANSPOSE, None, 6)


def test_a_dilated_deconvolution_is_refused(tmp_path):
    info = describe(
        tmp_path, "Deconvolution", "convolution_param { num_output: 6 kernel_size: 3 dilation: 2 }", (4, 6, 3, 3), (6,)
    )
    assert info.refusal == "dilation is [2], only 1 is supported for Deconvolution"


def test_an_inner_product_takes_one_scale_and_flattens_its_input(tmp_path):
    info = describe(tmp_path, "InnerProduct", "inner_product_param { num_output: 7 }", (7, 144), (7,))
    assert (info.kind, info.refusal, info.out_channels) == (LayerKind.GEMM, None, None)
    assert info.input_shape == (4, 6, 6)


def test_an_old_inner_product_weight_of_four_axes_is_a_matrix(tmp_path):
    text = (
        HEAD + 'layer { name: "it" type: "InnerProduct" bottom: "data" top: "o" inner_product_param { num_output: 7 } }'
    )
    pair = small_net(tmp_path, text, {"it": [np.ones((7, 144), np.float32), np.ones(7, np.float32)]}, legacy=True)
    (info,) = describe_layers(load_net(pair))
    assert info.weight_shape == (7, 144)


@pytest.mark.parametrize(
    ("parameters", "shape", "reason"),
    [
        ("transpose: true", (144, 7), "transpose is set, which is not supported"),
        ("axis: 2", (7, 36), "axis is 2, only 1 is supported"),
    ],
)
def test_inner_products_of_other_layouts_are_refused(tmp_path, parameters, shape, reason):
    text = f"inner_product_param {{ num_output: 7 {parameters} }}"
    assert describe(tmp_path, "InnerProduct", text, shape, (7,)).refusal == reason


@pytest.mark.parametrize("method", ["AVE", "1"])
def test_average_pooling_is_quantized_whether_its_method_has_a_name_or_a_number(tmp_path, method):
    info = describe(tmp_path, "Pooling", f"pooling_param {{ pool: {method} kernel_size: 2 stride: 2 }}")
    assert (info.kind, info.refusal) == (LayerKind.AVERAGE_POOL, None)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("pool: AVE global_pooling: true", "global_pooling is set, which is not supported"),
        ("pool: MAX kernel_size: 2", "its method is MAX, only AVE is quantized"),
        ("kernel_size: 2", "its method is MAX, only AVE is quantized"),
        ("pool: STOCHASTIC kernel_size: 2", "its method is STOCHASTIC, only AVE is quantized"),
    ],
)
def test_other_poolings_are_refused(tmp_path, parameters, reason):
    assert describe(tmp_path, "Pooling", f"pooling_param {{ {parameters} }}").refusal == reason


def test_layers_of_other_types_have_no_kind(tmp_path):
    info = describe(tmp_path, "SomethingOfAFork", "fork_param { a: 1 }")
    assert (info.kind, info.refusal, info.op_type) == (None, None, "SomethingOfAFork")


def test_in_place_layers_give_later_readers_another_activation(tmp_path):
    text = (
        HEAD
        + 'layer { name: "a" type: "Pooling" bottom: "data" top: "x" pooling_param { pool: AVE kernel_size: 1 } }'
        + 'layer { name: "b" type: "Pooling" bottom: "x" top: "y" pooling_param { pool: AVE kernel_size: 1 } }'
        + 'layer { name: "r" type: "ReLU" bottom: "x" top: "x" }'
        + 'layer { name: "c" type: "Pooling" bottom: "x" top: "z" pooling_param { pool: AVE kernel_size: 1 } }'
    )
    infos = {info.name: info for info in describe_layers(load_net(small_net(tmp_path, text)))}
    assert infos["b"].activation != infos["c"].activation


def test_blobs_whose_names_look_like_versions_of_others_are_other_activations(tmp_path):
    text = (
        HEAD
        + 'layer { name: "s" type: "Sigmoid" bottom: "data" top: "x:1" }'
        + 'layer { name: "t" type: "TanH" bottom: "data" top: "x" }'
        + 'layer { name: "r" type: "ReLU" bottom: "x" top: "x" }'
        + 'layer { name: "b" type: "Pooling" bottom: "x:1" top: "y" pooling_param { pool: AVE kernel_size: 1 } }'
        + 'layer { name: "c" type: "Pooling" bottom: "x" top: "z" pooling_param { pool: AVE kernel_size: 1 } }'
    )
    infos = {info.name: info for info in describe_layers(load_net(small_net(tmp_path, text)))}
    assert infos["b"].activation != infos["c"].activation


def test_a_weight_for_another_number_of_input_channels_is_an_error_that_names_the_layer(tmp_path):
    with pytest.raises(
        ModelFileError, match=r"'it' \(Convolution\): its weight is for 3 input channels, but 'data' has 4"
    ):
        describe(tmp_path, "Convolution", "convolution_param { num_output: 5 kernel_size: 2 }", (5, 3, 2, 2), (5,))


def test_a_weight_of_another_kernel_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match=r"shape \[5, 4, 2, 2\], but its kernel is \[3, 3\]"):
        describe(tmp_path, "Convolution", "convolution_param { num_output: 5 kernel_size: 3 }", (5, 4, 2, 2), (5,))


def test_a_matrix_for_another_number_of_inputs_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match="is for 100 inputs, but 'data' has 144 values"):
        describe(tmp_path, "InnerProduct", "inner_product_param { num_output: 7 }", (7, 100), (7,))


def test_no_group_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be cut into 0 groups"):
        describe(
            tmp_path, "Convolution", "convolution_param { num_output: 5 kernel_size: 3 group: 0 }", (5, 4, 3, 3), (5,)
        )


@pytest.mark.parametrize(
    ("kind", "parameters", "shapes"),
    [
        ("Pooling", "pooling_param { pool: AVE kernel_size: 3 pad: 1 }", []),
        ("Convolution", "convolution_param { num_output: 4 kernel_size: 1 }", [(4, 4, 1, 1), (4,)]),
    ],
)
def test_a_layer_that_works_in_place_is_refused(tmp_path, kind, parameters, shapes):
    text = f'{HEAD}layer {{ name: "it" type: "{kind}" bottom: "data" top: "data" {parameters} }}'
    blobs = {"it": [np.ones(shape, np.float32) for shape in shapes]} if shapes else None
    (info,) = describe_layers(load_net(small_net(tmp_path, text, blobs)))
    assert info.refusal == "it works in place, which is not supported: give its top a name of its own"
