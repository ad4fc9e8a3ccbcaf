"""Weights rounded to the values that their quantized integers stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinquant.errors import ModelContentError
from twinquant.numerics import round_weight_in_place
from twinquant_caffe.computed import ComputedValues
from twinquant_caffe.fuse.weight import spread_factors
from twinquant_caffe.values import Values

__all__ = ["FakeQuantizedValues"]

_BITS = 8


@dataclass(frozen=True, slots=True, eq=False)
class FakeQuantizedValues(ComputedValues):
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
