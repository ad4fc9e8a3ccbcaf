"""A fused net computes what the unfused one does: both run in OpenCV, layer by layer."""

import numpy as np
import pytest
from nets import small_net
from runs import assert_equal_to, forward

from twinquant_caffe.fuse import fuse_net
from twinquant_caffe.fuse.weight import ScaledValues
from twinquant_caffe.load import load_net
from twinquant_caffe.run import open_net
from twinquant_caffe.values import ArrayValues
from twinquant_caffe.write import write_net

HEAD = 'name: "n" input: "data" input_shape { dim: 2 dim: 4 dim: 6 dim: 7 }\n'
RNG = np.random.default_rng(5)


def values(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def batch_norm(channels, factor=3.0):
    return [values(channels), np.abs(values(channels)) + 0.3, np.float32([factor])]


def layer(name, kind, bottom, top, parameters=""):
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {parameters} }}\n'


CONV = "convolution_param { num_output: 6 kernel_size: 3 pad: 1 }"
BARE = "convolution_param { num_output: 6 kernel_size: 3 bias_term: false }"
GROUPED = "convolution_param { num_output: 6 kernel_size: 3 group: 2 }"
BETA = "scale_param { bias_term: true }"
EPS = "batch_norm_param { use_global_stats: true eps: 0.01 }"
PRODUCT = "inner_product_param { num_output: 6 }"

CASES = {
    "bn": (layer("c", "Convolution", "data", "c", CONV) + layer("b", "BatchNorm", "c", "b"), [(6, 4, 3, 3), (6,)]),
    "bn and scale": (
        layer("c", "Convolution", "data", "c", CONV)
        + layer("b", "BatchNorm", "c", "b", EPS)
        + layer("s", "Scale", "b", "s", BETA),
        [(6, 4, 3, 3), (6,)],
    ),
    "in place": (
        layer("c", "Convolution", "data", "c", CONV)
        + layer("b", "BatchNorm", "c", "c")
        + layer("s", "Scale", "c", "c", BETA)
        + layer("r", "ReLU", "c", "c"),
        [(6, 4, 3, 3), (6,)],
    ),
    "without a bias": (
        layer("c", "Convolution", "data", "c", BARE) + layer("b", "BatchNorm", "c", "c"),
        [(6, 4, 3, 3)],
    ),
    "scale alone": (
        layer("c", "Convolution", "data", "c", CONV) + layer("s", "Scale", "c", "s"),
        [(6, 4, 3, 3), (6,)],
    ),
    "grouped": (
        layer("c", "Convolution", "data", "c", GROUPED)
        + layer("b", "BatchNorm", "c", "b")
        + layer("s", "Scale", "b", "s", BETA),
        [(6, 2, 3, 3), (6,)],
    ),
    "deconvolution": (
        layer("c", "Deconvolution", "data", "c", "convolution_param { num_output: 6 kernel_size: 2 stride: 2 }")
        + layer("b", "BatchNorm", "c", "b")
        + layer("s", "Scale", "b", "s", BETA),
        [(4, 6, 2, 2), (6,)],
    ),
    "grouped deconvolution": (
        layer("c", "Deconvolution", "data", "c", "convolution_param { num_output: 6 kernel_size: 2 group: 2 }")
        + layer("b", "BatchNorm", "c", "c"),
        [(4, 3, 2, 2), (6,)],
    ),
    "inner product": (
        layer("c", "InnerProduct", "data", "c", PRODUCT)
        + layer("b", "BatchNorm", "c", "b")
        + layer("s", "Scale", "b", "s", BETA),
        [(6, 168), (6,)],
    ),
    "twice normalized": (
        layer("c", "Convolution", "data", "c", CONV)
        + layer("b", "BatchNorm", "c", "b")
        + layer("s", "Scale", "b", "s", BETA)
        + layer("b2", "BatchNorm", "s", "b2"),
        [(6, 4, 3, 3), (6,)],
    ),
}
PARAMETERS = {"b": lambda: batch_norm(6), "b2": lambda: batch_norm(6, 0.5)}


def blobs_of(text, shapes):
    found = {"c": [values(*shape) for shape in shapes]}
    found.update({name: make() for name, make in PARAMETERS.items() if f'name: "{name}"' in text})
    if 'name: "s"' in text:
        found["s"] = [values(6), values(6)] if BETA in text else [values(6)]
    return found


def fused_pair(pair, folder, skip=()):
    folder.mkdir()
    fused, names = fuse_net(load_net(pair), skip)
    return write_net(fused, folder, "fused.prototxt", "fused.caffemodel"), fused, names


@pytest.mark.parametrize("name", CASES)
def test_what_follows_a_layer_is_folded_into_it(tmp_path, name):
    text, shapes = CASES[name]
    pair = small_net(tmp_path, HEAD + text, blobs_of(text, shapes))
    after, fused, names = fused_pair(pair, tmp_path / "fused")
    assert list(names) == ["c"]
    assert {layer.type for layer in fused.layers}.isdisjoint({"BatchNorm", "Scale"})
    feeds = {"data": values(3, 4, 6, 7)}
    assert_equal_to(forward(pair, feeds), forward(after, feeds))


def test_a_scale_factor_of_zero_counts_as_zero_mean_and_variance(tmp_path):
    text = layer("c", "Convolution", "data", "c", CONV) + layer("b", "BatchNorm", "c", "b")
    blobs = {"c": [values(6, 4, 3, 3), values(6)], "b": batch_norm(6, 0.0)}
    after, *_ = fused_pair(small_net(tmp_path, HEAD + text, blobs), tmp_path / "fused")
    # by hand: y = x / sqrt(0 + 1e-5)
    wanted = blobs["c"][0].astype(np.float64) / np.sqrt(1e-5)
    np.testing.assert_allclose(load_net(after).layer("c").blobs[0].floats.read(0, 216), wanted.reshape(-1), rtol=1e-6)


def test_a_normalization_before_a_convolution_without_padding_is_folded_into_it(tmp_path):
    text = (
        layer("b", "BatchNorm", "data", "b")
        + layer("s", "Scale", "b", "s", BETA)
        + layer("c", "Convolution", "s", "c", GROUPED)
    )
    blobs = {"b": batch_norm(4), "s": [values(4), values(4)], "c": [values(6, 2, 3, 3), values(6)]}
    pair = small_net(tmp_path, HEAD + text, blobs)
    after, fused, names = fused_pair(pair, tmp_path / "fused")
    assert list(names) == ["c"]
    assert [entry.name for entry in fused.layers] == ["c"]
    feeds = {"data": values(3, 4, 6, 7)}
    assert_equal_to(forward(pair, feeds), forward(after, feeds))


def test_an_in_place_normalization_before_a_convolution_is_folded_too(tmp_path):
    text = (
        layer("r", "ReLU", "data", "x")
        + layer("b", "BatchNorm", "x", "x")
        + layer("c", "Convolution", "x", "c", "convolution_param { num_output: 6 kernel_size: 3 bias_term: false }")
        + layer("r2", "ReLU", "c", "c")
    )
    pair = small_net(tmp_path, HEAD + text, {"b": batch_norm(4), "c": [values(6, 4, 3, 3)]})
    after, _, names = fused_pair(pair, tmp_path / "fused")
    assert list(names) == ["c"]
    feeds = {"data": values(2, 4, 6, 7)}
    assert_equal_to(forward(pair, feeds), forward(after, feeds))


def test_a_normalization_without_shift_is_folded_into_a_padded_convolution(tmp_path):
    text = layer("b", "BatchNorm", "data", "b") + layer("c", "Convolution", "b", "c", CONV)
    blobs = {"b": [np.zeros(4, np.float32), np.float32([1, 2, 3, 4]), np.float32([2])]}
    blobs["c"] = [values(6, 4, 3, 3), values(6)]
    pair = small_net(tmp_path, HEAD + text, blobs)
    after, _, names = fused_pair(pair, tmp_path / "fused")
    assert list(names) == ["c"]
    feeds = {"data": values(2, 4, 6, 7)}
    assert_equal_to(forward(pair, feeds), forward(after, feeds))


def test_weights_stored_as_doubles_and_in_the_old_form_are_folded(tmp_path):
    text = layer("c", "Convolution", "data", "c", CONV) + layer("b", "BatchNorm", "c", "c")
    blobs = {"c": [values(6, 4, 3, 3), values(6)], "b": batch_norm(6)}
    plain = small_net(tmp_path / "plain", HEAD + text, blobs)
    doubled = {name: [array.astype(np.float64) for array in arrays] for name, arrays in blobs.items()}
    for form, pair in {
        "double": small_net(tmp_path / "double", HEAD + text, doubled),
        "legacy": small_net(tmp_path / "legacy", HEAD + text, blobs, legacy=True),
    }.items():
        after, *_ = fused_pair(pair, tmp_path / f"fused_{form}")
        feeds = {"data": values(2, 4, 6, 7)}
        assert_equal_to(forward(plain, feeds), forward(after, feeds))


def test_a_shared_weight_stays_as_it_is_for_its_other_user(tmp_path):
    shared = f'param {{ name: "w" }} param {{ name: "bias" }} {CONV}'
    text = (
        layer("c", "Convolution", "data", "c", shared)
        + layer("b", "BatchNorm", "c", "b")
        + layer("other", "Convolution", "data", "o", shared)
        + 'layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "o" top: "sum" }'
    )
    weight, bias = values(6, 4, 3, 3), values(6)
    pair = small_net(tmp_path, HEAD + text, {"c": [weight, bias], "b": batch_norm(6), "other": [weight, bias]})
    after, fused, names = fused_pair(pair, tmp_path / "fused")
    assert list(names) == ["c"]
    feeds = {"data": values(2, 4, 6, 7)}
    assert_equal_to(forward(pair, feeds), forward(after, feeds))
    assert fused.layer("c").message.messages("param")[0].text("name") == ""


def test_a_depthwise_convolution_of_a_fork_is_fused_like_a_grouped_one(tmp_path):
    text = 'type: "{}" bottom: "data" top: "c" convolution_param {{ num_output: 4 {} kernel_size: 3 }} }}\n'
    norm = layer("b", "BatchNorm", "c", "b")
    blobs = {"c": [values(4, 1, 3, 3), values(4)], "b": batch_norm(4)}
    grouped = small_net(
        tmp_path / "grouped", HEAD + 'layer { name: "c" ' + text.format("Convolution", "group: 4") + norm, blobs
    )
    fork = small_net(
        tmp_path / "fork", HEAD + 'layer { name: "c" ' + text.format("DepthwiseConvolution", "") + norm, blobs
    )
    fused, names = fuse_net(load_net(fork), ())
    assert list(names) == ["c"]
    feeds = {"data": values(2, 4, 6, 7)}
    (found,) = open_net(fused, fused.outputs)(feeds).values()
    assert_equal_to(forward(grouped, feeds), found)


@pytest.mark.parametrize("factors_shape", [(6, 1), (2, 4), (1, 1)])
def test_any_part_of_a_fused_weight_can_be_read(factors_shape):
    weight, factors = values(6, 4, 5), RNG.standard_normal(factors_shape)
    groups = np.repeat(factors, 6 // factors_shape[0], axis=0)
    wanted = (weight * groups[:, :, None]).astype(np.float32).reshape(-1)
    lazy = ScaledValues(ArrayValues(weight), (6, 4, 5), factors)
    for start, stop in [(0, 120), (0, 1), (3, 4), (7, 33), (19, 101), (119, 120), (50, 50)]:
        np.testing.assert_array_equal(lazy.read(start, stop), wanted[start:stop])
    assert b"".join(map(bytes, lazy.payload())) == wanted.tobytes()
