"""Runtimes merge a Power with a layer before it that multiplies and adds: the builtin style keeps them apart."""

import numpy as np
import pytest
from nets import small_net
from twin_nets import quantized_input, save

import twinquant
from twinquant_caffe.prototxt import parse_prototxt

cv2 = pytest.importorskip("cv2")

HEAD = 'input: "data" input_shape { dim: 1 dim: 4 dim: 16 dim: 16 }\n'
LAST = """
layer { name: "last" type: "Convolution" bottom: "y" top: "out"
        convolution_param { num_output: 4 kernel_size: 1 bias_term: false } }
"""
POWER = (
    'layer { name: "first" type: "Power" bottom: "data" top: "y" power_param { scale: 0.017 shift: -1.3 power: %d } }\n'
)
DROPOUT = 'layer { name: "dropout" type: "Dropout" bottom: "y" top: "y" }\n'
FILTER = """
layer { name: "first" type: "%s" bottom: "data" top: "y" convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
"""
SCALE_D, OFFSET_D = 0.03, -5
KINDS = {
    "power": POWER % 1,
    "square": POWER % 2,
    "power and dropout": POWER % 1 + DROPOUT,
    "convolution": FILTER % "Convolution",
    "deconvolution": FILTER % "Deconvolution",
    "scale": 'layer { name: "first" type: "Scale" bottom: "data" top: "y" }\n',
}


def saved(folder, text, factors=None):
    """Save a net whose last layer passes its quantized input on, times the scale."""
    rng = np.random.default_rng(7)
    blobs = {"last": [np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)]}
    if "onvolution" in text:
        blobs["first"] = [(rng.standard_normal((4, 4, 3, 3)) * 0.01).astype(np.float32), np.float32([1, -1, 2, 0])]
    if "Scale" in text:
        blobs["first"] = [np.float32([0.01, 0.02, 0.03, 0.04])]
    own = {"last": (SCALE_D, OFFSET_D, [1.0])}
    return save(small_net(folder / "in", HEAD + text + LAST, blobs), folder / "out", own | (factors or {}))


def run_with_default_settings(files, data, layer=None):
    net = cv2.dnn.readNetFromCaffe(*map(str, files[:2]))
    net.setInput(data, "data")
    return np.array(net.forward() if layer is None else net.forward(layer))


def images():
    return (np.random.default_rng(8).standard_normal((1, 4, 16, 16)) * 60).astype(np.float32)


def merged_neighbours(prototxt):
    """Return the Power layers that follow a layer that multiplies and adds, past what computes nothing."""
    kinds, found = {}, []
    for layer in parse_prototxt(prototxt).messages("layer"):
        kind, bottoms = layer.text("type"), layer.texts("bottom")
        if kind == "Power" and kinds.get(bottoms[0]) in ("Power", "Convolution", "Deconvolution", "BatchNorm", "Scale"):
            found.append(layer.text("name"))
        for top in layer.texts("top"):
            kinds[top] = kinds[bottoms[0]] if kind == "Dropout" else kind
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_power_of_a_quantization_follows_a_layer_that_it_would_be_merged_with(tmp_path, kind):
    assert not merged_neighbours(saved(tmp_path, KINDS[kind]).fake_quant.model)


def test_nor_does_one_follow_the_dequantization_of_another_layer(tmp_path):
    factors = {"first": (0.5, 0, [0.0003] * 4)}
    assert not merged_neighbours(saved(tmp_path, KINDS["convolution"], factors).fake_quant.model)


def test_behind_other_layers_there_are_seven_layers_as_ever(tmp_path):
    text = 'layer { name: "first" type: "TanH" bottom: "data" top: "y" }\n'
    names = [layer.text("name") for layer in parse_prototxt(saved(tmp_path, text).fake_quant.model).messages("layer")]
    assert len([name for name in names if name.startswith("last_0_quant_layer/")]) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_opencv_rounds_right_with_its_default_settings(tmp_path, kind):
    files = saved(tmp_path, KINDS[kind]).fake_quant.files
    data = images()
    activation = run_with_default_settings(files, data, "last_0_quant_layer/keep_apart")
    expected = quantized_input(activation, SCALE_D, OFFSET_D) * np.float32(SCALE_D)
    assert len(np.unique(expected)) > 20
    np.testing.assert_allclose(run_with_default_settings(files, data), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_between_them_is_understood_when_the_twins_are_verified(tmp_path, kind):
    output = saved(tmp_path, KINDS[kind])
    report = twinquant.verify(output.fake_quant.model, output.deploy.model)
    assert report.agree, report


def test_a_layer_between_them_that_changes_values_is_found(tmp_path):
    output = saved(tmp_path, KINDS["power"])
    model = output.fake_quant.model
    model.write_text(model.read_text().replace("negative_slope: 1.0", "negative_slope: 0.5"))
    report = twinquant.verify(model, output.deploy.model)
    (problem,) = report.layers[0].problems
    assert "'last_0_quant_layer/keep_apart'" in problem and "negative_slope is 0.5, expected 1" in problem
