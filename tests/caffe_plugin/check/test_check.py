"""The acceptance checker: a saved pair is accepted, and every rule that is broken in it is named."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from nets import read_caffemodel
from twin_nets import save, varied_net

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant_caffe.check import check_deploy


@pytest.fixture(scope="module")
def accepted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accepted")
    return save(varied_net(folder / "in"), folder / "out", save_type="Deploy").deploy.files


def layer_of(model, name):
    return next(layer for layer in model.layer if layer.name == name)


@pytest.fixture
def refused(accepted, tmp_path):
    """Edit the accepted pair and return what the checker says: `refused(old, new)` or `refused(change=function)`."""

    def check(old="", new="", change=lambda model: None, count=1):
        text, model = accepted[0].read_text(), read_caffemodel(accepted[1])
        assert old in text
        change(model)
        prototxt, weights = tmp_path / "d_deploy_model.prototxt", tmp_path / "d_deploy_weights.caffemodel"
        prototxt.write_text(text.replace(old, new, count))
        weights.write_bytes(model.SerializeToString())
        return check_deploy(prototxt)

    return check


def test_a_saved_pair_is_accepted(accepted):
    assert check_deploy(accepted[0]) == []
    assert check_deploy(*accepted) == []


TEXT_RULES = {
    "a name with other letters": ('name: "join"', 'name: "join me"', "layer name 'join me': the letters ' '"),
    "a name twice": ('name: "join"', 'name: "sum"', "2 layers are called 'sum'"),
    "no name": ('name: "join" ', "", "the layer number .* has no name"),
    "no type": ('type: "Softmax" ', "", "layer 'prob' .* has no type"),
    "old layers": ('name: "varied"', 'layers { name: "old" }', "of the old form"),
    "the device's name": ('type: "Quant"', 'type: "AscendQuant"', "E11009"),
    "a data layer": ('type: "Input" top: "data"', 'type: "Data" top: "data"', "do not run on the device"),
    "a loss layer": ('type: "Softmax"', 'type: "SoftmaxWithLoss"', "do not run on the device"),
    "an accuracy layer": ('type: "Softmax"', 'type: "Accuracy"', "do not run on the device"),
    "no input": ('type: "Input" top: "data"', 'type: "Other" top: "data"', "an Input layer is needed"),
    "both forms of input shapes": (
        'name: "varied"',
        'input: "extra" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 1 input_shape { dim: 1 }',
        "input_dim and input_shape",
    ),
    "an input without a shape": ('name: "varied"', 'input: "extra"', "the input 'extra' has no shape"),
    "too few input_dim": ('name: "varied"', 'input: "extra" input_dim: 1', "1 values of input_dim"),
    "an Input layer without a shape": ("shape { dim: 2 dim: 4 dim: 8 dim: 8 }", "", "1 tops and 0 shapes"),
    "a length of 0": ("dim: 2 dim: 4", "dim: 0 dim: 4", r"above 0, got \[0, 4, 8, 8\]"),
    "an unknown bottom": (
        'bottom: "join"',
        'bottom: "joint"',
        "reads the blob 'joint', which no layer before it writes",
    ),
    "a blob of two writers": (
        'top: "prob"',
        'top: "sum"',
        "writes the blob 'sum', which layer 'sum' .* writes already",
    ),
    "no quant_param": ("quant_param {", "other_param {", "has no quant_param"),
    "a scale of 0": ("scale: 32.0", "scale: 0", "scale must be above 0"),
    "an infinite scale": ("scale: 32.0", "scale: inf", "scale must be above 0 and finite"),
    "an offset of two bytes": (r'offset: "\371"', r'offset: "\371\001"', "offset must be one byte, got 2"),
    "no offset": (r'offset: "\371"', "", "offset must be one byte, got 0"),
    "a Quant in place": (
        'bottom: "data"\n  top: "left_0_quant_layer"',
        'bottom: "data"\n  top: "data"',
        "'left_0_quant_layer' .* must read one blob and write another",
    ),
    "another scale than in the caffemodel": ("scale: 32.0", "scale: 33.0", "differs between prototxt and caffemodel"),
    "a DeQuant that is missing": (
        'name: "left_dequant_layer"\n  type: "DeQuant"',
        'name: "left_dequant_layer"\n  type: "ReLU"',
        "layer 'left' .* has no DeQuant layer directly behind it",
    ),
    "integers read past the DeQuant": (
        'bottom: "left" top: "left"',
        'bottom: "left/int32" top: "l"',
        "past its DeQuant",
    ),
    "integers in a layer without a Quant": (
        'bottom: "fc_0_quant_layer"',
        'bottom: "pool"',
        "layer 'fc' .* has integer parameters, but reads no Quant layer",
    ),
    "a Quant for nobody": ('bottom: "fc_0_quant_layer"', 'bottom: "pool"', "'fc_0_quant_layer' .* is read by no layer"),
    "a Quant before another type": (
        'type: "Eltwise" bottom: "left"',
        'type: "Eltwise" bottom: "left_0_quant_layer"',
        "layer 'sum' .* reads a Quant layer; only Convolution",
    ),
    "a MAX pooling": ("pool: AVE", "pool: MAX", "only AVE without global_pooling"),
    "a global pooling": ("pool: AVE", "pool: AVE global_pooling: true", "only AVE without global_pooling"),
    "another num_output": (
        "num_output: 5",
        "num_output: 7",
        r"layer 'fc' .* its weight must have the shape \[7, 250\], got \[5, 250\]",
    ),
    "another kernel": ("num_output: 6 kernel_size: 3 pad: 1", "num_output: 6 kernel_size: 5", r"shape \[6, 2, 5, 5\]"),
    "the same quantization twice": (
        'layer { name: "join"',
        'layer { name: "more" type: "Quant" bottom: "data" top: "more" quant_param { scale: 32 offset: "\\371" } }\n'
        'layer { name: "join"',
        r"'more' \(Quant\) makes the same integers as layer 'left_0_quant_layer'",
    ),
    "a float layer without its weight": (
        'layer { name: "prob"',
        'layer { name: "more" type: "Convolution" bottom: "sum" top: "more" '
        'convolution_param { num_output: 2 kernel_size: 1 } }\nlayer { name: "prob"',
        r"layer 'more' \(Convolution\) has no parameters in the caffemodel",
    ),
    "a scale that no float32 can be": ("scale: 32.0", "scale: 1e60", "scale must be above 0 and finite"),
    "an offset without quotes": (r'offset: "\371"', "offset: -7", "the field 'offset' has to be a text in quotes"),
    "a bias that is not wanted": ("num_output: 5", "num_output: 5 bias_term: false", "1 parameters are needed"),
}


@pytest.mark.parametrize("rule", TEXT_RULES)
def test_a_broken_prototxt_is_refused_for(refused, rule):
    old, new, expected = TEXT_RULES[rule]
    problems = "\n".join(refused(old, new))
    assert re_search(expected, problems), problems


def re_search(pattern, text):
    import re

    return re.search(pattern, text)


def test_a_field_that_cannot_be_read_does_not_hide_what_else_is_wrong(refused):
    text = "\n".join(refused(r'offset: "\371"', "offset: -7 scale { }", change=shifted))
    assert "the field 'offset'" in text or "the field 'scale'" in text
    assert "the bits above the scale" in text
    assert len(refused(r'offset: "\371"', "offset: -7")) == 1
    text = "\n".join(refused("dim: 2 dim: 4", "dim: two dim: 4", change=shifted))
    assert "the field 'dim' has to be a whole number" in text
    assert "the bits above the scale" in text


@pytest.mark.parametrize(("parameters", "wrong"), [("", 1), ("param { name: 'w' }", 0)])
def test_a_layer_may_have_the_parameters_of_another_one(refused, parameters, wrong):
    layer = f'layer {{ name: "more" type: "PReLU" bottom: "sum" top: "more" {parameters} }}'
    assert len(refused('layer { name: "prob"', layer + '\nlayer { name: "prob"')) == wrong


def test_a_scale_by_another_blob_needs_no_parameters(refused):
    layer = 'layer { name: "more" type: "Scale" bottom: "sum" bottom: "sum" top: "more" }'
    assert refused('layer { name: "prob"', layer + '\nlayer { name: "prob"') == []


def test_quantizations_of_the_same_blob_before_and_after_an_in_place_layer_differ(refused):
    quant = 'layer {{ name: "{0}" type: "Quant" bottom: "sum" top: "{0}" quant_param {{ scale: 9 offset: "a" }} }}\n'
    relu = 'layer { name: "relu" type: "ReLU" bottom: "sum" top: "sum" }\n'
    problems = refused(
        'layer { name: "prob"', quant.format("one") + relu + quant.format("two") + 'layer { name: "prob"'
    )
    assert all("is read by no layer" in problem for problem in problems) and len(problems) == 2


def test_a_net_without_quantizations_is_no_deploy_net(tmp_path):
    float_net = varied_net(tmp_path)
    assert check_deploy(*float_net) == ["the net has no Quant layer, so it is no deploy net"]
    assert check_deploy(*float_net, quantized=False) == []


def blob_of(name, index=0):
    return lambda model: layer_of(model, name).blobs[index]


def float_beside_int8(model):
    blob_of("left")(model).data.append(1.0)


def no_bias(model):
    del layer_of(model, "left").blobs[1]


def float_bias(model):
    blob = blob_of("left", 1)(model)
    values = list(blob.int32_data)
    blob.ClearField("int32_data")
    blob.data.extend(values)


def float_weight(model):
    blob = blob_of("left")(model)
    blob.data.extend(np.frombuffer(blob.int8_data, np.int8).astype(float).tolist())
    blob.ClearField("int8_data")


def shorter_weight(model):
    blob = blob_of("left")(model)
    blob.int8_data = blob.int8_data[:-1]


def legacy_too(model):
    blob_of("left")(model).num = 6


def no_shape(model):
    blob_of("left")(model).ClearField("shape")


def zero_length(model):
    blob_of("left")(model).shape.dim[0] = 0


def negative_length(model):
    blob_of("left")(model).shape.dim[0] = -6


def bias_of_another_shape(model):
    blob_of("left", 1)(model).shape.dim[:] = [1, 6]


def wrong_dequant_shape(model):
    blob = blob_of("left_dequant_layer")(model)
    del blob.uint64_data[4:]
    blob.shape.dim[:] = [4]


def no_dequant_parameter(model):
    del layer_of(model, "left_dequant_layer").blobs[:]


def shifted(model):
    blob_of("left_dequant_layer")(model).uint64_data[2] |= 1 << 32


def weight_offset(model):
    blob_of("left_dequant_layer")(model).uint64_data[2] |= 3 << 40


def negative_scale(model):
    blob_of("left_dequant_layer")(model).uint64_data[0] = struct.unpack("<I", struct.pack("<f", -0.5))[0]


def denormal_scale(model):
    blob_of("left_dequant_layer")(model).uint64_data[0] = 1


def stranger(model):
    model.layer.add(name="stranger", type="InnerProduct").blobs.add().data.append(1)


def stored_twice(model):
    model.layer.add().CopyFrom(layer_of(model, "left"))


def another_type(model):
    layer_of(model, "left").type = "Deconvolution"


def old_form(model):
    model.layers.add(name="old")


def blob_in_a_quant(model):
    layer_of(model, "left_0_quant_layer").blobs.add().CopyFrom(blob_of("left")(model))


MODEL_RULES = {
    float_beside_int8: r"layer 'left' .*blobs\[0\] holds data and int8_data",
    no_bias: r"2 parameters are needed \(bias_term is true\), got 1",
    float_bias: "layer 'left' .* holds data beside int8_data",
    float_weight: "its weight must be int8_data",
    shorter_weight: r"the shape \[6, 2, 3, 3\] takes 108 values, there are 107",
    legacy_too: "has a shape and num, channels, height, width",
    no_shape: "holds integers without a shape",
    zero_length: r"above 0, got \[0, 2, 3, 3\]",
    negative_length: r"above 0, got \[-6, 2, 3, 3\]",
    bias_of_another_shape: r"its bias must have the shape \[6\], got \[1, 6\]",
    wrong_dequant_shape: r"must have the shape \[6\] or \[1\], got \[4\]",
    no_dequant_parameter: "must have one parameter in the caffemodel, of uint64_data",
    shifted: "the bits above the scale",
    weight_offset: "the bits above the scale",
    negative_scale: "normal, finite numbers above 0",
    denormal_scale: "normal, finite numbers above 0",
    stranger: "parameters of a layer 'stranger', which the prototxt lacks",
    stored_twice: "2 layers of the caffemodel are called 'left'",
    another_type: "is a Convolution in the prototxt, a Deconvolution in the caffemodel",
    old_form: "the caffemodel has layers of the old form",
    blob_in_a_quant: "'left_0_quant_layer' .* must have no parameters",
}


@pytest.mark.parametrize("change", MODEL_RULES, ids=lambda change: change.__name__)
def test_a_broken_caffemodel_is_refused_for(refused, change):
    problems = "\n".join(refused(change=change))
    assert re_search(MODEL_RULES[change], problems), problems


def test_an_anti_quant_layer_is_allowed(refused):
    extra = 'layer { name: "prob" type: "Softmax"'
    added = 'layer { name: "prob_anti_quant_layer" type: "AntiQuant" bottom: "fc" top: "anti" }\n' + extra
    assert refused(extra, added) == []


def test_a_missing_caffemodel_is_an_error_that_names_what_is_expected(accepted, tmp_path):
    prototxt = tmp_path / "m_deploy_model.prototxt"
    prototxt.write_bytes(accepted[0].read_bytes())
    with pytest.raises(
        ModelFileError, match=r"'m_deploy_weights\.caffemodel' or 'm_deploy_model\.caffemodel' is expected"
    ):
        check_deploy(prototxt)


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x0a\xff"])
def test_a_damaged_caffemodel_is_an_error(accepted, tmp_path, content):
    damaged = tmp_path / "damaged.caffemodel"
    damaged.write_bytes(content)
    with pytest.raises(ModelFileError, match="truncated or no caffemodel"):
        check_deploy(accepted[0], damaged)


def test_a_pair_that_would_be_refused_never_lands(tmp_path, monkeypatch):
    source = varied_net(tmp_path / "in")
    monkeypatch.setattr("twinquant_caffe.twin_files.check_deploy", lambda *_, **__: ["a rule is broken"])
    with pytest.raises(
        UnsupportedModelError, match="would refuse the deploy net, nothing is written:\n  a rule is broken"
    ):
        save(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_the_prefix_of_a_save(accepted):
    prefix = str(accepted[0]).removesuffix("_deploy_model.prototxt")
    command = [sys.executable, "-m", "twinquant", "check", prefix]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, f"{accepted[0]}: accepted\n"), run.stderr
