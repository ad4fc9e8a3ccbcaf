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
from twinquant_caffe.modified.spool import TapSpool
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

    One layer after the other is run on its own, in OpenCV.

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
    spools = {layer: TapSpool(job, index) for index, watch in enumerate(job.watches) for layer in watch.layers}
    found = {}
    for layer in net.layers:
        if layer.name not in records.records:
            continue
        values = next(spools[layer.name].batches(), None)
        if values is None:
            raise CalibrationError(f"the batches of layer {layer.name!r} are gone; its sensitivity cannot be measured")
        alone = _net_of_one(layer, values.shape)
        own = RecordSet({layer.name: records.records[layer.name]}, records.dialect)
        plan = build_plan(own, describe_layers(alone), CaffeFramework.name)
        quantized = build_twin(alone, plan, Flavor.FAKE_QUANT)
        found[layer.name] = float(similarity(_output(alone, values), _output(quantized, values)))
    return found


def _net_of_one(layer: Layer, shape: tuple[int, ...]) -> CaffeNet:
    head = make(name=layer.name, input=_INPUT, input_shape=make(dim=shape))
    return make_net(head, [rewired(layer, _INPUT, "output", layer.blobs)])


def _output(net: CaffeNet, values: Array) -> Array:
    (output,) = net.outputs
    return open_net(net, [output])({_INPUT: values})[output]
