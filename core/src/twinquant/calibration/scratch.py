"""Memory that kernels overwrite, block after block."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK", "scratch"]

BLOCK = 1 << 16
"""How many values observers take at a time: 256 KiB of float32. Half and twice as many measured within 10% of it."""

Element = TypeVar("Element", bound=np.generic)


class _OfThread(threading.local):
    """Each thread has its own: observers may run in several. What is in the arrays means nothing between two calls."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, type[Any]], npt.NDArray[Any]] = {}


_of_thread = _OfThread()


def scratch(place: str, size: int, dtype: type[Element]) -> npt.NDArray[Element]:
    """Return an array of any content; a later call with the same place and type in this thread returns the same memory.

    Arrays of this size that are made anew for each block may go back to the system each time, as the state of the heap
    has it: observing then takes four times as long, in page faults.

    Args:
        place: tells arrays apart that are needed at the same time.
        size: how many elements.
        dtype: their type.
    """
    if size > BLOCK:
        return np.empty(size, dtype)
    arrays = _of_thread.arrays
    if (place, dtype) not in arrays:
        arrays[place, dtype] = np.empty(BLOCK, dtype)
    return arrays[place, dtype][:size]
