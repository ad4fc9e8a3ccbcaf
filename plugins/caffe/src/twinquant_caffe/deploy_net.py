"""A written deploy net, understood: its quantized layers with their integers, and its float layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import VerificationError
from twinquant.numerics import unpack_dequant_parameter
from twinquant_caffe.net import Blob, BlobVersion, CaffeNet, Layer, make_net
from twinquant_caffe.prototxt import Message
from twinquant_caffe.schema import DATA, DOUBLE_DATA, INT8_DATA, INT32_DATA, UINT64_DATA
from twinquant_caffe.values import FileValues, Span
from twinquant_caffe.written import WrittenBlob, WrittenTwin, read_written

__all__ = ["DeployLayer", "DeployNet", "DeployQuant", "connect", "read_deploy"]

_FLOATS: Mapping[int, np.dtype[Any]] = {DATA: np.dtype("<f4"), DOUBLE_DATA: np.dtype("<f8")}

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DeployQuant:
    """A Quant layer.

    Attributes:
        layer: the layer.
        reciprocal: what it multiplies by: a float32 value.
        offset: what it adds, after rounding.
    """

    layer: Layer
    reciprocal: float
    offset: int


@dataclass(frozen=True)
class DeployLayer:
    """A quantized layer, from its Quant to its DeQuant. Its integers are read when they are asked for, and kept.

    Attributes:
        quant: its quantization, which other layers may share.
        layer: the layer on integers.
        dequant: the DeQuant layer.
        blobs: the stored parameters of the layer.
        parameter: that of the DeQuant.
    """

    quant: DeployQuant
    layer: Layer
    dequant: Layer
    blobs: tuple[WrittenBlob, ...]
    parameter: WrittenBlob

    @cached_property
    def weight(self) -> Int8Array | None:
        """The weight in its shape, or None where there is none."""
        return self.blobs[0].values(INT8_DATA).reshape(self.blobs[0].lengths) if self.blobs else None

    @cached_property
    def bias(self) -> Int32Array | None:
        """The bias `(Cout,)`, or None where there is none."""
        return self.blobs[1].values(INT32_DATA) if len(self.blobs) > 1 else None

    @cached_property
    def packed_scale(self) -> npt.NDArray[np.uint64]:
        """The dequantization parameters `(n,)`."""
        return self.parameter.values(UINT64_DATA)

    @cached_property
    def scale(self) -> Float32Array:
        """The scales `(n,)` that lead from the accumulator to real values."""
        return unpack_dequant_parameter(self.packed_scale)[0]


@dataclass(frozen=True, slots=True)
class DeployNet:
    """A deploy net.

    Attributes:
        twin: its files.
        net: its layers; those with float parameters have them.
        layers: the quantized ones, in order.
    """

    twin: WrittenTwin
    net: CaffeNet
    layers: tuple[DeployLayer, ...]


def read_deploy(prototxt: Path) -> DeployNet:
    """Read a deploy net; parameters stay in the caffemodel until they are asked for.

    Raises:
        ModelFileError: a file is missing or damaged.
        VerificationError: its inserted layers make no sense.
    """
    twin = read_written(prototxt)
    net = connect(twin)
    return DeployNet(twin, net, tuple(_quantized(net, twin)))


def connect(twin: WrittenTwin) -> CaffeNet:
    """Return the net of a written twin; integer parameters are left out.

    Raises:
        ModelFileError: its layers do not fit together.
    """
    head = Message(tuple(item for item in twin.message if item.name != "layer"))
    layers = [
        Layer(
            message.text("name"),
            message.text("type"),
            message.texts("bottom"),
            message.texts("top"),
            message,
            _float_blobs(twin.blobs(message.text("name"))),
        )
        for message in twin.message.messages("layer")
    ]
    return make_net(head, layers)


def _float_blobs(stored: tuple[WrittenBlob, ...]) -> tuple[Blob, ...]:
    blobs: list[Blob] = []
    for blob in stored:
        for field, dtype in _FLOATS.items():
            if field in blob.runs:
                spans = tuple(Span(start, (stop - start) // dtype.itemsize) for start, stop in blob.runs[field])
                blobs.append(Blob(blob.lengths, FileValues(blob.path, spans, dtype), legacy=blob.shape is None))
    return tuple(blobs)


def _quantized(net: CaffeNet, twin: WrittenTwin) -> Iterator[DeployLayer]:
    writers: dict[BlobVersion, Layer] = {version: layer for layer in net.layers for version in layer.writes}
    for dequant in net.layers:
        if dequant.type != "DeQuant":
            continue
        layer = _source(dequant, writers)
        quant = _source(layer, writers)
        parameters = twin.blobs(dequant.name)
        if quant.type != "Quant" or len(parameters) != 1 or len(layer.writes) != 1:
            raise VerificationError(
                f"the deploy net makes no sense: DeQuant layer {dequant.name!r} has no parameter, or does not stand "
                "behind a layer that reads a Quant layer; `twinquant check` tells more"
            )
        yield DeployLayer(_quant(quant), layer, dequant, twin.blobs(layer.name), parameters[0])


def _source(layer: Layer, writers: dict[BlobVersion, Layer]) -> Layer:
    if len(layer.reads) != 1 or layer.reads[0] not in writers:
        raise VerificationError(
            f"the deploy net makes no sense: layer {layer.name!r} is quantized, and does not read one layer; "
            "`twinquant check` tells more"
        )
    return writers[layer.reads[0]]


def _quant(layer: Layer) -> DeployQuant:
    param: Message = layer.message.message("quant_param")
    offset: Any = param.raw("offset")
    if len(offset) != 1:
        raise VerificationError(f"the deploy net makes no sense: the offset of {layer.name!r} is not one byte")
    return DeployQuant(
        layer, float(np.float32(param.number("scale", 0.0))), int.from_bytes(offset, "little", signed=True)
    )
