"""The shipped digits network: what is stored is what the scripts describe, and the command line does it all."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from minmax_factors import measure
from onnx import numpy_helper

from twinquant.plan import LayerInfo
from twinquant.records import parse_record_file

SHIPPED = Path(find_spec("twinquant_onnx").origin).parent / "demo"
MODEL = SHIPPED / "digits.onnx"
RECORD = SHIPPED / "digits_record.txt"
CAFFE = Path(find_spec("twinquant_caffe").origin).parent / "demo"
DIGITS = Path(find_spec("twinquant").origin).parent / "digits"
CALIBRATION = DIGITS / "calibration_digits.npz"
ALGORITHMS = ["minmax", "ifmr", "hfmg", "percentile", "entropy", "mse"]
LAYERS = {
    "conv1": "Conv",
    "conv2_depthwise": "Conv",
    "conv2_pointwise": "Conv",
    "pool1": "AveragePool",
    "conv3": "Conv",
    "pool2": "AveragePool",
    "fc1": "Gemm",
    "fc2": "Gemm",
}


@pytest.fixture(scope="module")
def held_out():
    """(float32 input (450, 1, 8, 8), labels (450,)) of the digits that training never saw."""
    with np.load(DIGITS / "held_out_digits.npz") as digits:
        return digits["images"].astype(np.float32)[:, None] / 16, digits["labels"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of the twins that the command line saves."""
    folder = tmp_path_factory.mktemp("digits")
    assert twinquant("save", MODEL, RECORD, folder / "digits").returncode == 0
    return folder


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """Where the demo leaves its files."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(demo_folder):
    """The tables that the demo prints: {framework: {algorithm: {column: cell}}}."""
    done = twinquant("demo", "--folder", demo_folder)
    assert done.returncode == 0, done.stderr
    tables = {}
    for name, text in re.findall(r"^(\w+) demo\n\n(.*?)\n\n", done.stdout, re.MULTILINE | re.DOTALL):
        header, _rule, *rows = [re.split(r" {2,}", line) for line in text.splitlines()]
        tables[name] = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    return tables


@pytest.fixture(scope="module")
def digits_script():
    """The module examples/digits/dataset.py."""
    pytest.importorskip("sklearn")
    path = Path(__file__).parents[2] / "examples" / "digits" / "dataset.py"
    specification = spec_from_file_location("digits_dataset", path)
    module = module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up there
    specification.loader.exec_module(module)
    return module


def twinquant(*argv, **options):
    command = [sys.executable, "-m", "twinquant", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def scores(model, images):
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"image": images})[0]


def accuracy(model, images, labels):
    return float(np.mean(scores(model, images).argmax(axis=1) == labels))


def in_opencv(prototxt, caffemodel, images):
    import cv2

    net = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    net.setInput(images)
    return net.forward()


def percent(cell):
    return float(cell.removesuffix("%"))


def test_the_stored_files_are_smaller_than_a_megabyte():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir() if path.is_file()) < 1_000_000


def test_the_stored_network_is_the_one_that_the_script_describes():
    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert {node.name: node.op_type for node in model.graph.node if node.name in LAYERS} == LAYERS
    assert {node.op_type for node in model.graph.node} == {"Conv", "Relu", "AveragePool", "Flatten", "Gemm"}
    assert {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer} == {
        "conv1.weight": (16, 1, 3, 3),
        "conv1.bias": (16,),
        "conv2_depthwise.weight": (16, 1, 3, 3),
        "conv2_depthwise.bias": (16,),
        "conv2_pointwise.weight": (32, 16, 1, 1),
        "conv2_pointwise.bias": (32,),
        "conv3.weight": (32, 8, 3, 3),
        "conv3.bias": (32,),
        "fc1.weight": (32, 128),
        "fc1.bias": (32,),
        "fc2.weight": (10, 32),
        "fc2.bias": (10,),
    }


def test_the_stored_network_reads_more_than_97_percent_of_held_out_digits(held_out):
    images, labels = held_out
    assert np.bincount(labels).tolist() == [45, 46, 44, 46, 45, 46, 45, 45, 43, 45]
    assert accuracy(MODEL, images, labels) > 0.97


def test_the_stored_held_out_digits_are_the_ones_that_the_script_splits_off(held_out, digits_script):
    training, split_off = digits_script.split()
    images, labels = held_out
    np.testing.assert_array_equal(digits_script.as_input(split_off.images), images)
    np.testing.assert_array_equal(split_off.labels, labels)
    assert len(training.labels) == 1797 - 450


def test_the_stored_record_holds_the_ranges_of_the_training_digits(digits_script):
    training, _ = digits_script.split()
    layers = [LayerInfo(name, op_type) for name, op_type in LAYERS.items()]
    measured = measure(MODEL, layers, [{"image": digits_script.as_input(training.images)}]).records
    stored = parse_record_file(RECORD).records
    assert list(stored) == list(LAYERS)
    for name, record in stored.items():
        assert record.scale_d == pytest.approx(measured[name].scale_d, rel=1e-5)
        assert abs(record.offset_d - measured[name].offset_d) <= 1
        np.testing.assert_allclose(record.scale_w, measured[name].scale_w, rtol=1e-6)
        assert not record.offset_w.any()


def test_save_on_the_command_line_writes_a_fake_twin_as_accurate_as_float(saved, held_out):
    drop = accuracy(MODEL, *held_out) - accuracy(saved / "digits_fake_quant_model.onnx", *held_out)
    assert abs(drop) <= 0.01


def test_plan_on_the_command_line_lists_every_node():
    done = twinquant("plan", MODEL, RECORD)
    assert done.returncode == 0, done.stderr
    quantized = dict(re.findall(r"^(\w+) +\w+ +(yes|no) ", done.stdout, re.MULTILINE))
    assert {name for name, answer in quantized.items() if answer == "yes"} == set(LAYERS)
    assert len(quantized) == len(onnx.load(MODEL).graph.node)


@pytest.mark.parametrize("file", [MODEL, RECORD], ids=lambda path: path.name)
def test_inspect_on_the_command_line_reads_the_model_and_the_record(file):
    done = twinquant("inspect", file)
    assert done.returncode == 0, done.stderr
    assert "conv2_pointwise" in done.stdout or "Conv" in done.stdout


def test_verify_on_the_command_line_agrees_on_held_out_digits(saved, held_out, tmp_path):
    np.savez(tmp_path / "digits.npz", image=held_out[0])
    twins = saved / "digits_fake_quant_model.onnx", saved / "digits_deploy_model.onnx"
    done = twinquant("verify", *twins, "--data", tmp_path / "digits.npz")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"the twins agree: {len(LAYERS)} layers checked"


def test_verify_on_the_command_line_finds_one_changed_weight(saved, tmp_path):
    deploy = onnx.load(saved / "digits_deploy_model.onnx")
    (weight,) = (tensor for tensor in deploy.graph.initializer if tensor.name == "conv3.weight")
    values = numpy_helper.to_array(weight).copy()
    values[5, 2, 1, 1] += 1 if values[5, 2, 1, 1] < 0 else -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(deploy, tmp_path / "changed.onnx")
    done = twinquant("verify", saved / "digits_fake_quant_model.onnx", tmp_path / "changed.onnx")
    assert done.returncode == 1, done.stderr
    assert re.search(r"^conv3 +Conv +\w+ +NO", done.stdout, re.MULTILINE)


def test_the_stored_calibration_digits_are_training_digits(digits_script):
    training, _ = digits_script.split()
    with np.load(CALIBRATION) as stored:
        np.testing.assert_array_equal(stored["image"], digits_script.as_input(training.images[:320]))


def test_the_demo_prints_a_row_of_accuracies_for_every_algorithm(demo, held_out):
    assert list(demo["onnx"]) == [*ALGORITHMS, "ifmr, symmetric", "ifmr, balanced"]
    floats = {row["float"] for row in demo["onnx"].values()}
    assert floats == {f"{accuracy(MODEL, *held_out):.2%}"}


def test_the_demo_shows_the_caffe_network_too(demo, held_out):
    pytest.importorskip("cv2")
    assert list(demo["caffe"]) == [*ALGORITHMS, "ifmr, symmetric"]
    images, labels = held_out
    read = in_opencv(CAFFE / "digits.prototxt", CAFFE / "digits.caffemodel", images).argmax(axis=1) == labels
    assert {row["float"] for row in demo["caffe"].values()} == {f"{np.mean(read):.2%}"}


def test_the_caffe_network_computes_what_the_onnx_network_does(held_out):
    pytest.importorskip("cv2")
    images, _ = held_out
    found = in_opencv(CAFFE / "digits.prototxt", CAFFE / "digits.caffemodel", images)
    np.testing.assert_allclose(found, scores(MODEL, images), atol=1e-4)


@pytest.mark.parametrize(
    ("framework", "algorithm"),
    [
        *itertools.product(["onnx", "caffe"], [*ALGORITHMS, "ifmr, symmetric"]),
        ("onnx", "ifmr, balanced"),  # Caffe nets have no balance factors
    ],
)
def test_the_twins_of_the_demo_agree_and_are_within_half_a_point_of_float(demo, framework, algorithm):
    if framework == "caffe":
        pytest.importorskip("cv2")
    row = demo[framework][algorithm]
    assert row["twins agree"] == "yes"
    assert row["simulated deploy"] == row["fake-quant"]
    assert abs(percent(row["fake-quant"]) - percent(row["float"])) <= 0.5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_accuracies_that_the_demo_prints_are_those_of_the_files_it_leaves(demo_folder, demo, held_out, algorithm):
    folder = demo_folder / "onnx" / algorithm
    twin = folder / "digits_fake_quant_model.onnx"
    assert demo["onnx"][algorithm]["fake-quant"] == f"{accuracy(twin, *held_out):.2%}"
    assert algorithm in (folder / "digits_manifest.json").read_text("utf-8")


def test_quantize_on_the_command_line_takes_the_calibration_digits(tmp_path, held_out):
    done = twinquant("quantize", MODEL, "--data", CALIBRATION, "--save-path", tmp_path / "digits")
    assert done.returncode == 0, done.stderr
    drop = accuracy(MODEL, *held_out) - accuracy(tmp_path / "digits_fake_quant_model.onnx", *held_out)
    assert abs(drop) <= 0.005


def test_the_demo_needs_neither_torch_nor_scikit_learn(tmp_path):
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'sklearn']))\n"
        "import twinquant.cli; raise SystemExit(twinquant.cli.main(['demo', '--folder', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
