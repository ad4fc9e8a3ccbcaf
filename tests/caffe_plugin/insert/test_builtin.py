"""The seven stock layers of the builtin style, run in NumPy as stock Caffe runs them, and in OpenCV."""

import numpy as np
import pytest
from nets import small_net
from twin_nets import FACTORS, quantized_input, save, varied_net

from twinquant_caffe.prototxt import parse_prototxt

BARE = """
input: "x" input_shape {{ dim: 1 dim: 1 dim: 1 dim: {length} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "x" top: "y"
  inner_product_param {{ num_output: 1 bias_term: false }} }}
"""


def stock_caffe(layers, x):
    """Run Power and ReLU layers as Caffe does: every step rounded to float32."""
    for layer in layers:
        if layer.text("type") == "Power":
            param = layer.message("power_param")
            assert param.number("power", 1.0) == 1.0
            scale, shift = (np.float32(param.number(name, default)) for name, default in (("scale", 1), ("shift", 0)))
            if scale != 1:
                x = x * scale
            if shift != 0:
                x = x + shift
        else:
            assert layer.text("type") == "ReLU" and not layer.has("relu_param")
            x = np.maximum(x, np.float32(0))
        assert x.dtype == np.float32
    return x


def chain_of(tmp_path, scale_d, offset_d):
    source = small_net(tmp_path / "in", BARE.format(length=4), {"fc": [np.ones((1, 4), np.float32)]})
    output = save(source, tmp_path / "out", {"fc": (scale_d, offset_d, [0.5])}, save_type="Fakequant")
    layers = parse_prototxt(output.fake_quant.model).messages("layer")
    return [layer for layer in layers if layer.text("name").startswith("fc_0_quant_layer/")]


@pytest.mark.parametrize("offset", [-128, -127, -1, 0, 1, 100, 127])
def test_every_integer_comes_out_as_it_is(tmp_path, offset):
    chain = chain_of(tmp_path, 0.25, offset)
    integers = np.arange(-128, 128, dtype=np.float32) - np.float32(offset)
    assert np.array_equal(stock_caffe(chain, integers * np.float32(0.25)), integers)


@pytest.mark.parametrize("offset", [-128, -3, 0, 127])
def test_halves_go_to_the_even_neighbour(tmp_path, offset):
    chain = chain_of(tmp_path, 0.25, offset)
    halves = np.arange(-400, 400, dtype=np.float32) + np.float32(0.5)
    expected = quantized_input(halves * np.float32(0.25), 0.25, offset)
    assert np.array_equal(stock_caffe(chain, halves * np.float32(0.25)), expected)
    assert {-2.0, 0.0, 2.0}.intersection(expected)


@pytest.mark.parametrize("scale", [0.0117, 1e-6, 3.0, 700.25])
def test_any_value_is_rounded_as_the_integer_rule_says(tmp_path, scale):
    chain = chain_of(tmp_path, scale, -11)
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(200_000) * 80 * scale).astype(np.float32)
    assert np.array_equal(stock_caffe(chain, x), quantized_input(x, scale, -11))


@pytest.mark.parametrize("offset", [-128, 0, 127])
def test_what_is_too_large_saturates(tmp_path, offset):
    chain = chain_of(tmp_path, 0.5, offset)
    x = np.array([1e30, 2.0**23, 65, -65, -(2.0**25), -1e30], np.float32)
    assert np.array_equal(stock_caffe(chain, x), quantized_input(x, 0.5, offset))
    assert stock_caffe(chain, x)[[0, -1]].tolist() == [127 - offset, -128 - offset]


def test_the_chain_is_seven_stock_layers_and_no_two_powers_are_neighbours(tmp_path):
    chain = chain_of(tmp_path, 0.5, -3)
    assert [layer.text("type") for layer in chain] == ["Power", "ReLU", "Power", "ReLU", "Power", "ReLU", "Power"]
    fields = {field.name for layer in chain for field in layer} | {
        field.name for layer in chain for field in layer.message("power_param")
    }
    assert fields == {"name", "type", "bottom", "top", "power_param", "scale", "shift"}
    powers = [layer.message("power_param") for layer in chain[::2]]
    magic = 12582912
    assert [power.number("scale", 1) for power in powers] == [2, -1, -1, 1]
    assert [power.integer("shift", 0) for power in powers] == [magic, magic + 127 + 3, 255, -128 + 3]


def test_opencv_computes_what_the_integers_say(tmp_path, run_prototxt):
    output = save(varied_net(tmp_path / "in"), tmp_path / "out")
    x = (np.random.default_rng(3).standard_normal((2, 4, 8, 8)) * 2).astype(np.float32)
    found = run_prototxt(output.fake_quant.files, {"data": x}, "left_0_quant_layer/take_offset")
    scale_d, offset_d, _ = FACTORS["left"]
    assert np.array_equal(found, quantized_input(x, scale_d, offset_d))


def test_the_scale_layer_multiplies_every_channel_by_both_scales(tmp_path):
    output = save(varied_net(tmp_path / "in"), tmp_path / "out")
    from nets import read_caffemodel

    layers = {layer.name: layer for layer in read_caffemodel(output.fake_quant.files[1]).layer}
    text = {layer.text("name"): layer for layer in parse_prototxt(output.fake_quant.model).messages("layer")}
    channels = {"left": 6, "right": 6, "deep": 6, "up": 4, "pool": 10, "fc": 5}
    for name, (scale_d, _, scale_w) in FACTORS.items():
        scale = text[f"{name}_dequant_layer"]
        assert scale.text("type") == "Scale"
        assert scale.message("scale_param").integer("axis", -1) == 1
        assert scale.message("scale_param").flag("bias_term", True) is False
        (blob,) = layers[f"{name}_dequant_layer"].blobs
        assert list(blob.shape.dim) == [channels[name]]
        products = np.float32(scale_d) * np.array(scale_w or [1], np.float32)
        assert np.array_equal(np.array(blob.data, np.float32), np.broadcast_to(products, channels[name]))


def test_both_twins_hold_the_same_integers(tmp_path):
    from nets import stored_arrays

    output = save(varied_net(tmp_path / "in"), tmp_path / "out")
    deploy, fake = (stored_arrays(twin.files[1]) for twin in (output.deploy, output.fake_quant))
    for name in ("left", "right", "deep", "up", "fc"):
        assert len(deploy[name]) == len(fake[name])
        for one, two in zip(deploy[name], fake[name], strict=True):
            assert two.dtype == np.float32
            assert np.array_equal(one, two)


def test_the_channels_of_a_pooling_behind_an_unknown_layer_are_asked_for(tmp_path):
    unknown = """
    input: "x" input_shape { dim: 1 dim: 3 dim: 4 dim: 4 }
    layer { name: "odd" type: "Oddity" bottom: "x" top: "odd" odd_param { width: 3 } }
    layer { name: "pool" type: "Pooling" bottom: "odd" top: "pool" pooling_param { pool: AVE kernel_size: 2 } }
    """
    from twinquant.errors import UnsupportedModelError

    source = small_net(tmp_path / "in", unknown)
    with pytest.raises(UnsupportedModelError, match="layer 'pool': the number of channels of the blob 'odd'"):
        save(source, tmp_path / "out", {"pool": (0.5, 0, [])})
    assert save(source, tmp_path / "deploy", {"pool": (0.5, 0, [])}, save_type="Deploy").deploy.model.exists()
