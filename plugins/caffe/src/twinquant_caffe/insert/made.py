"""Layers that a twin gets: new ones, and quantized ones on other blobs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from twinquant_caffe.carried import without_param
from twinquant_caffe.net import Blob, Layer
from twinquant_caffe.prototxt.tree import Message, make
from twinquant_caffe.values import ArrayValues

__all__ = ["float_blob", "made_layer", "rewired"]


def made_layer(
    name: str,
    kind: str,
    bottoms: tuple[str, ...],
    tops: tuple[str, ...],
    *,
    parameters: dict[str, Message] | None = None,
    blobs: tuple[Blob, ...] = (),
    rest: bytes = b"",
) -> Layer:
    """Return a new layer.

    Args:
        name: its name.
        kind: its type.
        bottoms: the blobs it reads.
        tops: the blobs it writes.
        parameters: its further fields in the prototxt.
        blobs: its parameters in the caffemodel.
        rest: its further fields in the caffemodel, encoded.
    """
    message = make(name=name, type=kind, bottom=bottoms, top=tops, **(parameters or {}))
    return Layer(name, kind, bottoms, tops, message, blobs, rest=rest)


def rewired(layer: Layer, bottom: str, top: str, blobs: tuple[Blob, ...]) -> Layer:
    """Return a layer on other blobs and with other parameters, which it shares with no other layer."""
    message = layer.message.replaced("bottom", bottom).replaced("top", top)
    unshared = [parameter.without("name") for parameter in message.messages("param")]
    if unshared:
        message = message.replaced("param", *unshared)
    rest = without_param(layer.rest)
    return replace(layer, bottoms=(bottom,), tops=(top,), message=message, blobs=blobs, reads=(), writes=(), rest=rest)


def float_blob(values: npt.NDArray[np.float32]) -> Blob:
    """Return a parameter of these values and this shape: float32."""
    return Blob(values.shape, ArrayValues(values))
