"""How much each layer suffers from its quantization alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from twinquant.calibration.evaluation import Similarity
from twinquant.errors import CalibrationError
from twinquant.outputs import Flavor
from twinquant.plan import build_plan
from twinquant.records import RecordSet
from twinquant_caffe.framework import CaffeFramework
from twinquant_caffe.insert import build_twin
from twinquant_caffe.insert.made import rewired
from twinquant_caffe.layers import describe_layers
from twinquant_caffe.modified.job import CalibrationJob
from twinquant_caffe.modified.replay import load_replay, open_taps
from twinquant_caffe.net import CaffeNet, Layer, make_net
from twinquant_caffe.prototxt.tree import make
from twinquant_caffe.run import open_net

__all__ = ["layer_similarities"]

Array = npt.NDArray[np.float32]

_INPUT = "input"


def layer_similarities(
    net: CaffeNet, records: RecordSet, job: CalibrationJob, similarity: Similarity
) -> Mapping[str, float]:
    """Compare each layer's float output with its quantized one, for what it was given in the first batch.

    That batch runs through the modified net again, and each layer is run on its own, in OpenCV, as soon as what it
    reads is there.

    Args:
        net: the float net, fused.
        records: the factors of the layers that are compared.
        job: the calibration, whose batches were kept.
        similarity: compares two outputs.

    Returns:
        The similarities by layer, in the order of the net.

    Raises:
        CalibrationError: the batches are gone.
        CapabilityError: OpenCV is missing.
    """
    feeds = job.spool.batch(0)
    if feeds is None:
        raise CalibrationError(f"the batches of {job.model!r} are gone; no sensitivity can be measured")
    run = open_taps(load_replay(job), [watch.tap for watch in job.watches])
    found = {}
    for watch, (_, (values,)) in zip(job.watches, run(feeds), strict=True):
        for name in watch.layers:
            if name in records.records:
                found[name] = _similarity(net.layer(name), records, values, similarity)
    return {layer.name: found[layer.name] for layer in net.layers if layer.name in found}


def _similarity(layer: Layer, records: RecordSet, values: Array, similarity: Similarity) -> float:
    """Compare what a layer makes of what it is given, in float and quantized."""
    alone = _net_of_one(layer, values.shape)
    own = RecordSet({layer.name: records.records[layer.name]}, records.dialect)
    quantized = build_twin(alone, build_plan(own, describe_layers(alone), CaffeFramework.name), Flavor.FAKE_QUANT)
    return float(similarity(_output(alone, values), _output(quantized, values)))


def _net_of_one(layer: Layer, shape: tuple[int, ...]) -> CaffeNet:
    head = make(name=layer.name, input=_INPUT, input_shape=make(dim=shape))
    return make_net(head, [rewired(layer, _INPUT, "output", layer.blobs)])


def _output(net: CaffeNet, values: Array) -> Array:
    (output,) = net.outputs
    return open_net(net, [output])({_INPUT: values})[output]
