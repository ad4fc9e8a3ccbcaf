"""How many channels a net's tensors have: known in more places than their whole shape is."""

from __future__ import annotations

from twinquant_caffe.geometry import CONVOLUTIONS, DECONVOLUTION, read_convolution
from twinquant_caffe.net import BlobVersion, CaffeNet, Layer
from twinquant_caffe.shapes import KEEPS_SHAPE, infer_shapes

__all__ = ["count_channels"]

_KEEPS_CHANNELS = frozenset({*KEEPS_SHAPE, "Pooling", "Interp"})


def count_channels(net: CaffeNet) -> dict[BlobVersion, int]:
    """Return the length along axis 1 of every tensor of which it is certain.

    A convolution tells its own, even if nothing is known about what it reads.
    """
    counts = {version: shape[1] for version, shape in infer_shapes(net).items() if len(shape) > 1}
    for layer in net.layers:
        count = _count(layer, [counts.get(version) for version in layer.reads])
        if count is not None:
            counts.update({version: counts.get(version, count) for version in layer.writes})
    return counts


def _count(layer: Layer, reads: list[int | None]) -> int | None:
    """Return the channels of all tops of a layer; None: not known."""
    message = layer.message
    if layer.type in (*CONVOLUTIONS, DECONVOLUTION):
        param = read_convolution(layer)
        return param.num_output if param.axis == 1 else None
    if layer.type == "InnerProduct":
        matrix = message.message("inner_product_param")
        return matrix.integer("num_output", 0) if matrix.integer("axis", 1) == 1 else None
    if layer.type == "Concat":
        joined = message.message("concat_param")
        if joined.integer("axis", joined.integer("concat_dim", 1)) != 1:
            return None
        known = [count for count in reads if count is not None]
        return sum(known) if len(known) == len(reads) else None
    return next(iter(reads), None) if layer.type in _KEEPS_CHANNELS else None
