"""The shapes of a net's tensors, as far as the usual layer types tell them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from twinquant_caffe.data_layers import DATA_LAYERS
from twinquant_caffe.geometry import CONVOLUTIONS, DECONVOLUTION, convolved_length, pooled_lengths, read_convolution
from twinquant_caffe.net import BlobVersion, CaffeNet, Layer

__all__ = ["KEEPS_SHAPE", "ShapeRule", "infer_shapes", "same_shape"]

Shape = tuple[int, ...]

ShapeRule = Callable[[Layer, list[Shape]], list[Shape]]
"""Returns the shapes of what a layer writes for those of what it reads; [] if they are not certain."""

KEEPS_SHAPE = (
    *("ReLU", "PReLU", "ELU", "Sigmoid", "TanH", "AbsVal", "Exp", "Log", "Power", "BNLL", "Threshold", "Swish", "Clip"),
    *("BatchNorm", "Scale", "Bias", "LRN", "Normalize", "Dropout", "Softmax", "Eltwise", "Split", "ReLU6", "BN"),
)
"""Types of layers whose tops have the shape of their first bottom."""


def infer_shapes(
    net: CaffeNet, fed: Mapping[str, Shape] | None = None, rules: Mapping[str, ShapeRule] | None = None
) -> dict[BlobVersion, Shape]:
    """Return the shape of every tensor whose shape is certain; the others, behind unknown layers, are left out.

    Args:
        net: the net.
        fed: shapes of inputs that are fed, by blob name; None: those that the net tells.
        rules: for further types of layers.
    """
    rules = {**_RULES, **(rules or {})}
    given = {blob: (fed or {}).get(blob, shape) for blob, shape in net.inputs}
    shapes = {BlobVersion(blob, 0): shape for blob, shape in given.items() if shape}
    for layer in net.layers:
        shapes.update(
            {
                version: shape
                for version, shape in zip(layer.writes, _written(layer, given, shapes, rules), strict=False)
                if shape and all(length > 0 for length in shape)
            }
        )
    return shapes


def _written(
    layer: Layer,
    given: Mapping[str, Shape],
    shapes: Mapping[BlobVersion, Shape],
    rules: Mapping[str, ShapeRule],
) -> Sequence[Shape | None]:
    """Return the shapes of what a layer writes, as far as they are known."""
    if layer.type == "Input":
        return [given.get(version.blob) for version in layer.writes]
    if layer.type in DATA_LAYERS:
        return DATA_LAYERS[layer.type](layer)
    infer = rules.get(layer.type)
    known = [shapes[version] for version in layer.reads if version in shapes]
    return infer(layer, known) if infer is not None and known and len(known) == len(layer.reads) else ()


def same_shape(layer: Layer, reads: list[Shape]) -> list[Shape]:
    """Return the shape of the first bottom for every top."""
    return [reads[0]] * len(layer.tops)


def _mvn(layer: Layer, reads: list[Shape]) -> list[Shape]:
    """Return four axes, whatever there are."""
    shape = reads[0]
    return [(*shape, *[1] * (4 - len(shape)))] if len(shape) <= 4 else []


def _convolution(layer: Layer, reads: list[Shape]) -> list[Shape]:
    param = read_convolution(layer)
    results = []
    for shape in reads:
        axis = param.axis % len(shape)
        spatial = shape[axis + 1 :]
        settings = (param.kernel, param.stride, param.pad, param.dilation)
        if min(param.stride) < 1 or any(len(values) not in (1, len(spatial)) for values in settings):
            return []
        windows = zip(spatial, *(_spread(values, len(spatial)) for values in settings), strict=True)
        transposed = layer.type == DECONVOLUTION
        lengths = [convolved_length(*along, transposed=transposed) for along in windows]
        results.append((*shape[:axis], param.num_output, *lengths))
    return results


def _pooling(layer: Layer, reads: list[Shape]) -> list[Shape]:
    param = layer.message.message("pooling_param")
    first = reads[0]
    if len(first) != 4:
        return []
    if param.flag("global_pooling", False):
        return [(*first[:2], 1, 1)] * len(layer.tops)
    return [(*first[:2], *pooled_lengths(param, first[2:]))] * len(layer.tops)


def _inner_product(layer: Layer, reads: list[Shape]) -> list[Shape]:
    param = layer.message.message("inner_product_param")
    return [(*reads[0][: param.integer("axis", 1)], param.integer("num_output", 0))]


def _concat(layer: Layer, reads: list[Shape]) -> list[Shape]:
    param = layer.message.message("concat_param")
    axis = param.integer("axis", param.integer("concat_dim", 1)) % len(reads[0])
    if any(len(shape) != len(reads[0]) for shape in reads):
        return []
    return [(*reads[0][:axis], sum(shape[axis] for shape in reads), *reads[0][axis + 1 :])]


def _slice(layer: Layer, reads: list[Shape]) -> list[Shape]:
    param = layer.message.message("slice_param")
    shape = reads[0]
    axis = param.integer("axis", param.integer("slice_dim", 1)) % len(shape)
    tops = len(layer.tops)
    points = param.integers("slice_point") or tuple(shape[axis] * index // tops for index in range(1, tops))
    bounds = (0, *points, shape[axis])
    if len(bounds) != tops + 1:
        return []
    return [(*shape[:axis], bounds[index + 1] - bounds[index], *shape[axis + 1 :]) for index in range(tops)]


def _flatten(layer: Layer, reads: list[Shape]) -> list[Shape]:
    param = layer.message.message("flatten_param")
    shape = reads[0]
    first, last = param.integer("axis", 1) % len(shape), param.integer("end_axis", -1) % len(shape)
    return [(*shape[:first], prod(shape[first : last + 1]), *shape[last + 1 :])]


def _reshape(layer: Layer, reads: list[Shape]) -> list[Shape]:
    param = layer.message.message("reshape_param")
    shape = reads[0]
    wanted = param.message("shape").integers("dim")
    start = param.integer("axis", 0)
    start += len(shape) + 1 if start < 0 else 0
    count = param.integer("num_axes", -1)
    end = len(shape) if count == -1 else start + count
    if any(length == 0 and start + index >= len(shape) for index, length in enumerate(wanted)):
        return []
    middle = [shape[start + index] if length == 0 else length for index, length in enumerate(wanted)]
    if -1 in middle:
        known = -prod(middle)
        if known <= 0 or prod(shape[start:end]) % known:
            return []
        middle[middle.index(-1)] = prod(shape[start:end]) // known
    result = (*shape[:start], *middle, *shape[end:])
    return [result] if prod(result) == prod(shape) else []


def _permute(layer: Layer, reads: list[Shape]) -> list[Shape]:
    order = layer.message.message("permute_param").integers("order")
    shape = reads[0]
    rest = [axis for axis in range(len(shape)) if axis not in order]
    return [tuple(shape[axis] for axis in (*order, *rest))]


def _crop(layer: Layer, reads: list[Shape]) -> list[Shape]:
    if len(reads) != 2:
        return []
    axis = layer.message.message("crop_param").integer("axis", 2) % len(reads[0])
    return [(*reads[0][:axis], *reads[1][axis:])]


def _tile(layer: Layer, reads: list[Shape]) -> list[Shape]:
    param = layer.message.message("tile_param")
    shape = reads[0]
    axis = param.integer("axis", 1) % len(shape)
    return [(*shape[:axis], shape[axis] * param.integer("tiles", 1), *shape[axis + 1 :])]


def _reduction(layer: Layer, reads: list[Shape]) -> list[Shape]:
    shape = reads[0]
    return [shape[: layer.message.message("reduction_param").integer("axis", 0) % len(shape)]]


def _interp(layer: Layer, reads: list[Shape]) -> list[Shape]:
    """Follow DeepLab's and PSPNet's layer: padding, then shrinking, enlarging, or given lengths."""
    param = layer.message.message("interp_param")
    first = reads[0]
    if len(first) != 4:
        return []
    pads = param.integer("pad_beg", 0) + param.integer("pad_end", 0)
    shrink, zoom = param.integer("shrink_factor", 1), param.integer("zoom_factor", 1)
    if min(shrink, zoom) < 1 or len(reads) != 1:
        return []
    lengths = []
    for length, name in zip(first[2:], ("height", "width"), strict=True):
        shrunk = (length + pads - 1) // shrink + 1
        lengths.append(param.integer(name, shrunk + (shrunk - 1) * (zoom - 1)))
    return [(*first[:2], *lengths)]


def _spread(values: Sequence[int], count: int) -> tuple[int, ...]:
    """Repeat one value for all axes; several must be as many as there are axes."""
    return tuple(values) * count if len(values) == 1 else tuple(values)


_RULES: Mapping[str, ShapeRule] = {
    **dict.fromkeys(KEEPS_SHAPE, same_shape),
    **dict.fromkeys((*CONVOLUTIONS, DECONVOLUTION), _convolution),
    "Pooling": _pooling,
    "InnerProduct": _inner_product,
    "Concat": _concat,
    "Slice": _slice,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Crop": _crop,
    "MVN": _mvn,
    "Tile": _tile,
    "Reduction": _reduction,
    "Interp": _interp,
}
