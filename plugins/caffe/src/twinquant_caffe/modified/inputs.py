"""Which blobs have to be fed to compute what is watched, and the net that computes it from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from twinquant_caffe.net import BlobVersion, CaffeNet, Layer, make_net
from twinquant_caffe.own_layers import CALIBRATION_MODULE
from twinquant_caffe.prototxt.tree import Message, make

__all__ = ["fed_blobs", "is_calibration_layer", "is_source", "replay_net"]


def is_source(layer: Layer) -> bool:
    """Tell whether a layer brings data: what it writes depends on nothing in the net."""
    return not layer.bottoms and not layer.blobs


def is_calibration_layer(layer: Layer) -> bool:
    """Tell whether a layer is one of ours that store an input."""
    return layer.type == "Python" and layer.message.message("python_param").text("module") == CALIBRATION_MODULE


def fed_blobs(net: CaffeNet, readers: Sequence[str]) -> tuple[str, ...]:
    """Return the blobs that what some layers read depends on and no layer computes, in the order of the net.

    What layers of data bring is among them, of whatever type they are.

    Args:
        net: the net.
        readers: names of layers, whose first bottoms are wanted.
    """
    needed = _needed(net, readers)
    heads = net.head.texts("input")
    given = [BlobVersion(blob, 0) for blob in heads]
    given += [version for layer in net.layers if is_source(layer) for version in layer.writes]
    return tuple(version.blob for version in given if version in needed)


def replay_net(net: CaffeNet, readers: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> CaffeNet:
    """Return the net that computes what some layers read, these layers included, from what was stored.

    It has the layers that this needs, and neither sources nor calibration layers; what it holds is the same in any
    phase and stage.

    Args:
        net: the modified net.
        readers: names of layers, whose first bottoms are wanted.
        shapes: of the stored blobs; they become the inputs.
    """
    needed, wanted = _needed(net, readers), set(readers)
    head: Message = make(name="replay", input=tuple(shapes))
    head = head.replaced("input_shape", *(make(dim=shape) for shape in shapes.values()))
    layers = [
        _in_any_phase(layer)
        for layer in net.layers
        if not is_source(layer)
        and not is_calibration_layer(layer)
        and (layer.name in wanted or needed.intersection(layer.writes))
    ]
    return replace(make_net(head, layers), files=net.files)


def _needed(net: CaffeNet, readers: Sequence[str]) -> set[BlobVersion]:
    """Return the tensors that what these layers read depends on, and itself."""
    needed = {net.layer(name).reads[0] for name in readers}
    for layer in reversed(net.layers):
        if needed.intersection(layer.writes):
            needed.update(layer.reads)
    return needed


def _in_any_phase(layer: Layer) -> Layer:
    return replace(layer, message=layer.message.without("include", "exclude"), reads=(), writes=())
