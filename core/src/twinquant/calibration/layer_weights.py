"""What calibration finds in the weights of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.weights import channel_maxima, weight_scales
from twinquant.errors import ModelContentError
from twinquant.registry.float_model import LayerWeight, Sliceable

__all__ = ["input_channel_maxima", "scales_of"]

Float32Array = npt.NDArray[np.float32]


def scales_of(
    weight: LayerWeight, num_bits: int, *, channel_wise: bool, gates: int, balance: Float32Array | None, label: str
) -> Float32Array:
    """Return the scales of a weight.

    Args:
        weight: the weight.
        num_bits: bits of its integers.
        channel_wise: one scale per output channel (RNN: per row), else one for the whole (RNN: per gate).
        gates: gates of an RNN, 0 for other layers.
        balance: float32 `(Cin,)`: what the weight is multiplied by first; None: nothing.
        label: what an error calls the weight.

    Raises:
        ModelContentError: the weight holds NaN or infinity, or values that are too large.
    """
    factors = None if balance is None else _spread(weight, balance)
    try:
        if not channel_wise:
            parts = _cut(weight.values, gates) if gates else [weight.values]
            return np.concatenate([weight_scales(part, num_bits, factors=factors) for part in parts])
        if weight.out_axis == 0 or weight.groups == 1:
            return weight_scales(weight.values, num_bits, weight.out_axis, factors=factors)
        groups = _cut(weight.values, weight.groups)
        split = [None] * weight.groups if factors is None else np.split(factors, weight.groups)
        return np.concatenate(
            [weight_scales(part, num_bits, 1, factors=own) for part, own in zip(groups, split, strict=True)]
        )
    except ModelContentError as error:
        raise ModelContentError(f"{label}: {error}") from error


def input_channel_maxima(weight: LayerWeight, label: str) -> Float32Array:
    """Return the largest magnitude for each input channel: float32 `(Cin,)`.

    Raises:
        ModelContentError: the weight holds NaN or infinity.
    """
    try:
        if weight.out_axis == 1:
            return channel_maxima(weight.values, (0,))
        return np.concatenate([channel_maxima(part, (1,)) for part in _cut(weight.values, weight.groups)])
    except ModelContentError as error:
        raise ModelContentError(f"{label}: {error}") from error


def _spread(weight: LayerWeight, balance: Float32Array) -> Float32Array:
    """Shape balance factors so that they broadcast over a weight."""
    if weight.out_axis == 1:
        return balance.reshape(-1, 1, 1)
    rows = np.repeat(balance.reshape(weight.groups, -1), weight.values.shape[0] // weight.groups, axis=0)
    return rows[:, :, np.newaxis]


def _cut(values: Sliceable, parts: int) -> list[Sliceable]:
    """Cut a weight into equal parts along its first axis."""
    rows = values.shape[0] // parts
    return [values] if parts == 1 else [_Rows(values, part * rows, rows) for part in range(parts)]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Some rows of a weight."""

    values: Sliceable
    start: int
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.values.shape[1:])

    def __getitem__(self, where: tuple[slice, ...], /) -> Any:
        first, last, _ = where[0].indices(self.count)
        return self.values[slice(self.start + first, self.start + last), where[1], where[2]]
