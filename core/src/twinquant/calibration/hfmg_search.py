"""The search for the range of a histogram that HFMG clips to."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

__all__ = ["best_range", "ranges_of_search", "uniform_density_losses"]

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_STEPS = 100_000
# The fast losses differ from the plain ones by rounding only, which is far below this.
_CLOSE = 1e-6
_CHUNK = 64


def ranges_of_search(counts: Int64Array) -> list[tuple[int, int]]:
    """Return the ranges of bins that the search passes through, both ends inside, in its order.

    Starting from all bins, each side looks how many bins it needs to leave out `max(1, ceil(N / 100000))` values; the
    right side gives way if it needs at least as many as the left one, the left one otherwise. It ends when a quarter of
    the bins is left. Ranges without a bin are not noted.

    Args:
        counts: int64 `(n,)`.
    """
    before: list[int] = [0, *np.cumsum(counts).tolist()]
    step = max(1, -(-before[-1] // _STEPS))
    left, right = 0, counts.size - 1
    noted: list[tuple[int, int]] = []
    # Counted from the right end, the same search goes upwards.
    behind = [before[-1] - value for value in reversed(before)]
    while right - left > -(-counts.size // 4):
        left_bins = min(bisect_left(before, before[left] + step), counts.size) - left
        skipped = counts.size - 1 - right
        right_bins = min(bisect_left(behind, behind[skipped] + step), counts.size) - skipped
        if right_bins >= left_bins:
            right -= right_bins
        else:
            left += left_bins
        if left <= right:
            noted.append((left, right))
    return noted


def best_range(counts: Int64Array, num_bits: int) -> tuple[int, int]:
    """Return the range with the smallest loss, the first one if several have it; all bins if the search noted none."""
    noted = ranges_of_search(counts)
    if not noted:
        return 0, counts.size - 1
    if 1 << num_bits < counts.size:
        fast = _fast_losses(counts, noted, 1 << num_bits)
        noted = [noted[index] for index in np.flatnonzero(fast <= fast.min() * (1 + _CLOSE)).tolist()]
    losses = uniform_density_losses(counts, noted, 1 << num_bits)
    return noted[int(np.argmin(losses))]


def uniform_density_losses(counts: Int64Array, ranges: list[tuple[int, int]], levels: int) -> Float64Array:
    """Return the squared error of representing every value by the centre of a destination bin, for several ranges.

    A range of bins is divided into `levels` destination bins; the values of a source bin are taken to be spread evenly
    over it. What lies outside belongs to the outermost destination bins.

    Args:
        counts: int64 `(n,)`: values in source bins of width 1, which start at 0.
        ranges: first and last source bin of each range.
        levels: number of destination bins.

    Returns:
        float64, one for each range, in units of the squared bin width.

    Source:
        the search of PyTorch's HistogramObserver uses the same loss.
    """
    starts = np.flatnonzero(counts).astype(np.float64)
    filled = counts[counts > 0].astype(np.float64)
    losses = np.empty(len(ranges))
    for index, (left, right) in enumerate(ranges):
        width = (right - left + 1) / levels
        begin, end = starts - left, starts - left + 1.0
        first = np.clip(np.floor(begin / width), 0, levels - 1)
        last = np.clip(np.floor(end / width), 0, levels - 1)
        before, behind = begin - (first + 0.5) * width, end - (last + 0.5) * width
        # From the bin's start to the end of its first destination bin, whole destination bins, and the rest; written
        # with products because `**3` is ten times as slow.
        per_value = (behind * behind * behind - before * before * before) / 3 + (last - first) * (width**3 / 12)
        losses[index] = (filled * per_value).sum()
    return losses


def _fast_losses(counts: Int64Array, ranges: list[tuple[int, int]], levels: int) -> Float64Array:
    """Return `uniform_density_losses` up to rounding, in time that grows with the levels and not with the source bins.

    With centres c one width w apart, `sum (x - c)^2` is a polynomial for the last centre minus `2 w K(b)` for each
    border b between two destination bins; `K(b) = sum max(0, b - x)` is a running double sum of the counts.
    """
    edges = np.arange(counts.size, dtype=np.float64)
    density = counts.astype(np.float64)
    below = np.cumsum(counts) - density
    distances = np.cumsum(below + density / 2) - (below + density / 2)
    mass = density.sum()
    first = (density * (edges + 0.5)).sum()
    second = (density * (edges * edges + edges + 1 / 3)).sum()
    limits = np.array(ranges, np.float64)
    losses = np.empty(len(ranges))
    for start in range(0, len(ranges), _CHUNK):
        left, right = limits[start : start + _CHUNK].T[:, :, None]
        width = (right - left + 1.0) / levels
        borders = left + np.arange(1, levels) * width
        bins = borders.astype(np.int64)
        inside = borders - bins
        reach = distances[bins] + inside * (below[bins] + inside * (density[bins] / 2))
        centre = right[:, 0] + 1.0 - width[:, 0] / 2
        losses[start : start + _CHUNK] = (
            second - 2.0 * centre * first + centre * centre * mass - 2.0 * width[:, 0] * reach.sum(axis=1)
        )
    return losses
