"""Activations whose range says little: the same value everywhere, or nothing but values too close to 0."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from twinquant.calibration.station import Station
from twinquant.errors import CalibrationError
from twinquant.numerics.ranges import SMALLEST_SCALE

__all__ = ["check_ranges"]

_log = logging.getLogger(__name__)

_HALF_A_STEP = 0.5


def check_ranges(stations: Sequence[Station], batch_num: int, *, way_out: str, allow_constant: bool = False) -> None:
    """Tell of activations without a range, an error or a warning each, and of those too small for a scale, a warning.

    Args:
        stations: finished.
        batch_num: how many batches they saw.
        way_out: what the error says can be done with layers whose activations have to be constant.
        allow_constant: warn of constant activations only.

    Raises:
        CalibrationError: there are such activations, and they are not allowed; all of them are named.
    """
    constant = [station for station in stations if station.constant is not None]
    if constant and not allow_constant:
        listed = "; ".join(f"{station.watch.label}: {station.constant:g}" for station in constant)
        raise CalibrationError(
            f"every value of an activation is the same, in all {batch_num} batches, which gives no range: {listed}. "
            f"Check the data. Dead branches of a network have such activations: {way_out}"
        )
    for station in constant:
        _log.warning(
            "%s: every value of the activation is %g, in all %d batches; that gives no range, and the factors say "
            "little",
            station.watch.label,
            station.constant,
            batch_num,
        )
    for station in stations:
        _tell_if_tiny(station)


def _tell_if_tiny(station: Station) -> None:
    """Warn of values that all lie so close to 0 that their scale is replaced by 1: all of them become 0."""
    low, high = station.range
    # An activation that is the same everywhere has been told of.
    if low < high and station.factors().scale == 1.0 and max(-low, high) < _HALF_A_STEP:
        _log.warning(
            "%s: the values of the activation lie between %g and %g, too close to 0: a scale below %g counts as 1, "
            "which rounds all of them to 0. Scale the layer's input up in the model, or leave the layer out",
            station.watch.label,
            low,
            high,
            SMALLEST_SCALE,
        )
