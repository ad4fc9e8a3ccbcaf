"""The five files of a save: their names, and that all of them appear or none."""

import json

import numpy as np
import pytest
from nets import read_caffemodel, read_prototxt, small_net
from twin_nets import FACTORS, VARIED, records, save, varied_blobs, varied_net

import twinquant
from twinquant.errors import ModelContentError, RecordLayerError, UnsupportedModelError
from twinquant_caffe.prototxt import parse_prototxt

FIVE = {
    "fake_quant_model.prototxt",
    "fake_quant_weights.caffemodel",
    "deploy_model.prototxt",
    "deploy_weights.caffemodel",
    "quant.json",
}


def visible(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def source(tmp_path):
    return varied_net(tmp_path / "in")


def test_both_twins_and_quant_json_are_five_files_with_the_prefix(source, tmp_path):
    twinquant.save_model(source, records(), tmp_path / "out" / "model")
    assert visible(tmp_path / "out") == {f"model_{name}" for name in FIVE}


def test_without_a_prefix_there_is_no_underscore(source, tmp_path):
    twinquant.save_model(source, records(), f"{tmp_path}/out/")
    assert visible(tmp_path / "out") == FIVE


@pytest.mark.parametrize(("save_type", "word"), [("Deploy", "deploy"), ("fakequant", "fake_quant")])
def test_quant_json_comes_with_every_save_type_and_is_the_same(source, tmp_path, save_type, word):
    both = save(source, tmp_path / "both")
    alone = save(source, tmp_path / "out", save_type=save_type)
    assert visible(tmp_path / "out") == {f"net_{name}" for name in FIVE if name.startswith((word, "quant"))}
    assert alone.sidecars[0].read_bytes() == both.sidecars[0].read_bytes()


def test_a_weight_that_is_not_finite_is_an_error_and_nothing_is_written(tmp_path):
    blobs = varied_blobs()
    blobs["deep"][0][3, 0, 1, 1] = np.nan
    with pytest.raises(ModelContentError, match="layer 'deep': the weight holds NaN"):
        save(small_net(tmp_path / "in", VARIED, blobs), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bias_beyond_int32_is_an_error_that_names_layer_and_channel(tmp_path):
    blobs = varied_blobs()
    blobs["left"][1][4] = 1e9
    with pytest.raises(ModelContentError, match=r"layer 'left': channel 4 of the bias is 1000000000\.0") as caught:
        save(small_net(tmp_path / "in", VARIED, blobs), tmp_path / "out")
    assert "remove its record" in str(caught.value)


def test_a_name_that_the_compiler_refuses_is_said_before_anything_is_written(tmp_path):
    blobs = {name.replace("deep", "deep:1"): values for name, values in varied_blobs().items()}
    source = small_net(tmp_path / "in", VARIED.replace('name: "deep"', 'name: "deep:1"'), blobs)
    with pytest.raises(UnsupportedModelError, match=r"layer name 'deep:1': the letters ':' are not allowed \(E11018\)"):
        save(source, tmp_path / "out", {"left": FACTORS["left"]})
    assert not (tmp_path / "out").exists()
    assert save(source, tmp_path / "out", {"left": FACTORS["left"]}, save_type="Fakequant").fake_quant.model.exists()


NORMALIZED = """
name: "lenet"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 2 kernel_size: 1 bias_term: false } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
"""


@pytest.fixture
def normalized(tmp_path):
    one = np.ones(2, np.float32)
    blobs = {
        "conv1": [np.full((2, 2, 1, 1), 0.5, np.float32)],
        "bn1": [0 * one, one, np.ones(1, np.float32)],
        "scale1": [2 * one, one],
    }
    return small_net(tmp_path / "in", NORMALIZED, blobs)


def test_quant_json_is_as_the_tools_read_it(normalized, tmp_path):
    output = save(normalized, tmp_path / "out", {"conv1": (0.5, 0, [0.25])})
    same = [
        {
            "key": "_datadump_original_op_names",
            "value": {"list": {"val_type": 1, "s": ["conv1", "bn1", "scale1"]}},
        }
    ]
    assert json.loads(output.sidecars[0].read_text()) == {
        "name": "lenet",
        "graph": [
            {
                "name": "lenet",
                "op": [
                    {"name": "data", "type": "Input", "id": 0, "input": [], "attr": []},
                    {"name": "conv1_0_quant_layer", "type": "Quant", "id": 1, "input": ["data:0"], "attr": same},
                    {"name": "conv1", "type": "Convolution", "id": 2, "input": ["conv1_0_quant_layer:0"], "attr": same},
                    {
                        "name": "conv1_dequant_layer",
                        "type": "DeQuant",
                        "id": 3,
                        "input": ["conv1:0"],
                        "attr": same,
                        "output_desc": [
                            {
                                "dtype": "DT_FLOAT",
                                "attr": [
                                    {"key": "_datadump_origin_name", "value": {"s": "scale1"}},
                                    {"key": "_datadump_origin_output_index", "value": {"i": 0}},
                                    {"key": "_datadump_origin_format", "value": {"s": "NCHW"}},
                                ],
                            }
                        ],
                    },
                    {"name": "relu1", "type": "ReLU", "id": 4, "input": ["conv1_dequant_layer:0"], "attr": []},
                ],
            }
        ],
    }


def test_quant_json_tells_what_a_float_layer_stands_for(tmp_path):
    text = NORMALIZED + (
        'layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2" '
        "convolution_param { num_output: 1 kernel_size: 1 bias_term: false } }"
    )
    one = np.ones(2, np.float32)
    blobs = {"conv1": [np.ones((2, 2, 1, 1), np.float32)], "bn1": [one, one, one[:1]], "scale1": [one, one]}
    source = small_net(tmp_path / "in", text, blobs | {"conv2": [np.ones((1, 2, 1, 1), np.float32)]})
    output = save(source, tmp_path / "out", {"conv2": (0.5, 0, [0.25])})
    ops = {op["name"]: op for op in json.loads(output.sidecars[0].read_text())["graph"][0]["op"]}
    assert ops["conv1"]["attr"][0]["value"]["list"]["s"] == ["conv1", "bn1", "scale1"]
    assert ops["conv2"]["attr"][0]["value"]["list"]["s"] == ["conv2"]
    assert ops["relu1"]["attr"] == []


@pytest.mark.parametrize("flavor", ["deploy", "fake_quant"])
def test_the_caffemodel_says_nothing_about_a_fused_layer_that_its_prototxt_contradicts(normalized, tmp_path, flavor):
    # field 106 is convolution_param, in which 1 is num_output and 2 bias_term; 6 is param, in which 1 is name
    convolution, shared = b"\xd2\x06\x04\x08\x02\x10\x00", b"\x32\x03\x0a\x01w"
    model = read_caffemodel(normalized[1])
    next(layer for layer in model.layer if layer.name == "conv1").MergeFromString(convolution + shared + b"\x50\x01")
    normalized[1].write_bytes(model.SerializeToString())
    normalized[0].write_text(
        normalized[0].read_text().replace('top: "conv1"\n  conv', 'top: "conv1" param { name: "w" }\n  conv')
    )
    output = save(normalized, tmp_path / "out", {"conv1": (0.5, 0, [0.25])})
    files = getattr(output, flavor).files
    text = next(layer for layer in parse_prototxt(files[0]).messages("layer") if layer.text("name") == "conv1")
    assert not text.message("convolution_param").has("bias_term")
    stored = next(layer for layer in read_caffemodel(files[1]).layer if layer.name == "conv1")
    assert (stored.phase, len(stored.param), len(stored.blobs)) == (1, 0, 2)
    assert b"\xd2\x06\x02\x08\x02" in stored.SerializeToString()
    assert b"\x08\x02\x10\x00" not in stored.SerializeToString()


def test_quant_json_has_an_op_for_every_deploy_layer_in_order(source, tmp_path):
    output = save(source, tmp_path / "out")
    ops = json.loads(output.sidecars[0].read_text())["graph"][0]["op"]
    layers = read_prototxt(output.deploy.model).layer
    assert [(op["name"], op["type"]) for op in ops] == [(layer.name, layer.type) for layer in layers]
    assert {op["name"]: op["input"] for op in ops}["sum"] == ["left_relu:0", "right_dequant_layer:0"]


def test_a_record_for_a_layer_that_is_folded_away_is_an_error_that_says_where_it_went(normalized, tmp_path):
    with pytest.raises(RecordLayerError, match="record 'bn1': the layer is folded into 'conv1'"):
        save(normalized, tmp_path / "out", {"conv1": (0.5, 0, [0.25]), "bn1": (0.5, 0, [0.25])})


def test_a_record_can_keep_its_layer_from_being_fused(normalized, tmp_path):
    from dataclasses import replace

    made = records({"conv1": (0.5, 0, [0.25])})
    made.records["conv1"] = replace(made.records["conv1"], skip_fusion=True)
    output = twinquant.save_model(normalized, made, tmp_path / "out" / "net")
    assert [layer.name for layer in read_prototxt(output.deploy.model).layer] == [
        *("data", "conv1_0_quant_layer", "conv1", "conv1_dequant_layer", "bn1", "scale1", "relu1"),
    ]
