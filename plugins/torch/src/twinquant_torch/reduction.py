"""Reducing activations on their device to what a station needs of them."""

from __future__ import annotations

import torch

from twinquant.calibration.station import Station

__all__ = ["reduced"]


def reduced(tensor: torch.Tensor, station: Station) -> torch.Tensor:
    """Return fewer values that leave a station in the same state, or all of them where it needs them.

    Ranges need both ends only; balance factors both ends of every channel. Other algorithms count values, and get them.
    """
    watch = station.watch
    if not tensor.numel():
        return tensor
    if watch.migration_strength is not None and station.balance is None:
        channels = tensor.movedim(watch.channel_axis % tensor.ndim, 0)
        rows = channels.reshape(channels.shape[0], -1)
        return torch.stack([rows.amin(1), rows.amax(1)])  # channels are on axis 1, which is the last one, too
    if watch.options.algorithm == "minmax" and station.balance is None:
        return torch.stack(torch.aminmax(tensor))
    return tensor
