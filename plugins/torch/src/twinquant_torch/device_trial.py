"""Trying whether a device counts as NumPy does."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twinquant.calibration.factory import ALGORITHMS, make_observer
from twinquant.calibration.observer import Accumulated, Observer
from twinquant.calibration.options import ObserverOptions
from twinquant_torch.device_stages import ends_of, filled

__all__ = ["counts_as_numpy", "objection_to"]

_logger = logging.getLogger(__name__)

Float32Array = npt.NDArray[np.float32]

_COUNT = 1 << 14


def counts_as_numpy(device: torch.device) -> bool:
    """Tell whether what is accumulated on a device is what a CPU accumulates, bit for bit, in every pass there is.

    Some devices have no float64, some take the smallest numbers for 0. Activations leave such a device whole, and a
    warning says so, once. Where there is no memory for a trial just now, there is none for counting.
    """
    try:
        return _is_trusted(device)
    except torch.cuda.OutOfMemoryError:
        return False


@functools.lru_cache
def _is_trusted(device: torch.device) -> bool:
    reason = objection_to(device)
    if reason is not None:
        _logger.warning("device %s: %s; activations are moved off it whole, which is slower", device, reason)
    return reason is None


def objection_to(device: torch.device) -> str | None:
    """Return why values must not be counted on a device; None: they may.

    Raises:
        torch.cuda.OutOfMemoryError: the device has no memory left to find out.
    """
    for trial in _TRIALS:
        values = trial.make()
        tensor = torch.from_numpy(values).to(device)
        for options in _trial_options():
            try:
                exact = _is_exact(options, values, tensor, one_pass=trial.one_pass)
            except torch.cuda.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError) as error:  # what devices say of operations and types they have not
                return f"it cannot count for {options.algorithm} ({' '.join(str(error).split())})"
            if not exact:
                return f"it counts for {options.algorithm} what a CPU does not"
    return None


def _spread() -> Float32Array:
    """Values on both sides of 0, many of them ties of rounding."""
    values = np.random.default_rng(0).normal(size=_COUNT).astype(np.float32)
    values[::3] = np.rint(values[::3] * 64) / 128
    values[::7] = np.maximum(values[::7], 0)
    return values


@dataclass(frozen=True, slots=True)
class _Trial:
    """Values that are counted.

    Attributes:
        make: makes them.
        one_pass: they have no scale, so there is no second pass.
    """

    make: Callable[[], npt.NDArray[Any]]
    one_pass: bool = False


_TRIALS = (
    _Trial(_spread),
    _Trial(lambda: _spread() * np.float32(1e-39)),
    _Trial(lambda: -_spread() * np.float32(1e6)),
    _Trial(lambda: _spread().astype(np.float16)),
    _Trial(lambda: np.full(_COUNT, 0.3, np.float32)),
    _Trial(lambda: _spread() * np.float32(3e37), one_pass=True),
)


def _trial_options() -> list[ObserverOptions]:
    """Return what leads through every stage: limits that lie deep inside the data, candidates that are alike."""
    plain = [ObserverOptions(algorithm=name) for name in ALGORITHMS]  # type: ignore[arg-type]  # the keys are these
    return [*plain, ObserverOptions(num_bits=16), ObserverOptions(max_percentile=0.6, min_percentile=0.6)]


def _is_exact(
    options: ObserverOptions, values: npt.NDArray[Any], tensor: torch.Tensor, *, one_pass: bool = False
) -> bool:
    here, there = make_observer(options), make_observer(options)
    going_on = True
    while going_on:
        here.observe(values)
        assert there.stage is not None  # the pass is not over
        low, high = ends_of(tensor)
        stage = filled(there.stage, tensor, low, high)
        if stage is None:
            return False
        there.add(Accumulated(stage, values.size, low, high))
        if not _equal(here, there):
            return False
        if one_pass:
            return True
        going_on = here.end_pass()
        if there.end_pass() != going_on:
            return False
    return True


def _equal(one: Observer, other: Observer) -> bool:
    mine, theirs = one.state(), other.state()
    return mine.keys() == theirs.keys() and all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
