"""Which layers can be quantized, and what the plan has to know about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from twinquant.errors import ModelFileError
from twinquant.plan import LayerInfo, LayerKind
from twinquant_caffe.geometry import DECONVOLUTION, DEPTHWISE, read_convolution
from twinquant_caffe.net import BlobVersion, CaffeNet, Layer
from twinquant_caffe.shapes import infer_shapes

__all__ = ["WEIGHTED", "describe_layers", "weight_shape"]

_POOL_METHODS = ("MAX", "AVE", "STOCHASTIC")

Shapes = Mapping[BlobVersion, tuple[int, ...]]


def describe_layers(net: CaffeNet) -> tuple[LayerInfo, ...]:
    """Describe every layer, in order; `activation` stands for the blob version that a layer reads.

    Raises:
        ModelFileError: the weights of a layer do not fit its parameters or what it reads, in Caffe either.
    """
    shapes = infer_shapes(net)
    return tuple(_describe(layer, shapes) for layer in net.layers)


def weight_shape(layer: Layer) -> tuple[int, ...]:
    """Return the shape of a layer's weight without the leading ones that old files write."""
    blob = layer.blobs[0]
    return blob.meaning_shape(2) if layer.type == "InnerProduct" else blob.shape


def _describe(layer: Layer, shapes: Shapes) -> LayerInfo:
    read = _READERS.get(layer.type)
    return LayerInfo(layer.name, layer.type) if read is None else read(layer, shapes)


def _convolution(layer: Layer, shapes: Shapes) -> LayerInfo:
    transposed = layer.type == DECONVOLUTION
    param, shape = read_convolution(layer), weight_shape(layer)
    kernel = param.kernel if len(param.kernel) > 1 else param.kernel * (len(shape) - 2)
    if shape[2:] != kernel:
        raise _wrong(layer, f"its weight has the shape {_text(shape)}, but its kernel is {_text(kernel)}")
    if param.group < 1 or param.num_output % param.group or shape[0] % param.group:
        raise _wrong(layer, f"its channels cannot be cut into {param.group} groups")
    given, taken = _channels(layer, shapes, param.axis), shape[0] if transposed else shape[1] * param.group
    if given is not None and given != taken:
        raise _wrong(layer, f"its weight is for {taken} input channels, but {layer.bottoms[0]!r} has {given}")
    return LayerInfo(
        layer.name,
        layer.type,
        kind=LayerKind.CONV_TRANSPOSE if transposed else LayerKind.CONV,
        refusal=_convolution_refusal(layer, len(shape)),
        activation=_activation(layer),
        out_channels=param.num_output,
        has_bias=param.bias,
        weight_shape=shape,
        input_shape=_input_shape(layer, shapes),
    )


def _convolution_refusal(layer: Layer, rank: int) -> str | None:
    param = read_convolution(layer)
    if rank != 4:
        return f"its kernel has {rank - 2} dimensions, only 2 are supported"
    if param.axis != 1:
        return f"axis is {param.axis}, only 1 is supported"
    if param.force_nd:
        return "force_nd_im2col is set, which is not supported"
    if layer.type == DECONVOLUTION and any(length != 1 for length in param.dilation):
        return f"dilation is {_text(param.dilation)}, only 1 is supported for Deconvolution"
    return _wiring_refusal(layer)


def _inner_product(layer: Layer, shapes: Shapes) -> LayerInfo:
    param = layer.message.message("inner_product_param")
    axis, transposed = param.integer("axis", 1), param.flag("transpose", False)
    shape = weight_shape(layer)
    refusal = _wiring_refusal(layer)
    if axis != 1:
        refusal = f"axis is {axis}, only 1 is supported"
    elif transposed:
        refusal = "transpose is set, which is not supported"
    given = shapes.get(layer.reads[0]) if axis == 1 else None
    if given is not None and prod(given[1:]) != shape[0 if transposed else 1]:
        raise _wrong(
            layer,
            f"its weight is for {shape[0 if transposed else 1]} inputs, but {layer.bottoms[0]!r} has "
            f"{prod(given[1:])} values",
        )
    return LayerInfo(
        layer.name,
        layer.type,
        kind=LayerKind.GEMM,
        refusal=refusal,
        activation=_activation(layer),
        has_bias=param.flag("bias_term", True),
        weight_shape=shape,
        input_shape=_input_shape(layer, shapes),
    )


def _pooling(layer: Layer, shapes: Shapes) -> LayerInfo:
    param = layer.message.message("pooling_param")
    method = param.choice("pool", _POOL_METHODS)
    if method != "AVE":
        return LayerInfo(layer.name, layer.type, refusal=f"its method is {method}, only AVE is quantized")
    refusal = _wiring_refusal(layer)
    if param.flag("global_pooling", False):
        refusal = "global_pooling is set, which is not supported"
    return LayerInfo(
        layer.name,
        layer.type,
        kind=LayerKind.AVERAGE_POOL,
        refusal=refusal,
        activation=_activation(layer),
        input_shape=_input_shape(layer, shapes),
    )


_READERS: dict[str, Callable[[Layer, Shapes], LayerInfo]] = {
    "Convolution": _convolution,
    **dict.fromkeys(DEPTHWISE, _convolution),
    DECONVOLUTION: _convolution,
    "InnerProduct": _inner_product,
    "Pooling": _pooling,
}

WEIGHTED = tuple(name for name in _READERS if name != "Pooling")
"""Types of layers whose weights are quantized."""


def _wiring_refusal(layer: Layer) -> str | None:
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
        return f"it has {len(layer.bottoms)} bottoms and {len(layer.tops)} tops, only one of each is supported"
    if layer.bottoms == layer.tops:
        return "it works in place, which is not supported: give its top a name of its own"
    return None


def _activation(layer: Layer) -> str:
    """Return a text that is another one for every tensor: blobs may be called anything, "a:1" too."""
    if not layer.reads:
        return ""
    version = layer.reads[0]
    return f"{version.version}:{version.blob}"


def _channels(layer: Layer, shapes: Shapes, axis: int) -> int | None:
    shape = shapes.get(layer.reads[0]) if layer.reads else None
    return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None


def _input_shape(layer: Layer, shapes: Shapes) -> tuple[int, int, int] | None:
    """Return channels, height and width of what a layer reads, 1 where there is no such axis; None: unknown."""
    shape = shapes.get(layer.reads[0]) if layer.reads else None
    if shape is None or not 2 <= len(shape) <= 4:
        return None
    channels, height, width = (*shape[1:], 1, 1)[:3]
    return channels, height, width


def _text(lengths: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, lengths))}]"


def _wrong(layer: Layer, problem: str) -> ModelFileError:
    return ModelFileError(f"layer {layer.name!r} ({layer.type}): {problem}")
