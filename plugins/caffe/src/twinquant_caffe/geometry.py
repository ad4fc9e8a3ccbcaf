"""What the layers with a window say about it: kernel, stride, padding and dilation, groups and output channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twinquant_caffe.prototxt.tree import Message

__all__ = ["CONVOLUTIONS", "DECONVOLUTION", "DEPTHWISE", "ConvolutionShape", "Typed", "convolved_length"]
__all__ += ["pooled_lengths", "pooling_windows", "read_convolution"]

DEPTHWISE = ("DepthwiseConvolution", "ConvolutionDepthwise")
"""Forks' convolutions that have one group per input channel: as many as there are outputs, unless they say it."""

CONVOLUTIONS = ("Convolution", *DEPTHWISE)
DECONVOLUTION = "Deconvolution"

_ABBREVIATED = {"kernel_size": "kernel"}


@dataclass(frozen=True, slots=True)
class ConvolutionShape:
    """The parameters of a Convolution or a Deconvolution.

    Attributes:
        num_output: output channels.
        group: groups.
        kernel: lengths of the window, or one for all axes.
        stride: as `kernel`.
        pad: as `kernel`.
        dilation: as `kernel`.
        axis: where the channels are.
        force_nd: the layer computes by its slow path for any number of axes.
        bias: a bias is added.
    """

    num_output: int
    group: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]
    axis: int
    force_nd: bool
    bias: bool


class Typed(Protocol):
    """A layer, as far as its parameters go."""

    @property
    def type(self) -> str:
        """Its type."""

    @property
    def message(self) -> Message:
        """Its block in the prototxt."""


def read_convolution(layer: Typed) -> ConvolutionShape:
    """Read the parameters of a Convolution, of a fork's depthwise one, or of a Deconvolution.

    Raises:
        ModelFileError: a parameter is of a wrong kind.
    """
    param = layer.message.message("convolution_param")
    outputs = param.integer("num_output", 0)
    return ConvolutionShape(
        num_output=outputs,
        group=param.integer("group", outputs if layer.type in DEPTHWISE else 1),
        kernel=_window(param, "kernel_size", 0),
        stride=_window(param, "stride", 1),
        pad=_window(param, "pad", 0),
        dilation=param.integers("dilation") or (1,),
        axis=param.integer("axis", 1),
        force_nd=param.flag("force_nd_im2col", False),
        bias=param.flag("bias_term", True),
    )


def convolved_length(
    length: int, kernel: int, stride: int, pad: int, dilation: int, *, transposed: bool = False
) -> int:
    """Return the length along one axis of what a Convolution or a Deconvolution makes."""
    extent = dilation * (kernel - 1) + 1
    if transposed:
        return stride * (length - 1) + extent - 2 * pad
    return (length + 2 * pad - extent) // stride + 1


def pooled_lengths(param: Message, lengths: Sequence[int]) -> tuple[int, ...]:
    """Return height and width of what a Pooling makes of an input of two lengths.

    As in Caffe, a last window that starts in the padding is left out, on both axes if either is padded.

    Args:
        param: its pooling_param; not that of a global pooling.
        lengths: height and width of the input.
    """
    # BVLC's field 13 is round_mode, other tools write ceil_mode; both round up unless they say otherwise.
    up = param.choice("round_mode", ("CEIL", "FLOOR")) == "CEIL" and param.flag("ceil_mode", True)
    windows = pooling_windows(param)
    padded = any(pad for _, _, pad in windows)
    results = []
    for length, (kernel, stride, pad) in zip(lengths, windows, strict=True):
        room = length + 2 * pad - kernel
        count = (-(-room // stride) if up else room // stride) + 1
        results.append(count - (padded and (count - 1) * stride >= length + pad))
    return tuple(results)


def pooling_windows(param: Message) -> tuple[tuple[int, int, int], ...]:
    """Return kernel, stride and padding along height and along width from a pooling_param."""
    settings = (_window(param, name, default) for name, default in (("kernel_size", 0), ("stride", 1), ("pad", 0)))
    return tuple(zip(*(values * 2 if len(values) == 1 else values for values in settings), strict=True))


def _window(param: Message, name: str, default: int) -> tuple[int, ...]:
    """Return lengths along the spatial axes: `<name>_h` and `<name>_w`, or the values of `<name>`, or the default."""
    short = _ABBREVIATED.get(name, name)
    if param.has(f"{short}_h") or param.has(f"{short}_w"):
        return param.integer(f"{short}_h", default), param.integer(f"{short}_w", default)
    return param.integers(name) or (default,)
