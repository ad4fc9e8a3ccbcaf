"""A net with a layer of every quantizable kind, its records, and what several tests of twins compute by hand."""

from pathlib import Path

import numpy as np
from nets import small_net

import twinquant
from twinquant.records import LayerRecord, RecordSet

VARIED = """
name: "varied"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 8 dim: 8 } } }
layer {
  name: "left" type: "Convolution" bottom: "data" top: "left"
  convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 2 engine: CAFFE }
}
layer { name: "left_relu" type: "ReLU" bottom: "left" top: "left" }
layer {
  name: "right" type: "Convolution" bottom: "data" top: "right"
  convolution_param { num_output: 6 kernel_h: 1 kernel_w: 3 pad_h: 0 pad_w: 1 bias_term: false }
}
layer { name: "sum" type: "Eltwise" bottom: "left" bottom: "right" top: "sum" }
layer {
  name: "deep" type: "Convolution" bottom: "sum" top: "deep"
  convolution_param { num_output: 6 kernel_size: 3 stride: 2 pad: 2 dilation: 2 group: 6 }
}
layer { name: "up" type: "Deconvolution" bottom: "deep" top: "up"
  convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: 2 } }
layer { name: "up_relu" type: "ReLU" bottom: "up" top: "up" }
layer { name: "join" type: "Concat" bottom: "up" bottom: "sum" top: "join" }
layer { name: "pool" type: "Pooling" bottom: "join" top: "pool"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""

SHAPES = {
    "left": [(6, 2, 3, 3), (6,)],
    "right": [(6, 4, 1, 3)],
    "deep": [(6, 1, 3, 3), (6,)],
    "up": [(6, 2, 4, 4), (4,)],
    "fc": [(5, 250), (5,)],
}

FACTORS = {
    "left": (0.03125, -7, [0.01, 0.012, 0.008, 0.011, 0.009, 0.01]),
    "right": (0.03125, -7, [0.0078125]),
    "deep": (0.05, -30, [0.01, 0.011, 0.012, 0.013, 0.014, 0.015]),
    "up": (0.04, 3, [0.01, 0.011, 0.012, 0.013]),
    "pool": (0.06, 100, []),
    "fc": (0.05, -128, [0.009]),
}
"""scale_d, offset_d and scale_w of every quantizable layer."""


def varied_blobs():
    rng = np.random.default_rng(5)
    return {name: [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes] for name, shapes in SHAPES.items()}


def varied_net(folder: Path, **options):
    return small_net(folder, VARIED, varied_blobs(), **options)


def records(factors=FACTORS):
    """Records of some layers, from (scale_d, offset_d, scale_w) by layer."""
    return RecordSet(
        {
            name: LayerRecord(
                name,
                scale_d=float(np.float32(scale_d)),
                offset_d=offset_d,
                scale_w=np.array(scale_w, np.float32),
                offset_w=np.zeros(len(scale_w), np.int32),
            )
            for name, (scale_d, offset_d, scale_w) in factors.items()
        }
    )


def save(source, folder: Path, factors=FACTORS, **options):
    return twinquant.save_model(source, records(factors), folder / "net", **options)


def rounded(weight, scale):
    """clip(round(w / s)) in float32 with ties to even, as int8; the scale broadcasts."""
    return np.clip(np.rint(weight / np.asarray(scale, np.float32)), -128, 127).astype(np.int8)


def rounded_bias(bias, scale_d, scale_w):
    return np.rint(bias / (np.float32(scale_d) * np.asarray(scale_w, np.float32))).astype(np.int32)


def quantized_input(x, scale_d, offset_d):
    """What a Quant gives, with the offset taken off again."""
    reciprocal = np.float32(1) / np.float32(scale_d)
    return np.clip(np.rint(x * reciprocal) + np.float32(offset_d), -128, 127) - np.float32(offset_d)
