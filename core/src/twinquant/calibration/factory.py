"""From options to observers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from twinquant.calibration.entropy import EntropyObserver
from twinquant.calibration.hfmg import HfmgObserver
from twinquant.calibration.ifmr import IfmrObserver
from twinquant.calibration.minmax import MinMaxObserver
from twinquant.calibration.mse import MseObserver
from twinquant.calibration.observer import Observer
from twinquant.calibration.options import ObserverOptions
from twinquant.calibration.percentile import PercentileObserver
from twinquant.errors import ArgumentError

__all__ = ["ALGORITHMS", "ObserverOptions", "make_observer", "most_passes", "restore_observer"]

ALGORITHMS: dict[str, type[Observer]] = {
    "ifmr": IfmrObserver,
    "hfmg": HfmgObserver,
    "minmax": MinMaxObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
    "mse": MseObserver,
}


def make_observer(options: ObserverOptions) -> Observer:
    """Return a new observer for one activation.

    Raises:
        ArgumentError: the algorithm is unknown.
    """
    if options.algorithm not in ALGORITHMS:
        raise ArgumentError(f"algorithm: got {options.algorithm!r}, expected one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[options.algorithm](options)


def most_passes(options: ObserverOptions) -> int:
    """Return how many passes over the data an observer may need, without making one."""
    return len(ALGORITHMS[options.algorithm].stages)


def restore_observer(options: ObserverOptions, state: Mapping[str, npt.NDArray[Any]]) -> Observer:
    """Return the observer that a state was taken of.

    Args:
        options: the options of that observer.
        state: what its `state()` returned, or `numpy.load` of the file it was stored in.

    Raises:
        ArgumentError: the state is another algorithm's.
    """
    observer = make_observer(options)
    observer.restore(state)
    return observer
