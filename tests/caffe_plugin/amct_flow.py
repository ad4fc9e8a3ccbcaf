"""The vendor's flow on a small net: its files, its batches, and what imitates pycaffe."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinquant_caffe import amct

TEXT = """name: "small" input: "data" input_shape { dim: 2 dim: 3 dim: 6 dim: 6 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "left" type: "Convolution" bottom: "conv" top: "left" convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "right" type: "Deconvolution" bottom: "conv" top: "right"
        convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "left" bottom: "right" top: "sum" }
layer { name: "pool" type: "Pooling" bottom: "sum" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 } }
"""
LAYERS = ["conv", "left", "right", "pool", "fc"]


@dataclass(frozen=True)
class Flow:
    """The files of a calibration."""

    folder: Path
    pair: tuple[Path, Path]
    config: Path
    record: Path
    modified: tuple[Path, Path]

    def init(self):
        return amct.init(self.config, *self.pair, self.record)

    def start(self):
        """Return the graph, after its modified net was written."""
        graph = self.init()
        amct.quantize_model(graph, *self.modified)
        return graph

    @property
    def batches(self):
        return Path(f"{self.record}.batches")


def set_algorithm(flow, **settings):
    """Change how the activations of all layers are calibrated."""
    content = json.loads(flow.config.read_text())
    for name in LAYERS:
        content[name]["activation_quant_params"] = settings
    flow.config.write_text(json.dumps(content))


def batch(number, rows=2):
    return np.random.default_rng(100 + number).standard_normal((rows, 3, 6, 6)).astype(np.float32)


class Blob:
    """What pycaffe hands to Python layers: data, diff, and a shape that can be changed."""

    def __init__(self, data=None):
        self.data = np.zeros(1, np.float32) if data is None else data
        self.diff = np.zeros_like(self.data)

    @property
    def shape(self):
        return self.data.shape

    def reshape(self, *shape):
        self.data = np.zeros(shape, np.float32)
        self.diff = np.zeros(shape, np.float32)


def settings_of(prototxt):
    """Return the param_str of the Python layers, in their order."""
    return [json.loads(text) for text in re.findall(r'param_str: ("(?:[^"\\]|\\.)*")', prototxt.read_text())]


def caffe_layer(module, settings, bottom, top):
    """Make a Python layer as Caffe does."""
    layer = module.CalibrationLayer(object())
    layer.param_str = settings
    layer.setup([bottom], [top])
    layer.reshape([bottom], [top])
    return layer
