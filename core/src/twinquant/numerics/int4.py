"""Two 4-bit values in a byte: the even index in the low half, the odd one in the high half."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["pack_int4", "pack_int4_along", "unpack_int4", "unpack_int4_along"]

Int8Array = npt.NDArray[np.int8]


def pack_int4_along(values: Int8Array, axis: int) -> Int8Array:
    """Pack pairs of neighbours along an axis.

    Args:
        values: int8 in [-8, 7], any shape; an even length along `axis`.
        axis: the axis that is halved.

    Returns:
        int8, the length along `axis` halved.
    """
    head = (slice(None),) * (axis % values.ndim)
    even, odd = (*head, slice(0, None, 2)), (*head, slice(1, None, 2))
    low, high = values[even].view(np.uint8), values[odd].view(np.uint8)
    return ((low & 0x0F) | (high << 4)).view(np.int8)


def unpack_int4_along(packed: Int8Array, axis: int) -> Int8Array:
    """Undo `pack_int4_along`: int8 in [-8, 7], the length along `axis` doubled."""
    axis %= packed.ndim
    raw = packed.view(np.uint8)
    low = ((raw << 4).view(np.int8)) >> 4
    high = packed >> 4
    pairs = np.stack([low, high], axis=axis + 1)
    shape = (*packed.shape[:axis], 2 * packed.shape[axis], *packed.shape[axis + 1 :])
    return pairs.reshape(shape)


def pack_int4(values: Int8Array) -> npt.NDArray[np.uint8]:
    """Pack a tensor of 4-bit values in memory order, as ONNX's INT4 type stores it; an odd last value has a zero half.

    Args:
        values: int8 in [-8, 7], any shape.

    Returns:
        uint8 `((size + 1) // 2,)`.
    """
    flat = values.reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.int8(0))
    return pack_int4_along(np.ascontiguousarray(flat), 0).view(np.uint8)


def unpack_int4(packed: npt.NDArray[np.uint8], size: int) -> Int8Array:
    """Undo `pack_int4`: int8 `(size,)` in [-8, 7]."""
    return unpack_int4_along(packed.view(np.int8), 0)[:size]
