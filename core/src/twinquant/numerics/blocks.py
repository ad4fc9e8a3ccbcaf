"""Cutting an array into pieces that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

__all__ = ["BLOCK_ELEMENTS", "rectangular_blocks"]

BLOCK_ELEMENTS = 1 << 16
"""Elements of one block: 256 KiB of float32, which measured fastest on the processors tried."""


def rectangular_blocks(
    shape: tuple[int, ...], max_elements: int = BLOCK_ELEMENTS, step: int = 1, step_axis: int | None = None
) -> Iterator[tuple[slice, ...]]:
    """Cut a C-ordered array into rectangular blocks that follow each other in memory.

    The concatenation of all blocks, each flattened in C order, is the flattened array, so a tensor can be read,
    computed and written block by block.

    Args:
        shape: shape of the array.
        max_elements: size of a block, at most; it is exceeded only where `step` demands it.
        step: blocks are cut at multiples of this along `step_axis`.
        step_axis: the axis along which `step` neighbours must stay in one block.

    Yields:
        one slice per axis.
    """
    if 0 in shape:
        return
    axis, inner = 0, prod(shape)
    while axis < len(shape) and inner // shape[axis] > max_elements:
        inner //= shape[axis]
        if axis == step_axis:
            break
        axis += 1
    else:
        if axis < len(shape):
            inner //= shape[axis]
    if axis == len(shape):
        yield tuple(slice(0, n) for n in shape)
        return
    rows = max(1, max_elements // inner)
    if axis == step_axis:
        rows = max(step, rows - rows % step)
    rest = tuple(slice(0, n) for n in shape[axis + 1 :])
    for outer in product(*(range(n) for n in shape[:axis])):
        head = tuple(slice(i, i + 1) for i in outer)
        for start in range(0, shape[axis], rows):
            yield (*head, slice(start, min(start + rows, shape[axis])), *rest)
