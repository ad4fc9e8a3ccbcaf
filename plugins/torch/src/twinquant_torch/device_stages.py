"""Filling the stages of observers on the device that holds the values, with the arithmetic that NumPy uses.

Every operation here is one that IEEE 754 gives a single result for, or an addition of integers: what comes out is equal
to what the stage itself takes, bit for bit, on every device that keeps to the standard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twinquant.calibration.extremes import Extremes
from twinquant.calibration.grid import Grid
from twinquant.calibration.hfmg import RangeHistogram
from twinquant.calibration.ifmr_losses import Candidate
from twinquant.calibration.ifmr_stages import FINER, UNITS, Refinement, Settlement, Survey
from twinquant.calibration.observer import Stage
from twinquant.calibration.tails import TAIL_SIZE, Rank, Tail

__all__ = ["ends_of", "filled"]

Int64Array = npt.NDArray[np.int64]

_CHUNK = 1 << 20
"""Values that are looked at at once: what is computed of them takes up to 40 bytes each, 40 MiB of the device."""
_LOW_BITS = 32


def filled(stage: Stage, values: torch.Tensor, low: float, high: float) -> Stage | None:
    """Return a fresh stage that has taken all values; None: this kind of stage has no counterpart here.

    Args:
        stage: its type and terms; left as it is.
        values: any type that converts to float32, any shape, not empty, finite.
        low: their minimum.
        high: their maximum.
    """
    fill = _FILLS.get(type(stage))
    return None if fill is None else fill(stage.fresh(), _Values(values, low, high))


def ends_of(values: torch.Tensor) -> tuple[float, float]:
    """Return the minimum and the maximum of values as float32, 0.0 rather than -0.0; NaN where one of them is NaN."""
    ends = torch.stack([torch.stack(torch.aminmax(chunk)) for chunk in _chunks(values)])
    low, high = torch.stack([ends[:, 0].amin(), ends[:, 1].amax()]).tolist()
    return low + 0.0, high + 0.0


def _chunks(values: torch.Tensor) -> Iterator[torch.Tensor]:
    for chunk in torch.split(values.reshape(-1), _CHUNK):
        yield chunk.float()


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """Values and their range."""

    tensor: torch.Tensor
    low: float
    high: float

    def chunks(self) -> Iterator[torch.Tensor]:
        return _chunks(self.tensor)

    def zeros(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int64, device=self.tensor.device)


def _extremes(stage: Any, values: _Values) -> Extremes:
    del stage
    return Extremes(values.low, values.high)


def _range_histogram(stage: RangeHistogram, values: _Values) -> RangeHistogram:
    size = stage.counts.size
    counts = values.zeros(size)
    for chunk in values.chunks():
        places = (chunk.double() - stage.low) * (size / (stage.high - stage.low))
        _count(counts, places.clamp_(0, size - 1).long())
    stage.counts += counts.cpu().numpy()
    return stage


def _grid(grid: Grid, values: _Values) -> Grid:
    grid.widen(values.low, values.high)
    bins, per_bin = grid.bins, 1.0 / grid.width
    counts, sums = values.zeros(len(bins)), values.zeros(len(bins)) if grid.has_sums else None
    for chunk in values.chunks():
        scaled = chunk * per_bin
        whole = scaled.int()
        indices = whole.long() - bins.start
        _count(counts, indices)
        if sums is not None:
            sums.index_add_(0, indices, ((scaled - whole) * float(1 << 23)).long())
    grid.add(counts.cpu().numpy(), None if sums is None else sums.cpu().numpy())
    return grid


def _survey(stage: Survey, values: _Values) -> Survey:
    _grid(stage.grid, values)
    for chunk in values.chunks():
        stage.upper.merge(Tail(_outermost(chunk)))
        if values.low < 0.0:
            stage.lower.merge(Tail(_outermost(-chunk)))
    return stage


def _outermost(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return the largest values and zeros, none below 0: float32 `(4096,)`."""
    largest = torch.topk(tensor, min(TAIL_SIZE, tensor.numel())).values.cpu().numpy()
    kept = np.zeros(TAIL_SIZE, np.float32)
    kept[: largest.size] = np.where(largest > 0, largest, 0)
    return kept


def _refinement(stage: Refinement, values: _Values) -> Refinement:
    for rank, sign in ((stage.upper, 1), (stage.lower, -1)):
        if rank.value is None:
            rank.add(_ranked(rank, values, sign))
    return stage


def _ranked(rank: Rank, values: _Values, sign: int) -> Int64Array:
    counts = values.zeros(rank.places)
    for chunk in values.chunks():
        patterns = (chunk if sign > 0 else -chunk).view(torch.int32)
        inside = patterns[(patterns >= rank.start) & (patterns < rank.stop)]
        _count(counts, ((inside - rank.start) >> rank.shift).long())
    array: Int64Array = counts.cpu().numpy()
    return array


def _settlement(stage: Settlement, values: _Values) -> Settlement:
    for chunk in values.chunks():
        exact = chunk.double()
        sums = torch.stack([_error_sums(exact, candidate, stage.unit) for candidate in stage.candidates])
        for index, parts in enumerate(sums.tolist()):
            stage.add(index, tuple((high << _LOW_BITS) + low for high, low in parts))
    return stage


def _error_sums(values: torch.Tensor, candidate: Candidate, unit: float) -> torch.Tensor:
    """Return the sums of squared errors in each unit, cut to whole ones; int64 `(3, 2)`, split as they may not fit."""
    scale = candidate.scale
    ends = (float(np.rint(end / scale)) for end in (candidate.low, candidate.high))
    differences = (values * (1.0 / scale)).round_().clamp_(*ends).mul_(scale).sub_(values)
    errors = differences * differences * (1.0 / unit)
    sums = []
    for _ in range(UNITS):
        # Where finer units do not fit an integer, there are larger ones, and the finer ones do not count.
        whole = errors.long()
        sums += [(whole >> _LOW_BITS).sum(), (whole & ((1 << _LOW_BITS) - 1)).sum()]
        errors = errors * FINER
    return torch.stack(sums).reshape(UNITS, 2)


def _count(counts: torch.Tensor, indices: torch.Tensor) -> None:
    counts.index_add_(0, indices, torch.ones_like(indices))


_FILLS: dict[type[Stage], Callable[[Any, _Values], Stage]] = {
    Extremes: _extremes,
    RangeHistogram: _range_histogram,
    Grid: _grid,
    Survey: _survey,
    Refinement: _refinement,
    Settlement: _settlement,
}
