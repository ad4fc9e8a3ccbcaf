"""A small net with a configuration, and what runs its modified net."""

import importlib.util
import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
from amct_flow import TEXT, Flow
from nets import small_net

from twinquant_caffe import amct, calibration_layer


@pytest.fixture
def flow(tmp_path):
    """A net with its configuration for three batches."""
    rng = np.random.default_rng(29)

    def values(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    blobs = {
        "conv": [values(4, 3, 3, 3)],
        "bn": [values(4), np.abs(values(4)) + 0.5, np.float32([2])],
        "scale": [values(4), values(4)],
        "left": [values(3, 4, 1, 1), values(3)],
        "right": [values(4, 3, 1, 1), values(3)],
        "fc": [values(5, 27), values(5)],
    }
    pair = small_net(tmp_path / "net", TEXT, blobs)
    modified = tmp_path / "modified.prototxt", tmp_path / "modified.caffemodel"
    made = Flow(tmp_path, pair, tmp_path / "config.json", tmp_path / "record.txt", modified)
    amct.create_quant_config(made.config, *pair, batch_num=3)
    return made


@pytest.fixture
def run_opencv():
    """Run a modified net in OpenCV, which knows the calibration layer; returns a function of the pair and batches."""
    cv2.dnn_registerLayer("Python", calibration_layer.CalibrationLayer)

    def run(pair, batches):
        net = cv2.dnn.readNetFromCaffe(*map(str, pair))
        net.enableFusion(False)
        net.enableWinograd(False)
        outputs = []
        for values in batches:
            net.setInput(values, "data")
            outputs.append(np.array(net.forward()))
        return outputs

    yield run
    cv2.dnn_unregisterLayer("Python")


@pytest.fixture
def pycaffe(monkeypatch):
    """The module of the calibration layer, imported where there is a pycaffe."""
    caffe = ModuleType("caffe")

    class Layer:
        """As pycaffe's: made with the layer's parameters, which C++ keeps."""

        def __init__(self, parameters):
            self.blobs = []

    caffe.Layer = Layer
    monkeypatch.setitem(sys.modules, "caffe", caffe)
    spec = importlib.util.spec_from_file_location("layer_for_caffe", calibration_layer.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert issubclass(module.CalibrationLayer, Layer)
    return module
