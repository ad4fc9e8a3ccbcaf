"""The deploy pair, decoded by protobuf: integers, shapes, names and wiring."""

import struct

import numpy as np
import pytest
from nets import read_caffemodel, read_prototxt, small_net, stored_arrays
from twin_nets import FACTORS, VARIED, rounded, rounded_bias, save, varied_blobs, varied_net


@pytest.fixture
def source(tmp_path):
    return varied_net(tmp_path / "in")


@pytest.fixture
def deploy(source, tmp_path):
    return save(source, tmp_path / "out", save_type="Deploy").deploy.files


def wiring(prototxt):
    return [(layer.name, layer.type, list(layer.bottom), list(layer.top)) for layer in read_prototxt(prototxt).layer]


def test_weights_are_int8_with_one_scale_for_each_output_channel(deploy):
    stored, blobs = stored_arrays(deploy[1]), varied_blobs()
    scale = np.array(FACTORS["left"][2], np.float32).reshape(6, 1, 1, 1)
    assert stored["left"][0].dtype == np.int8
    assert np.array_equal(stored["left"][0], rounded(blobs["left"][0], scale))
    assert np.array_equal(stored["right"][0], rounded(blobs["right"][0], 0.0078125))
    assert stored["fc"][0].shape == (5, 250)
    assert np.array_equal(stored["fc"][0], rounded(blobs["fc"][0], np.float32(0.009)))


def test_an_output_channel_of_a_deconvolution_is_group_times_columns_plus_column(deploy):
    stored, weight = stored_arrays(deploy[1])["up"][0], varied_blobs()["up"][0]
    scale = np.array(FACTORS["up"][2], np.float32)
    for row in range(6):
        for column in range(2):
            channel = (row // 3) * 2 + column
            assert np.array_equal(stored[row, column], rounded(weight[row, column], scale[channel]))


def test_biases_are_int32_of_bias_over_both_scales(deploy):
    stored, blobs = stored_arrays(deploy[1]), varied_blobs()
    for name in ("left", "deep", "up", "fc"):
        scale_d, _, scale_w = FACTORS[name]
        assert stored[name][1].dtype == np.int32
        assert np.array_equal(stored[name][1], rounded_bias(blobs[name][1], scale_d, scale_w))
    assert (stored["left"][1] < 0).any()
    assert len(stored["right"]) == 1


def test_a_dequant_holds_the_float32_bits_of_the_product_of_the_scales(deploy):
    stored = stored_arrays(deploy[1])
    for name, (scale_d, _, scale_w) in FACTORS.items():
        products = [np.float32(scale_d) * np.float32(scale) for scale in scale_w or [1]]
        expected = [struct.unpack("<I", struct.pack("<f", product))[0] for product in products]
        assert stored[f"{name}_dequant_layer"][0].tolist() == expected


def test_one_quant_serves_the_layers_with_the_same_input_and_factors(deploy):
    layers = wiring(deploy[0])
    quants = [layer[0] for layer in layers if layer[1] == "Quant"]
    assert quants == [f"{name}_0_quant_layer" for name in ("left", "deep", "up", "pool", "fc")]
    reads = {name: bottoms for name, _, bottoms, _ in layers}
    assert reads["left"] == reads["right"] == ["left_0_quant_layer"]


def test_other_factors_on_the_same_input_get_a_quant_of_their_own(source, tmp_path):
    factors = {"left": FACTORS["left"], "right": (0.0625, -7, [0.0078125])}
    layers = wiring(save(source, tmp_path / "out", factors).deploy.model)
    assert [layer[:3] for layer in layers if layer[1] == "Quant"] == [
        ("left_0_quant_layer", "Quant", ["data"]),
        ("right_0_quant_layer", "Quant", ["data"]),
    ]


def test_the_dequant_takes_the_old_top_and_everything_behind_stays_as_it_was(deploy):
    layers = wiring(deploy[0])
    start = [name for name, *_ in layers].index("left_0_quant_layer")
    assert layers[start : start + 4] == [
        ("left_0_quant_layer", "Quant", ["data"], ["left_0_quant_layer"]),
        ("left", "Convolution", ["left_0_quant_layer"], ["left/int32"]),
        ("left_dequant_layer", "DeQuant", ["left/int32"], ["left"]),
        ("left_relu", "ReLU", ["left"], ["left"]),
    ]
    untouched = {layer.name: layer for layer in read_prototxt(deploy[0]).layer}
    assert list(untouched["sum"].bottom) == ["left", "right"]


def test_a_quant_holds_the_reciprocal_scale_and_the_offset_in_one_byte(deploy):
    text = {layer.name: layer.quant_param for layer in read_prototxt(deploy[0]).layer}
    binary = {layer.name: layer.quant_param for layer in read_caffemodel(deploy[1]).layer}
    for name in ("left", "deep", "up", "pool", "fc"):
        scale_d, offset_d, _ = FACTORS[name]
        for found in (text, binary):
            param = found[f"{name}_0_quant_layer"]
            assert np.float32(param.scale) == np.float32(1) / np.float32(scale_d)
            assert struct.unpack("b", param.offset)[0] == offset_d
    assert 'offset: "\\200"' in deploy[0].read_text()


def test_a_pooling_is_quantized_without_parameters_of_its_own(deploy):
    layers = {layer.name: layer for layer in read_caffemodel(deploy[1]).layer}
    assert len(layers["pool"].blobs) == 0
    assert [tuple(blob.shape.dim) for blob in layers["pool_dequant_layer"].blobs] == [(1,)]


def test_quantized_layers_hold_a_shape_and_nothing_but_integers(deploy):
    for layer in read_caffemodel(deploy[1]).layer:
        for blob in layer.blobs:
            assert blob.HasField("shape") and not blob.num and not blob.height
            assert not blob.data and not blob.double_data


def test_what_a_layer_says_besides_stays(deploy):
    assert "engine: CAFFE" in deploy[0].read_text()


def test_legacy_shapes_give_the_same_pair(source, deploy, tmp_path):
    legacy = varied_net(tmp_path / "legacy", legacy=True)
    files = save(legacy, tmp_path / "legacy_out", save_type="Deploy").deploy.files
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in deploy]


def test_shared_parameters_are_quantized_for_every_user_and_no_more_shared(tmp_path):
    shared = """
    name: "siamese"
    input: "a" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }
    input: "b" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }
    layer { name: "one" type: "Convolution" bottom: "a" top: "one" param { name: "w" lr_mult: 2 } param { name: "v" }
      convolution_param { num_output: 2 kernel_size: 1 } }
    layer { name: "two" type: "Convolution" bottom: "b" top: "two" param { name: "w" lr_mult: 2 } param { name: "v" }
      convolution_param { num_output: 2 kernel_size: 1 } }
    """
    weight = np.array([[0.5, -1.0], [0.25, 1.0]], np.float32).reshape(2, 2, 1, 1)
    blobs = [weight, np.array([1.0, -1.0], np.float32)]
    source = small_net(tmp_path / "in", shared, {"one": blobs, "two": blobs})
    output = save(source, tmp_path / "out", {"one": (0.5, 0, [0.25]), "two": (0.5, 0, [0.125])})
    stored = stored_arrays(output.deploy.files[1])
    assert stored["one"][0].reshape(-1).tolist() == [2, -4, 1, 4]
    assert stored["two"][0].reshape(-1).tolist() == [4, -8, 2, 8]
    for twin in output.artifacts:
        params = [param for layer in read_prototxt(twin.model).layer for param in layer.param]
        assert [(param.name, param.lr_mult) for param in params] == [("", 2.0), ("", 0.0)] * 2


def test_a_float_user_of_shared_parameters_keeps_the_float_values(tmp_path):
    shared = """
    input: "a" input_shape { dim: 1 dim: 1 dim: 2 dim: 2 }
    layer { name: "one" type: "Convolution" bottom: "a" top: "one" param { name: "w" }
      convolution_param { num_output: 1 kernel_size: 1 bias_term: false } }
    layer { name: "two" type: "Convolution" bottom: "one" top: "two" param { name: "w" }
      convolution_param { num_output: 1 kernel_size: 1 bias_term: false } }
    """
    blobs = [np.full((1, 1, 1, 1), 0.75, np.float32)]
    source = small_net(tmp_path / "in", shared, {"one": blobs, "two": blobs})
    stored = stored_arrays(save(source, tmp_path / "out", {"one": (0.5, 0, [0.25])}).deploy.files[1])
    assert (stored["one"][0].dtype, stored["one"][0].item()) == (np.int8, 3)
    assert (stored["two"][0].dtype, stored["two"][0].item()) == (np.float32, 0.75)


def test_names_that_the_net_has_already_get_a_number(tmp_path):
    taken = VARIED.replace('"sum"', '"left_0_quant_layer"').replace('"left_relu"', '"left_dequant_layer"')
    source = small_net(
        tmp_path / "in",
        taken.replace('"right"', '"left/int32"'),
        {name.replace("right", "left/int32"): values for name, values in varied_blobs().items()},
    )
    output = save(source, tmp_path / "out", {"left": FACTORS["left"]})
    for twin in output.artifacts:
        made = {layer.name: list(layer.top) for layer in read_prototxt(twin.model).layer}
        assert made["left"] == ["left/int32_1"]
        assert made["left_dequant_layer_1"] == ["left"]
        assert any("left_0_quant_layer_1" in tops for tops in made.values())
    assert 'name: "left_0_quant_layer_1"' in output.deploy.model.read_text()


def test_tensors_of_one_blob_that_differ_in_version_are_quantized_each(tmp_path):
    in_place = """
    input: "x" input_shape { dim: 1 dim: 1 dim: 4 dim: 4 }
    layer { name: "before" type: "Convolution" bottom: "x" top: "before"
      convolution_param { num_output: 1 kernel_size: 1 bias_term: false } }
    layer { name: "relu" type: "ReLU" bottom: "x" top: "x" }
    layer { name: "after" type: "Convolution" bottom: "x" top: "after"
      convolution_param { num_output: 1 kernel_size: 1 bias_term: false } }
    """
    ones = [np.ones((1, 1, 1, 1), np.float32)]
    source = small_net(tmp_path / "in", in_place, {"before": ones, "after": ones})
    output = save(source, tmp_path / "out", {"before": (0.5, 1, [0.25]), "after": (0.5, 1, [0.25])})
    quants = [layer[0] for layer in wiring(output.deploy.model) if layer[1] == "Quant"]
    assert quants == ["before_0_quant_layer", "after_0_quant_layer"]
