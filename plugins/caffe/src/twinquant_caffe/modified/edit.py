"""From a float net to the modified net: rounded weights, and calibration layers in front of the quantized layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from twinquant.calibration.watches import Watch
from twinquant.records import RecordSet
from twinquant_caffe.geometry import DECONVOLUTION, read_convolution
from twinquant_caffe.insert.made import made_layer, rewired
from twinquant_caffe.layers import weight_shape
from twinquant_caffe.modified.job import CalibrationJob
from twinquant_caffe.modified.weights import FakeQuantizedValues
from twinquant_caffe.net import CaffeNet, Layer
from twinquant_caffe.own_layers import CALIBRATION_MODULE
from twinquant_caffe.prototxt.tree import make

__all__ = ["modify_net"]

_SUFFIX = "_calibration_layer"
_CLASS = "CalibrationLayer"


def modify_net(net: CaffeNet, begun: RecordSet, job: CalibrationJob) -> CaffeNet:
    """Return the net that calibrates when it runs. Weights are rounded when they are written.

    Args:
        net: the float net, fused; it is not modified.
        begun: the scales of the weights of the quantized layers.
        job: what the calibration layers do; layers that share a watch share a calibration layer.
    """
    names = _names(net, job.watches)
    reads = {layer: name for watch, name in zip(job.watches, names, strict=True) for layer in watch.layers}
    first = {watch.layers[0]: index for index, watch in enumerate(job.watches)}
    layers: list[Layer] = []
    for layer in net.layers:
        if layer.name not in reads:
            layers.append(layer)
            continue
        if layer.name in first:
            index = first[layer.name]
            layers.append(_calibration_layer(names[index], layer.bottoms[0], job, index))
        scale = begun.records[layer.name].scale_w
        rounded = _with_rounded_weight(layer, scale) if scale.size else layer
        layers.append(rewired(rounded, reads[layer.name], layer.tops[0], rounded.blobs))
    return net.with_layers(layers)


def _names(net: CaffeNet, watches: Sequence[Watch]) -> list[str]:
    """Return a name for each calibration layer and its top that the net does not use."""
    taken = {layer.name for layer in net.layers} | {version.blob for layer in net.layers for version in layer.writes}
    names = []
    for watch in watches:
        name = f"{watch.layers[0]}{_SUFFIX}"
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


def _calibration_layer(name: str, bottom: str, job: CalibrationJob, index: int) -> Layer:
    settings = json.dumps({"folder": str(job.folder), "watch": index})
    parameter = make(module=CALIBRATION_MODULE, layer=_CLASS, param_str=settings)
    return made_layer(name, "Python", (bottom,), (name,), parameters={"python_param": parameter})


def _with_rounded_weight(layer: Layer, scale: npt.NDArray[np.float32]) -> Layer:
    """Return a layer whose weight is rounded by scales: float32 `(n,)`, n = 1 or one per output channel."""
    rows, columns, *window = weight_shape(layer)
    groups = read_convolution(layer).group if layer.type == DECONVOLUTION and scale.size > 1 else scale.size
    weight = FakeQuantizedValues(
        layer.blobs[0].floats,
        (rows, columns, prod(window)),
        scale.reshape(groups, -1),
        f"layer {layer.name!r}: the weight",
    )
    return replace(layer, blobs=(replace(layer.blobs[0], values=weight), *layer.blobs[1:]))
