"""Weights that are computed from other ones whenever they are read."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.numerics import BLOCK_ELEMENTS
from twinquant_caffe.schema import DATA

__all__ = ["ComputedValues"]

_FLOAT32 = np.dtype(np.float32)


class ComputedValues:
    """Float32 values of which a subclass says how a part of them is computed.

    Attributes:
        view: the weight seen as (rows, columns, rest).
    """

    __slots__ = ()

    view: tuple[int, int, int]

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return the values [start, stop): float32, `(stop - start,)`, writable."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """How many values there are."""
        return prod(self.view)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, whatever they are computed from."""
        return _FLOAT32

    @property
    def field(self) -> int:
        """BlobProto's field of floats."""
        return DATA

    @property
    def payload_size(self) -> int:
        """How many bytes the values take."""
        return self.size * _FLOAT32.itemsize

    def payload(self) -> Iterator[memoryview]:
        """Yield the values as little-endian float32 in blocks."""
        for start in range(0, self.size, BLOCK_ELEMENTS):
            block = self.read(start, min(start + BLOCK_ELEMENTS, self.size))
            yield block.astype("<f4", copy=False).data.cast("B")
