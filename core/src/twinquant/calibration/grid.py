"""A histogram whose bins do not depend on the order in which values arrive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.observer import Float32Array, Stage, State
from twinquant.calibration.scratch import scratch

__all__ = ["Grid", "Histogram"]

Int64Array = npt.NDArray[np.int64]

_SMALLEST_EXPONENT = -120
_FRACTION_BITS = 23
_ONE = 1 << _FRACTION_BITS
# A packed cell holds a count above bit 44 and a signed sum of fractions below it; 2^19 - 1 values of up to 2^23 fit.
_COUNT_SHIFT = 44
_MOST_PACKED = (1 << 19) - 1
# Cells that hold this many are emptied when one may be full: few, as most values of an activation are not alike.
_MANY_PACKED = 1 << 17


@dataclass(frozen=True, slots=True)
class Histogram:
    """What a grid holds, without its empty margins.

    Attributes:
        width: width of a bin, a power of two.
        first: index of the first bin, <= 0. Bin i > 0 is `[i w, (i + 1) w)`, bin -i mirrors it, and bin 0 between them
            is `(-w, w)`.
        counts: int64 `(n,)`: values in each bin.
        sums: int64 `(n,)`: their distances from the bin's edge nearest to 0, with sign, in units of `w / 2^23`; exact.
            0 in bin 0, where they are not known.
        low: the smallest value.
        high: the largest value.
    """

    width: float
    first: int
    counts: Int64Array
    sums: Int64Array
    low: float
    high: float

    def indices(self) -> Int64Array:
        """Return the index of every bin: int64 `(n,)`."""
        return np.arange(self.first, self.first + self.counts.size)

    def magnitudes(self) -> Int64Array:
        """Return the counts of the magnitudes: int64, bin i is `[i w, (i + 1) w)`."""
        positive, negative = self.counts[-self.first :], self.counts[: -self.first][::-1]
        counts = np.zeros(max(positive.size, negative.size + 1), np.int64)
        counts[: positive.size] += positive
        counts[1 : negative.size + 1] += negative
        return counts


class Grid(Stage):
    """Counts values in bins of a power of two, aligned at zero, and sums their positions inside the bins.

    The bins start very fine; whenever a value would need more than `size` of them, neighbours are merged in pairs. The
    bin of a value in a coarser grid follows from its bin in a finer one, so the final bins depend on the smallest and
    the largest value only, and all counts and sums are integers: no order of arrival can be told from them. Between
    half and all of the bins are in use at the end.

    Bins are cut towards zero (bin 0 is twice as wide as the others) because `trunc(trunc(v / 2) / 2) == trunc(v / 4)`
    holds for values that underflow, too. A value in any other bin is a multiple of `w / 2^23`, so its position inside
    the bin is an integer.

    Args:
        size: most bins in use; a power of two.
        sums: False leaves the sums at 0 and saves half of the time.
    """

    def __init__(self, size: int, *, sums: bool) -> None:
        self._size = size
        self._exponent = _SMALLEST_EXPONENT
        self._low = 0.0
        self._high = 0.0
        # Twice the bins that can be in use, with bin 0 in the middle: nothing moves when a negative value comes late,
        # and memory that is never touched costs nothing.
        self._counts = np.zeros(2 * size + 1, np.int64)
        self._sums = np.zeros(2 * size + 1, np.int64) if sums else None
        self._packed = np.zeros(2 * size + 1, np.int64) if sums else None
        # No packed cell holds more values than this.
        self._fullest = 0

    def take(self, block: Float32Array, low: float, high: float) -> None:
        """Count values, after coarsening the grid if they need it."""
        self.widen(low, high)
        scaled = scratch("scaled", block.size, np.float32)
        whole = scratch("whole", block.size, np.int32)
        indices = scratch("indices", block.size, np.int64)
        np.multiply(block, np.float32(2.0**-self._exponent), out=scaled)
        np.copyto(whole, scaled, casting="unsafe")
        np.copyto(indices, whole)
        np.add(indices, self._size, out=indices)
        if self._packed is None:
            np.add.at(self._counts, indices, 1)
            return
        self._make_room(block.size)
        additions = scratch("additions", block.size, np.int64)
        np.subtract(scaled, whole, out=scaled, dtype=np.float32)
        np.multiply(scaled, np.float32(_ONE), out=scaled)
        np.copyto(whole, scaled, casting="unsafe")
        np.copyto(additions, whole)
        np.add(additions, 1 << _COUNT_SHIFT, out=additions)
        np.add.at(self._packed, indices, additions)

    def widen(self, low: float, high: float) -> None:
        """Coarsen the grid until both values, and 0, have a bin."""
        low, high = min(self._low, low), max(self._high, high)
        exponent = self._exponent
        while int(high / 2.0**exponent) - int(low / 2.0**exponent) >= self._size:
            exponent += 1
        if exponent != self._exponent:
            self._unpack_all()
            if self._counts.any():
                # After so many steps every value is in bin 0.
                for _ in range(min(exponent - self._exponent, self._size.bit_length())):
                    self._coarsen()
                    self._exponent += 1
            self._exponent = exponent
        self._low, self._high = low, high

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return 2.0**self._exponent

    @property
    def bins(self) -> range:
        """The indices of the bins from that of the smallest value to that of the largest; see `Histogram`."""
        used = self._used()
        return range(used.start - self._size, used.stop - self._size)

    @property
    def has_sums(self) -> bool:
        """Whether positions inside the bins are summed up."""
        return self._sums is not None

    def add(self, counts: Int64Array, sums: Int64Array | None) -> None:
        """Add values that were counted elsewhere.

        Args:
            counts: int64 `(n,)`: values in each of `bins`, to which the grid was widened before.
            sums: int64 `(n,)`: what `Histogram.sums` is, whatever it is for bin 0; None where none are kept.
        """
        self._unpack_all()
        used = self._used()
        self._counts[used] += counts
        if self._sums is not None and sums is not None:
            self._sums[used] += sums
            self._sums[self._size] = 0

    def merge(self, other: Grid) -> None:
        """Add the other grid, the finer of the two coarsened to the other."""
        self.widen(other._low, other._high)
        self._unpack_all()
        same = self.restore(other.arrays())
        same.widen(self._low, self._high)
        self._counts += same._counts
        if self._sums is not None and same._sums is not None:
            self._sums += same._sums

    def histogram(self) -> Histogram:
        """Return the bins from that of the smallest value to that of the largest, bin 0 always among them."""
        self._unpack_all()
        used = self._used()
        first = used.start - self._size
        counts = self._counts[used].copy()
        sums = np.zeros_like(counts) if self._sums is None else self._sums[used].copy()
        sums[-first] = 0
        return Histogram(2.0**self._exponent, first, counts, sums, self._low, self._high)

    def arrays(self) -> State:
        """Return the bins in use."""
        histogram = self.histogram()
        return {
            "size": np.array(self._size),
            "exponent": np.array(self._exponent),
            "first": np.array(histogram.first),
            "counts": histogram.counts,
            "low": np.array(self._low),
            "high": np.array(self._high),
            **({} if self._sums is None else {"sums": histogram.sums}),
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Grid:
        """Return the grid that `arrays` was asked of."""
        grid = cls(int(arrays["size"]), sums="sums" in arrays)
        grid._exponent = int(arrays["exponent"])
        grid._low, grid._high = float(arrays["low"]), float(arrays["high"])
        start = grid._size + int(arrays["first"])
        grid._counts[start : start + arrays["counts"].size] = arrays["counts"]
        if grid._sums is not None:
            grid._sums[start : start + arrays["sums"].size] = arrays["sums"]
        return grid

    def fresh(self) -> Grid:
        """Return an empty grid of the same size."""
        return Grid(self._size, sums=self.has_sums)

    def terms(self) -> tuple[Any, ...]:
        """Return the size, and whether positions are summed up."""
        return self._size, self.has_sums

    @property
    def nbytes(self) -> int:
        """That of the counts, the sums and the packed cells, the empty bins included."""
        return sum(array.nbytes for array in (self._counts, self._sums, self._packed) if array is not None)

    def _coarsen(self) -> None:
        """Merge neighbouring bins in pairs, away from bin 0 on both sides."""
        middle, width = self._size, 2.0**self._exponent
        for side, reach in ((1, int(self._high / width)), (-1, int(-self._low / width))):
            half = reach // 2 + 1
            counts = self._counts[middle + side :: side][: 2 * half]
            # Bin 1 falls into bin 0; 2 and 3 become 1, 4 and 5 become 2, and so on.
            even, odd = counts[1::2], np.append(counts[2::2], 0)
            if self._sums is not None:
                sums = self._sums[middle + side :: side][: 2 * half]
                # A value of an odd bin is one whole old bin further inside the new one, which is twice as wide.
                merged = (sums[1::2] + np.append(sums[2::2], 0) + side * _ONE * odd) // 2
                sums[:half] = merged
                sums[half:] = 0
            self._counts[middle] += counts[0]
            pairs = even + odd
            counts[:half] = pairs
            counts[half:] = 0
        if self._sums is not None:
            self._sums[middle] = 0

    def _make_room(self, size: int) -> None:
        """Empty packed cells that may not have room for `size` more values."""
        if self._packed is not None and self._fullest + size > _MOST_PACKED:
            used = self._used()
            self._unpack(used.start + np.flatnonzero(self._packed[used] >= _MANY_PACKED << _COUNT_SHIFT))
            # A negative sum takes the last one from the count.
            self._fullest = _MANY_PACKED + 1
        self._fullest += size

    def _unpack_all(self) -> None:
        if self._fullest:
            self._unpack(self._used())
            self._fullest = 0

    def _unpack(self, cells: slice | Int64Array) -> None:
        """Move what packed cells hold to the counts and the sums."""
        if self._packed is None or self._sums is None:
            return
        packed = self._packed[cells]
        counts = (packed + (1 << (_COUNT_SHIFT - 1))) >> _COUNT_SHIFT
        self._counts[cells] += counts
        self._sums[cells] += packed - (counts << _COUNT_SHIFT)
        self._sums[self._size] = 0
        self._packed[cells] = 0

    def _used(self) -> slice:
        """Return where the bins from that of the smallest value to that of the largest are."""
        width = 2.0**self._exponent
        return slice(self._size + int(self._low / width), self._size + int(self._high / width) + 1)
