"""What one calibration layer has seen: its batches, or, where one pass is enough, what is left of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.batches import errors_about
from twinquant.calibration.station import Station
from twinquant.calibration.watches import Watch
from twinquant_caffe.modified.job import CalibrationJob

__all__ = ["TapSpool"]

Array = npt.NDArray[Any]

_BATCH, _STATE = ".npy", ".npz"
_KEPT_STATES = 2
"""The last state, and the one before it: a net that was killed has layers that are one batch ahead of the others."""


class TapSpool:
    """The files of one calibration layer: number n is batch n, or the state after it; from 0.

    Args:
        job: the calibration.
        index: which of its watches.
    """

    def __init__(self, job: CalibrationJob, index: int) -> None:
        self.watch: Watch = job.watches[index]
        self._folder = job.folder / f"{index:05d}"
        self._one_pass = Station(self.watch).most_passes == 1 and not job.keep_batches

    @property
    def count(self) -> int:
        """How many batches were seen."""
        return max((int(file.stem) + 1 for file in self._files()), default=0)

    def add(self, values: Array) -> None:
        """Take one batch.

        Raises:
            CalibrationError: it holds NaN or infinity.
            OSError: the disk is full or not writable.
        """
        number = self.count
        self._folder.mkdir(exist_ok=True)
        if not self._one_pass:
            with errors_about(f"{self.watch.label}, batch {number + 1}"):
                Station(self.watch).observe(values)
            self._write(number, _BATCH, lambda file: np.save(file, values))
            return
        station = self._station()
        with errors_about(f"{self.watch.label}, batch {number + 1}"):
            station.observe(values)
        state: dict[str, Any] = station.state()
        self._write(number, _STATE, lambda file: np.savez(file, **state))
        self._file(number - _KEPT_STATES, _STATE).unlink(missing_ok=True)

    def cut(self, count: int) -> None:
        """Forget all batches but the first ones."""
        for file in self._files():
            if int(file.stem) >= count:
                file.unlink()

    def batches(self) -> Iterator[Array]:
        """Read the batches in their order; there are none where one pass is enough."""
        for number in range(self.count):
            yield np.load(self._file(number, _BATCH), allow_pickle=False)

    def finished_station(self) -> Station:
        """Return the station that has gone through all batches, as often as it needs.

        Raises:
            CalibrationError: the values give no factors.
        """
        station = self._station()
        with errors_about(self.watch.label):
            if self._one_pass:
                station.end_pass(_no_maxima)
            while not station.finished:
                for values in self.batches():
                    station.observe(values)
                station.end_pass(_no_maxima)
        return station

    def _station(self) -> Station:
        """Return a station that has seen what was seen, where states are kept; else a new one."""
        state = self._file(self.count - 1, _STATE)
        if not state.is_file():
            return Station(self.watch)
        with np.load(state, allow_pickle=False) as stored:
            return Station.restored(self.watch, dict(stored))

    def _files(self) -> Iterator[Path]:
        return (file for file in self._folder.glob("*.np[yz]"))

    def _file(self, number: int, ending: str) -> Path:
        return self._folder / f"{number:08d}{ending}"

    def _write(self, number: int, ending: str, write: Any) -> None:
        part = self._folder / "unfinished.part"
        with part.open("wb") as file:
            write(file)
        part.replace(self._file(number, ending))


def _no_maxima(layer: str) -> npt.NDArray[np.float32]:
    raise ValueError(f"layer {layer!r} is balanced, which no Caffe layer is")
