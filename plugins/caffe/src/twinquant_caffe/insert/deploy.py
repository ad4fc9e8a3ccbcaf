"""The deploy twin's operators."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from twinquant.numerics import pack_dequant_parameter, reciprocal_scale
from twinquant.plan import ActivationQuant
from twinquant.wire import FIXED32, header
from twinquant_caffe.insert.made import made_layer
from twinquant_caffe.insert.recipes import Recipe
from twinquant_caffe.insert.weights import pack_integers
from twinquant_caffe.net import Blob, Layer
from twinquant_caffe.prototxt.tree import Message, make
from twinquant_caffe.schema import QUANT_OFFSET, QUANT_PARAM, QUANT_SCALE, UINT64_DATA

__all__ = ["DEPLOY", "dequant_layer", "offset_byte", "quant_layer"]


def quant_layer(name: str, bottom: str, consumer: str, quant: ActivationQuant) -> tuple[Layer, ...]:
    """Return the device's Quant layer."""
    del consumer
    scale, offset = reciprocal_scale(quant.scale), offset_byte(quant.offset)
    parameter: Message = make(scale=float(scale), offset=offset)
    encoded = bytes([QUANT_SCALE << 3 | FIXED32]) + struct.pack("<f", scale) + header(QUANT_OFFSET, 1) + offset
    rest = header(QUANT_PARAM, len(encoded)) + encoded
    return (made_layer(name, "Quant", (bottom,), (name,), parameters={"quant_param": parameter}, rest=rest),)


def offset_byte(offset: int) -> bytes:
    """Return an offset as one signed byte."""
    return struct.pack("b", offset)


def dequant_layer(name: str, bottom: str, top: str, scale: npt.NDArray[np.float32], channels: int) -> Layer:
    """Return the device's DeQuant layer, with one parameter for every scale."""
    del channels
    values = pack_integers(UINT64_DATA, pack_dequant_parameter(scale))
    return made_layer(name, "DeQuant", (bottom,), (top,), blobs=(Blob(scale.shape, values),))


DEPLOY = Recipe(quant_layer, dequant_layer, integers=True)
