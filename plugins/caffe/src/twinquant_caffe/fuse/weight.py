"""Weights that are multiplied by factors per channel while they are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twinquant_caffe.computed import ComputedValues
from twinquant_caffe.values import Values

__all__ = ["ScaledValues", "spread_factors"]


@dataclass(frozen=True, slots=True, eq=False)
class ScaledValues(ComputedValues):
    """A weight times a factor per output or input channel: computed for whatever part is read.

    Attributes:
        source: the weight as it was.
        view: the weight seen as (rows, columns, rest).
        factors: float64, as `spread_factors` takes them.
    """

    source: Values
    view: tuple[int, int, int]
    factors: npt.NDArray[np.float64]

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return the products [start, stop), each rounded once: float32, `(stop - start,)`, writable."""
        values = self.source.read(start, stop)
        with np.errstate(over="ignore"):
            products = values * spread_factors(self.factors, self.view, start, stop)
            return np.asarray(products, np.float32)


def spread_factors(
    factors: npt.NDArray[np.floating], view: tuple[int, int, int], start: int, stop: int
) -> npt.NDArray[np.floating]:
    """Return the factor of each value of a weight from `start` to `stop`: `(stop - start,)`.

    Args:
        factors: `(groups, columns or 1)`: the rows of the weight follow each other group by group, and the factor of
            (row, column) is at `[row // (rows / groups), column]`.
        view: the weight's shape, seen as (rows, columns, rest).
        start: the first value, in memory order.
        stop: the one behind the last.
    """
    rows, columns, rest = view
    groups, per_column = factors.shape
    if per_column == 1:
        columns, rest = 1, columns * rest
    runs = np.arange(start // rest, -(-stop // rest))
    lengths = np.full(runs.size, rest)
    if runs.size:
        lengths[0] -= start - int(runs[0]) * rest
        lengths[-1] -= (int(runs[-1]) + 1) * rest - stop
    row, column = np.divmod(runs, columns)
    return np.repeat(factors[row // (rows // groups), column], lengths)
