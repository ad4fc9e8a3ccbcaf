"""What the passes of the IFMR search accumulate."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.grid import Grid
from twinquant.calibration.ifmr_losses import Candidate
from twinquant.calibration.observer import Float32Array, Stage, State
from twinquant.calibration.scratch import scratch
from twinquant.calibration.tails import Rank, Tail
from twinquant.numerics import clipped_grid_errors

__all__ = ["FINER", "UNITS", "Refinement", "Settlement", "Survey"]

# With 8 bits a bin is between 1/128 and 1/257 of a quantization step.
_GRID_SIZE = 1 << 16

# A squared error counts in units of 2^-46 of the largest one, or finer: blocks of 2^16 of them fit 63 bits.
_ERROR_BITS = 46
FINER = 2.0**_ERROR_BITS
"""How many of the next finer units a unit of squared errors is."""
_LOW_BITS = 32
_LOW_MASK = (1 << _LOW_BITS) - 1
UNITS = 3
"""How many kinds of units there are."""
_NO_ERROR = (0,) * UNITS


class Survey(Stage):
    """First pass: the histogram of all values, and the outermost ones themselves."""

    def __init__(self, grid: Grid | None = None, upper: Tail | None = None, lower: Tail | None = None) -> None:
        self.grid = grid or Grid(_GRID_SIZE, sums=True)
        self.upper = upper or Tail()
        self.lower = lower or Tail()

    def take(self, block: Float32Array, low: float, high: float) -> None:
        """Count the values and keep the outermost ones."""
        self.grid.take(block, low, high)
        self.upper.take(block, high)
        if low < 0.0:
            self.lower.take(np.negative(block, out=scratch("negative", block.size, np.float32)), -low)

    def merge(self, other: Survey) -> None:
        """Add counts, keep the outermost values of both."""
        self.grid.merge(other.grid)
        self.upper.merge(other.upper)
        self.lower.merge(other.lower)

    def arrays(self) -> State:
        """Return the histogram and both tails."""
        return {"upper": self.upper.sorted(), "lower": self.lower.sorted(), **self.grid.arrays()}

    @classmethod
    def restore(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Survey:
        """Return the stage that `arrays` was asked of."""
        return cls(Grid.restore(arrays), Tail(arrays["upper"].copy()), Tail(arrays["lower"].copy()))

    def fresh(self) -> Survey:
        """Return an empty survey of the same kind."""
        return Survey(self.grid.fresh())

    def terms(self) -> tuple[Any, ...]:
        """Return those of the histogram."""
        return self.grid.terms()

    @property
    def nbytes(self) -> int:
        """That of the histogram and of both tails."""
        return self.grid.nbytes + self.upper.nbytes + self.lower.nbytes


class Refinement(Stage):
    """A pass for limits that lie so deep inside the data that the survey did not keep them: it counts towards them.

    Args:
        grid: the histogram of the survey, which the losses are computed of afterwards.
        upper: the search for the upper limit.
        lower: the search for the magnitude of the lower limit.
    """

    def __init__(self, grid: Grid, upper: Rank, lower: Rank) -> None:
        self.grid = grid
        self.upper = upper
        self.lower = lower

    def take(self, block: Float32Array, low: float, high: float) -> None:
        """Count the values near both limits."""
        if self.upper.value is None:
            self.upper.take(block)
        if self.lower.value is None:
            self.lower.take(np.negative(block, out=scratch("negative", block.size, np.float32)))

    def merge(self, other: Refinement) -> None:
        """Add counts."""
        self.upper.merge(other.upper)
        self.lower.merge(other.lower)

    def arrays(self) -> State:
        """Return the histogram and both searches."""
        ranks = {"upper": self.upper, "lower": self.lower}
        found = {f"{name}_{key}": array for name, rank in ranks.items() for key, array in rank.arrays().items()}
        return {**found, **self.grid.arrays()}

    @classmethod
    def restore(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Refinement:
        """Return the stage that `arrays` was asked of."""
        upper, lower = (
            Rank.restore(arrays[f"{name}_interval"], arrays[f"{name}_counts"]) for name in ("upper", "lower")
        )
        return cls(Grid.restore(arrays), upper, lower)

    def fresh(self) -> Refinement:
        """Return the same searches with nothing counted."""
        upper, lower = (Rank(rank.start, rank.stop, rank.rank) for rank in (self.upper, self.lower))
        return Refinement(self.grid, upper, lower)

    def terms(self) -> tuple[Any, ...]:
        """Return what is looked for."""
        return tuple((rank.start, rank.stop, rank.rank) for rank in (self.upper, self.lower))

    @property
    def nbytes(self) -> int:
        """That of what both searches count; the histogram is shared."""
        return self.upper.nbytes + self.lower.nbytes


class Settlement(Stage):
    """Last pass: the exact squared errors of the candidates that the histogram could not tell apart.

    Each error is computed in float64 and cut to a whole number of units before it is added, so the sums are integers. A
    candidate that reproduces every value (a constant activation is a multiple of many scales) has errors far below a
    unit, the rounding of float64. Therefore there are finer units, 2^-46 of each other; the sum in one of them counts
    only while the sums in all larger ones are 0.

    Args:
        candidates: the ranges to compare, in the order of the search.
        unit: what errors are counted in, a power of two.
        totals: int64 `(n, 3, 2)`: the sums of each candidate, the largest unit first, each split into what is above
            2^32 and the rest. Zeros by default.
    """

    def __init__(self, candidates: list[Candidate], unit: float, totals: npt.NDArray[np.int64] | None = None) -> None:
        self._candidates = candidates
        self._unit = unit
        self._sums: list[tuple[int, ...]] = [_NO_ERROR] * len(candidates)
        if totals is not None:
            self._sums = [tuple((high << _LOW_BITS) + low for high, low in total) for total in totals.tolist()]

    @classmethod
    def between(cls, candidates: list[Candidate], low: float, high: float) -> Settlement:
        """Return the comparison of candidates over values in `[low, high]`."""
        clipped = max(max(high - c.high, c.low - low) for c in candidates)
        largest = max(clipped, 0.0) + max(c.scale for c in candidates)
        _, exponent = np.frexp(largest * largest)
        return cls(candidates, 2.0 ** (int(exponent) - _ERROR_BITS))

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The ranges that are compared."""
        return tuple(self._candidates)

    @property
    def unit(self) -> float:
        """What errors are counted in."""
        return self._unit

    def best(self) -> Candidate:
        """Return the candidate with the smallest sum of squared errors; the first of equal ones."""
        return self._candidates[self._sums.index(min(self._sums))]

    def take(self, block: Float32Array, low: float, high: float) -> None:
        """Add the errors of a block."""
        values = scratch("values", block.size, np.float64)
        errors = scratch("errors", block.size, np.float64)
        whole = scratch("whole", block.size, np.int64)
        np.copyto(values, block)
        for index, candidate in enumerate(self._candidates):
            clipped_grid_errors(values, candidate.scale, candidate.low, candidate.high, errors)
            np.multiply(errors, 1.0 / self._unit, out=errors)
            np.copyto(whole, errors, casting="unsafe")
            sums = [int(whole.sum())]
            while not any(sums) and len(sums) < UNITS and not any(self._sums[index][: len(sums)]):
                np.multiply(errors, FINER, out=errors)
                sums.append(int(errors.astype(np.int64).sum()))
            self.add(index, tuple(sums))

    def add(self, index: int, sums: tuple[int, ...]) -> None:
        """Add errors that were summed up elsewhere.

        Args:
            index: which candidate's.
            sums: in units, then in units `FINER` times as fine, and once more: the finer ones may be left out where the
                larger one is not 0.
        """
        total = [mine + added for mine, added in zip_longest(self._sums[index], sums, fillvalue=0)]
        largest = next((place for place, units in enumerate(total) if units), 0)
        self._sums[index] = tuple(units if place <= largest else 0 for place, units in enumerate(total))

    def merge(self, other: Settlement) -> None:
        """Add the other's sums."""
        for index, sums in enumerate(other._sums):
            self.add(index, sums)

    def arrays(self) -> State:
        """Return the candidates and their sums."""
        ranges = [(candidate.low, candidate.high, candidate.scale) for candidate in self._candidates]
        totals = [[[part >> _LOW_BITS, part & _LOW_MASK] for part in sums] for sums in self._sums]
        return {"candidates": np.array(ranges), "unit": np.array(self._unit), "totals": np.array(totals, np.int64)}

    @classmethod
    def restore(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Settlement:
        """Return the stage that `arrays` was asked of."""
        candidates = [Candidate(*row) for row in arrays["candidates"].tolist()]
        return cls(candidates, float(arrays["unit"]), arrays["totals"])

    def fresh(self) -> Settlement:
        """Return the same comparison with nothing added."""
        return Settlement(self._candidates, self._unit)

    def terms(self) -> tuple[Any, ...]:
        """Return what is compared, and in which unit."""
        return (*self._candidates, self._unit)

    @property
    def nbytes(self) -> int:
        """That of the sums as they are stored: two halves for every candidate and kind of unit."""
        return len(self._candidates) * UNITS * 2 * np.dtype(np.int64).itemsize
