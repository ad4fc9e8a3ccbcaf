"""Verification of twins: those of one save agree, and whatever is changed in either of them is found."""

import re
import shutil

import numpy as np
import pytest
from nets import read_caffemodel, small_net
from twin_nets import FACTORS, save, varied_net

import twinquant
from twinquant.errors import VerificationError

pytest.importorskip("cv2")

NAMES = ["left", "right", "deep", "up", "pool", "fc"]


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins")
    output = save(varied_net(folder / "in"), folder / "out")
    return output.fake_quant.model, output.deploy.model


def layer_of(model, name):
    return next(layer for layer in model.layer if layer.name == name)


@pytest.fixture
def verify_changed(twins, tmp_path):
    """Change one twin and verify: text by `old` and `new`, the caffemodel by a function."""

    def verify(twin, old="", new="", change=None):
        for prototxt in twins:
            weights = prototxt.with_name(prototxt.name.replace("_model.prototxt", "_weights.caffemodel"))
            for file in (prototxt, weights):
                shutil.copy(file, tmp_path / file.name)
        fake, deploy = (tmp_path / prototxt.name for prototxt in twins)
        changed = {"fake": fake, "deploy": deploy}[twin]
        text = changed.read_text()
        assert text.count(old) >= 1
        changed.write_text(text.replace(old, new, 1))
        if change is not None:
            weights = changed.with_name(changed.name.replace("_model.prototxt", "_weights.caffemodel"))
            model = read_caffemodel(weights)
            change(model)
            weights.write_bytes(model.SerializeToString())
        return twinquant.verify(fake, deploy)

    return verify


def everything(report):
    return "\n".join([*report.problems, *(problem for layer in report.layers for problem in layer.problems)])


def test_the_twins_of_one_save_agree_in_every_layer(twins):
    report = twinquant.verify(*twins)
    assert report.agree, everything(report)
    assert [layer.name for layer in report.layers] == NAMES
    assert {layer.op_type for layer in report.layers} == {"Convolution", "Deconvolution", "Pooling", "InnerProduct"}
    assert {layer.max_difference for layer in report.layers if layer.name != "pool"} == {0.0}
    assert all(layer.free_running < 1e-5 for layer in report.layers)
    assert [(output.name, output.free_running < 1e-6) for output in report.outputs] == [("prob", True)]


def test_twins_of_the_python_style_agree(tmp_path):
    output = save(varied_net(tmp_path / "in"), tmp_path / "out", fake_quant_style="python")
    report = twinquant.verify(output.fake_quant.model, output.deploy.model)
    assert report.agree, everything(report)
    assert [layer.name for layer in report.layers] == NAMES


class Doubling:
    def __init__(self, params, blobs):
        pass

    def getMemoryShapes(self, inputs):
        return inputs

    def forward(self, inputs):
        return [2 * array for array in inputs]


def test_python_layers_of_the_user_s_keep_the_class_that_is_registered_for_them(tmp_path):
    import cv2

    text = """
    input: "x" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }
    layer { name: "mine" type: "Python" bottom: "x" top: "mine" python_param { module: "m" layer: "Doubling" } }
    layer { name: "conv" type: "Convolution" bottom: "mine" top: "conv"
      convolution_param { num_output: 2 kernel_size: 1 } }
    """
    blobs = {"conv": [np.ones((2, 2, 1, 1), np.float32), np.ones(2, np.float32)]}
    source = small_net(tmp_path / "in", text, blobs)
    output = save(source, tmp_path / "out", {"conv": (0.5, 0, [0.25])}, fake_quant_style="python")
    cv2.dnn_registerLayer("Python", Doubling)
    try:
        for _ in range(2):  # the registration is there after the first
            report = twinquant.verify(output.fake_quant.model, output.deploy.model)
            assert report.agree, everything(report)
    finally:
        cv2.dnn_unregisterLayer("Python")


def test_given_data_are_used(twins):
    zeros = {"data": np.zeros((1, 4, 8, 8), np.float32)}
    report = twinquant.verify(*twins, zeros)
    assert report.agree, everything(report)
    assert twinquant.verify(*twins, {"data": np.full((3, 4, 8, 8), 1e6)}).agree


def add_one(field, index):
    def change(blob):
        values = getattr(blob, field)
        if isinstance(values, bytes):
            changed = np.frombuffer(values, np.int8).copy()
            changed[index] = changed[index] - 1 if changed[index] > 0 else changed[index] + 1
            blob.int8_data = changed.tobytes()
        else:
            values[index] += 1

    return change


CONTENTS = {
    "a weight of the deploy twin": (
        "deploy",
        "left",
        0,
        add_one("int8_data", 7),
        "the weight: 1 of 108 integers differ",
    ),
    "a weight of the fake-quant twin": ("fake", "up", 0, add_one("data", 90), "the weight: 1 of 192 integers differ"),
    "a bias of the deploy twin": (
        "deploy",
        "fc",
        1,
        add_one("int32_data", 2),
        "the bias: 1 of 5 integers differ; at 2",
    ),
    "a bias of the fake-quant twin": ("fake", "deep", 1, add_one("data", 5), "the bias: 1 of 6 integers differ; at 5"),
    "a scale of the deploy twin by its last bit": (
        *("deploy", "left_dequant_layer", 0, add_one("uint64_data", 3)),
        "1 of 6 dequantization scales differ; at 3",
    ),
    "a bit above the scale": (
        *(
            "deploy",
            "left_dequant_layer",
            0,
            lambda blob: blob.uint64_data.__setitem__(0, blob.uint64_data[0] | 1 << 33),
        ),
        "bits above the scale",
    ),
    "a scale of the fake-quant twin": (
        *("fake", "pool_dequant_layer", 0, lambda blob: blob.data.__setitem__(1, blob.data[1] * 1.0001)),
        "dequantization scales differ; at 1",
    ),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_changed_value_is_found(verify_changed, case):
    twin, name, index, change, expected = CONTENTS[case]
    report = verify_changed(twin, change=lambda model: change(layer_of(model, name).blobs[index]))
    assert not report.agree
    assert expected in everything(report)
    layer = name.removesuffix("_dequant_layer")
    assert [verdict.name for verdict in report.layers if not verdict.agree] == [layer]


TEXTS = {
    "the offset of a Quant": ("deploy", r'offset: "\371"', r'offset: "\372"', "and offset -6 in the deploy twin"),
    "the scale of a Quant": ("deploy", "scale: 32.0", "scale: 32.5", "scale 32.5 and offset -7 in the deploy twin"),
    "the scale of a Power": ("fake", "scale: 32.0", "scale: 31.0", "31.0 and -7 in the fake-quant twin"),
    "the rounding": ("fake", "shift: 12582912", "shift: 12582911", "shift is 12582911.0, expected 12582912.0"),
    "the upper limit": ("fake", "shift: 12583046", "shift: 12583045", "expected -1"),
    "the lower limit": ("fake", "shift: 255", "shift: 254", "shift is 254.0, expected 255.0"),
    "a ReLU of the chain": (
        "fake",
        'top: "left_0_quant_layer/guard"',
        'top: "left_0_quant_layer/guard" relu_param { negative_slope: 0.1 }',
        "negative_slope is 0.1",
    ),
    "what a Quant reads": (
        "deploy",
        'bottom: "sum"\n',
        'bottom: "left"\n',
        "the quantization reads left:1 in the deploy",
    ),
    "what a chain reads": ("fake", 'bottom: "sum"\n', 'bottom: "left"\n', "left:1 in the fake-quant twin"),
    "what a float layer reads": ("deploy", 'bottom: "right"', 'bottom: "left"', "layer 'sum' reads left:1, left:1"),
    "a parameter of a float layer": (
        "fake",
        'type: "Eltwise"',
        'type: "Eltwise" eltwise_param { operation: MAX }',
        "layer 'sum' has other parameters",
    ),
    "a parameter of a quantized layer": ("deploy", "pad: 1 group", "pad: 2 group", "the layer has other parameters"),
    "a float layer that is missing": (
        "deploy",
        'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }',
        "",
        "only the fake-quant twin has layer 'prob'",
    ),
    "a dequantization with a bias": (
        "fake",
        "bias_term: false\n",
        "bias_term: true\n",
        "does more than scale channels",
    ),
    "the shape of the input": ("deploy", "dim: 2 dim: 4", "dim: 1 dim: 4", "the inputs are"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_changed_net_is_found(verify_changed, case):
    twin, old, new, expected = TEXTS[case]
    try:
        report = verify_changed(twin, old, new)
    except VerificationError as error:
        pytest.fail(f"the change is no reason to give up: {error}")
    assert not report.agree
    assert expected in everything(report), everything(report)


def test_a_changed_float_parameter_is_found(tmp_path):
    factors = {name: FACTORS[name] for name in NAMES if name != "deep"}
    output = save(varied_net(tmp_path / "in"), tmp_path / "out", factors)
    weights = output.deploy.files[1]
    model = read_caffemodel(weights)
    layer_of(model, "deep").blobs[0].data[3] += 1e-6
    weights.write_bytes(model.SerializeToString())
    report = twinquant.verify(output.fake_quant.model, output.deploy.model)
    assert report.problems == ("layer 'deep': parameter 0 differs between the twins",)


def test_running_finds_what_computes_something_else(twins, monkeypatch):
    from twinquant_caffe.verify import dynamic

    monkeypatch.setattr(dynamic, "quantize", lambda quant, x: np.floor(x * np.float32(quant.reciprocal)))
    report = twinquant.verify(*twins)
    assert not report.agree
    assert "the quantized activation" in everything(report)


def test_swapped_twins_are_said_to_be_swapped(twins):
    with pytest.raises(VerificationError, match="swapped"):
        twinquant.verify(*twins[::-1])


def test_two_deploy_nets_and_two_fake_quant_nets_are_refused(twins):
    with pytest.raises(VerificationError, match="a fake-quant net is expected"):
        twinquant.verify(twins[1], twins[1])
    with pytest.raises(VerificationError, match="a deploy net is expected"):
        twinquant.verify(twins[0], twins[0])


def test_a_pair_of_the_amct_style_cannot_be_verified(tmp_path):
    output = save(varied_net(tmp_path / "in"), tmp_path / "out", fake_quant_style="amct")
    with pytest.raises(VerificationError, match="of the style 'amct'"):
        twinquant.verify(output.fake_quant.model, output.deploy.model)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"date": np.zeros((2, 4, 8, 8), np.float32)}, "the data hold 'date'"),
        ({}, "hold no array for input 'data'"),
        ({"data": np.zeros((2, 4, 8, 9), np.float32)}, "have shape [2, 4, 8, 9], the net expects [2, 4, 8, 8]"),
        ({"data": np.zeros((2, 4, 8, 8), "U1")}, "the data are <U1"),
    ],
)
def test_data_that_do_not_fit_are_refused(twins, data, expected):
    with pytest.raises(VerificationError, match=re.escape(expected)):
        twinquant.verify(*twins, data)


def test_a_layer_that_nobody_runs_is_an_error_that_names_it(tmp_path):
    text = """
    input: "x" input_shape { dim: 1 dim: 2 dim: 4 dim: 4 }
    layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
      convolution_param { num_output: 2 kernel_size: 1 } }
    layer { name: "odd" type: "Oddity" bottom: "conv" top: "odd" odd_param { width: 3 } }
    layer { name: "fc" type: "InnerProduct" bottom: "odd" top: "fc" inner_product_param { num_output: 2 } }
    """
    blobs = {"conv": [np.ones((2, 2, 1, 1), np.float32), np.ones(2, np.float32)]}
    blobs["fc"] = [np.ones((2, 32), np.float32), np.ones(2, np.float32)]
    source = small_net(tmp_path / "in", text, blobs)
    output = save(source, tmp_path / "out", {"conv": (0.5, 0, [0.25]), "fc": (0.5, 0, [0.25])})
    with pytest.raises(VerificationError, match="does not know the type 'Oddity' of the layer 'odd'"):
        twinquant.verify(output.fake_quant.model, output.deploy.model)


def test_an_accumulator_beyond_int32_is_noted_although_the_twins_agree(tmp_path):
    text = """
    input: "x" input_shape { dim: 1 dim: 2 }
    layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param { num_output: 1 } }
    """
    blobs = {"fc": [np.ones((1, 2), np.float32), np.full(1, 134217720.0, np.float32)]}
    output = save(small_net(tmp_path / "in", text, blobs), tmp_path / "out", {"fc": (0.5, 0, [0.125])})
    data = {"x": np.full((1, 2), 100.0, np.float32)}
    report = twinquant.verify(output.fake_quant.model, output.deploy.model, data)
    assert report.agree, everything(report)
    assert "overflows" in report.layers[0].notes[0]
