"""Finding the layers into which their neighbours can be folded."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from twinquant.numerics.channel_factors import ChannelFactors
from twinquant_caffe.fuse.factors import read_factors
from twinquant_caffe.geometry import CONVOLUTIONS, DECONVOLUTION, read_convolution
from twinquant_caffe.layers import weight_shape
from twinquant_caffe.net import BlobVersion, CaffeNet, Layer

__all__ = ["Chain", "find_chains_before", "find_chains_behind"]

_logger = logging.getLogger(__name__)

_NORMALIZATIONS = ("BatchNorm", "Scale")
_FUSED = (*CONVOLUTIONS, DECONVOLUTION, "InnerProduct")


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A layer, and its neighbours that are folded into it.

    Attributes:
        layer: position of the layer.
        folded: positions of the neighbours, in order.
        factors: what they do together.
    """

    layer: int
    folded: tuple[int, ...]
    factors: ChannelFactors


def find_chains_behind(net: CaffeNet) -> list[Chain]:
    """Find what follows layers and can be folded into them: BatchNorm and Scale layers, as far as they follow.

    A Scale alone is folded into convolutions only. Chains come in the order of the net and share no layer.
    """
    readers = _readers(net)
    chains = []
    for index, layer in enumerate(net.layers):
        if layer.type not in _FUSED or not _is_plain(layer):
            continue
        channels = _output_channels(layer)
        folded: list[int] = []
        factors = ChannelFactors.identity(channels)
        end = layer
        while True:
            found = readers.get(end.writes[0], [])
            behind = [position for position in found if net.layers[position].type in _NORMALIZATIONS]
            if len(found) != 1 or not behind:
                if behind:
                    _explain(layer, net.layers[behind[0]], "other layers read the blob between them, too")
                break
            step = net.layers[behind[0]]
            if step.type == "Scale" and not folded and layer.type not in CONVOLUTIONS:
                break
            own = read_factors(step, channels)
            if isinstance(own, str):
                _explain(layer, step, own)
                break
            together = factors.then(own)
            if not together.finite:
                _explain(layer, step, "the product of all factors is not finite")
                break
            factors, end = together, step
            folded.append(behind[0])
        if folded:
            chains.append(Chain(index, tuple(folded), factors))
    return chains


def find_chains_before(net: CaffeNet, skip: Collection[str], reserved: Collection[str] = ()) -> list[Chain]:
    """Find what precedes convolutions and can be folded into them: a BatchNorm, or a BatchNorm and a Scale.

    What the padding adds is not normalized: a shift other than zero is folded only where there is no padding.

    Args:
        net: the net.
        skip: names of the convolutions into which nothing is folded.
        reserved: names of the layers that are not folded into what they precede.
    """
    readers = _readers(net)
    writers = {version: index for index, layer in enumerate(net.layers) for version in layer.writes}
    chains = []
    for index, layer in enumerate(net.layers):
        if layer.type not in CONVOLUTIONS or layer.name in skip or not _is_plain(layer):
            continue
        folded = _normalization_before(net, layer, readers, writers)
        if not folded:
            continue
        if any(net.layers[position].name in reserved for position in folded):
            _explain(layer, net.layers[folded[0]], "it belongs to the layer that it follows, which is not fused")
            continue
        param, shape = read_convolution(layer), weight_shape(layer)
        channels = shape[1] * param.group
        factors = ChannelFactors.identity(channels)
        first = net.layers[folded[0]]
        problem: str | None = None
        for position in folded:
            own = read_factors(net.layers[position], channels)
            if isinstance(own, str):
                problem = own
                break
            factors = factors.then(own)
        if problem is None and not factors.finite:
            problem = "the product of all factors is not finite"
        if problem is None and any(param.pad) and factors.shift.any():
            problem = f"the layer pads, and what it pads with is not shifted as {first.name!r} shifts its input"
        source = first.reads[0]
        if problem is None and any(
            version.blob == source.blob and position not in folded
            for position in range(folded[0] + 1, index)
            for version in net.layers[position].writes
        ):
            problem = f"a layer between them overwrites the blob {source.blob!r}"
        if problem is not None:
            _explain(layer, first, problem)
            continue
        chains.append(Chain(index, folded, factors))
    return chains


def _normalization_before(
    net: CaffeNet,
    layer: Layer,
    readers: Mapping[BlobVersion, list[int]],
    writers: Mapping[BlobVersion, int],
) -> tuple[int, ...]:
    """Return the positions of a BatchNorm, or of a BatchNorm and a Scale, whose result this layer alone reads."""
    folded: list[int] = []
    below = layer
    for allowed in (_NORMALIZATIONS, ("BatchNorm",)):
        position = writers.get(below.reads[0])
        if position is None or len(readers[below.reads[0]]) != 1:
            return ()
        step = net.layers[position]
        if step.type not in allowed or len(step.bottoms) != 1:
            return ()
        folded.insert(0, position)
        if step.type == "BatchNorm":
            return tuple(folded)
        below = step
    return ()


def _is_plain(layer: Layer) -> bool:
    """Tell whether a layer has one input, one output, and its channels on axis 1 of both."""
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return False
    if layer.type == "InnerProduct":
        param = layer.message.message("inner_product_param")
        return param.integer("axis", 1) == 1 and not param.flag("transpose", False)
    return read_convolution(layer).axis == 1


def _output_channels(layer: Layer) -> int:
    shape = weight_shape(layer)
    return shape[1] * read_convolution(layer).group if layer.type == DECONVOLUTION else shape[0]


def _readers(net: CaffeNet) -> dict[BlobVersion, list[int]]:
    """Return the positions of the layers that read each tensor; a layer that reads it twice counts twice."""
    readers: dict[BlobVersion, list[int]] = {}
    for index, layer in enumerate(net.layers):
        for version in layer.reads:
            readers.setdefault(version, []).append(index)
    return readers


def _explain(layer: Layer, step: Layer, why: str) -> None:
    _logger.info("layer %r: %s %r is not folded into it: %s", layer.name, step.type, step.name, why)
