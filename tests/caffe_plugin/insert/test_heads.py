"""The deploy pair has Input layers, and no data, loss or accuracy layers; the fake-quant pair keeps them."""

import numpy as np
import pytest
from nets import read_prototxt, small_net
from twin_nets import save

from twinquant.errors import UnsupportedModelError
from twinquant_caffe.insert.heads import for_the_device
from twinquant_caffe.load import load_net
from twinquant_caffe.net import BlobVersion
from twinquant_caffe.run import open_net

CONV = """
layer {{ name: "conv" type: "Convolution" bottom: "{blob}" top: "conv"
  convolution_param {{ num_output: 2 kernel_size: 1 bias_term: false }} }}
"""
TRAINING = """
layer { name: "silence" type: "Silence" bottom: "label" }
layer { name: "accuracy" type: "Accuracy" bottom: "conv" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "conv" bottom: "label" top: "loss" }
"""


def saved(tmp_path, head, tail="", blob="data", channels=3, **options):
    weight = np.ones((2, channels, 1, 1), np.float32)
    source = small_net(tmp_path / "in", head + CONV.format(blob=blob) + tail, {"conv": [weight]})
    return save(source, tmp_path / "out", {"conv": (0.5, 0, [0.25])}, **options)


def shown(prototxt):
    from twinquant_caffe.prototxt import parse_prototxt

    tree = parse_prototxt(prototxt)
    inputs = {
        layer.texts("top"): layer.message("input_param").message("shape").integers("dim")
        for layer in tree.messages("layer")
        if layer.text("type") == "Input"
    }
    return inputs, [layer.text("name") for layer in tree.messages("layer")], tree


@pytest.mark.parametrize(
    "head",
    [
        'input: "data" input_dim: 1 input_dim: 3 input_dim: 5 input_dim: 6',
        'input: "data" input_shape { dim: 1 dim: 3 dim: 5 dim: 6 }',
    ],
)
def test_an_input_head_becomes_an_input_layer(tmp_path, head):
    inputs, names, tree = shown(saved(tmp_path, head).deploy.model)
    assert inputs == {("data",): (1, 3, 5, 6)}
    assert names == ["data", "conv_0_quant_layer", "conv", "conv_dequant_layer"]
    assert not (tree.has("input") or tree.has("input_dim") or tree.has("input_shape"))


def test_the_fake_quant_pair_keeps_the_head_of_the_net(tmp_path):
    head = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 5 input_dim: 6'
    _, _, tree = shown(saved(tmp_path, head).fake_quant.model)
    assert tree.texts("input") == ("data",)
    assert tree.integers("input_dim") == (1, 3, 5, 6)


def test_an_input_layer_gets_a_name_that_no_layer_has(tmp_path):
    head = 'input: "conv" input_shape { dim: 1 dim: 3 dim: 5 dim: 6 }'
    text = head + CONV.format(blob="conv").replace('top: "conv"', 'top: "made"')
    source = small_net(tmp_path / "in", text, {"conv": [np.ones((2, 3, 1, 1), np.float32)]})
    inputs, names, _ = shown(save(source, tmp_path / "out", {"conv": (0.5, 0, [0.25])}).deploy.model)
    assert inputs == {("conv",): (1, 3, 5, 6)}
    assert names[0] == "conv_1"


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ('type: "MemoryData" memory_data_param { batch_size: 2 channels: 3 height: 4 width: 5 }', (2, 3, 4, 5)),
        ('type: "ImageData" image_data_param { batch_size: 7 new_height: 9 new_width: 8 }', (7, 3, 9, 8)),
        ('type: "ImageData" transform_param { crop_size: 6 }', (1, 3, 6, 6)),
        ('type: "DummyData" dummy_data_param { shape { dim: 1 dim: 3 dim: 2 dim: 2 } shape { dim: 1 } }', (1, 3, 2, 2)),
    ],
)
def test_data_loss_and_accuracy_layers_are_stripped(tmp_path, data, shape):
    head = f'layer {{ name: "train" top: "data" top: "label" {data} }}'
    output = saved(tmp_path, head, TRAINING)
    inputs, names, _ = shown(output.deploy.model)
    assert inputs == {("data",): shape}
    assert names == ["data", "conv_0_quant_layer", "conv", "conv_dequant_layer"]
    assert {"train", "silence", "accuracy", "loss"} <= {
        layer.name for layer in read_prototxt(output.fake_quant.model).layer
    }


@pytest.mark.parametrize(
    "head",
    [
        'input: "data" input: "label" input_shape { dim: 1 dim: 3 dim: 5 dim: 6 } input_shape { dim: 1 }',
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 5 dim: 6 } } }\n'
        'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 } } }',
    ],
)
def test_inputs_for_stripped_layers_only_are_stripped_too(tmp_path, head):
    inputs, names, _ = shown(saved(tmp_path, head, TRAINING).deploy.model)
    assert inputs == {("data",): (1, 3, 5, 6)}
    assert names == ["data", "conv_0_quant_layer", "conv", "conv_dequant_layer"]


def test_an_input_that_no_layer_reads_stays(tmp_path):
    head = 'input: "data" input: "more" input_shape { dim: 1 dim: 3 dim: 5 dim: 6 } input_shape { dim: 1 }'
    inputs, _, _ = shown(saved(tmp_path, head).deploy.model)
    assert set(inputs) == {("data",), ("more",)}


def test_a_data_layer_without_a_shape_is_an_error_that_says_what_to_do(tmp_path):
    head = 'layer { name: "train" type: "Data" top: "data" top: "label" data_param { batch_size: 2 } }'
    with pytest.raises(UnsupportedModelError, match="replace it by an Input layer with a shape"):
        saved(tmp_path, head, TRAINING)
    assert saved(tmp_path, head, TRAINING, save_type="Fakequant").fake_quant.model.exists()


def device_net(tmp_path, text):
    blobs = {"conv": [np.ones((2, 3, 1, 1), np.float32)]}
    return for_the_device(load_net(small_net(tmp_path, text, blobs)))


def test_a_top_of_an_input_layer_that_only_the_loss_reads_is_stripped_with_its_shape(tmp_path):
    head = (
        'layer { name: "in" type: "Input" top: "label" top: "data"'
        " input_param { shape { dim: 1 } shape { dim: 1 dim: 3 dim: 5 dim: 6 } } }"
    )
    inputs, names, _ = shown(saved(tmp_path, head, TRAINING).deploy.model)
    assert inputs == {("data",): (1, 3, 5, 6)}
    assert names == ["in", "conv_0_quant_layer", "conv", "conv_dequant_layer"]


def test_an_input_layer_of_one_shape_for_all_tops_keeps_it(tmp_path):
    head = (
        'layer { name: "in" type: "Input" top: "data" top: "label"'
        " input_param { shape { dim: 1 dim: 3 dim: 5 dim: 6 } } }"
    )
    assert device_net(tmp_path, head + CONV.format(blob="data") + TRAINING).inputs == (("data", (1, 3, 5, 6)),)


def test_a_silence_keeps_what_is_left_of_what_it_silences(tmp_path):
    text = (
        'input: "data" input_shape { dim: 1 dim: 3 dim: 5 dim: 6 } input: "label" input_shape { dim: 1 }\n'
        + CONV.format(blob="data")
        + 'layer { name: "cut" type: "Slice" bottom: "conv" top: "a" top: "b" }\n'
        'layer { name: "quiet" type: "Silence" bottom: "label" bottom: "b" }\n'
        'layer { name: "accuracy" type: "Accuracy" bottom: "a" bottom: "label" top: "accuracy" }\n'
    )
    net = device_net(tmp_path, text)
    assert [str(version) for version in net.outputs] == ["a"]
    assert net.layer("quiet").bottoms == ("b",)


LOSS = (
    'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "conv" bottom: "label" top: "loss" top: "prob"'
    " softmax_param { axis: 2 } }\n"
)
INPUTS = 'input: "data" input_shape { dim: 1 dim: 3 dim: 5 dim: 6 } input: "label" input_shape { dim: 1 }\n'


def test_probabilities_of_a_loss_that_are_read_on_come_from_a_softmax(tmp_path):
    power = 'layer { name: "twice" type: "Power" bottom: "prob" top: "twice" power_param { scale: 2 } }'
    net = device_net(tmp_path, INPUTS + CONV.format(blob="data") + LOSS + power)
    softmax = net.layer("loss")
    assert (softmax.type, softmax.bottoms, softmax.tops) == ("Softmax", ("conv",), ("prob",))
    data = np.random.default_rng(2).standard_normal((1, 3, 5, 6)).astype(np.float32)
    twice = BlobVersion("twice", 0)
    found = open_net(net, [twice])({"data": data})[twice]
    powers = np.exp(data.sum(1, keepdims=True).repeat(2, axis=1))
    np.testing.assert_allclose(found, 2 * powers / powers.sum(2, keepdims=True), rtol=1e-5)


def test_probabilities_of_a_loss_that_nobody_reads_are_stripped_with_it(tmp_path):
    net = device_net(tmp_path, INPUTS + CONV.format(blob="data") + LOSS)
    assert [layer.name for layer in net.layers] == ["data", "conv"]


def test_a_layer_that_reads_a_loss_is_an_error_that_names_both(tmp_path):
    power = 'layer { name: "twice" type: "Power" bottom: "loss" top: "twice" power_param { scale: 2 } }'
    with pytest.raises(
        UnsupportedModelError, match=r"layer 'twice' reads 'loss', which the SoftmaxWithLoss layer 'loss'"
    ):
        device_net(tmp_path, INPUTS + CONV.format(blob="data") + LOSS + power)
