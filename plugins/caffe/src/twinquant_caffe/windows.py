"""Whether inputs have lengths, and layers with a window one that Caffe takes and that fits what they read."""

from __future__ import annotations

from collections.abc import Mapping

from twinquant.errors import ModelFileError
from twinquant_caffe.geometry import (
    CONVOLUTIONS,
    DECONVOLUTION,
    convolved_length,
    pooled_lengths,
    pooling_windows,
    read_convolution,
)
from twinquant_caffe.net import BlobVersion, CaffeNet, Layer
from twinquant_caffe.prototxt.tree import Message
from twinquant_caffe.shapes import infer_shapes

__all__ = ["check_windows"]

_LEAST: Mapping[str, int] = {
    **dict.fromkeys(("kernel_size", "kernel_h", "kernel_w", "stride", "stride_h", "stride_w", "dilation"), 1),
    **dict.fromkeys(("pad", "pad_h", "pad_w"), 0),
}
_PARAMETERS = {**dict.fromkeys((*CONVOLUTIONS, DECONVOLUTION), "convolution_param"), "Pooling": "pooling_param"}
_FORMS = {"kernel_size": ("kernel_h", "kernel_w"), "stride": ("stride_h", "stride_w"), "pad": ("pad_h", "pad_w")}
"""The lengths that are said once for all axes, or by height and width."""


def check_windows(net: CaffeNet) -> None:
    """Check what inputs, convolutions and poolings say about lengths, as Caffe checks it when it builds the net.

    Raises:
        ModelFileError: a length is missing, said twice or too small, or nothing is left of what a layer reads.
    """
    for blob, lengths in net.inputs:
        if any(length < 1 for length in lengths):
            raise ModelFileError(f"the input {blob!r} has the shape {list(lengths)}; every length has to be at least 1")
    windowed = [layer for layer in net.layers if layer.type in _PARAMETERS and not _is_global(layer)]
    for layer in windowed:
        problem = _problem(layer, layer.message.message(_PARAMETERS[layer.type]))
        if problem:
            raise _wrong(layer, problem)
    shapes = infer_shapes(net)
    for layer in windowed:
        for version in layer.reads[: len(layer.tops)]:
            _check_fit(layer, version, shapes.get(version))


def _is_global(layer: Layer) -> bool:
    """Tell whether a Pooling has the window of its input, whatever else is written."""
    return layer.type == "Pooling" and layer.message.message("pooling_param").flag("global_pooling", False)


def _problem(layer: Layer, param: Message) -> str:
    """Return what is wrong with the parameters alone, or ""."""
    for field, least in _LEAST.items():
        for value in param.integers(field):
            if value < least:
                return f"{field} has to be at least {least}, got {value}"
    for field, (height, width) in _FORMS.items():
        given = [name for name in (height, width) if param.has(name)]
        if given and param.has(field):
            return f"{field} and {given[0]} are both given; give {field}, or {height} and {width}"
        if len(given) == 1 and (layer.type == "Pooling" or field == "kernel_size"):
            return f"{given[0]} is given without {width if given == [height] else height}; give both, or {field}"
    if not param.has("kernel_size") and not param.has("kernel_h"):
        return "kernel_size is missing"
    return _pooling_problem(param) if layer.type == "Pooling" else ""


def _pooling_problem(param: Message) -> str:
    for field in _LEAST:
        if len(param.integers(field)) > 1:
            return f"{field} has {len(param.integers(field))} values; a Pooling takes one"
    for kernel, _, pad in pooling_windows(param):
        if pad >= kernel:
            return f"its padding has to be less than its kernel, got {pad} and {kernel}"
    return ""


def _check_fit(layer: Layer, version: BlobVersion, shape: tuple[int, ...] | None) -> None:
    """Check that there is a result. Caffe has a Pooling whose kernel is larger than its input: it is cut."""
    if shape is None:
        return
    if layer.type == "Pooling":
        lengths = pooled_lengths(layer.message.message("pooling_param"), shape[2:]) if len(shape) == 4 else ()
    else:
        lengths = _convolved_lengths(layer, shape)
    if any(length < 1 for length in lengths):
        raise _wrong(
            layer,
            f"nothing is left of {version.blob!r}, whose shape is {list(shape)}: it would write {list(lengths)} along "
            "the axes of its kernel",
        )


def _convolved_lengths(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    param = read_convolution(layer)
    if not -len(shape) <= param.axis < len(shape):
        raise _wrong(layer, f"axis is {param.axis}, but {layer.bottoms[0]!r} has the shape {list(shape)}")
    spatial = shape[param.axis % len(shape) + 1 :]
    columns = []
    for name in ("kernel", "stride", "pad", "dilation"):
        values: tuple[int, ...] = getattr(param, name)
        if len(values) not in (1, len(spatial)):
            raise _wrong(
                layer, f"{name} has {len(values)} values, but {layer.bottoms[0]!r} has {len(spatial)} axes for them"
            )
        columns.append(values * len(spatial) if len(values) == 1 else values)
    transposed = layer.type == DECONVOLUTION
    return tuple(convolved_length(*along, transposed=transposed) for along in zip(spatial, *columns, strict=True))


def _wrong(layer: Layer, problem: str) -> ModelFileError:
    return ModelFileError(f"layer {layer.name!r} ({layer.type}): {problem}")
