"""Whether layers with a window have one that Caffe takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twinquant.errors import ModelFileError
from twinquant_caffe.geometry import CONVOLUTIONS, DECONVOLUTION
from twinquant_caffe.net import Layer

__all__ = ["check_windows"]

_LEAST: Mapping[str, int] = {
    **dict.fromkeys(("kernel_size", "kernel_h", "kernel_w", "stride", "stride_h", "stride_w", "dilation"), 1),
    **dict.fromkeys(("pad", "pad_h", "pad_w"), 0),
}
_PARAMETERS = {**dict.fromkeys((*CONVOLUTIONS, DECONVOLUTION), "convolution_param"), "Pooling": "pooling_param"}


def check_windows(layers: Sequence[Layer]) -> None:
    """Check the lengths that convolutions and poolings say.

    Raises:
        ModelFileError: one is too small.
    """
    for layer in layers:
        if layer.type not in _PARAMETERS:
            continue
        param = layer.message.message(_PARAMETERS[layer.type])
        # The window of a global pooling is that of its input, whatever else is written.
        if layer.type == "Pooling" and param.flag("global_pooling", False):
            continue
        for field, least in _LEAST.items():
            for value in param.integers(field):
                if value < least:
                    raise ModelFileError(
                        f"layer {layer.name!r} ({layer.type}): {field} has to be at least {least}, got {value}"
                    )
