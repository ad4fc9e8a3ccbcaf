"""Writing the configuration: the vendor's call, with a file for every model."""

from __future__ import annotations

import json

import onnx
import pytest

from twinquant.errors import ConfigError, ModelFileError, OutputPathError
from twinquant_onnx import amct


@pytest.fixture
def model(tmp_path, kit):
    onnx.save(kit.convolutions(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_every_layer_that_can_be_quantized_is_in_the_configuration(tmp_path, model):
    amct.create_quant_config(str(tmp_path / "config.json"), str(model))
    content = json.loads((tmp_path / "config.json").read_text())
    general = ["version", "batch_num", "activation_offset", "do_fusion", "skip_fusion_layers"]
    assert list(content) == [*general, "conv1", "conv2", "fc"]
    assert content["conv1"]["activation_quant_params"]["act_algo"] == "ifmr"
    assert content["fc"]["weight_quant_params"]["channel_wise"] is False


def test_the_arguments_are_in_the_configuration(tmp_path, model):
    amct.create_quant_config(tmp_path / "c.json", model, ["conv2"], 8, False)
    content = json.loads((tmp_path / "c.json").read_text())
    assert (content["batch_num"], content["activation_offset"]) == (8, False)
    assert [content[name]["quant_enable"] for name in ("conv1", "conv2", "fc")] == [True, False, True]
    assert content["conv1"]["activation_quant_params"]["asymmetric"] is False


def test_a_simplified_configuration_counts_more_than_the_arguments(tmp_path, model):
    (tmp_path / "simple.cfg").write_text('batch_num: 4 skip_layers: "fc"')
    amct.create_quant_config(tmp_path / "c.json", model, batch_num=2, config_defination=tmp_path / "simple.cfg")
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["batch_num"] == 4
    assert content["fc"]["quant_enable"] is False


def test_the_folder_of_the_configuration_is_made(tmp_path, model):
    amct.create_quant_config(tmp_path / "new" / "tmp" / "config.json", model)
    assert (tmp_path / "new" / "tmp" / "config.json").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, model):
    with pytest.raises(OutputPathError, match="cannot be made"):
        amct.create_quant_config(model / "config.json", model)


@pytest.mark.parametrize("batch_num", [0, -1, 1.5, "4"])
def test_a_wrong_batch_num_is_refused(tmp_path, model, batch_num):
    with pytest.raises(ConfigError, match="batch_num"):
        amct.create_quant_config(tmp_path / "c.json", model, batch_num=batch_num)


def test_an_unknown_layer_to_skip_is_refused_with_a_hint(tmp_path, model):
    with pytest.raises(ConfigError, match=r"'conv3'.*'conv[12]'"):
        amct.create_quant_config(tmp_path / "c.json", model, skip_layers=["conv3"])


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="there is no file"):
        amct.create_quant_config(tmp_path / "c.json", tmp_path / "none.onnx")


def test_the_model_and_the_definition_are_not_overwritten(tmp_path, model):
    before = model.read_bytes()
    with pytest.raises(OutputPathError, match="would replace an input"):
        amct.create_quant_config(model, model)
    assert model.read_bytes() == before
    (tmp_path / "simple.cfg").write_text("batch_num: 4")
    with pytest.raises(OutputPathError, match="would replace an input"):
        amct.create_quant_config(tmp_path / "simple.cfg", model, config_defination=tmp_path / "simple.cfg")


def test_the_external_weights_are_not_overwritten(tmp_path, kit):
    model = tmp_path / "model.onnx"
    onnx.save(kit.convolutions(), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = (tmp_path / "weights.bin").read_bytes()
    with pytest.raises(OutputPathError, match="would replace an input"):
        amct.create_quant_config(tmp_path / "weights.bin", model)
    assert (tmp_path / "weights.bin").read_bytes() == before
