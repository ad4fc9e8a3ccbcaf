"""What a framework tells the core about its layers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["LayerInfo", "LayerKind"]


class LayerKind(str, Enum):
    """What a layer computes, in every framework."""

    CONV = "convolution"
    CONV_TRANSPOSE = "transposed convolution"
    GEMM = "fully connected (Gemm)"
    MATMUL = "matrix product"
    AVERAGE_POOL = "average pooling"
    LSTM = "LSTM"
    GRU = "GRU"


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One node of a graph as the plan sees it: what it is, and why it cannot be quantized if it cannot.

    A framework describes every node of its main graph, in graph order. Nodes that no record may name have a `refusal`.

    Attributes:
        name: the name that records use.
        op_type: the framework's own word for the operator.
        kind: what it computes; None for operators that are never quantized.
        refusal: why this node cannot be quantized, as the end of a sentence ("its weight is not constant"), or None.
        activation: identifies the tensor that is quantized on its way into the layer; layers with the same one can
            share a quantization node.
        element_type: element type of that tensor: "float32", "float16", "bfloat16", "float64".
        out_channels: number of output channels, which is how many weight scales a record may have besides 1 (RNN: rows
            of the weight, gates * hidden size); None where only one is allowed.
        in_channels: number of input channels (the weight's, times the group): the length of balance factors.
        packed_lengths: lengths of the weight dimensions along which two 4-bit values share a byte (RNN: two weights).
        has_bias: a constant bias is added in the layer, or in the node right behind it that belongs to it.
        weight_shape: shape of the weight as stored, or None.
        untrainable: why the framework cannot train the rounding of its weight (AdaRound), as the end of a sentence;
            None where only its kind decides.
        input_shape: channels, height and width of the activation, where the framework's records name them; else None.
    """

    name: str
    op_type: str
    kind: LayerKind | None = None
    refusal: str | None = None
    activation: str = ""
    element_type: str = "float32"
    out_channels: int | None = None
    in_channels: int | None = None
    packed_lengths: tuple[int, ...] = ()
    has_bias: bool = False
    weight_shape: tuple[int, ...] | None = None
    untrainable: str | None = None
    input_shape: tuple[int, int, int] | None = None
