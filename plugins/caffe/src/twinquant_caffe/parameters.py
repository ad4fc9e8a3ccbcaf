"""Whether layers have the parameters that their type asks for, in number and shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinquant.errors import ModelFileError
from twinquant_caffe.net import Layer
from twinquant_caffe.prototxt import Message

__all__ = ["check_parameters", "needs_parameters"]


@dataclass(frozen=True, slots=True)
class _Need:
    """What a type of layers needs.

    Attributes:
        least: how many blobs at least.
        most: how many at most; None: forks add some.
        check: returns what is wrong with the blobs' shapes, or "".
    """

    least: int
    most: int | None = None
    check: Callable[[Layer], str] = lambda layer: ""


def check_parameters(layers: Sequence[Layer], caffemodel: Path) -> None:
    """Check the layers of known types; others may have what they like.

    Raises:
        ModelFileError: a layer has too few or too many blobs, or one of a wrong shape.
    """
    for layer in layers:
        need = _NEEDS[layer.type](layer) if layer.type in _NEEDS else _Need(0)
        if len(layer.blobs) < need.least:
            what = "no parameters" if not layer.blobs else f"{len(layer.blobs)} of {need.least} parameters"
            raise ModelFileError(
                f"caffemodel {str(caffemodel)!r} has {what} for the {layer.type} layer {layer.name!r}; layers are "
                "matched by name: is it the caffemodel of this prototxt?"
            )
        if need.most is not None and len(layer.blobs) > need.most:
            raise ModelFileError(
                f"caffemodel {str(caffemodel)!r} has {len(layer.blobs)} parameters for the {layer.type} layer "
                f"{layer.name!r}, which takes {need.most} as the prototxt defines it"
            )
        if problem := need.check(layer):
            raise ModelFileError(f"caffemodel {str(caffemodel)!r}, layer {layer.name!r}: {problem}")


def needs_parameters(kind: str, bottoms: int) -> bool:
    """Tell whether a layer of a type that reads so many blobs cannot be without parameters."""
    return kind in _NEEDS and not (kind in _FACTORS and bottoms > 1)


def _filters(parameter: str, axis: int) -> Callable[[Layer], _Need]:
    """Return what a layer with `num_output` and `bias_term` needs; its weight has the outputs along an axis."""

    def need(layer: Layer) -> _Need:
        message = layer.message.message(parameter)
        count = 1 + message.flag("bias_term", True)
        return _Need(count, count, lambda layer: _filters_problem(layer, message, axis))

    return need


def _filters_problem(layer: Layer, message: Message, axis: int) -> str:
    outputs = message.integer("num_output", 0)
    if outputs < 1:
        return f"num_output has to be at least 1, got {outputs}"
    group = message.integer("group", 1)
    weight = layer.blobs[0]
    matrix = layer.type == "InnerProduct"
    shape = weight.meaning_shape(2) if matrix else weight.shape
    if matrix and message.flag("transpose", False):
        axis = 1
    along = shape[axis] * (group if axis and not matrix else 1) if len(shape) > axis else 0
    if along != outputs or (not matrix and len(shape) < 3):
        return f"its weight has the shape {list(weight.shape)}, which does not fit num_output {outputs}"
    if not weight.size:
        return f"its weight has the shape {list(weight.shape)}: no value at all"
    if len(layer.blobs) > 1 and layer.blobs[1].meaning_shape(1) != (outputs,):
        return f"its bias has the shape {list(layer.blobs[1].shape)}; expected [{outputs}], as num_output is {outputs}"
    return ""


_FACTORS = ("Scale", "Bias")
"""Types whose factors may come from a second bottom."""


def _batch_norm(layer: Layer) -> _Need:
    return _Need(3, check=_batch_norm_problem)


def _batch_norm_problem(layer: Layer) -> str:
    mean, variance, factor = layer.blobs[:3]
    if mean.size != variance.size or factor.size != 1:
        shapes = ", ".join(str(list(blob.shape)) for blob in (mean, variance, factor))
        return f"its mean, variance and scale factor have the shapes {shapes}; expected [C], [C] and [1]"
    return ""


def _scale(layer: Layer) -> _Need:
    """One bottom: gamma, and beta with bias_term. Two: the second is gamma."""
    bias = layer.message.message("scale_param").flag("bias_term", False)
    count = (len(layer.bottoms) == 1) + bias
    return _Need(count, count, _scale_problem)


def _scale_problem(layer: Layer) -> str:
    sizes = {blob.size for blob in layer.blobs}
    if len(sizes) > 1:
        shapes: list[list[int]] = [list(blob.shape) for blob in layer.blobs]
        return f"gamma and beta have the shapes {shapes[0]} and {shapes[1]}; they have to be alike"
    return ""


def _at_least_one(layer: Layer) -> _Need:
    return _Need(1)


_NEEDS: dict[str, Callable[[Layer], _Need]] = {
    **dict.fromkeys(("Convolution", "DepthwiseConvolution", "ConvolutionDepthwise"), _filters("convolution_param", 0)),
    "Deconvolution": _filters("convolution_param", 1),
    "InnerProduct": _filters("inner_product_param", 0),
    "BatchNorm": _batch_norm,
    "Scale": _scale,
    "Bias": lambda layer: _Need(int(len(layer.bottoms) == 1)),
    **dict.fromkeys(("PReLU", "Embed", "RNN", "LSTM"), _at_least_one),
}
"""By type. Recurrent layers and those of forks have numbers of their own."""
