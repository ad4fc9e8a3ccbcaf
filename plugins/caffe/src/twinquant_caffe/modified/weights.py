"""Weights rounded to the values that their quantized integers stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import ModelContentError
from twinquant.numerics import BLOCK_ELEMENTS, round_weight_in_place
from twinquant_caffe.fuse.weight import spread_factors
from twinquant_caffe.values import DATA, Values

__all__ = ["FakeQuantizedValues"]

_BITS = 8
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class FakeQuantizedValues:
    """A weight whose values are rounded to multiples of their scales: computed for whatever part is read.

    Attributes:
        source: the float weight.
        view: the weight seen as (rows, columns, rest).
        scales: float32 `(groups, columns or 1)`, > 0, as `spread_factors` takes them.
        label: what an error calls the weight, such as `layer 'conv1': the weight`.
    """

    source: Values
    view: tuple[int, int, int]
    scales: npt.NDArray[np.float32]
    label: str

    @property
    def size(self) -> int:
        """How many values there are."""
        return prod(self.view)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32."""
        return np.dtype(np.float32)

    @property
    def field(self) -> int:
        """BlobProto's field of floats."""
        return DATA

    @property
    def payload_size(self) -> int:
        """How many bytes the values take."""
        return self.size * _FLOAT32_BYTES

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return the rounded values [start, stop): float32, `(stop - start,)`, writable.

        Raises:
            ModelContentError: the weight holds NaN or infinity.
        """
        values = self.source.read(start, stop)
        scales = spread_factors(self.scales, self.view, start, stop).astype(np.float32, copy=False)
        if not round_weight_in_place(values, scales, _BITS):
            raise ModelContentError(f"{self.label} holds NaN or infinity, which cannot be quantized; skip the layer")
        values *= scales
        return values

    def payload(self) -> Iterator[memoryview]:
        """Yield the values as little-endian float32 in blocks."""
        for start in range(0, self.size, BLOCK_ELEMENTS):
            block = self.read(start, min(start + BLOCK_ELEMENTS, self.size))
            yield block.astype("<f4", copy=False).data.cast("B")
