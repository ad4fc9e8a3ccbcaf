"""What the layers with a window say about it: kernel, stride, padding and dilation, groups and output channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from twinquant_caffe.prototxt.tree import Message

__all__ = ["CONVOLUTIONS", "DECONVOLUTION", "DEPTHWISE", "ConvolutionShape", "Typed", "read_convolution", "window"]

DEPTHWISE = ("DepthwiseConvolution", "ConvolutionDepthwise")
"""Forks' convolutions that have one group per input channel, whatever their parameters say."""

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
        group=outputs if layer.type in DEPTHWISE else param.integer("group", 1),
        kernel=window(param, "kernel_size", 0),
        stride=window(param, "stride", 1),
        pad=window(param, "pad", 0),
        dilation=param.integers("dilation") or (1,),
        axis=param.integer("axis", 1),
        force_nd=param.flag("force_nd_im2col", False),
        bias=param.flag("bias_term", True),
    )


def window(param: Message, name: str, default: int) -> tuple[int, ...]:
    """Return lengths along the spatial axes: `<name>_h` and `<name>_w`, or the values of `<name>`, or the default."""
    short = _ABBREVIATED.get(name, name)
    if param.has(f"{short}_h") or param.has(f"{short}_w"):
        return param.integer(f"{short}_h", default), param.integer(f"{short}_w", default)
    return param.integers(name) or (default,)
