"""The other styles of the fake-quant pair, and the option that chooses one."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
from nets import read_prototxt
from twin_nets import FACTORS, quantized_input, records, save, varied_net

import twinquant
from twinquant.cli import main
from twinquant.errors import ArgumentError
from twinquant.records import write_record_file
from twinquant_caffe.framework import CaffeFramework
from twinquant_caffe.prototxt import parse_prototxt


@pytest.fixture
def source(tmp_path):
    return varied_net(tmp_path / "in")


def shipped_module(path):
    """Import the module beside a pair from its file, as a user's program finds it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_python_pair_comes_with_its_module(source, tmp_path):
    output = save(source, tmp_path / "out", fake_quant_style="python")
    assert [file.name for file in output.fake_quant.files] == [
        "net_fake_quant_model.prototxt",
        "net_fake_quant_weights.caffemodel",
        "twinquant_fake_quant.py",
    ]
    text = output.fake_quant.files[2].read_text()
    imports = [line.split()[1] for line in text.splitlines() if line.strip().startswith(("import ", "from "))]
    assert set(imports) <= {"__future__", "json", "collections.abc", "typing", "numpy", "caffe"}


def test_a_python_quant_names_the_module_and_its_class(source, tmp_path):
    files = save(source, tmp_path / "out", fake_quant_style="python").fake_quant.files
    layers = {layer.text("name"): layer for layer in parse_prototxt(files[0]).messages("layer")}
    param = layers["left_0_quant_layer"].message("python_param")
    assert layers["left_0_quant_layer"].text("type") == "Python"
    assert param.text("module") == files[2].stem
    assert hasattr(shipped_module(files[2]), param.text("layer"))
    assert json.loads(param.text("param_str")) == {"scale": 32.0, "offset": -7}


def test_the_module_runs_in_opencv(source, tmp_path, run_prototxt):
    cv2 = pytest.importorskip("cv2")
    files = save(source, tmp_path / "out", fake_quant_style="python").fake_quant.files
    builtin = save(source, tmp_path / "builtin").fake_quant.files
    x = (np.random.default_rng(3).standard_normal((2, 4, 8, 8)) * 2).astype(np.float32)
    cv2.dnn_registerLayer("Python", shipped_module(files[2]).QuantLayer)
    try:
        quantized, probabilities = run_prototxt(files, {"data": x}, "left_0_quant_layer", "prob")
    finally:
        cv2.dnn_unregisterLayer("Python")
    assert np.array_equal(quantized, quantized_input(x, *FACTORS["left"][:2]))
    assert np.array_equal(probabilities, run_prototxt(builtin, {"data": x}, "prob"))


def test_the_module_runs_in_pycaffe(source, tmp_path, monkeypatch):
    class Layer:
        """What pycaffe's own does: it is built from a parameter of its own and has the texts as attributes."""

        def __init__(self, parameter):
            self.param_str = parameter["param_str"]

    class Blob:
        def __init__(self, data):
            self.data = data

        def reshape(self, *shape):
            self.data = np.zeros(shape, np.float32)

    monkeypatch.setitem(sys.modules, "caffe", types.SimpleNamespace(Layer=Layer))
    files = save(source, tmp_path / "out", fake_quant_style="python").fake_quant.files
    layer = shipped_module(files[2]).QuantLayer({"param_str": '{"scale": 4.0, "offset": -100}'})
    assert isinstance(layer, Layer)
    x = np.linspace(-40, 80, 77, dtype=np.float32).reshape(1, 7, 11)
    bottom, top = [Blob(x)], [Blob(None)]
    layer.setup(bottom, top)
    layer.reshape(bottom, top)
    layer.forward(bottom, top)
    assert np.array_equal(top[0].data, quantized_input(x, 0.25, -100))
    with pytest.raises(NotImplementedError, match="inference"):
        layer.backward(top, [True], bottom)


def test_two_pairs_in_one_folder_share_the_module(source, tmp_path):

    for prefix in ("one", "two"):
        twinquant.save_model(source, records(), tmp_path / "out" / prefix, fake_quant_style="python")
    names = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert {"one_fake_quant_model.prototxt", "two_fake_quant_model.prototxt", "twinquant_fake_quant.py"} <= names


def test_an_amct_pair_has_the_vendors_layers(source, tmp_path):
    files = save(source, tmp_path / "out", fake_quant_style="amct").fake_quant.files
    layers = {layer.text("name"): layer for layer in parse_prototxt(files[0]).messages("layer")}
    param = layers["up_0_quant_layer"].message("quant_param")
    assert layers["up_0_quant_layer"].text("type") == "Quant"
    assert [field.name for field in param] == ["with_offset", "scale", "offset", "object_layer"]
    assert (param.flag("with_offset", False), param.number("scale", 0), param.raw("offset")) == (True, 25.0, b"\x03")
    assert param.text("object_layer") == "up"
    assert layers["up_dequant_layer"].text("type") == "DeQuant"


@pytest.mark.parametrize("style", ["amct", "python"])
def test_the_deploy_pair_is_the_same_for_every_style(source, tmp_path, style):
    builtin = save(source, tmp_path / "builtin").deploy.files
    other = save(source, tmp_path / style, fake_quant_style=style).deploy.files
    assert [file.read_bytes() for file in builtin] == [file.read_bytes() for file in other]


@pytest.mark.parametrize("style", ["Builtin", "", None, "onnx"])
def test_a_wrong_style_is_an_error_that_lists_the_three(source, tmp_path, style):
    with pytest.raises(ArgumentError, match=f"'builtin', 'python', 'amct', got {style!r}"):
        save(source, tmp_path / "out", fake_quant_style=style)
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_an_error_that_names_it():
    with pytest.raises(ArgumentError, match="fake_style"):
        CaffeFramework().with_options({"fake_style": "python"})


def test_the_framework_that_is_installed_keeps_its_own_style():
    framework = CaffeFramework()
    assert framework.with_options({"fake_quant_style": "python"}).fake_quant_style == "python"
    assert framework.fake_quant_style == "builtin"


def test_only_stock_layers_are_in_a_builtin_pair(source, tmp_path):
    layers = read_prototxt(save(source, tmp_path / "out").fake_quant.model).layer
    stock = {"Input", "Convolution", "Deconvolution", "InnerProduct", "Pooling", "ReLU", "Eltwise", "Concat", "Softmax"}
    assert {layer.type for layer in layers} == stock | {"Power", "Scale"}


def test_the_command_line_takes_the_style(source, tmp_path):
    write_record_file(records(), tmp_path / "record.txt")
    pair = ",".join(map(str, source))
    command = ["save", pair, str(tmp_path / "record.txt"), str(tmp_path / "out" / "net")]
    assert main([*command, "--option", "fake_quant_style=python"]) == 0
    assert (tmp_path / "out" / "twinquant_fake_quant.py").exists()
    assert main([*command, "--option", "fake_quant_style=pyton"]) == 1
