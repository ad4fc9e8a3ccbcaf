"""The k-th largest of any number of values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.observer import Float32Array

__all__ = ["TAIL_SIZE", "Rank", "Tail", "rank_of_percentile"]

_FRACTION_ONE = 1.19e-7
TAIL_SIZE = 4096
"""How many values a tail keeps."""
_SUB_BINS_BITS = 16


def rank_of_percentile(percentile: float, count: int) -> int:
    """Return which of `count` values, counted from the outer end, limits a range: `n - int(p n)`, at least 1.

    Args:
        percentile: p, the share of the values inside; within 1.19e-7 of 1 it means the outermost value.
        count: n.
    """
    return 1 if 1.0 - percentile < _FRACTION_ONE else max(1, count - int(percentile * count))


class Tail:
    """The largest positive values, as many as are kept; which is enough for the k-th largest while k is small.

    Zeros fill the empty places, so that the answer is never below 0.

    Args:
        values: float32 `(4096,)`, >= 0; overwritten. Zeros by default.
    """

    def __init__(self, values: Float32Array | None = None) -> None:
        self._values = np.zeros(TAIL_SIZE, np.float32) if values is None else values
        self._smallest = float(self._values.min())
        # Sorting out as many values as are kept costs little more than sorting out a few.
        self._waiting: list[Float32Array] = []

    def take(self, block: Float32Array, high: float) -> None:
        """Keep the values of a block that belong to the largest.

        Args:
            block: float32 `(n,)`.
            high: their maximum.
        """
        # Values equal to the smallest one kept would replace their like.
        if high <= self._smallest:
            return
        self._waiting.append(block[block > np.float32(self._smallest)])
        if sum(values.size for values in self._waiting) >= TAIL_SIZE:
            self._settle()

    def merge(self, other: Tail) -> None:
        """Keep the largest of both."""
        values = other.sorted()
        self.take(values, float(values[-1]))

    def sorted(self) -> Float32Array:
        """Return the values kept: float32 `(4096,)`, rising."""
        self._settle()
        return np.sort(self._values)

    def largest(self, rank: int) -> float | None:
        """Return the `rank`-th largest value, 0.0 if that is not positive, None if not that many are kept."""
        return float(self.sorted()[-rank]) if rank <= TAIL_SIZE else None

    @property
    def nbytes(self) -> int:
        """How much memory the values take, those included that are not sorted out yet."""
        return self._values.nbytes + sum(values.nbytes for values in self._waiting)

    def _settle(self) -> None:
        together = np.concatenate([self._values, *self._waiting])
        self._values = np.partition(together, together.size - TAIL_SIZE)[-TAIL_SIZE:]
        self._smallest = float(self._values.min())
        self._waiting.clear()


class Rank:
    """Finds the k-th largest positive value by counting: each pass narrows the interval that it lies in.

    Positive float32 values are ordered as their bit patterns are, so the interval is one of integers; a pass divides it
    by 65,536.

    Args:
        start: bit pattern of the smallest value that it may be.
        stop: bit pattern behind the largest one.
        rank: how many of the values in the interval are at least as large as the one that is looked for.
        counts: int64 `(65536,)`, what the current pass has counted, or None.
    """

    def __init__(self, start: int, stop: int, rank: int, counts: npt.NDArray[np.int64] | None = None) -> None:
        self.start = start
        self.stop = stop
        self.rank = rank
        self._shift = max(0, (stop - start - 1).bit_length() - _SUB_BINS_BITS)
        self._counts = np.zeros(1 << _SUB_BINS_BITS, np.int64) if counts is None else counts

    @classmethod
    def between(cls, low: float, high: float, rank: int) -> Rank:
        """Return the search for a value in `[low, high)`, both >= 0."""
        with np.errstate(over="ignore"):
            ends = np.array([low, high]).astype(np.float32).view(np.int32)
        return cls(int(ends[0]), int(ends[1]), rank)

    @classmethod
    def found(cls, value: float) -> Rank:
        """Return the search for a value that is known already."""
        pattern = int(np.array(value, np.float32).view(np.int32))
        return cls(pattern, pattern + 1, 1)

    @classmethod
    def restore(cls, interval: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Rank:
        """Return the search that `arrays` was asked of."""
        start, stop, rank = interval.tolist()
        return cls(start, stop, rank, counts.copy())

    @property
    def value(self) -> float | None:
        """The value, once only one is left."""
        if self.stop - self.start > 1:
            return None
        return float(np.array(self.start, np.int32).view(np.float32))

    def take(self, block: Float32Array) -> None:
        """Count the values of a block that are in the interval: float32 `(n,)`."""
        # Negative values have negative patterns: they are below every interval.
        patterns = block.view(np.int32)
        inside = patterns[(patterns >= self.start) & (patterns < self.stop)]
        np.add.at(self._counts, ((inside - np.int32(self.start)) >> self._shift).astype(np.int64), 1)

    @property
    def shift(self) -> int:
        """A value whose bit pattern is p, in the interval, counts in place `(p - start) >> shift`."""
        return self._shift

    @property
    def places(self) -> int:
        """How many places values are counted in."""
        return self._counts.size

    @property
    def nbytes(self) -> int:
        """How much memory the counts take."""
        return self._counts.nbytes

    def add(self, counts: npt.NDArray[np.int64]) -> None:
        """Add what was counted elsewhere: int64 `(65536,)`."""
        self._counts += counts

    def merge(self, other: Rank) -> None:
        """Add what another one counted in the same interval."""
        self.add(other._counts)

    def narrowed(self) -> Rank:
        """Return the search in the part of the interval that the pass has shown."""
        from_above = np.cumsum(self._counts[::-1])
        if self.rank > from_above[-1]:
            # Only values below 0 are left.
            return self.found(0.0)
        above = int(np.searchsorted(from_above, self.rank))
        part = self._counts.size - 1 - above
        start = self.start + (part << self._shift)
        stop = min(self.stop, start + (1 << self._shift))
        return Rank(start, stop, self.rank - int(from_above[above - 1] if above else 0))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the interval, the rank and the counts."""
        return {"interval": np.array([self.start, self.stop, self.rank]), "counts": self._counts}
