"""The quant insertion spec: what goes where, with which numbers, for both twins. Pure data, no framework."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinquant.plan.layer import LayerInfo

__all__ = ["ActivationQuant", "BiasQuant", "LayerPlan", "OutputDequant", "QuantPlan", "SkippedLayer", "WeightQuant"]

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ActivationQuant:
    """Quantize a tensor: `q = clip(rint(x * float32(1/scale)) + offset)`.

    Attributes:
        scale: float32 value, > 0, per tensor.
        offset: zero point in the signed domain.
        num_bits: 4, 8 or 16.
        owner: name of the layer whose quantization node serves this one: its own name, or that of an earlier layer with
            the same tensor and equal factors.
        balance: float32 `(Cin,)` factors that the tensor is divided by first, or None.
    """

    scale: float
    offset: int
    num_bits: int
    owner: str
    balance: Float32Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class WeightQuant:
    """Quantize a weight: `q = clip(rint(w / scale))`, symmetric.

    Attributes:
        scale: float32 `(n,)`: n = 1 per tensor, else per output channel (RNN: per gate or per row).
        num_bits: 4, 6, 7 or 8: the range is [-2^(b-1), 2^(b-1)-1].
        packed: two 4-bit values share an int8 byte along the input channels; False with 4 bits means a true 4-bit
            tensor type.
    """

    scale: Float32Array
    num_bits: int
    packed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class BiasQuant:
    """Quantize a bias: `q = rint(b / scale)` as int32.

    Attributes:
        scale: float32 `(n,)`: weight scale * activation scale, never masked.
        recurrence_scale: float32 `(n,)`: the same for the recurrence half of an RNN's bias, else None.
        cast_to_float: the deploy twin reads the integers through a cast, as 4-bit activations need it.
    """

    scale: Float32Array
    recurrence_scale: Float32Array | None = None
    cast_to_float: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class OutputDequant:
    """Dequantize the accumulator: `y = acc * scale`.

    Attributes:
        scale: float32 `(n,)`: weight scale * activation scale (masked to 10 mantissa bits where the record asks for
            float16 precision); for an RNN the input scales followed by the recurrence scales.
    """

    scale: Float32Array


@dataclass(frozen=True, slots=True, eq=False)
class LayerPlan:
    """Everything that is inserted around one layer. Slots that do not apply are None.

    Attributes:
        layer: the layer, as its framework described it.
        activation: what happens to input 0.
        weight: what happens to the weight; None for AveragePool.
        bias: what happens to the bias; None where there is none.
        output: what happens behind the layer (or behind the node that adds its bias).
        hidden: what happens to an RNN's hidden state.
        recurrence: what happens to an RNN's recurrence weight.
    """

    layer: LayerInfo
    activation: ActivationQuant
    weight: WeightQuant | None
    bias: BiasQuant | None
    output: OutputDequant
    hidden: ActivationQuant | None = None
    recurrence: WeightQuant | None = None

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name


@dataclass(frozen=True, slots=True)
class SkippedLayer:
    """A node that stays as it is, and why."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class QuantPlan:
    """What is inserted where, in graph order, and what is left alone and why.

    Attributes:
        framework: name of the framework the graph belongs to.
        layers: the quantized layers, in graph order.
        skipped: all other nodes, in graph order.
        warnings: what a user should know although it is no error, such as duplicate record keys.
    """

    framework: str
    layers: tuple[LayerPlan, ...]
    skipped: tuple[SkippedLayer, ...] = ()
    warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)
