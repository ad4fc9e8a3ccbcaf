"""What OpenCV is given in place of a Caffe layer, so that it computes what Caffe does.

Each entry of `_TRANSLATIONS` names what OpenCV 4.14 does otherwise. Most of it is silent: a parameter is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log

import numpy as np

from twinquant.errors import UnsupportedModelError
from twinquant_caffe.geometry import DECONVOLUTION, DEPTHWISE, pooled_lengths, pooling_windows, read_convolution
from twinquant_caffe.insert.made import float_blob, made_layer
from twinquant_caffe.net import Blob, Layer
from twinquant_caffe.parameters import needs_parameters
from twinquant_caffe.prototxt.tree import Message, make
from twinquant_caffe.values import ArrayValues

__all__ = ["IN_CAFFE", "for_opencv"]

IN_CAFFE = (
    "run the net in Caffe instead: twinquant_caffe.amct.quantize_model writes one that calibrates there, and the "
    "fake-quant twin runs there as it is"
)
"""What to do about a net that OpenCV does not run."""

_Shape = tuple[int, ...]
_Shapes = Sequence[_Shape | None]
_Step = tuple[str, dict[str, Message], tuple[Blob, ...]]

_LARGEST_MVN_EPSILON = 1e-6


def for_opencv(layer: Layer, reads: _Shapes) -> Sequence[Layer]:
    """Return the layers that compute in OpenCV what a layer computes in Caffe.

    Args:
        layer: the layer. Its blobs must have names that no other tensors of the net have.
        reads: the shapes of its bottoms; None: not known.

    Raises:
        UnsupportedModelError: OpenCV has nothing that computes it.
    """
    translate = _TRANSLATIONS.get(layer.type)
    broken = not reads or (needs_parameters(layer.type, len(reads)) and not layer.blobs)
    return [layer] if translate is None or broken else translate(layer, reads)


def _refusal(layer: Layer, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"OpenCV cannot run the {layer.type} layer {layer.name!r} as Caffe does: {reason}; {IN_CAFFE}"
    )


def _with(layer: Layer, parameter: str, **values: int | float | bool) -> Layer:
    """Return a layer that says these values."""
    param = layer.message.message(parameter)
    for name, value in values.items():
        param = param.replaced(name, value)
    return replace(layer, message=layer.message.replaced(parameter, param))


def _chain(layer: Layer, *steps: _Step) -> list[Layer]:
    """Return layers one behind the other, the last of which has the layer's name and tops."""
    layers: list[Layer] = []
    bottoms = layer.bottoms
    for number, (kind, parameters, blobs) in enumerate(steps, 1):
        last = number == len(steps)
        name = f"twinquant_step_{number}_{layer.tops[0]}"
        tops = layer.tops if last else (name,)
        named = layer.name if last else name
        layers.append(made_layer(named, kind, bottoms, tops, parameters=parameters, blobs=blobs))
        bottoms = tops
    return layers


def _power(scale: float = 1.0, shift: float = 0.0) -> list[_Step]:
    """Return a Power that is needed, or none."""
    return [] if (scale, shift) == (1, 0) else [("Power", {"power_param": make(scale=scale, shift=shift)}, ())]


def _convolution(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Say the groups of depthwise convolutions and a padding of one axis; a dilated Deconvolution ignores it."""
    window = read_convolution(layer)
    if layer.type == DECONVOLUTION and set(window.dilation) != {1}:
        raise _refusal(layer, f"it ignores the dilation of {max(window.dilation)}")
    rank = next((len(shape) for shape in reads if shape is not None), None)
    if window.axis not in (1, *((1 - rank,) if rank else ())):
        raise _refusal(layer, f"it takes channels along axis 1 only, not along {window.axis}")
    param = layer.message.message("convolution_param")
    if layer.type in DEPTHWISE:
        layer = _with(layer, "convolution_param", group=window.group)
    if param.has("pad_h") != param.has("pad_w"):
        height, width = window.pad
        layer = _with(layer, "convolution_param", pad_h=height, pad_w=width)
    kind = "Convolution" if layer.type in DEPTHWISE else layer.type
    return [replace(layer, type=kind, message=layer.message.replaced("type", kind))]


def _pooling(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Say the rounding in the field that OpenCV reads, `ceil_mode`: it does not know BVLC's."""
    param = layer.message.message("pooling_param")
    if param.has("round_mode"):
        up = param.choice("round_mode", ("CEIL", "FLOOR")) == "CEIL"
        rounded = param.without("round_mode").replaced("ceil_mode", up)
        layer = replace(layer, message=layer.message.replaced("pooling_param", rounded))
    shape = reads[0]
    if shape is not None and len(shape) == 4 and not param.flag("global_pooling", False):
        _check_window(layer, param, shape[2:])
        return _cut(layer, param, shape[2:])
    return [layer]


def _cut(layer: Layer, param: Message, lengths: _Shape) -> list[Layer]:
    """Cut off a window that Caffe leaves out because of a padding along the other axis, and OpenCV does not."""
    counts = pooled_lengths(param, lengths)
    uncut = pooled_lengths(param.without("pad", "pad_h", "pad_w"), lengths)
    for axis, (count, opencv, (_, _, pad)) in enumerate(zip(counts, uncut, pooling_windows(param), strict=True), 2):
        if not pad and opencv > count and len(layer.tops) == 1:
            whole, rest, end = (f"twinquant_{part}_{layer.tops[0]}" for part in ("whole", "rest", "end"))
            pooling = replace(layer, name=whole, tops=(whole,), message=layer.message.replaced("top", whole))
            cut: dict[str, Message] = {"slice_param": make(axis=axis, slice_point=count)}
            return [
                pooling,
                made_layer(layer.name, "Slice", (whole,), (*layer.tops, rest), parameters=cut),
                made_layer(end, "Split", (rest,), (end,)),  # OpenCV cuts as many parts as are read
            ]
    return [layer]


def _check_window(layer: Layer, param: Message, lengths: _Shape) -> None:
    """Refuse windows that do not fit what is read: Caffe cuts them, and has -3.4e38 for the largest of nothing."""
    largest = param.choice("pool", ("MAX",)) == "MAX"
    along = zip(lengths, pooled_lengths(param, lengths), pooling_windows(param), strict=True)
    for length, count, (kernel, stride, pad) in along:
        if kernel > length + 2 * pad:
            raise _refusal(layer, f"it has no window of {kernel} on an input of {length}")
        if largest and (count - 1) * stride - pad >= length:
            raise _refusal(layer, "a window lies beyond the input, which gives -3.4e38 in Caffe and 0 in OpenCV")


def _inner_product(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Transpose the weight: OpenCV ignores `transpose`."""
    param = layer.message.message("inner_product_param")
    if not param.flag("transpose", False):
        return [layer]
    weight, *others = layer.blobs
    rows, columns = weight.meaning_shape(2)
    values = weight.floats.read(0, rows * columns).reshape(rows, columns)
    turned = Blob((columns, rows), ArrayValues(np.ascontiguousarray(values.T)))
    message = layer.message.replaced("inner_product_param", param.without("transpose"))
    return [replace(layer, message=message, blobs=(turned, *others))]


def _lrn(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Say alpha, whose default is another one, and take k, which OpenCV ignores, out of the brackets.

    x / (k + alpha / n * sum)^beta = k^-beta * x / (1 + alpha / k / n * sum)^beta
    """
    param = layer.message.message("lrn_param")
    alpha, beta, k = (param.number(name, default) for name, default in (("alpha", 1.0), ("beta", 0.75), ("k", 1.0)))
    within = param.choice("norm_region", ("ACROSS_CHANNELS", "WITHIN_CHANNEL")) == "WITHIN_CHANNEL"
    if within:  # Caffe's own code has 1 there
        k = 1.0
    if k <= 0:
        raise _refusal(layer, f"its k of {k:g} is not above 0")
    explicit = param.without("k").replaced("alpha", alpha / k).replaced("beta", beta)
    return _chain(layer, ("LRN", {"lrn_param": explicit}, ()), *_power(scale=k**-beta))


def _log(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Write log_base(shift + scale * x) with layers of its own: OpenCV has the natural one of x only."""
    param = layer.message.message("log_param")
    base = param.number("base", -1.0)
    if base != -1 and (base <= 0 or base == 1):
        raise _refusal(layer, f"there is no logarithm to the base {base:g}")
    before = _power(param.number("scale", 1.0), param.number("shift", 0.0))
    return _chain(layer, *before, ("Log", {}, ()), *_power(1.0 if base == -1 else 1 / log(base)))


def _swish(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Write x * sigmoid(beta * x) with a Swish whose beta is 1, which is all that OpenCV has."""
    beta = layer.message.message("swish_param").number("beta", 1.0)
    if not beta:
        return _chain(layer, *_power(0.5))
    return _chain(layer, *_power(beta), ("Swish", {}, ()), *_power(1 / beta))


def _threshold(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Write 1 where x > threshold with the sign of what is above: OpenCV has no Threshold."""
    threshold = layer.message.message("threshold_param").number("threshold", 0.0)
    return _chain(layer, *_power(shift=-threshold), ("ReLU", {}, ()), ("Sign", {}, ()))


def _bias(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Write a Scale by ones: OpenCV has no Bias."""
    if len(layer.bottoms) == 1:
        return [_added(layer, layer.bottoms, reads, layer.message.message("bias_param"), layer.blobs[0])]
    if reads[0] is None or reads[0] != reads[1]:
        raise _refusal(layer, "it adds no bottom of another shape")
    return [made_layer(layer.name, "Eltwise", layer.bottoms, layer.tops)]


def _added(layer: Layer, bottoms: tuple[str, ...], reads: _Shapes, param: Message, bias: Blob) -> Layer:
    """Return a Scale that adds a parameter along the axes that a layer says."""
    explicit = make(axis=_axis(param.integer("axis", 1), reads), num_axes=param.integer("num_axes", 1), bias_term=True)
    ones = float_blob(np.ones(bias.shape, np.float32))
    return made_layer(
        layer.name, "Scale", bottoms, layer.tops, parameters={"scale_param": explicit}, blobs=(ones, bias)
    )


def _scale(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Count the axis from the front, and add a bias apart where the scale is a bottom, which OpenCV ignores then."""
    param = layer.message.message("scale_param")
    if param.integer("axis", 1) < 0:
        layer = _with(layer, "scale_param", axis=_axis(param.integer("axis", 1), reads))
        param = layer.message.message("scale_param")
    if len(layer.bottoms) == 1 or not param.flag("bias_term", False):
        return [layer]
    name = f"twinquant_step_1_{layer.tops[0]}"
    alone = {"scale_param": param.without("bias_term")}
    scaled = made_layer(name, "Scale", layer.bottoms, (name,), parameters=alone)
    return [scaled, _added(layer, (name,), reads, param, layer.blobs[0])]


def _axis(axis: int, reads: _Shapes) -> int:
    """Count an axis from the front, if the number of axes is known."""
    return axis if axis >= 0 or reads[0] is None else axis + len(reads[0])


def _mvn(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Refuse an eps that counts: Caffe adds it to the deviation, OpenCV to the variance."""
    param = layer.message.message("mvn_param")
    epsilon = param.number("eps", 1e-9)
    if param.flag("normalize_variance", True) and epsilon > _LARGEST_MVN_EPSILON:
        raise _refusal(layer, f"it adds the eps of {epsilon:g} to the variance, and Caffe to the deviation")
    return [layer]


def _tile(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Write a Concat of the same tensor: OpenCV's Tile takes other parameters."""
    param = layer.message.message("tile_param")
    bottoms = layer.bottoms * param.integer("tiles", 1)
    parameters: dict[str, Message] = {"concat_param": make(axis=param.integer("axis", 1))}
    return [made_layer(layer.name, "Concat", bottoms, layer.tops, parameters=parameters)]


def _along(parameter: str, old_name: str) -> Callable[[Layer, _Shapes], list[Layer]]:
    """Say the axis by the name that OpenCV reads."""

    def translate(layer: Layer, reads: _Shapes) -> list[Layer]:
        param = layer.message.message(parameter)
        if param.has("axis") or not param.has(old_name):
            return [layer]
        return [_with(layer, parameter, axis=param.integer(old_name, 1))]

    return translate


def _reshape(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Say all lengths but that of the batch: OpenCV takes no axis from behind, and no range without axes."""
    param = layer.message.message("reshape_param")
    start, count = param.integer("axis", 0), param.integer("num_axes", -1)
    shape = reads[0]
    if (start >= 0 and count != 0) or shape is None:
        return [layer]
    start += len(shape) + 1 if start < 0 else 0
    if not start:
        return [layer]
    stop = len(shape) if count == -1 else start + count
    wanted = param.message("shape").integers("dim")
    if any(length == 0 and start + place >= len(shape) for place, length in enumerate(wanted)):
        return [layer]
    middle = [shape[start + place] if length == 0 else length for place, length in enumerate(wanted)]
    lengths = (0, *shape[1:start], *middle, *shape[stop:])
    explicit: Message = make(shape=make(dim=lengths))
    return [replace(layer, message=layer.message.replaced("reshape_param", explicit))]


def _batch_norm(layer: Layer, reads: _Shapes) -> list[Layer]:
    """Refuse the statistics of a batch: OpenCV takes those of each row."""
    if not layer.message.message("batch_norm_param").flag("use_global_stats", True):
        raise _refusal(layer, "use_global_stats is false, and it knows no statistics of a batch")
    return [layer]


_TRANSLATIONS: Mapping[str, Callable[[Layer, _Shapes], list[Layer]]] = {
    **dict.fromkeys(("Convolution", *DEPTHWISE, DECONVOLUTION), _convolution),
    "Pooling": _pooling,
    "InnerProduct": _inner_product,
    "LRN": _lrn,
    "Log": _log,
    "Swish": _swish,
    "Threshold": _threshold,
    "Bias": _bias,
    "Scale": _scale,
    "MVN": _mvn,
    "Tile": _tile,
    "Concat": _along("concat_param", "concat_dim"),
    "Slice": _along("slice_param", "slice_dim"),
    "Reshape": _reshape,
    "BatchNorm": _batch_norm,
}
