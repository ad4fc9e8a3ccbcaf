"""Reducing activations on their device to what a station needs of them."""

from __future__ import annotations

import math

import numpy as np
import torch

from twinquant.calibration.extremes import Extremes
from twinquant.calibration.observer import Accumulated
from twinquant.calibration.station import Station
from twinquant.registry.float_model import Array
from twinquant_torch.device_stages import ends_of, filled
from twinquant_torch.device_trial import counts_as_numpy
from twinquant_torch.tensors import to_array

__all__ = ["Reduced", "accumulated", "observe", "reduced"]

Reduced = Array | Accumulated
"""What leaves the device: what was accumulated there, or values that leave a station in the same state as all would."""

_FEW = 1 << 18
"""The bytes of so many values are about those of the largest histogram; fewer are moved as they are."""


def reduced(tensor: torch.Tensor, station: Station) -> Reduced:
    """Return what a station needs of an activation.

    Balance factors need both ends of every channel, ranges both ends of all values; other algorithms count, which the
    device does. On a CPU the values are in NumPy's reach already, and the stations count faster.

    Args:
        tensor: any float type, any shape, on any device.
        station: decides by the pass it is in; left as it is.
    """
    values = tensor.detach()
    if not values.numel():
        return to_array(values)
    if station.channel_ends:
        return _channel_ends(values, station.watch.channel_axis)
    part = accumulated(values, station) if counts_there(values.device) else None
    return to_array(values) if part is None else part


def _channel_ends(values: torch.Tensor, axis: int) -> Array:
    """Return both ends of every channel, with the channels on the axis where they were."""
    if not -values.ndim <= axis < values.ndim or values.ndim < 2:
        return to_array(values)
    channels = values.movedim(axis, 0)
    rows = channels.reshape(channels.shape[0], -1)
    shape = [1] * values.ndim
    shape[axis] = -1
    ends = [to_array(end).reshape(shape) for end in (rows.amin(1), rows.amax(1))]
    return np.concatenate(ends, 1 if axis % values.ndim == 0 else 0)


def counts_there(device: torch.device) -> bool:
    """Tell whether values are counted on their device: not on a CPU, nor where that would give anything else."""
    return device.type != "cpu" and counts_as_numpy(device)


def observe(station: Station, values: Reduced) -> None:
    """Show a station what `reduced` returned for it."""
    if isinstance(values, Accumulated):
        station.add(values)
    else:
        station.observe(values)


def accumulated(values: torch.Tensor, station: Station) -> Accumulated | None:
    """Return what an activation comes to in the station's pass; None: it is better moved as it is.

    So are values that are not finite, and those with other channels than there are balance factors: the station says
    what is wrong with them.
    """
    stage = station.stage
    if stage is None or (values.numel() < _FEW and not isinstance(stage, Extremes)):
        return None
    multipliers = None
    if station.balance is not None:
        axis = station.watch.channel_axis
        if not -values.ndim <= axis < values.ndim or values.shape[axis] != station.balance.size:
            return None
        multipliers = station.multipliers(values.ndim)
    try:
        if multipliers is not None:
            values = values.float() * torch.from_numpy(multipliers).to(values.device)
        low, high = ends_of(values)
        if not (math.isfinite(low) and math.isfinite(high)):
            return None
        filled_stage = filled(stage, values, low, high)
    except torch.cuda.OutOfMemoryError:  # the model needs the device more; there is room for a copy elsewhere
        return None
    return None if filled_stage is None else Accumulated(filled_stage, values.numel(), low, high)
