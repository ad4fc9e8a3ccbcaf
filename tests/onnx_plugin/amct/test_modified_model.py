"""What `quantize_model` writes: a model with rounded weights, and a record that is begun."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import twinquant
from twinquant.errors import ConfigError, ModelFileError, OutputPathError, RecordFileError, UnsupportedModelError
from twinquant.records import parse_record_file
from twinquant_onnx import amct
from twinquant_onnx.load import load_model
from twinquant_onnx.modified.observation import remove_observation


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_modified_model_computes_nearly_the_float_results(prepared, kit):
    data = kit.batches()
    session = ort.InferenceSession(str(prepared / "model.onnx"))
    for modified, batch in zip(kit.run_all(prepared / "modified.onnx", data), data, strict=True):
        expected = session.run(None, {"x": batch})[0]
        assert 1e-5 < np.abs(modified - expected).max() / np.abs(expected).max() < 0.02


def test_without_rounding_it_would_compute_the_float_results(folder, kit):
    """The operators behind the inputs change nothing: the weights of a layer that stays float are the fused ones."""
    content = json.loads((folder / "config.json").read_text())
    content |= {name: {"quant_enable": False} for name in ("conv1", "conv2")}
    (folder / "config.json").write_text(json.dumps(content))
    amct.quantize_model(folder / "config.json", folder / "model.onnx", folder / "modified.onnx", folder / "record.txt")
    model, modified = (onnx.load(folder / name) for name in ("model.onnx", "modified.onnx"))
    for each in (model, modified):
        each.graph.output.append(onnx.ValueInfoProto(name="flat"))
    batch = kit.batches(1)[0]
    expected = ort.InferenceSession(model.SerializeToString()).run(["flat"], {"x": batch})[0]
    found = ort.InferenceSession(modified.SerializeToString(), amct.AMCT_SO).run(["flat"], {"x": batch})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_normalizations_are_folded_and_layers_keep_their_names(prepared):
    names = [node.name for node in onnx.load(prepared / "modified.onnx").graph.node if node.op_type == "Conv"]
    assert names == ["conv1", "conv2"]
    assert all(node.op_type != "BatchNormalization" for node in onnx.load(prepared / "modified.onnx").graph.node)


def test_nothing_is_folded_where_the_configuration_says_so(folder):
    content = json.loads((folder / "config.json").read_text()) | {"do_fusion": False}
    (folder / "config.json").write_text(json.dumps(content))
    amct.quantize_model(folder / "config.json", folder / "model.onnx", folder / "modified.onnx", folder / "record.txt")
    types = [node.op_type for node in onnx.load(folder / "modified.onnx").graph.node]
    assert "BatchNormalization" in types


def test_inputs_and_outputs_are_those_of_the_model(prepared):
    original, modified = (onnx.load(prepared / name).graph for name in ("model.onnx", "modified.onnx"))
    assert list(modified.input) == list(original.input)
    assert list(modified.output) == list(original.output)


def test_the_record_is_begun_empty(prepared):
    assert (prepared / "record.txt").read_text() == ""


def test_an_older_record_is_emptied(folder):
    (folder / "record.txt").write_text('record { key: "conv1" value { scale_d: 1 offset_d: 0 } }')
    amct.quantize_model(folder / "config.json", folder / "model.onnx", folder / "modified.onnx", folder / "record.txt")
    assert (folder / "record.txt").read_text() == ""


def test_the_folders_of_both_files_are_made(folder):
    modified, record = folder / "a" / "b" / "modified.onnx", folder / "c" / "record.txt"
    amct.quantize_model(folder / "config.json", folder / "model.onnx", modified, record)
    assert modified.exists()
    assert record.exists()


def test_the_twins_are_those_of_the_model_without_our_operators(prepared, kit, tmp_path):
    kit.run_all(prepared / "modified.onnx", kit.batches())
    twinquant.calibrate(
        prepared / "model.onnx",
        kit.batches(),
        prepared / "direct.txt",
        config=prepared / "config.json",
        prepared_model=prepared / "clean.onnx",
    )
    amct.save_model(prepared / "modified.onnx", prepared / "record.txt", tmp_path / "modified" / "m")
    amct.save_model(prepared / "clean.onnx", prepared / "record.txt", tmp_path / "clean" / "m")
    assert digests(tmp_path / "modified") == digests(tmp_path / "clean")


def test_the_twins_can_be_saved_without_the_vendors_spelling(prepared, kit, tmp_path):
    kit.run_all(prepared / "modified.onnx", kit.batches())
    amct.save_model(prepared / "modified.onnx", prepared / "record.txt", tmp_path / "one" / "m")
    twinquant.save_model(prepared / "modified.onnx", prepared / "record.txt", tmp_path / "two" / "m")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_the_operators_leave_no_trace_when_they_are_removed(folder, prepared):
    graph = remove_observation(load_model(prepared / "modified.onnx"))
    assert [entry.domain for entry in graph.model.opset_import] == [""]
    assert not any("twinquant" in node.name or node.domain for node in graph.model.graph.node)


def test_a_model_in_external_files_stays_in_external_files(folder, kit):
    onnx.save(
        kit.convolutions(), folder / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0
    )
    for name in ("first", "second"):
        amct.quantize_model(
            folder / "config.json", folder / "big.onnx", folder / f"{name}.onnx", folder / f"{name}.txt"
        )
    amct.quantize_model(folder / "config.json", folder / "model.onnx", folder / "small.onnx", folder / "small.txt")
    data = kit.batches()
    result, expected = (kit.run_all(folder / f"{name}.onnx", data)[0] for name in ("first", "small"))
    np.testing.assert_array_equal(result, expected)
    locations = [
        {entry.value for tensor in onnx.load(folder / f"{name}.onnx", load_external_data=False).graph.initializer
         for entry in tensor.external_data if entry.key == "location"}
        for name in ("first", "second")
    ]  # fmt: skip
    assert locations[0]
    assert not locations[0] & locations[1]


def test_a_configuration_of_another_model_is_refused_with_the_layer(folder, kit):
    model = kit.make_model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="other")],
        {"w": np.ones((4, 2), np.float32)},
        {"x": (TensorProto.FLOAT, ["n", 4])},
        ["y"],
    )
    onnx.save(model, folder / "other.onnx")
    with pytest.raises(ConfigError, match=r"\$\.conv1.*layer of the model"):
        amct.quantize_model(
            folder / "config.json", folder / "other.onnx", folder / "modified.onnx", folder / "record.txt"
        )
    assert not (folder / "modified.onnx").exists()
    assert not (folder / "record.txt").exists()


def test_a_configuration_that_switches_a_folded_layer_off_is_followed(folder, kit):
    """bn1 is a layer of the float model, and none of the modified one."""
    content = json.loads((folder / "config.json").read_text()) | {"bn1": {"quant_enable": False}}
    (folder / "config.json").write_text(json.dumps(content))
    amct.quantize_model(folder / "config.json", folder / "model.onnx", folder / "modified.onnx", folder / "record.txt")
    kit.run_all(folder / "modified.onnx", kit.batches())
    assert list(parse_record_file(folder / "record.txt").records) == ["conv1", "conv2", "fc"]


def test_training_the_rounding_is_refused_before_any_batch(folder, kit):
    def train(layer):
        layer["weight_quant_params"] = {"num_bits": 8, "channel_wise": False, "wts_algo": "ada_quantize"}

    kit.change_config(folder / "config.json", train)
    with pytest.raises(ConfigError, match="'conv1': ada_quantize trains the rounding of weights"):
        amct.quantize_model(
            folder / "config.json", folder / "model.onnx", folder / "modified.onnx", folder / "record.txt"
        )
    assert not (folder / "modified.onnx").exists()


def test_a_missing_configuration_is_refused(folder):
    with pytest.raises(ConfigError, match="there is no configuration file"):
        amct.quantize_model(folder / "none.json", folder / "model.onnx", folder / "m.onnx", folder / "record.txt")


def test_a_missing_model_is_refused(folder):
    with pytest.raises(ModelFileError, match="there is no file"):
        amct.quantize_model(folder / "config.json", folder / "none.onnx", folder / "m.onnx", folder / "record.txt")


@pytest.mark.parametrize("names", [("model.onnx", "record.txt"), ("m.onnx", "model.onnx"), ("m.onnx", "config.json")])
def test_an_output_that_is_an_input_is_refused(folder, names):
    before = digests(folder)
    with pytest.raises(OutputPathError, match="is an input of this call"):
        amct.quantize_model(folder / "config.json", folder / "model.onnx", *(folder / name for name in names))
    assert digests(folder) == before


def test_an_input_of_texts_is_refused(folder, kit):
    model = kit.make_model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="fc"), helper.make_node("Identity", ["words"], ["z"])],
        {"w": np.ones((4, 2), np.float32)},
        {"x": (TensorProto.FLOAT, ["n", 4]), "words": (TensorProto.STRING, ["n"])},
        ["y"],
    )
    onnx.save(model, folder / "texts.onnx")
    amct.create_quant_config(folder / "texts.json", folder / "texts.onnx")
    with pytest.raises(UnsupportedModelError, match=r"input 'words' is no tensor of numbers but STRING"):
        amct.quantize_model(folder / "texts.json", folder / "texts.onnx", folder / "m.onnx", folder / "record.txt")


def test_an_input_of_a_type_that_cannot_be_stored_is_refused(folder, kit):
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["wide", "w"], ["y"], name="fc"),
    ]
    model = kit.make_model(nodes, {"w": np.ones((4, 2), np.float32)}, {"x": (TensorProto.BFLOAT16, ["n", 4])}, ["y"])
    onnx.save(model, folder / "brain.onnx")
    amct.create_quant_config(folder / "brain.json", folder / "brain.onnx")
    with pytest.raises(UnsupportedModelError, match=r"input 'x' is bfloat16, .* use twinquant.calibrate"):
        amct.quantize_model(folder / "brain.json", folder / "brain.onnx", folder / "m.onnx", folder / "record.txt")


def test_an_operator_set_without_expand_is_refused(folder, kit):
    model = kit.convolutions()
    model.opset_import[0].version = 7
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(UnsupportedModelError, match="operator set is 7, AMCT_SO needs 8"):
        amct.quantize_model(folder / "config.json", folder / "model.onnx", folder / "m.onnx", folder / "record.txt")


def test_saving_before_the_first_batch_says_that_none_was_seen(prepared):
    with pytest.raises(RecordFileError, match="calibration has not finished: 0 of 3 batches seen"):
        amct.save_model(prepared / "modified.onnx", prepared / "record.txt", prepared / "out" / "m")
