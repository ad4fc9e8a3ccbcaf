"""Folding a chain: one layer in place of several, with weights that are computed when they are read."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from twinquant.numerics.channel_factors import ChannelFactors
from twinquant_caffe.carried import without_bias_term
from twinquant_caffe.fuse.chains import Chain
from twinquant_caffe.fuse.weight import ScaledValues
from twinquant_caffe.geometry import DECONVOLUTION, read_convolution
from twinquant_caffe.insert.made import float_blob, rewired
from twinquant_caffe.layers import weight_shape
from twinquant_caffe.net import CaffeNet, Layer
from twinquant_caffe.values import Values

__all__ = ["fold_before", "fold_behind"]

Float64Array = npt.NDArray[np.float64]

_PARAMETERS = {"InnerProduct": "inner_product_param"}


def fold_behind(net: CaffeNet, chains: list[Chain]) -> CaffeNet:
    """Return the net in which each layer also does what its followers did, and writes what the last one wrote."""
    folds = {}
    for chain in chains:
        layer, last = net.layers[chain.layer], net.layers[chain.folded[-1]]
        bias = _bias(layer, chain.factors.shift.size) * chain.factors.scale + chain.factors.shift
        folds[chain.layer] = _folded(layer, layer.bottoms[0], last.tops[0], _scaled_outputs(layer, chain.factors), bias)
    return _without(net, chains, folds, behind=True)


def fold_before(net: CaffeNet, chains: list[Chain]) -> CaffeNet:
    """Return the net in which each convolution also does what its predecessors did, and reads what the first read."""
    folds = {}
    for chain in chains:
        layer, first = net.layers[chain.layer], net.layers[chain.folded[0]]
        bias = _bias(layer, weight_shape(layer)[0]) + _shifted_inputs(layer, chain.factors)
        folds[chain.layer] = _folded(layer, first.bottoms[0], layer.tops[0], _scaled_inputs(layer, chain.factors), bias)
    return _without(net, chains, folds, behind=False)


def _without(net: CaffeNet, chains: list[Chain], folds: dict[int, Layer], *, behind: bool) -> CaffeNet:
    """Put folded layers in their places, and note which originals they stand for."""
    gone = {index for chain in chains for index in chain.folded}
    layers = [folds.get(index, layer) for index, layer in enumerate(net.layers) if index not in gone]
    notes = dict(net.fused)
    for chain in chains:
        name = net.layers[chain.layer].name
        own = net.original_names(name)
        folded = tuple(net.layers[index].name for index in chain.folded)
        notes[name] = (*own, *folded) if behind else (*folded, *own)
    return replace(net.with_layers(layers), fused=tuple(notes.items()))


def _folded(layer: Layer, bottom: str, top: str, weight: Values, bias: Float64Array) -> Layer:
    """Return a layer with other values; it gets a bias if it has none, and shares its parameters with nobody."""
    stored, *old_bias = layer.blobs
    with np.errstate(over="ignore"):
        values = bias.astype(np.float32)
    new_bias = replace(old_bias[0], values=float_blob(values).values) if old_bias else float_blob(values)
    edited = rewired(layer, bottom, top, (replace(stored, values=weight), new_bias))
    edited = replace(edited, rest=without_bias_term(edited.rest))
    name = _PARAMETERS.get(layer.type, "convolution_param")
    param = edited.message.message(name)
    if not param.has("bias_term"):
        return edited
    return replace(edited, message=edited.message.replaced(name, param.without("bias_term")))


def _bias(layer: Layer, channels: int) -> Float64Array:
    if len(layer.blobs) < 2:
        return np.zeros(channels)
    return layer.blobs[1].floats.read(0, channels).astype(np.float64)


def _scaled_outputs(layer: Layer, factors: ChannelFactors) -> Values:
    shape = weight_shape(layer)
    view = (shape[0], shape[1], prod(shape[2:]))
    if layer.type == DECONVOLUTION:
        return ScaledValues(layer.blobs[0].floats, view, factors.scale.reshape(read_convolution(layer).group, -1))
    return ScaledValues(layer.blobs[0].floats, view, factors.scale.reshape(-1, 1))


def _scaled_inputs(layer: Layer, factors: ChannelFactors) -> Values:
    rows, columns, *window = weight_shape(layer)
    per_group = factors.scale.reshape(read_convolution(layer).group, -1)
    return ScaledValues(layer.blobs[0].floats, (rows, columns, prod(window)), per_group)


def _shifted_inputs(layer: Layer, factors: ChannelFactors) -> Float64Array:
    """Return what the shift of the input adds to each output channel: float64 `(Cout,)`."""
    rows, columns, *window = weight_shape(layer)
    groups = read_convolution(layer).group
    shifts = factors.shift.reshape(groups, columns)
    row_size = columns * prod(window)
    added = np.empty(rows)
    for row in range(rows):
        values = layer.blobs[0].floats.read(row * row_size, (row + 1) * row_size).astype(np.float64)
        added[row] = values.reshape(columns, -1).sum(axis=1) @ shifts[row // (rows // groups)]
    return added
