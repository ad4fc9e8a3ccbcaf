"""How a twin quantizes and dequantizes: one recipe for the deploy twin, one for each style of the fake-quant twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinquant.plan import ActivationQuant
from twinquant_caffe.net import Layer

__all__ = ["MakeDequant", "MakeQuant", "MakeSeparator", "Recipe"]

MakeQuant = Callable[[str, str, str, ActivationQuant], tuple[Layer, ...]]
"""Makes the layers that quantize a blob: their name, the blob, the layer they are for, and how."""

MakeDequant = Callable[[str, str, str, npt.NDArray[np.float32], int], Layer]
"""Makes the layer that dequantizes: its name, the blob it reads, the one it writes, scales `(n,)`, and the channels."""

MakeSeparator = Callable[[str, str], Layer]
"""Makes the layer that keeps a quantization apart from what it follows: the quantization's name, and the blob."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What differs between twins.

    Attributes:
        quant: makes the layers of a quantization; the blob that the last one writes has the quantization's name.
        dequant: makes the layer behind a quantized one.
        separator: makes the layer before a quantization that runtimes would merge with what it follows; None: none is
            needed.
        integers: weights and biases are stored as int8 and int32; False: as float32 of the same integers.
    """

    quant: MakeQuant
    dequant: MakeDequant
    separator: MakeSeparator | None = None
    integers: bool = False
