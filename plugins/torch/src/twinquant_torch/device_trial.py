"""Trying whether a device counts as NumPy does."""

from __future__ import annotations

import functools
import logging

import numpy as np
import numpy.typing as npt
import torch

from twinquant.calibration.factory import ALGORITHMS, make_observer
from twinquant.calibration.observer import Accumulated, Observer
from twinquant.calibration.options import ObserverOptions
from twinquant_torch.device_stages import filled

__all__ = ["counts_as_numpy", "objection_to"]

_logger = logging.getLogger(__name__)

_COUNT = 1 << 14


@functools.lru_cache
def counts_as_numpy(device: torch.device) -> bool:
    """Tell whether what is accumulated on a device is what a CPU accumulates, bit for bit, in every pass there is.

    Some devices have no float64, some take the smallest numbers for 0. Activations leave such a device whole, and a
    warning says so, once.
    """
    reason = objection_to(device)
    if reason is not None:
        _logger.warning("device %s: %s; activations are moved off it whole, which is slower", device, reason)
    return reason is None


def objection_to(device: torch.device) -> str | None:
    """Return why values must not be counted on a device; None: they may."""
    for values in _trial_values():
        tensor = torch.from_numpy(values).to(device)
        for options in _trial_options():
            try:
                exact = _is_exact(options, values, tensor)
            except (RuntimeError, TypeError) as error:  # what devices say of operations and types they have not
                return f"it cannot count for {options.algorithm} ({' '.join(str(error).split())})"
            if not exact:
                return f"it counts for {options.algorithm} what a CPU does not"
    return None


def _trial_values() -> list[npt.NDArray[np.float32]]:
    """Return values on both sides of 0, many of them ties of rounding, and values that are near 0 only."""
    generator = np.random.default_rng(0)
    spread = generator.normal(size=_COUNT).astype(np.float32)
    spread[::3] = np.rint(spread[::3] * 64) / 128
    spread[::7] = np.maximum(spread[::7], 0)
    return [spread, spread * np.float32(1e-39), -spread * np.float32(1e6)]


def _trial_options() -> list[ObserverOptions]:
    """Return what leads through every stage: limits that lie deep inside the data, candidates that are alike."""
    plain = [ObserverOptions(algorithm=name) for name in ALGORITHMS]  # type: ignore[arg-type]  # the keys are these
    return [*plain, ObserverOptions(num_bits=16), ObserverOptions(max_percentile=0.6, min_percentile=0.6)]


def _is_exact(options: ObserverOptions, values: npt.NDArray[np.float32], tensor: torch.Tensor) -> bool:
    here, there = make_observer(options), make_observer(options)
    going_on = True
    while going_on:
        here.observe(values)
        assert there.stage is not None  # the pass is not over
        low, high = (end + 0.0 for end in torch.stack(torch.aminmax(tensor)).tolist())
        stage = filled(there.stage, tensor, low, high)
        if stage is None:
            return False
        there.add(Accumulated(stage, values.size, low, high))
        if not _equal(here, there):
            return False
        going_on = here.end_pass()
        if there.end_pass() != going_on:
            return False
    return True


def _equal(one: Observer, other: Observer) -> bool:
    mine, theirs = one.state(), other.state()
    return mine.keys() == theirs.keys() and all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
