"""The integers of weights, kept between the writing of one twin and of the other."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

__all__ = ["IntegerMemory"]

Int8Array = npt.NDArray[np.int8]

MEMORY_BYTES = 160 << 20
"""Room for the weights of VGG-16. What does not fit is computed again, so that big models take no more memory."""


class IntegerMemory:
    """Keeps quantized weights, up to a limit, until they are asked for once: twins hold the same integers."""

    def __init__(self, limit: int | None = None) -> None:
        """Start empty; `limit` is in bytes, None means `MEMORY_BYTES`."""
        self._free = MEMORY_BYTES if limit is None else limit
        self._kept: dict[Hashable, Int8Array] = {}

    def has_room(self, size: int) -> bool:
        """Tell whether so many integers can be kept."""
        return size <= self._free

    def keep(self, key: Hashable, integers: Int8Array) -> None:
        """Keep integers under a key; equal keys stand for equal integers."""
        if key not in self._kept:
            self._kept[key] = integers
            self._free -= integers.size

    def take(self, key: Hashable) -> Int8Array | None:
        """Give integers away, or None if there are none."""
        integers = self._kept.pop(key, None)
        if integers is not None:
            self._free += integers.size
        return integers
