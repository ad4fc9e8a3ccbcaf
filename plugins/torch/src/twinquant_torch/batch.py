"""What one batch shows of a model, until it is known that the model got through it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from twinquant.calibration.batches import errors_about
from twinquant.calibration.observer import Accumulated
from twinquant.calibration.station import Station
from twinquant.errors import CalibrationError, TwinQuantError
from twinquant.registry import Tap
from twinquant_torch.reduction import Reduced, observe, reduced

__all__ = ["BatchValues"]

_MOST_WAITING = 128 << 20
"""Bytes of values that wait; what comes after them is observed at once, by stations of the batch's own."""


class BatchValues:
    """Takes the values of taps while a model runs, and shows them to the stations when it has returned.

    Models that are run by several threads give their values to one object.

    Args:
        stations: what observes.
        number: which batch, from 0, for messages.
        direct: whether the stations observe at once: where a failure ends the calibration anyway.
    """

    def __init__(self, stations: Sequence[Station], number: int, *, direct: bool = False) -> None:
        self._stations: Mapping[Tap, Station] = {s.watch.tap: s for s in stations if not s.finished}
        self._number, self._direct = number, direct
        self._waiting: list[tuple[Station, Reduced]] = []
        self._nbytes = 0
        self._forks: dict[Tap, Station] = {}
        self._wrong: TwinQuantError | None = None
        self._lock = threading.Lock()

    @property
    def taps(self) -> set[Tap]:
        """Where values are wanted."""
        return set(self._stations)

    def receive(self, tap: Tap, tensor: torch.Tensor) -> None:
        """Take a tensor's values. Never raises, as a model may catch exceptions of its parts."""
        station = self._stations[tap]
        try:
            values = reduced(tensor, station)
            if isinstance(values, np.ndarray) and tensor.device.type == "cpu" and not self._direct:
                # The model may go on and change the tensor in place.
                values = values.copy()
        except (RuntimeError, TypeError) as error:  # there are tensors without values, and types that no CPU has
            self._wrong = self._wrong or CalibrationError(
                f"{station.watch.label}, batch {self._number + 1}: its values cannot be read "
                f"({' '.join(str(error).split())}); if torch.vmap or its likes call the layer, call it otherwise; or "
                "leave it out"
            )
            return
        nbytes = values.stage.nbytes if isinstance(values, Accumulated) else values.nbytes
        with self._lock:
            if self._direct:
                self._observe(station, values)
            elif self._nbytes + nbytes <= _MOST_WAITING:
                self._waiting.append((station, values))
                self._nbytes += nbytes
            else:
                if tap not in self._forks:
                    self._forks[tap] = station.fork()
                self._observe(self._forks[tap], values)

    def commit(self) -> None:
        """Show the stations what the batch holds. What they accumulate does not depend on the order.

        Raises:
            CalibrationError: values are NaN or infinite.
        """
        for station, values in self._waiting:
            self._observe(station, values)
        self._waiting.clear()
        if self._wrong is not None:
            raise self._wrong
        for tap, fork in self._forks.items():
            self._stations[tap].merge(fork)

    def _observe(self, station: Station, values: Reduced) -> None:
        try:
            with errors_about(f"{station.watch.label}, batch {self._number + 1}"):
                observe(station, values)
        except TwinQuantError as error:
            self._wrong = self._wrong or error
