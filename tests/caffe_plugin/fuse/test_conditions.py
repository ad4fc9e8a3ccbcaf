"""When nothing is folded, and what is told about what was."""

from dataclasses import replace

import numpy as np
import pytest
from nets import small_net
from twin_nets import records

from twinquant.errors import RecordLayerError
from twinquant_caffe.fuse import fuse_net
from twinquant_caffe.load import load_net
from twinquant_caffe.prepare import prepare_net

HEAD = 'input: "data" input_shape { dim: 2 dim: 4 dim: 6 dim: 6 }\n'
CONV = (
    'layer { name: "conv" type: "Convolution" bottom: "data" top: "c" '
    "convolution_param { num_output: 4 kernel_size: 1 } }\n"
)
ONES = [np.ones((4, 4, 1, 1), np.float32), np.ones(4, np.float32)]
NORM = [np.ones(4, np.float32), np.ones(4, np.float32), np.ones(1, np.float32)]


def layer(name, kind, bottom, top, parameters=""):
    bottoms = " ".join(f'bottom: "{blob}"' for blob in bottom.split())
    return f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{top}" {parameters} }}\n'


def fused(folder, text, blobs, skip=()):
    return fuse_net(load_net(small_net(folder, HEAD + text, blobs)), skip)


def test_names_of_what_was_folded_are_kept_in_their_order(tmp_path):
    text = (
        layer("bn0", "BatchNorm", "data", "n")
        + CONV.replace('"data"', '"n"')
        + layer("bn1", "BatchNorm", "c", "c")
        + layer("scale1", "Scale", "c", "s")
    )
    net, _ = fused(tmp_path, text, {"conv": ONES, "bn0": NORM, "bn1": NORM, "scale1": [NORM[0]]})
    assert net.original_names("conv") == ("bn0", "conv", "bn1", "scale1")
    assert [entry.name for entry in net.layers] == ["conv"]
    assert net.layer("conv").tops == ("s",)


def test_a_blob_that_someone_else_reads_keeps_its_layers(tmp_path):
    text = CONV + layer("bn", "BatchNorm", "c", "b") + layer("sum", "Eltwise", "c b", "sum")
    net, names = fused(tmp_path, text, {"conv": ONES, "bn": NORM})
    assert not names
    assert [entry.name for entry in net.layers] == ["conv", "bn", "sum"]


def test_a_scale_behind_a_blob_that_someone_else_reads_stays(tmp_path):
    text = (
        CONV
        + layer("bn", "BatchNorm", "c", "b")
        + layer("scale", "Scale", "b", "s")
        + layer("sum", "Eltwise", "b s", "sum")
    )
    net, names = fused(tmp_path, text, {"conv": ONES, "bn": NORM, "scale": [NORM[0]]})
    assert list(names) == ["conv"]
    assert [entry.name for entry in net.layers] == ["conv", "scale", "sum"]


def test_a_prepared_net_stays_as_it_is_and_records_of_folded_layers_are_still_refused(tmp_path):
    text = CONV + layer("bn", "BatchNorm", "c", "b") + layer("relu", "ReLU", "b", "b")
    net = replace(load_net(small_net(tmp_path, HEAD + text, {"conv": ONES, "bn": NORM})), prepared=True)
    factors = {"conv": (0.5, 0, [0.25])}
    assert prepare_net(net, records(factors)) is net
    assert prepare_net(net.with_layers(net.layers), records(factors)).layer("bn")
    folded = replace(fuse_net(net, ())[0], prepared=True)
    assert prepare_net(folded, records(factors)) is folded
    with pytest.raises(RecordLayerError, match="record 'bn': the layer is folded into 'conv'"):
        prepare_net(folded, records(factors | {"bn": (0.5, 0, [0.25])}))


def test_a_layer_between_them_keeps_them_apart(tmp_path):
    text = CONV + layer("relu", "ReLU", "c", "c") + layer("bn", "BatchNorm", "c", "b")
    assert not fused(tmp_path, text, {"conv": ONES, "bn": NORM})[1]


def test_skipped_layers_are_left_alone(tmp_path):
    text = CONV + layer("bn", "BatchNorm", "c", "b")
    assert not fused(tmp_path, text, {"conv": ONES, "bn": NORM}, skip=("conv",))[1]


@pytest.mark.parametrize("behind", [1, 2])
def test_what_a_skipped_layer_does_not_take_is_not_given_to_the_next_one(tmp_path, behind):
    """Else the weight of `next` would depend on whether it is known that `conv` was skipped."""
    text = (
        CONV
        + layer("bn", "BatchNorm", "c", "b")
        + (layer("scale", "Scale", "b", "b") if behind == 2 else "")
        + layer("next", "Convolution", "b", "n", "convolution_param { num_output: 4 kernel_size: 1 }")
    )
    blobs = {"conv": ONES, "bn": NORM, "next": ONES} | ({"scale": [NORM[0]]} if behind == 2 else {})
    net, names = fused(tmp_path, text, blobs, skip=("conv",))
    assert not names
    assert len(net.layers) == 2 + behind


@pytest.mark.parametrize(
    ("kind", "parameters", "weight"),
    [
        ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 1 }", (4, 4, 1, 1)),
        ("InnerProduct", "inner_product_param { num_output: 4 }", (4, 144)),
    ],
)
def test_a_scale_alone_is_folded_into_convolutions_only(tmp_path, kind, parameters, weight):
    text = layer("it", kind, "data", "c", parameters) + layer("scale", "Scale", "c", "s")
    blobs = {"it": [np.ones(weight, np.float32), np.ones(4, np.float32)], "scale": [NORM[0]]}
    assert not fused(tmp_path, text, blobs)[1]


def test_a_shift_before_a_padded_convolution_stays(tmp_path, caplog):
    caplog.set_level("INFO")
    text = layer("bn", "BatchNorm", "data", "b") + layer(
        "conv", "Convolution", "b", "c", "convolution_param { num_output: 4 kernel_size: 1 pad: 1 }"
    )
    assert not fused(tmp_path, text, {"conv": ONES, "bn": NORM})[1]
    assert "the layer pads" in caplog.text


def test_a_normalization_that_two_convolutions_read_stays(tmp_path):
    text = (
        layer("bn", "BatchNorm", "data", "b")
        + layer("one", "Convolution", "b", "x", "convolution_param { num_output: 4 kernel_size: 1 }")
        + layer("two", "Convolution", "b", "y", "convolution_param { num_output: 4 kernel_size: 1 }")
    )
    assert not fused(tmp_path, text, {"bn": NORM, "one": ONES, "two": ONES})[1]


def test_an_input_that_is_overwritten_in_between_keeps_its_normalization(tmp_path):
    text = (
        layer("copy", "ReLU", "data", "x")
        + layer("bn", "BatchNorm", "x", "b")
        + layer("tanh", "TanH", "x", "x")
        + layer("conv", "Convolution", "b", "c", "convolution_param { num_output: 4 kernel_size: 1 }")
        + layer("sum", "Eltwise", "x c", "sum")
    )
    assert not fused(tmp_path, text, {"bn": NORM, "conv": ONES})[1]


@pytest.mark.parametrize(
    ("norm", "parameters"),
    [
        (NORM, "batch_norm_param { use_global_stats: false }"),
        ([NORM[0], -NORM[1], NORM[2]], ""),
        ([NORM[0], NORM[1] * np.nan, NORM[2]], ""),
        ([np.ones(2, np.float32), np.ones(2, np.float32), NORM[2]], ""),
        ([*NORM, NORM[0], NORM[0]], ""),
    ],
)
def test_normalizations_that_are_no_constant_factors_stay(tmp_path, norm, parameters):
    text = CONV + layer("bn", "BatchNorm", "c", "b", parameters)
    assert not fused(tmp_path, text, {"conv": ONES, "bn": norm})[1]


@pytest.mark.parametrize(
    ("parameters", "gamma"),
    [("scale_param { axis: 2 }", (6,)), ("scale_param { num_axes: 2 }", (4, 6)), ("scale_param { num_axes: 0 }", ())],
)
def test_scales_of_other_axes_stay(tmp_path, parameters, gamma):
    text = CONV + layer("scale", "Scale", "c", "s", parameters)
    assert not fused(tmp_path, text, {"conv": ONES, "scale": [np.ones(gamma, np.float32)]})[1]


def test_a_scale_by_another_blob_stays(tmp_path):
    text = CONV + layer("relu", "ReLU", "data", "r") + layer("scale", "Scale", "c r", "s", "scale_param { axis: 0 }")
    assert not fused(tmp_path, text, {"conv": ONES})[1]


def test_the_given_net_is_not_modified(tmp_path):
    net = load_net(small_net(tmp_path, HEAD + CONV + layer("bn", "BatchNorm", "c", "c"), {"conv": ONES, "bn": NORM}))
    before = [(entry.name, entry.tops, entry.message) for entry in net.layers]
    fuse_net(net, ())
    assert [(entry.name, entry.tops, entry.message) for entry in net.layers] == before
    assert net.fused == ()
