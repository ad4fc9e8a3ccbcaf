"""From a float net to the modified net: rounded weights, and calibration layers behind the inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinquant.records import RecordSet
from twinquant_caffe.geometry import DECONVOLUTION, read_convolution
from twinquant_caffe.insert.made import made_layer, rewired
from twinquant_caffe.layers import weight_shape
from twinquant_caffe.modified.inputs import is_source
from twinquant_caffe.modified.weights import FakeQuantizedValues
from twinquant_caffe.net import CaffeNet, Layer
from twinquant_caffe.own_layers import CALIBRATION_MODULE
from twinquant_caffe.prototxt.tree import make

__all__ = ["modify_net"]

_SUFFIX = "_calibration_layer"
_CLASS = "CalibrationLayer"


def modify_net(net: CaffeNet, begun: RecordSet, inputs: Sequence[str], *, folder: Path, key: str) -> CaffeNet:
    """Return the net that calibrates when it runs. Weights are rounded when they are written.

    A calibration layer works in place, so that no blob changes its name.

    Args:
        net: the float net, fused; it is not modified.
        begun: the scales of the weights of the quantized layers.
        inputs: the blobs behind which calibration layers are put.
        folder: of the job.
        key: of the job.
    """
    names = {layer.name for layer in net.layers}
    at_once = [blob for blob in net.head.texts("input") if blob in inputs]
    layers = [_calibration_layer(blob, names, folder, key) for blob in at_once]
    for layer in net.layers:
        record = begun.records.get(layer.name)
        layers.append(_with_rounded_weight(layer, record.scale_w) if record and record.scale_w.size else layer)
        if is_source(layer):
            layers += [_calibration_layer(blob, names, folder, key) for blob in layer.tops if blob in inputs]
    return net.with_layers(layers)


def _calibration_layer(blob: str, names: set[str], folder: Path, key: str) -> Layer:
    """Return the layer that stores a blob; its name is none of the net's."""
    name = f"{blob}{_SUFFIX}"
    while name in names:
        name += "_"
    settings = json.dumps({"folder": str(folder), "input": blob, "job": key})
    parameter = make(module=CALIBRATION_MODULE, layer=_CLASS, param_str=settings)
    return made_layer(name, "Python", (blob,), (blob,), parameters={"python_param": parameter})


def _with_rounded_weight(layer: Layer, scale: npt.NDArray[np.float32]) -> Layer:
    """Return a layer whose weight is rounded by scales: float32 `(n,)`, n = 1 or one per output channel.

    Its parameters are its own: others that share the weight may be quantized by other scales, or not at all.
    """
    rows, columns, *window = weight_shape(layer)
    groups = read_convolution(layer).group if layer.type == DECONVOLUTION and scale.size > 1 else scale.size
    weight = FakeQuantizedValues(
        layer.blobs[0].floats,
        (rows, columns, prod(window)),
        scale.reshape(groups, -1),
        f"layer {layer.name!r}: the weight",
    )
    blobs = (replace(layer.blobs[0], values=weight), *layer.blobs[1:])
    return rewired(layer, layer.bottoms[0], layer.tops[0], blobs)
