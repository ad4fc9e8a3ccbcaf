"""Rules about quantized layers: a Quant, the layer on integers, a DeQuant directly behind it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from math import isfinite

import numpy as np

from twinquant.numerics import unpack_dequant_parameter
from twinquant.wire import FIXED32, LENGTH_DELIMITED, WireError, fields
from twinquant_caffe.check.declared import DeclaredLayer, guarded
from twinquant_caffe.geometry import CONVOLUTIONS, DECONVOLUTION, read_convolution
from twinquant_caffe.prototxt import Message
from twinquant_caffe.schema import INT8_DATA, INT32_DATA, QUANT_OFFSET, QUANT_SCALE, UINT64_DATA
from twinquant_caffe.written import FIELD_NAMES, WrittenBlob, WrittenTwin

__all__ = ["check_kind", "check_quantized"]

_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)

Shape = tuple[int, ...]


def check_quantized(twin: WrittenTwin, layers: Sequence[DeclaredLayer]) -> Iterator[str]:
    """Yield what is wrong with the quantized layers of a net and with what is inserted around them."""
    writers: dict[str, DeclaredLayer] = {}
    behind: dict[int, DeclaredLayer] = {}
    quants: dict[object, DeclaredLayer] = {}
    for layer in layers:
        sources = [writers[bottom] for bottom in layer.bottoms if bottom in writers]
        blobs = twin.blobs(layer.name)
        if layer.type == "Quant":
            yield from guarded(_check_quant(twin, layer))
            tensor = (layer.bottoms, tuple(source.place for source in sources))
            yield from guarded(_check_first(layer, tensor, quants))
        elif layer.type == "DeQuant":
            yield from guarded(_check_dequant(layer, sources, blobs, twin))
            behind |= {source.place: layer for source in sources}
        elif any(source.type == "Quant" for source in sources):
            yield from guarded(_check_layer(layer, blobs))
            following = layers[layer.place + 1] if layer.place + 1 < len(layers) else None
            if following is None or following.type != "DeQuant" or following.bottoms != layer.tops:
                yield f"{layer.label} has no DeQuant layer directly behind it"
        elif any(field in blob.runs for blob in blobs for field in (INT8_DATA, INT32_DATA)):
            yield f"{layer.label} has integer parameters, but reads no Quant layer"
        for source in sources:
            if source.place in behind and layer is not behind[source.place]:
                yield f"{layer.label} reads {source.tops[0]!r}, the integers of {source.label}, past its DeQuant layer"
        writers.update(dict.fromkeys(layer.tops, layer))
    read = {bottom for layer in layers for bottom in layer.bottoms}
    for layer in layers:
        if layer.type == "Quant" and not read.intersection(layer.tops):
            yield f"{layer.label} is read by no layer"


def check_kind(layers: Sequence[DeclaredLayer]) -> Iterator[str]:
    """Yield that nothing in a net is quantized."""
    if not any(layer.type == "Quant" for layer in layers):
        yield "the net has no Quant layer, so it is no deploy net"


def _check_quant(twin: WrittenTwin, layer: DeclaredLayer) -> Iterator[str]:
    if len(layer.bottoms) != 1 or len(layer.tops) != 1 or layer.bottoms == layer.tops:
        yield f"{layer.label} must read one blob and write another"
    if twin.blobs(layer.name):
        yield f"{layer.label} must have no parameters in the caffemodel"
    if not layer.message.has("quant_param"):
        yield f"{layer.label} has no quant_param"
        return
    scale, offset = _quantization(layer)
    if not (isfinite(scale) and scale > 0):
        yield f"{layer.label}: scale must be above 0 and finite, got {scale!r}"
    if len(offset) != 1:
        yield f"{layer.label}: offset must be one byte, got {len(offset)}"
    stored = next((stored.quant_param for stored in twin.stored if stored.name == layer.name), None)
    if stored is not None and _decoded(stored) != (struct.pack("<f", scale), offset):
        yield f"{layer.label}: quant_param differs between prototxt and caffemodel"


def _quantization(layer: DeclaredLayer) -> tuple[float, bytes]:
    """Return scale and offset of a Quant layer."""
    param = layer.message.message("quant_param")
    with np.errstate(over="ignore"):
        return float(np.float32(param.number("scale", 0.0))), param.raw("offset")


def _check_first(layer: DeclaredLayer, tensor: object, quants: dict[object, DeclaredLayer]) -> Iterator[str]:
    """Yield that another Quant layer makes the same integers; else remember this one in `quants`."""
    other = quants.setdefault((tensor, _quantization(layer)), layer)
    if other is not layer:
        yield f"{layer.label} makes the same integers as {other.label}; one is enough for all their readers"


def _decoded(encoded: bytes) -> tuple[bytes, bytes] | None:
    """Return scale (float32, little-endian) and offset of an encoded quant_param, or None."""
    found = {QUANT_SCALE: b"", QUANT_OFFSET: b""}
    try:
        for number, wire_type, _, body, stop in fields(encoded, 0, len(encoded)):
            if (number, wire_type) in ((QUANT_SCALE, FIXED32), (QUANT_OFFSET, LENGTH_DELIMITED)):
                found[number] = encoded[body:stop]
    except WireError:
        return None
    return found[QUANT_SCALE], found[QUANT_OFFSET]


def _check_layer(layer: DeclaredLayer, blobs: Sequence[WrittenBlob]) -> Iterator[str]:
    """Check a layer that reads integers."""
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
        yield f"{layer.label} is quantized and must read one blob and write one"
    rule = _LAYERS.get(layer.type)
    if rule is None:
        yield f"{layer.label} reads a Quant layer; only {', '.join(_LAYERS)} can"
        return
    yield from rule(layer, blobs)


def _check_convolution(layer: DeclaredLayer, blobs: Sequence[WrittenBlob]) -> Iterator[str]:
    # The readers of float nets take any layer with a type and a message.
    param = read_convolution(layer)
    if not blobs or blobs[0].shape is None or len(blobs[0].shape) != 4:
        yield f"{layer.label}: a weight of 4 dimensions with a shape is needed"
        return
    shape = blobs[0].shape
    kernel = param.kernel if len(param.kernel) == 2 else param.kernel * 2
    if layer.type == DECONVOLUTION:
        wanted = (shape[0], param.num_output // max(param.group, 1), *kernel)
    else:
        wanted = (param.num_output, shape[1], *kernel)
    yield from _check_weight(layer, blobs, wanted, param.num_output, bias=param.bias)


def _check_inner_product(layer: DeclaredLayer, blobs: Sequence[WrittenBlob]) -> Iterator[str]:
    param: Message = layer.message.message("inner_product_param")
    outputs = param.integer("num_output", 0)
    if not blobs or blobs[0].shape is None or len(blobs[0].shape) != 2:
        yield f"{layer.label}: a weight of 2 dimensions with a shape is needed"
        return
    yield from _check_weight(layer, blobs, (outputs, blobs[0].shape[1]), outputs, bias=param.flag("bias_term", True))


def _check_weight(
    layer: DeclaredLayer, blobs: Sequence[WrittenBlob], wanted: Shape, outputs: int, *, bias: bool
) -> Iterator[str]:
    if blobs[0].shape != wanted:
        yield f"{layer.label}: its weight must have the shape {list(wanted)}, got {list(blobs[0].shape or ())}"
    if len(blobs) != 1 + bias:
        yield f"{layer.label}: {1 + bias} parameters are needed (bias_term is {str(bias).lower()}), got {len(blobs)}"
        return
    for blob, field, name in zip(blobs, (INT8_DATA, INT32_DATA), ("weight", "bias"), strict=False):
        if field not in blob.runs:
            yield f"{layer.label}: its {name} must be {FIELD_NAMES[field]}"
    if bias and blobs[1].shape != (outputs,):
        yield f"{layer.label}: its bias must have the shape [{outputs}], got {list(blobs[1].lengths)}"


def _check_pooling(layer: DeclaredLayer, blobs: Sequence[WrittenBlob]) -> Iterator[str]:
    param = layer.message.message("pooling_param")
    if param.choice("pool", ("MAX", "AVE", "STOCHASTIC")) != "AVE" or param.flag("global_pooling", False):
        yield f"{layer.label} reads a Quant layer; of Pooling layers only AVE without global_pooling can"
    if blobs:
        yield f"{layer.label} must have no parameters in the caffemodel"


_LAYERS: dict[str, Callable[[DeclaredLayer, Sequence[WrittenBlob]], Iterator[str]]] = {
    **dict.fromkeys((*CONVOLUTIONS, DECONVOLUTION), _check_convolution),
    "InnerProduct": _check_inner_product,
    "Pooling": _check_pooling,
}


def _check_dequant(
    layer: DeclaredLayer, sources: Sequence[DeclaredLayer], blobs: Sequence[WrittenBlob], twin: WrittenTwin
) -> Iterator[str]:
    if len(layer.bottoms) != 1 or len(layer.tops) != 1 or layer.bottoms == layer.tops:
        yield f"{layer.label} must read one blob and write another"
    if not sources or sources[0].type not in _LAYERS or sources[0].place != layer.place - 1:
        yield f"{layer.label} must stand directly behind the quantized layer whose integers it reads"
    if len(blobs) != 1 or tuple(blobs[0].runs) != (UINT64_DATA,):
        yield f"{layer.label} must have one parameter in the caffemodel, of uint64_data"
        return
    channels = _channels(sources[0], twin) if sources else None
    if blobs[0].shape not in ((1,), (channels,)):
        wanted = "[1]" if channels in (None, 1) else f"[{channels}] or [1]"
        yield f"{layer.label}: its parameter must have the shape {wanted}, got {list(blobs[0].lengths)}"
    values = blobs[0].values(UINT64_DATA)
    scale, shift, offset = unpack_dequant_parameter(values)
    wide = scale.astype(np.float64)
    if not (np.isfinite(wide) & (wide >= _SMALLEST_NORMAL)).all():
        yield f"{layer.label}: its scales must be normal, finite numbers above 0"
    if shift.any() or offset.any() or (values >> np.uint64(48)).any():
        yield f"{layer.label}: the bits above the scale (shift and weight offset) must be 0"


def _channels(layer: DeclaredLayer, twin: WrittenTwin) -> int | None:
    """Return the number of output channels of a quantized layer with a weight."""
    if layer.type == "InnerProduct":
        return layer.message.message("inner_product_param").integer("num_output", 0)
    if layer.type in (*CONVOLUTIONS, DECONVOLUTION):
        return layer.message.message("convolution_param").integer("num_output", 0)
    return None
