"""From a float ONNX model to verified twins."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import twinquant
from twinquant.cli import main

from .conftest import ifmr, tensors

DIGITS = Path(find_spec("twinquant_onnx").origin).parent / "demo"
HELD_OUT = Path(find_spec("twinquant").origin).parent / "digits" / "held_out_digits.npz"


def test_the_record_is_what_the_definitions_give_with_every_value_at_hand(network, network_file, tmp_path):
    records = twinquant.calibrate(network_file, network.x, tmp_path / "record.txt", batch_num=6).records
    assert list(records) == ["conv1", "conv2", "fc"]
    values = tensors(network.model, ["r1", "f"], {"x": network.x}) | {"x": network.x}
    for layer, tensor in network.reads.items():
        scale, offset = ifmr(values[tensor])
        assert records[layer].scale_d == pytest.approx(scale, rel=1e-5)
        assert records[layer].offset_d == offset
    constants = network.constants
    factor = constants["gamma"] / np.sqrt(constants["var"] + 1e-5)
    expected = {
        "conv1": np.abs(constants["conv1.w"] * factor[:, None, None, None]).reshape(8, -1),
        "conv2": np.abs(constants["conv2.w"]).reshape(8, -1),
        "fc": np.abs(constants["fc.w"]).reshape(1, -1),
    }
    for layer, magnitudes in expected.items():
        weights = {"conv1": constants["conv1.w"] * factor[:, None, None, None]}
        flat = weights.get(layer, constants[f"{layer}.w"]).reshape(magnitudes.shape)
        scale = np.where(flat.max(axis=1) >= -flat.min(axis=1), flat.max(axis=1) / 127, -flat.min(axis=1) / 128)
        np.testing.assert_allclose(records[layer].scale_w, scale, rtol=1e-5)


@pytest.mark.parametrize(("num_bits", "asymmetric"), [(8, True), (8, False), (16, True), (16, False)])
@pytest.mark.parametrize("shape", ["both sides", "after a Relu", "mostly negative"])
def test_one_batch_of_a_known_activation_gives_the_candidate_of_the_definition(
    network, network_file, tmp_path, num_bits, asymmetric, shape
):
    x = {"both sides": network.x, "after a Relu": network.x.clip(0), "mostly negative": network.x - 1}[shape]
    config = {"layers": {"conv1": {"activation_bits": num_bits, "asymmetric": asymmetric}}}
    record = twinquant.calibrate(network_file, [x], tmp_path / "r.txt", config=config, batch_num=1).records["conv1"]
    scale, offset = ifmr(x, num_bits, asymmetric=asymmetric)
    assert record.scale_d == pytest.approx(scale, rel=1e-4)
    assert abs(record.offset_d - offset) <= 1


def test_one_batch_of_a_balanced_activation_gives_the_factors_and_the_candidate_of_the_definition(
    network, network_file, tmp_path
):
    config = {"layers": {"fc": {"dmq_migration_strength": 0.3}}}
    record = twinquant.calibrate(
        network_file, [network.x], tmp_path / "r.txt", config=config, batch_num=1, prepared_model=tmp_path / "p"
    ).records["fc"]
    read = tensors(network.model, ["f"], {"x": network.x})["f"]
    factors = np.abs(read).max(axis=0) ** 0.3 / np.abs(network.constants["fc.w"]).max(axis=0) ** 0.7
    np.testing.assert_allclose(record.tensor_balance_factor, factors, rtol=1e-4)
    scale, offset = ifmr(read / factors)
    assert record.scale_d == pytest.approx(scale, rel=1e-4)
    assert abs(record.offset_d - offset) <= 1
    weight = network.constants["fc.w"] * factors
    expected = weight.max() / 127 if weight.max() >= -weight.min() else -weight.min() / 128
    np.testing.assert_allclose(record.scale_w, [expected], rtol=1e-4)


def test_the_twins_agree_and_are_close_to_float(network, network_file, tmp_path):
    result = twinquant.quantize(network_file, network.x, tmp_path / "out" / "net", batch_num=6)
    assert result.manifest.folded_layers == ("conv1",)
    assert twinquant.verify(result.output.fake_quant.model, result.output.deploy.model, {"x": network.x}).agree
    fake = ort.InferenceSession(str(result.output.fake_quant.model), providers=["CPUExecutionProvider"])
    (given,) = fake.run(None, {"x": network.x})
    expected = tensors(network.model, ["y"], {"x": network.x})["y"]
    assert np.abs(given - expected).max() < 0.05 * np.abs(expected).max()


def test_the_prepared_model_and_the_record_give_the_twins_that_quantize_writes(network, network_file, tmp_path):
    prepared = tmp_path / "prepared.onnx"
    twinquant.calibrate(network_file, network.x, tmp_path / "record.txt", batch_num=6, prepared_model=prepared)
    saved = twinquant.save_model(prepared, tmp_path / "record.txt", tmp_path / "a" / "net")
    result = twinquant.quantize(network_file, network.x, tmp_path / "b" / "net", batch_num=6)
    for one, other in zip(saved.artifacts, result.output.artifacts, strict=True):
        assert one.model.read_bytes() == other.model.read_bytes()


def test_the_prepared_model_computes_what_the_model_computes(network, network_file, tmp_path):
    config = {"dmq_migration_strength": 0.5}
    twinquant.calibrate(
        network_file,
        network.x,
        tmp_path / "record.txt",
        batch_num=6,
        config=config,
        prepared_model=tmp_path / "p.onnx",
    )
    prepared = onnx.load(tmp_path / "p.onnx")
    records = twinquant.records.parse_record_file(tmp_path / "record.txt").records
    # The weights hold the factors, so what they read must be divided by them.
    for node in list(prepared.graph.node):
        if node.name in records:
            factors = records[node.name].tensor_balance_factor
            shape = (1, -1, 1, 1) if node.op_type == "Conv" else (1, -1)
            divisor = onnx.numpy_helper.from_array(factors.reshape(shape), f"{node.name}.divisor")
            prepared.graph.initializer.append(divisor)
            divided = onnx.helper.make_node("Div", [node.input[0], divisor.name], [f"{node.name}.divided"])
            prepared.graph.node.insert(list(prepared.graph.node).index(node), divided)
            node.input[0] = divided.output[0]
    given = tensors(prepared, ["y"], {"x": network.x})["y"]
    expected = tensors(network.model, ["y"], {"x": network.x})["y"]
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_balanced_twins_agree_and_are_close_to_float(network, network_file, tmp_path):
    config = {"dmq_migration_strength": 0.5}
    result = twinquant.quantize(network_file, network.x, tmp_path / "net", batch_num=6, config=config)
    assert twinquant.verify(result.output.fake_quant.model, result.output.deploy.model, {"x": network.x}).agree
    fake = ort.InferenceSession(str(result.output.fake_quant.model), providers=["CPUExecutionProvider"])
    (given,) = fake.run(None, {"x": network.x})
    expected = tensors(network.model, ["y"], {"x": network.x})["y"]
    assert np.abs(given - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("algorithm", ["minmax", "ifmr", "hfmg", "percentile", "mse"])
def test_shuffled_and_rebatched_data_give_the_same_record(network, network_file, tmp_path, algorithm):
    config = {"activation_algorithm": algorithm}
    shuffled = network.x[np.random.default_rng(1).permutation(len(network.x))]
    batches = [network.x[start : start + 4] for start in range(0, 24, 4)]
    for name, data, batch_num in (("a", batches, 6), ("b", iter(np.split(shuffled, 3)), 3)):
        twinquant.calibrate(network_file, data, tmp_path / name, config=config, batch_num=batch_num)
    one = twinquant.records.parse_record_file(tmp_path / "a").records
    other = twinquant.records.parse_record_file(tmp_path / "b").records
    for layer, record in one.items():
        # ONNX Runtime may compute other last bits for another batch size.
        assert other[layer].scale_d == pytest.approx(record.scale_d, rel=1e-6)
        assert other[layer].offset_d == record.offset_d


@pytest.mark.parametrize("algorithm", ["minmax", "ifmr", "hfmg", "percentile", "mse"])
def test_int8_reads_the_digits_within_half_a_point_of_float(tmp_path, algorithm):
    with np.load(HELD_OUT) as digits:
        images, labels = digits["images"].astype(np.float32)[:, None] / 16, digits["labels"]

    def accuracy(model):
        session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        return np.mean(session.run(None, {"image": images})[0].argmax(axis=1) == labels)

    config = {"activation_algorithm": algorithm}
    result = twinquant.quantize(DIGITS / "digits.onnx", images[:64], tmp_path / "digits", config=config)
    assert abs(accuracy(result.output.fake_quant.model) - accuracy(DIGITS / "digits.onnx")) <= 0.005


def test_a_model_with_external_data_gives_the_same_record(network, network_file, tmp_path):
    (tmp_path / "external").mkdir()
    external = tmp_path / "external" / "model.onnx"
    copy = onnx.load(network_file)  # saving moves the data of the message that is saved
    onnx.save(copy, external, save_as_external_data=True, location="weights.bin", size_threshold=0)
    for name, model in (("a", network_file), ("b", external)):
        twinquant.calibrate(model, network.x, tmp_path / name, batch_num=6)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    manifest = twinquant.quantize(external, network.x, tmp_path / "out" / "net", batch_num=6).manifest
    assert [file.name for file in manifest.model] == ["model.onnx", "weights.bin"]


def test_a_model_object_gives_the_same_record_as_its_file(network, network_file, tmp_path):
    for name, model in (("a", network_file), ("b", network.model)):
        twinquant.calibrate(model, network.x, tmp_path / name, batch_num=6)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_command_line_quantizes(network, network_file, tmp_path, capsys):
    from twinquant.cli import main

    np.savez(tmp_path / "data.npz", x=network.x)
    arguments = ["--data", tmp_path / "data.npz", "--batches", 6, "--save-path", tmp_path / "out" / "net"]
    assert main(["quantize", str(network_file), *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    assert "3 of 6 nodes quantized; 1 layer had others folded in" in printed
    assert "net_manifest.json" in printed
    assert json.loads((tmp_path / "out" / "net_manifest.json").read_text())["batch_num"] == 6


def test_the_command_line_calibrates_from_images(network_file, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    from twinquant.cli import main

    (tmp_path / "images").mkdir()
    random = np.random.default_rng(5)
    for number in range(3):
        pixels = random.integers(0, 256, (20, 16, 3), np.uint8)
        image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    options = ["--data", tmp_path / "images", "--batches", 3, "--mean", "128,128,128", "--std", "64,64,64"]
    command = ["calibrate", network_file, tmp_path / "record.txt", *options, "--size", "12x12"]
    assert main(list(map(str, command))) == 0
    assert "3 layers calibrated" in capsys.readouterr().out
    command[command.index(3)] = 4
    assert main(list(map(str, command))) == 1
    assert "3.png" in capsys.readouterr().err
    assert main([*map(str, command), "--skip-broken"]) == 1
    assert "only 3 batches, but calibration wants 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--batches", "0"), ("--size", "224"), ("--mean", "1;2"), ("--layout", "NHW")]
)
def test_a_wrong_option_is_wrong_usage(option, value, capsys):
    from twinquant.cli import main

    assert main(["quantize", "model.onnx", "--data", "d", "--save-path", "out", option, value]) == 2
    assert option in capsys.readouterr().err


def test_a_folder_of_pictures_on_the_command_line_gives_the_record_of_the_same_arrays(tmp_path):
    image = pytest.importorskip("PIL.Image")
    with np.load(HELD_OUT) as digits:
        images = digits["images"][:12] * np.uint8(15)
    (tmp_path / "pictures").mkdir()
    for number, pixels in enumerate(images):
        image.fromarray(pixels).save(tmp_path / "pictures" / f"{number:02d}.png")
    target = tmp_path / "out" / "digits"
    command = ["quantize", str(DIGITS / "digits.onnx"), "--data", str(tmp_path / "pictures"), "--mean", "20"]
    assert main([*command, "--std", "60.5", "--batches", "12", "--save-path", str(target)]) == 0
    arrays = (images.astype(np.float32)[:, None] - np.float32(20)) / np.float32(60.5)
    twinquant.calibrate(DIGITS / "digits.onnx", list(arrays[:, None]), tmp_path / "record.txt", batch_num=12)
    assert (tmp_path / "out" / "digits_record.txt").read_bytes() == (tmp_path / "record.txt").read_bytes()
    twins = [tmp_path / "out" / f"digits_{flavor}_model.onnx" for flavor in ("fake_quant", "deploy")]
    assert twinquant.verify(*twins).agree
